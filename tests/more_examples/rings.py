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


def _puts() -> list[Example]:
    def put(cache: Any, new: Any, places: Any, *layer: Any, axis: int = 1) -> Any:
        return Traced["cache_put"](cache, new, places, *layer, axis=axis, mode=CLIP)

    rows = jnp.array([[2], [0]])
    return [
        (
            lambda r, new: put(_around(r, 2, 4), new, rows, 1, axis=2),
            ("f32[3,2,4,5]", "f32[2,1,5]"),
        ),
        # near misses: several places, another axis, no ring
        *(
            (left_alone(example), types)
            for example, types in (
                (
                    lambda r, new: put(_around(r), new, jnp.array([1, 2])),
                    (_RING, "f32[2,2,3]"),
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


MORE: dict[str, list[Example]] = {
    "round_of_ring": [
        (left_alone(lambda r: Traced["first_round"](r, axis=1, size=4)), ("f32[2,8,3]",)),
        (
            left_alone(lambda r: Traced["first_round"](_around(r), axis=1, size=3)),
            (_RING,),
        ),
    ],
    "write_of_ring": _writes(),
    "put_of_ring": _puts(),
    "attend_to_ring": _attends(),
}
EQUAL: dict[str, dict[str, str]] = {}
