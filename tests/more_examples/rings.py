"""For the rules of caches that are kept as rings."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from dialect.ops import rings  # noqa: F401  (defines them)
from dialect.ops.nn import Traced
from tests.more_examples.forms import CLIP, Example, left_alone

_RING = "f32[2,4,3]"


def _around(ring: Any, axis: int = 1, context: int = 8) -> Any:
    return Traced["around"](ring, axis=axis, context=context, size=ring.shape[axis])


def _writes() -> list[Example]:
    return [
        (
            lambda r, new: Traced["cache_write"](_around(r, 2, 4), new, 1, 3, axes=(0, 2)),
            ("f32[2,3,4,5]", "f32[1,3,1,5]"),
        ),
        # near misses: several places, all places of some layers, no ring
        *(
            (left_alone(example), types)
            for example, types in (
                (
                    lambda r, new: Traced["cache_write"](_around(r), new, 1, axes=(1,)),
                    (_RING, "f32[2,2,3]"),
                ),
                (
                    lambda r, new: Traced["cache_write"](_around(r), new, 1, axes=(0,)),
                    (_RING, "f32[1,8,3]"),
                ),
                (
                    lambda r, new: Traced["cache_write"](r, new, 1, axes=(1,)),
                    (_RING, "f32[2,1,3]"),
                ),
            )
        ),
    ]


def _chunks() -> list[Example]:
    def write(cache: Any, new: Any, *places: Any, axes: tuple[int, ...] = (1,)) -> Any:
        return Traced["cache_write"](cache, new, *places, axes=axes)

    chunk = "f32[2,2,3]"
    return [
        (
            lambda r, new: write(_around(r, 2, 4), new, 1, 2, axes=(0, 2)),
            ("f32[2,3,4,5]", "f32[1,3,2,5]"),
        ),
        # near misses: one place, another axis, several layers, no ring
        *(
            (left_alone(example), types)
            for example, types in (
                (lambda r, new: write(_around(r), new, 1), (_RING, "f32[2,1,3]")),
                (lambda r, new: write(_around(r), new, 1, axes=(2,)), (_RING, "f32[2,8,2]")),
                (
                    lambda r, new: write(_around(r, 2), new, 1, 2, axes=(0, 2)),
                    ("f32[3,3,4,5]", "f32[2,3,2,5]"),
                ),
                (lambda r, new: write(r, new, 1), (_RING, chunk)),
            )
        ),
    ]


def _puts() -> list[Example]:
    def put(cache: Any, new: Any, places: Any, *layer: Any, axis: int = 1) -> Any:
        return Traced["cache_put"](cache, new, places, *layer, axis=axis, mode=CLIP)

    rows = jnp.array([[2], [0]])
    return [
        (
            lambda r, new: put(_around(r, 2, 4), new, rows, 1, axis=2),
            ("f32[3,2,4,5]", "f32[2,1,5]"),
        ),
        # near misses: more places than it has, another axis, no ring
        *(
            (left_alone(example), types)
            for example, types in (
                (
                    lambda r, new: put(_around(r), new, jnp.arange(5)),
                    (_RING, "f32[2,5,3]"),
                ),
                (
                    lambda r, new: put(_around(r), new, jnp.array([1]), axis=2),
                    (_RING, "f32[2,8,1]"),
                ),
                (lambda r, new: put(r, new, rows), (_RING, "f32[2,1,3]")),
            )
        ),
    ]


def _attends() -> list[Example]:
    def attend(*arrays: Any, window: int = 4, more: str = "", **how: Any) -> Any:
        axes = f"b k, b s k, b s v, 1{more} -> b v"
        return Traced["attend"](*arrays, axes=axes, window=window, **{"given": "last", **how})

    last, types = jnp.array([6]), ("f32[2,3]", _RING)
    every_query = "b t k, b s k, b s v, t -> b t v"
    alone = (
        (lambda q, r: attend(q, _around(r), _around(r), last, window=3), types),
        (lambda q, r: attend(q, _around(r), _around(r), last, sinks=1), types),
        (lambda q, r: attend(q, _around(r), _around(r), last, blocks=(1, 4)), types),
        (lambda q, r, v: attend(q, _around(r), v, last), (*types, "f32[2,8,3]")),
        (lambda q, r: attend(q, *[jnp.concatenate([r, r], 1)] * 2, last), types),
        (
            lambda q, r, x: attend(
                q, _around(r), _around(r), last, x, more=", b s", given="last bias"
            ),
            (*types, "f32[2,8]"),
        ),
        (
            lambda q, r: attend(
                q, _around(r), _around(r), last, jnp.array([5]), more=", 1", given="last first"
            ),
            types,
        ),
        (
            lambda q, r: Traced["attend"](
                q, _around(r), _around(r), last, axes="b k, b s k, b s v, 1 -> b v", given="last"
            ),
            types,
        ),
    )
    return [
        (
            lambda q, r: Traced["attend"](
                q,
                _around(r),
                _around(r),
                jnp.array([2, 5, 7]),
                axes=every_query,
                given="last",
                window=4,
            ),
            ("f32[2,3,3]", _RING),
        ),
        *((left_alone(example), types) for example, types in alone),
    ]


def _attends_to_chunks() -> list[Example]:
    axes = "b t k, b s k, b s v, t"

    def attend(q: Any, k: Any, v: Any, *more: Any, axes: str = axes, **how: Any) -> Any:
        how = {"given": "last", "window": 3, **how}
        return Traced["attend"](q, k, v, *more, axes=f"{axes} -> b t v", **how)

    last, types = jnp.array([5, 6]), ("f32[2,2,3]", _RING)
    rows = jnp.array([[4, 5], [6, 7]])
    return [
        (
            lambda q, r, x: attend(
                q, _around(r), _around(r), last, x, axes=axes + ", n", given="last sink"
            ),
            (*types, "f32[1]"),
        ),
        (
            lambda q, r: attend(q, _around(r), _around(r), rows, axes=axes[:-1] + "b t"),
            types,
        ),
        # near misses: fewer places, sinks, blocks, two rings, other masks, no window, a position
        # that is no integer, another axis
        *(
            (left_alone(example), (*types, *more))
            for example, *more in (
                (lambda q, r: attend(q, _around(r), _around(r), last, window=5),),
                (lambda q, r: attend(q, _around(r), _around(r), last, sinks=1),),
                (lambda q, r: attend(q, _around(r), _around(r), last, blocks=(2, 4)),),
                (lambda q, r, v: attend(q, _around(r), _around(v), last), "f32[2,2,3]"),
                (
                    lambda q, r: attend(
                        q,
                        _around(r),
                        _around(r),
                        last,
                        jnp.array([True, False]),
                        axes=axes + ", t",
                        given="last mask",
                    ),
                ),
                (lambda q, r: attend(q, _around(r), _around(r), last, window=None),),
                (lambda q, r: attend(q, _around(r), _around(r), jnp.array([5.0, 6.5])),),
                (
                    lambda q, r: attend(
                        q, _around(r), _around(r), last, last, axes=axes + ", t", given="last first"
                    ),
                ),
            )
        ),
        (
            left_alone(lambda q, r: attend(q, _around(r, 2), _around(r, 2), last)),
            ("f32[2,2,8]", _RING),
        ),
    ]


MORE: dict[str, list[Example]] = {
    "round_of_ring": [
        (left_alone(lambda r: Traced["first_round"](r, axis=1, size=4)), ("f32[2,8,3]",)),
        (
            left_alone(lambda r: Traced["first_round"](_around(r), axis=1, size=3)),
            (_RING,),
        ),
    ],
    "write_of_ring": _writes(),
    "chunk_of_ring": _chunks(),
    "put_of_ring": _puts(),
    "attend_to_ring": _attends(),
    "attend_to_chunks": _attends_to_chunks(),
}
_IS_TOLD = "it only says why it did not fire"
EQUAL: dict[str, dict[str, str]] = {
    "attend_to_chunks": {
        "`size <= window`": "where both are equal, attend_to_ring fires",
        "without `read[1] == op['window']`": "where both are equal, either rule is right",
        "always `None`": _IS_TOLD,
        "never `None`": _IS_TOLD,
    },
}
