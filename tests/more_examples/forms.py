"""For the rules that change forms: caching, padding, planning, quantised products, staging."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from dialect.arrays import primitives
from dialect.ops import sharding
from dialect.ops.vocabulary import Traced
from rewrite.ir import Graph, Symbol
from tests.scaled import in_steps, scaled

Example = tuple[Callable[..., Any], tuple[str, ...]]
CLIP = Symbol("GatherScatterMode.CLIP")


@dataclass(frozen=True)
class Word:
    """An op of this name, of which this is said."""

    name: str
    said: dict[str, Any]

    def is_in(self, graph: Graph) -> bool:
        """Whether a graph has it."""
        ops = (op for op, _ in graph.walk() if op.name == self.name)
        return any(self.said.items() <= dict(op.attrs).items() for op in ops)


def left_alone(function: Callable[..., Any]) -> Callable[..., Any]:
    """A program on which a rule must not fire, though its numbers would not tell: it costs more, or
    the rule approximates."""

    def alone(*arrays: Any) -> Any:
        return function(*arrays)

    alone.left_alone = True
    return alone


def making(name: str, function: Callable[..., Any], **said: Any) -> Callable[..., Any]:
    """A program of which a rule must leave an op of this name, of which this is said."""

    def made(*arrays: Any) -> Any:
        return function(*arrays)

    made.makes = Word(name, said)
    return made


constrain = primitives.call("constrain", sharding.constrain)


# Heads that are merged and spread.


def _spread(x: Any, axis: int = 1, count: int = 2, by: str = "mean") -> Any:
    return Traced["spread_heads"](x, axis=axis, count=count, by=by)


def _merge(x: Any, axis: int = 1, count: int = 2, by: str = "mean") -> Any:
    return Traced["merge_heads"](x, axis=axis, count=count, by=by)


def _writes() -> list[Example]:
    def write(c: Any, new: Any, *places: int, axes: tuple[int, ...]) -> Any:
        return Traced["cache_write"](c, new, *places, axes=axes)

    return [
        (
            left_alone(lambda c, new: write(_spread(c), _spread(new), 2, axes=(1,))),
            ("f32[2,3,8]", "f32[2,1,8]"),
        ),
        (
            left_alone(lambda c, new: write(_spread(c), _spread(new), 1, 2, axes=(0, 1))),
            ("f32[2,3,8]", "f32[1,1,8]"),
        ),
        (
            lambda c, new: write(_spread(c, 2, 3), _spread(new, 2, 3), 1, 2, axes=(0, 1)),
            ("f32[2,3,8]", "f32[1,1,8]"),
        ),
        (lambda c, new: write(c + 1.0, new, 1, axes=(1,)), ("f32[2,3,8]", "f32[2,1,8]")),
    ]


def _puts_of_spread() -> list[Example]:
    def put(axis: int, places: Any, *layer: int, at: int) -> Callable[..., Any]:
        first = len(layer)
        return lambda c, new: Traced["cache_put"](
            _spread(c, at), _spread(new, at - first), places, *layer, axis=axis, mode=CLIP
        )

    row, rows = jnp.array([2]), jnp.full((4, 1), 2)
    stacked = ("f32[2,4,8,2]", "f32[4,1,2]")
    return [
        # a place for each sequence, and one for all; of one layer of a stack
        (put(2, jnp.full((3, 1), 2), 1, at=3), ("f32[2,3,8,2]", "f32[3,1,2]")),
        (put(1, row, at=0), ("f32[2,8,2]", "f32[2,1,2]")),
        (put(1, row, at=2), ("f32[2,8,2]", "f32[2,1,2]")),
        (put(2, row, 1, at=1), ("f32[2,2,8,2]", "f32[2,1,2]")),
        # along the axis of places, of sequences, of layers
        (left_alone(put(1, jnp.array([1, 2]), at=1)), ("f32[2,4,2]", "f32[2,1,2]")),
        (left_alone(put(1, rows, at=0)), ("f32[2,8,2]", "f32[2,1,2]")),
        (left_alone(put(2, rows, 1, at=1)), ("f32[2,2,8,2]", "f32[2,1,2]")),
        (
            left_alone(
                lambda c, new: Traced["cache_put"](_spread(c, 0), new, rows, 1, axis=2, mode=CLIP)
            ),
            stacked,
        ),
        (
            lambda c, new: Traced["cache_put"](c + 1.0, new, rows, 1, axis=2, mode=CLIP),
            stacked,
        ),
    ]


def _stacks(enter: Callable[..., Any], other: Callable[..., Any], types: Any) -> list[Example]:
    """Stacks of what is in one form, of that and something else, and along other axes."""
    return [
        (lambda *arrays: jnp.stack([enter(*arrays)]), types),
        *(
            (lambda *arrays, axis=axis: jnp.stack([enter(*arrays)] * 2, axis), types)
            for axis in range(4)
        ),
        (lambda *arrays: jnp.stack([enter(*arrays), other(*arrays)]), types),
        (lambda *arrays: jnp.stack([other(*arrays), enter(*arrays)]), types),
    ]


def _unstacks(enter: Callable[..., Any], types: Any) -> list[Example]:
    return [
        (lambda *arrays, axis=axis: jnp.unstack(enter(*arrays), axis=axis)[1], types)
        for axis in range(3)
    ]


def _attends_in_groups() -> list[Example]:
    def of(axes: str, k: int, v: int, counts: tuple[int, int] = (2, 2), given: str = "") -> Any:
        more = {"given": given} if given else {}
        return lambda q, x, y, *beside: Traced["attend"](
            q, _spread(x, k, counts[0]), _spread(y, v, counts[1]), *beside, axes=axes, **more
        )

    plain = "t h k, s h k, s h v -> t h v"
    types = ("f32[3,4,5]", "f32[7,2,5]", "f32[7,2,5]")
    one = ("f32[3,4,5]", "f32[7,1,5]", "f32[7,1,5]")
    beside = "t h k, s h k, s h v, h t s, 1 s -> t h v"
    more = ("f32[4,3,7]", "bool[1,7]")
    turned = "h k t, h s k, s v h -> t v h"
    return [
        # in letters that the groups would have, with what stands beside, in other orders
        (of("i h k, s h k, s h v -> i h v", 1, 1), types),
        (of(beside, 1, 1, given="bias mask"), (*types, *more)),
        (of(turned, 0, 2), ("f32[4,5,3]", "f32[2,7,5]", "f32[7,5,2]")),
        (
            of("b t h k, b s h k, b s h v -> b h t v", 2, 2),
            ("f32[2,3,4,5]", "f32[2,7,2,5]", "f32[2,7,2,5]"),
        ),
        # one head for all queries
        (of(plain, 1, 1, (4, 4)), one),
        (of(beside, 1, 1, (4, 4), given="bias mask"), (*one, *more)),
        (of(turned, 0, 2, (4, 4)), ("f32[4,5,3]", "f32[1,7,5]", "f32[7,5,1]")),
        # keys and values that differ, and what is no head of the queries
        (of(plain, 1, 1, (2, 4)), ("f32[3,4,5]", "f32[7,2,5]", "f32[7,1,5]")),
        (of(plain, 1, 2), ("f32[3,4,5]", "f32[7,2,5]", "f32[7,4,5]")),
        (of("t h k, s h k, h v s -> t h v", 1, 0), types[:2] + ("f32[2,5,7]",)),
        (of(plain, 0, 0), ("f32[3,4,5]", "f32[7,4,5]", "f32[7,4,5]")),
        (
            of("t h k, s h k, s h v, t s -> t h v", 0, 0, given="mask"),
            ("f32[3,4,5]", "f32[7,4,5]", "f32[7,4,5]", "bool[3,14]"),
        ),
        (of("t 1 k, s 1 k, s 1 v -> t 1 v", 1, 1, (1, 1)), ("f32[3,1,5]", *one[1:])),
        (
            lambda q, x, y: Traced["attend"](q, _spread(x), _spread(y) + 1.0, axes=plain),
            types,
        ),
    ]


def _merges() -> dict[str, list[Example]]:
    def contract(x: Any, w: Any) -> Any:
        return Traced["contract"](x, w, spec="b d, d h k -> b h k", dtype=Symbol("f32"))

    types = ("f32[3,5]", "f32[5,4,2]")
    batched = "b h d, h d k -> b h k"

    def rms(x: Any) -> Any:
        return Traced["rms_norm"](x, epsilon=1e-6)

    return {
        "first_of_each": [
            (lambda x, w: _merge(jnp.exp(contract(x, w))), types),
            (lambda x: _merge(rms(x), by="first"), ("f32[3,4]",)),
            (lambda x: _merge(rms(x), by="first"), ("f32[3,4,5]",)),
            (lambda x: _merge(x.reshape(3, 1, 5), count=1, by="first"), ("f32[3,5]",)),
        ],
        "merge_of_linear": [
            (left_alone(lambda x, w: _merge(contract(x, w), by="first")), types),
            (lambda x, w: _merge(_spread(x) / w), ("f32[3,2,5]", "f32[3,1,5]")),
            (left_alone(lambda x, w: _merge(w / _spread(x))), ("f32[3,2,5]", "f32[3,1,5]")),
            (left_alone(lambda x, w: _merge(w / _spread(x))), ("f32[3,2,5]", "f32[3,4,5]")),
            (lambda x, w: _merge(_spread(x) * w), ("f32[3,2,5]", "f32[3,1,5]")),
            (lambda x, w: _merge(w * _spread(x)), ("f32[3,2,5]", "f32[3,1,5]")),
            (left_alone(lambda x, w: _merge(_spread(x) * w)), ("f32[3,2,5]", "f32[3,4,5]")),
            (lambda x, w: _merge(_spread(x) + w), ("f32[3,2,5]", "f32[3,4,5]")),
            (
                left_alone(lambda x, w: _merge(_product(x, w, batched))),
                ("f32[3,4,5]", "f32[4,5,2]"),
            ),
            (left_alone(lambda x: _merge(jnp.exp(x))), ("f32[3,4,5]",)),
            (left_alone(lambda x: _merge(-x)), ("i32[3,4,5]",)),
            (left_alone(lambda x: _merge(rms(x))), ("f32[3,4]",)),
            (lambda x: _merge(x.reshape(3, 1, 5), count=1), ("f32[3,5]",)),
        ],
        "merge_of_part": [
            (
                lambda q, s: _merge(jnp.unstack(scaled(q, s), axis=0)[1]),
                ("i8[3,5,4]", "f32[3,1,4]"),
            ),
            (
                lambda q, s: _merge(jnp.unstack(scaled(q, s), axis=0)[1]),
                ("i8[3,5,4]", "f32[]"),
            ),
            (
                lambda q, s: _merge(jnp.unstack(q - s, axis=0)[1]),
                ("f32[3,5,4]", "f32[1,5,4]"),
            ),
            (lambda q: _merge(jnp.unstack(q + 1.0, axis=0)[0]), ("f32[1,5,4]",)),
        ],
        "merge_of_repeat": [
            (lambda x: _merge(jnp.broadcast_to(x, (3, 6, 2)), count=3), ("f32[3,1,2]",)),
            (lambda x: _merge(jnp.broadcast_to(x, (3, 6, 2)), count=6), ("f32[3,1,2]",)),
            (lambda x: _merge(jnp.broadcast_to(x, (3, 6, 2)), count=3), ("f32[3,6,2]",)),
            (lambda x: _merge(jnp.broadcast_to(x, (3, 6, 2)), count=3), ("f32[6,2]",)),
            (lambda x: _merge(jnp.broadcast_to(x, (3, 0, 2)), count=2), ("f32[3,1,2]",)),
            (lambda x: _merge(jnp.repeat(x, 2, axis=1)), ("f32[3,4,2]",)),
            (lambda x: _merge(jnp.repeat(x, 2, axis=1), count=4), ("f32[3,4,2]",)),
            (lambda x: _merge(jnp.repeat(x, 3, axis=1), count=2), ("f32[3,4,2]",)),
            (lambda x: _merge(jnp.repeat(x, 2, axis=1), by="first"), ("i32[3,4,2]",)),
            (lambda x: _merge(jnp.repeat(x, 2, axis=0)), ("f32[3,4,2]",)),
            (lambda x: _merge(jnp.tile(x, (1, 2, 1)), count=4), ("f32[3,4,2]",)),
            (lambda x: _merge(jnp.repeat(x, 2, axis=2).reshape(3, 16)), ("f32[3,4,2]",)),
        ],
        "merge_of_spread": [
            (lambda x: _merge(_spread(x), by="first"), ("i32[3,4,2]",)),
            (lambda x: _merge(_spread(x, 2)), ("f32[3,4,2]",)),
            (lambda x: _merge(_spread(x, count=4)), ("f32[3,4,2]",)),
        ],
        "merged_in_common": [
            (left_alone(lambda x, w: contract(x, _merge(w))), ("f32[3,5]", "f32[5,0,2]")),
            (
                left_alone(lambda x, w: contract(x, _merge(jnp.repeat(w, 2, axis=1), by="first"))),
                ("f32[3,5]", "f32[5,2,2]"),
            ),
            (
                left_alone(lambda x, w: _product(x, _merge(w, 0), "b h, h k -> b k")),
                ("f32[3,2]", "f32[4,5]"),
            ),
            (
                lambda x, w: _product(_merge(jnp.repeat(w, 2, axis=1)), x, "d h k, b d -> b h k"),
                ("f32[3,5]", "f32[5,2,2]"),
            ),
        ],
    }


def _dequantized(q: Any, s: Any, axis: int = 2) -> Any:
    return Traced["dequantize"](q, s, axes=(axis,), dtype=Symbol("f32"))


def _exact(q: Any) -> Any:
    """Numbers that quantisation keeps as they are."""
    return jnp.sign(q) * jnp.float32(127)


def _quantized_caches() -> dict[str, list[Example]]:
    cached = ("f32[2,3,4]", "i8[2,5,4]", "f32[2,5]", "i8[2,6,5]", "f32[2,5]", "bool[3,5]")
    q, s = "i8[2,3,4]", "f32[2,3]"
    middle = ("i8[4,2,3]", "f32[4,3]")

    def write(c: Any, new: Any, *places: int, axes: tuple[int, ...]) -> Any:
        return Traced["cache_write"](c, new, *places, axes=axes)

    def put(axis: int, places: Any, *layer: int, at: int) -> Callable[..., Any]:
        return lambda q, s, new: Traced["cache_put"](
            _dequantized(q, s, at), _exact(new), places, *layer, axis=axis, mode=CLIP
        )

    def again(axis: int) -> Callable[..., Any]:
        return lambda q, s: Traced["quantize"](_dequantized(q, s), axes=(axis,), form="int8")[0]

    row, rows = jnp.array([2]), jnp.full((2, 1), 2)
    return {
        "quantize_of_dequantize": [
            (left_alone(again(1)), ("i8[2,4,4]", "bf16[2,4]")),
            (lambda x: Traced["quantize"](x, axes=(1,), form="int8")[0], ("f32[2,4,4]",)),
        ],
        "transpose_of_dequantize": [
            (lambda q, s: jnp.transpose(_dequantized(q, s, 1), (2, 0, 1)), middle),
        ],
        "reshape_of_dequantize": [
            (lambda q, s: _dequantized(q, s).reshape(6, 1), ("i8[2,3,1]", s)),
            (lambda q, s: _dequantized(q, s).reshape(1, 6), ("i8[2,3,1]", s)),
            (lambda q, s: _dequantized(q, s).reshape(6), ("i8[2,3,1]", s)),
            (lambda q, s: _dequantized(q, s).reshape(2, 12), (q, s)),
            (lambda q, s: _dequantized(q, s).reshape(2, 3, 2, 2), (q, s)),
            (lambda q, s: _dequantized(q, s, 1).reshape(2, 2, 2, 3), middle),
        ],
        "slice_of_dequantize": [
            (left_alone(lambda q, s: _dequantized(q, s)[:, :, 1:]), (q, s)),
            (lambda q, s: _dequantized(q, s, 1)[1:, :, ::2], middle),
            (lambda q, s: _dequantized(q, s, 0)[:, :1, 1:], ("i8[4,2,3]", "f32[2,3]")),
        ],
        "write_of_dequantize": [
            (
                lambda q, s, r: write(_dequantized(q, s, 1), _exact(r), 1, axes=(2,)),
                ("i8[4,2,3]", "bf16[4,3]", "i8[4,2,1]"),
            ),
            (
                lambda q, s, r: write(_dequantized(q, s, 1), _exact(r), 1, 2, axes=(0, 2)),
                ("i8[4,2,3]", "bf16[4,3]", "i8[1,2,1]"),
            ),
            (
                left_alone(lambda q, s, r: write(_dequantized(q, s), _exact(r), 1, axes=(2,))),
                ("i8[4,2,3]", "bf16[4,2]", "i8[4,2,1]"),
            ),
            (
                left_alone(lambda q, s, r: write(_dequantized(q, s), _exact(r), 1, axes=(1,))),
                ("i8[2,3,4]", "f32[2,3]", "i8[2,1,4]"),
            ),
            (
                left_alone(lambda q, s, r: write(_dequantized(q, s), _exact(r), 1, axes=(1,))),
                ("i8[0,3,4]", "bf16[0,3]", "i8[0,1,4]"),
            ),
        ],
        "put_of_dequantize": [
            # d_head in the middle, in front, and behind a layer
            (put(2, row, at=1), ("i8[2,4,8]", "bf16[2,8]", "i8[2,4,1]")),
            (put(1, row, at=0), ("i8[4,8,2]", "bf16[8,2]", "i8[4,1,2]")),
            (put(2, row, 1, at=1), ("i8[3,4,8,2]", "bf16[3,8,2]", "i8[4,1,2]")),
            (put(2, rows, 1, at=3), ("i8[3,2,8,4]", "bf16[3,2,8]", "i8[2,1,4]")),
            (put(3, rows, 1, at=2), ("i8[3,2,4,8]", "bf16[3,2,8]", "i8[2,4,1]")),
            (put(2, rows, at=1), ("i8[2,4,8]", "bf16[2,8]", "i8[2,4,1]")),
            (left_alone(put(2, row, at=2)), ("i8[2,4,8]", "bf16[2,4]", "i8[2,4,1]")),
            (left_alone(put(2, rows, at=0)), ("i8[2,4,8]", "bf16[4,8]", "i8[2,4,1]")),
            (left_alone(put(2, row, 1, at=0)), ("i8[2,4,8,3]", "bf16[4,8,3]", "i8[4,1,3]")),
            (left_alone(put(2, rows, 1, at=1)), ("i8[3,2,8,2]", "bf16[3,8,2]", "i8[2,1,2]")),
            (left_alone(put(2, row, at=1)), ("i8[0,4,8]", "bf16[0,8]", "i8[0,4,1]")),
            (left_alone(put(2, row, at=1)), ("i8[2,4,8]", "f32[2,8]", "i8[2,4,1]")),
        ],
        "read_of_dequantize": [
            (lambda q, s: Traced["cache_read"](_dequantized(q, s, 1), 1), middle),
            (
                lambda q, s: Traced["cache_read"](_dequantized(q, s, 0), 1),
                ("i8[4,2,3]", "f32[2,3]"),
            ),
        ],
        "stack_of_dequantize": [
            *_stacks(lambda q, s: _dequantized(q, s, 1), lambda q, s: q + 1.0, middle),
            *_stacks(
                lambda q, s: _dequantized(q, s, 1),
                lambda q, s: _dequantized(q, s, 2),
                ("i8[4,3,3]", "f32[4,3]"),
            ),
        ],
        "unstack_of_dequantize": [
            *_unstacks(lambda q, s: _dequantized(q, s, 1), middle),
            *_unstacks(lambda q, s: _dequantized(q, s, 2), ("i8[2,3,4]", "f32[2,3]")),
        ],
        "attend_in_integers": [
            *(
                (
                    lambda q, k, s, v, t, m, options=options: Traced["attend"](
                        q,
                        _dequantized(k, s),
                        _dequantized(v, t, 1),
                        m,
                        axes="g t k, g s k, g v s, t s -> g t v",
                        given="mask",
                        **options,
                    ),
                    cached,
                )
                for options in ({}, {"weights": Symbol("bf16")})
            ),
            (
                lambda q, k, s, v, t, m: Traced["attend"](
                    q, _dequantized(k, s), v * 1.0, axes="g t k, g s k, g v s -> g t v"
                ),
                cached,
            ),
            (
                lambda q, k, s, v, t, m: Traced["attend"](
                    q, k * 1.0, _dequantized(v, t, 1), axes="g t k, g s k, g v s -> g t v"
                ),
                cached,
            ),
            (
                left_alone(
                    lambda q, k, s, v, t, m: Traced["attend"](
                        q,
                        _dequantized(k, s),
                        v * 1.0,
                        axes="g t k, g s k, g v s -> g t v",
                        rounds=(127.5, 1e-19),
                    )
                ),
                cached,
            ),
            (
                lambda q, k, s: Traced["attend"](
                    q, _dequantized(k, s, 1), k * 1.0, axes="g t k, g s k, g s v -> g t v"
                ),
                ("f32[2,3,4]", "i8[2,4,4]", "f32[2,4]"),
            ),
        ],
        "scan_of_dequantize": [
            (
                left_alone(
                    lambda q, s: jax.lax.fori_loop(0, 3, lambda i, c: c * 1.0, _dequantized(q, s))
                ),
                ("i8[2,0,4]", "bf16[2,0]"),
            ),
            (
                left_alone(
                    lambda q, s: jax.lax.fori_loop(0, 3, lambda i, c: c * 1.0, _dequantized(q, s))
                ),
                ("i8[2,3,4]", "f32[2,3]"),
            ),
        ],
    }


def _transposed_caches() -> dict[str, list[Example]]:
    def put(order: tuple[int, ...], axis: int, places: Any, *layer: int) -> Callable[..., Any]:
        return lambda c, new: Traced["cache_put"](
            jnp.transpose(c, order), new, places, *layer, axis=axis, mode=CLIP
        )

    def turned(x: Any) -> Any:
        return jnp.transpose(x, (0, 2, 1))

    row, rows = jnp.array([2]), jnp.full((3, 1), 2)
    key = "t h k, s h k, s h v, t s -> t h v"
    return {
        "put_of_transpose": [
            (put((0, 1, 3, 2), 2, row, 1), ("f32[2,3,4,8]", "f32[3,1,4]")),
            (put((0, 1, 3, 2), 2, rows, 1), ("f32[2,3,4,8]", "f32[3,1,4]")),
            (put((0, 3, 1, 2), 3, row, 1), ("f32[2,3,8,4]", "f32[4,3,1]")),
            (put((1, 0, 2), 2, row), ("f32[3,2,8]", "f32[2,3,1]")),
            (put((1, 0, 2), 2, rows), ("f32[2,3,8]", "f32[3,2,1]")),
            (put((1, 0, 2, 3), 2, row, 1), ("f32[3,2,8,4]", "f32[3,1,4]")),
        ],
        "attend_transposed": [
            (
                lambda q, k, v: Traced["attend"](
                    q, turned(k), v, axes="t h k, s h k, s h v -> t h v"
                ),
                ("f32[3,2,4]", "f32[5,4,2]", "f32[5,2,4]"),
            ),
            (
                lambda q, k, v, m: Traced["attend"](
                    q, turned(k), v, jnp.transpose(m), axes=key, given="mask"
                ),
                ("f32[3,2,4]", "f32[5,4,2]", "f32[5,2,4]", "bool[5,3]"),
            ),
            (
                lambda q, k, v, m: Traced["attend"](
                    turned(q), k, jnp.transpose(v, (2, 0, 1)), m, axes=key, given="mask"
                ),
                ("f32[3,4,2]", "f32[5,2,4]", "f32[2,4,5]", "bool[3,5]"),
            ),
        ],
        "stack_of_transpose": _stacks(
            turned, lambda x: jnp.transpose(x, (1, 2, 0)), ("f32[2,2,2]",)
        ),
    }


# Layers in loops, and what a loop is made of.


def _rows_of_a_stack() -> list[Example]:
    def stack(*numbers: int, axis: int = 0) -> Callable[..., Any]:
        return lambda x: jnp.stack([x[i] for i in numbers], axis)

    def cut(x: Any, start: int, stop: int, stride: int = 1, row: int = 0) -> Any:
        return jax.lax.slice(x, (row, start), (row + 1, stop), (1, stride)).reshape(-1)

    types = ("f32[4,6]",)
    return [
        *(
            (stack(*numbers), types)
            for numbers in (
                *((0, 1, 2, 3), (0, 1), (2, 3), (0, 2), (1, 3), (2, 0), (0, 0), (0, 1, 3), (1,)),
                *((3, 2, 1, 0), (1, 2, 2), (0, 3), (0, 2, 3)),
            )
        ),
        (stack(0), ("f32[1,6]",)),
        (stack(0, 1), ("f32[2,6]",)),
        (stack(0, 1, axis=1), ("f32[2,6]",)),
        (stack(0, 1, axis=1), ("f32[2,2]",)),
        (stack(0, 1), ("f32[2]",)),
        (lambda x: jnp.stack(jnp.unstack(x)), types),
        (lambda x: jnp.stack(jnp.unstack(x)[1:]), types),
        (lambda x: jnp.stack(jnp.unstack(x, axis=1)), ("f32[4,4]",)),
        (lambda x: jnp.stack([each.reshape(2, 3) for each in jnp.unstack(x)]), types),
        (lambda x: jnp.stack([x[0], (x + 1.0)[1]]), types),
        (lambda x: jnp.stack([cut(x, 1, 6), cut(x, 1, 6, row=1)]), types),
        (lambda x: jnp.stack([cut(x, 0, 5), cut(x, 0, 5, row=1)]), types),
        (lambda x: jnp.stack([cut(x, 0, 6, 2), cut(x, 0, 6, 2, row=1)]), types),
        (lambda x: jnp.stack([x[0:2].reshape(-1), x[2:4].reshape(-1)]), types),
        (lambda x: jnp.stack([x[0:2].reshape(-1), x[1:3].reshape(-1)]), types),
        (lambda x: jnp.stack([jax.lax.slice(x, (), ()), x]), ("f32[]",)),
        (lambda x: jnp.stack([x[0:1], x[1:2]]), types),
    ]


# Weights that libraries have quantised.


def _dequantizations() -> dict[str, list[Example]]:
    def times(q: Any, s: Any) -> Any:
        return q.astype("float32") * s

    def cut(*shape: int) -> Callable[..., Any]:
        return lambda q, s: scaled(q, s).reshape(shape)

    rope = Traced["rope"]
    return {
        "dequantized": [
            (lambda q, s: s * q.astype("float32"), ("i8[4,6]", "f32[4,1]")),
            (times, ("i4[4,6]", "f32[4,1]")),
            (lambda q, s: q.astype(s.dtype) * s, ("i8[4,6]", "c64[4,1]")),
            (lambda q, s: q.astype(s.dtype) * s, ("i8[4,6]", "f8_e4m3fn[4,1]")),
            (left_alone(times), ("i16[4,6]", "f32[4,1]")),
            (left_alone(times), ("u8[4,6]", "f32[4,1]")),
            (left_alone(times), ("i8[1,6]", "f32[4,6]")),
            (left_alone(times), ("i8[1,6]", "f32[4,1]")),
            (left_alone(times), ("i8[4,6]", "f32[4,6]")),
            (left_alone(times), ("i8[4,6]", "f32[]")),
            (left_alone(lambda q: q.astype("float32") * _all(0.5, 1, 6)), ("i8[4,6]",)),
            (left_alone(lambda q: q.astype("float32") * 0.5), ("i8[4,6]",)),
        ],
        "cut_of_dequantized": [
            (cut(2, 2, 6), ("i8[4,6]", "f32[4,1]")),
            (left_alone(cut(2, 2, 0)), ("i8[4,0]", "f32[4,1]")),
            (left_alone(cut(0, 2, 2)), ("i8[0,4]", "f32[1,4]")),
            (cut(2, 2, 6), ("i8[4,6]", "f32[]")),
            (cut(2, 3), ("i8[6]", "f32[]")),
            (left_alone(cut(24)), ("i8[4,6]", "f32[4,1]")),
        ],
        "cut_of_rope": [
            (
                lambda x, cos, sin: rope(x, cos, sin).reshape(2, 6, 2, 4),
                ("f32[2,6,8]", "f32[2,1,4]", "f32[2,1,4]"),
            ),
            (
                lambda x, cos, sin: rope(x, cos, sin).reshape(2, 2, 3, 8),
                ("f32[2,6,8]", "f32[4]", "f32[4]"),
            ),
            (
                lambda x, cos, sin: rope(x, cos, sin).reshape(2, 2, 3, 8),
                ("f32[2,6,8]", "f32[2,6,4]", "f32[1,6,4]"),
            ),
        ],
    }


# Products of scaled numbers.


def _product(x: Any, w: Any, spec: str, out: str = "f32", parts: int = 0) -> Any:
    more = {"parts": parts} if parts else {}
    name = "partial_contract" if parts else "contract"
    return Traced[name](x, w, spec=spec, dtype=Symbol(out), **more)


def _scaled_products(form: str, plain: bool = False) -> list[Example]:
    """Products of rows that are rounded, and weights that are quantised or `plain`."""

    def rows(x: Any, *axes: int) -> Any:
        return in_steps(x, axes, form, least=1e-19)

    def weight(q: Any, s: Any, dtype: str = "f32") -> Any:
        return q.astype(dtype.replace("f", "float")) if plain else scaled(q, s, dtype)

    q = {"int8": "i8", "fp8": "f8_e4m3fn"}[form]
    groups = (f"{q}[2,5,3]", "f32[2,1,3]")
    return [
        # one scale for all, and a result in another order
        (
            lambda x, w, s: _product(weight(w, s), rows(x, 1), "d f, b d -> b f"),
            ("f32[2,5]", f"{q}[5,3]", "f32[]"),
        ),
        (
            lambda x, w, s: _product(rows(x, 1), weight(w, s), "b d, f g d -> g b f"),
            ("f32[2,5]", f"{q}[3,4,5]", "f32[3,4,1]"),
        ),
        # narrower integers and wider floats
        (
            lambda x, w, s: _product(rows(x, 1), weight(w, s, "f64"), "b d, d f -> b f", "f64"),
            ("f64[2,5]", f"{q}[5,3]", "f64[1,3]"),
        ),
        (
            lambda x, w, s: _product(rows(x, 1), weight(w, s, "f16"), "b d, d f -> b f", "f16"),
            ("f16[2,5]", f"{q}[5,3]", "f16[1,3]"),
        ),
        (
            lambda x, w, s: _product(rows(x, 1), weight(w, s), "b d, d f -> b f"),
            ("f32[2,5]", "i4[5,3]", "f32[1,3]"),
        ),
        (
            lambda x, w, s: _product(rows(x, 1), weight(w, s), "b d, d f -> b f"),
            ("f32[2,5]", "i16[5,3]", "f32[1,3]"),
        ),
        (
            lambda x, w, s: _product(rows(x, 1), weight(w, s), "b d, d f -> b f", "i32"),
            ("f32[2,5]", f"{q}[5,3]", "f32[1,3]"),
        ),
        # a scale for each group of a sum; then one for each number, and more rows than are summed
        (
            lambda x, w, s: _product(rows(x, 2), weight(w, s), "b g d, g d f -> b f"),
            ("f32[2,2,5]", *groups),
        ),
        (
            lambda x, w, s: _product(rows(x, 0, 1, 2), weight(w, s), "b g d, g d f -> b f", "bf16"),
            ("f32[2,2,5]", *groups),
        ),
        (
            lambda x, w, s: _product(rows(x, 1), weight(w, s), "b d, d f -> b f"),
            ("f32[1,5]", f"{q}[5,3]", "f32[5,1]"),
        ),
        (
            lambda x, w, s: _product(rows(x, 2), weight(w, s), "b g d, g d f -> b f"),
            ("f32[7,2,5]", *groups),
        ),
        # sums in parts
        (
            lambda x, w, s: _product(rows(x, 1), weight(w, s), "b d, d f -> p b f", parts=2),
            ("f32[3,6]", f"{q}[6,4]", "f32[1,4]"),
        ),
        (
            lambda x, w, s: _product(rows(x, 0), weight(w, s), "d b, f d -> p b f", parts=3),
            ("f32[6,1]", f"{q}[4,6]", "f32[4,1]"),
        ),
        # rows of several axes made one: all with a scale of their own, with one, and with neither
        *(
            (
                lambda x, w, s, axes=axes: _product(
                    rows(x, *axes).reshape(6, 4), weight(w, s), "b d, d f -> b f"
                ),
                ("f32[2,3,4]", f"{q}[4,5]", "f32[1,5]"),
            )
            for axes in ((2,), (0, 1, 2), (0, 1), (1, 2), (0, 2))
        ),
        (
            lambda x, w, s: _product(rows(x, 2).reshape(4, 6), weight(w, s), "b d, d f -> b f"),
            ("f32[2,2,6]", f"{q}[6,5]", "f32[1,5]"),
        ),
        (
            lambda x, w, s: _product(rows(x, 2).reshape(4, 6), weight(w, s), "b d, d f -> b f"),
            ("f32[2,3,4]", f"{q}[6,5]", "f32[1,5]"),
        ),
        (
            lambda x, w, s: _product(
                rows(x, 1).reshape(2, 3, 4), weight(w, s), "b t d, d f -> b t f"
            ),
            ("f32[6,4]", f"{q}[4,5]", "f32[1,5]"),
        ),
        (
            lambda x, w, s: _product(rows(x, 0).reshape(()), weight(w, s), ", d f -> d f"),
            ("f32[1]", f"{q}[4,5]", "f32[1,5]"),
        ),
        # what is summed lies on several chips, or an axis of it does
        *(
            (
                lambda x, w, s, layout=layout: _product(
                    rows(x, 1), constrain(weight(w, s), layout=layout), "a d, d b -> a b", "bf16"
                ),
                ("f32[3,6]", f"{q}[6,4]", "f32[1,4]"),
            )
            for layout in ((("x",), ()), ((), ("x",)), ((), None), (("y",), ()), (("x", "y"), ()))
        ),
        (
            lambda x, w, s: _product(
                constrain(rows(x, 1), layout=((), ("x",))), weight(w, s), "b d, d f -> b f", "bf16"
            ),
            ("f32[3,5]", f"{q}[5,4]", "f32[1,4]"),
        ),
        (
            lambda x, w, s: _product(
                constrain(rows(x, 2), layout=((), ("x",), ())).reshape(6, 4),
                weight(w, s),
                "b d, d f -> b f",
                "bf16",
            ),
            ("f32[2,3,4]", f"{q}[4,5]", "f32[1,5]"),
        ),
        (
            lambda x, w, s: _product(
                constrain(rows(x, 2), layout=((), (), ("x",))).reshape(6, 4),
                weight(w, s),
                "b d, d f -> b f",
                "bf16",
            ),
            ("f32[2,3,4]", f"{q}[4,5]", "f32[1,5]"),
        ),
        (
            lambda x, w, s: _product(
                constrain(rows(x, 0, 1, 2), layout=((), ("x",), ())),
                constrain(weight(w, s), layout=(("x",), (), ())),
                "b g d, g d f -> b f",
                "bf16",
            ),
            ("f32[2,2,5]", *groups),
        ),
    ]


_BY_CHIP = {"why": "each chip scales its own sum"}


def _over_chips(form: str) -> list[Example]:
    """Products that are summed over chips: of constrained weights, and rows that were merged."""

    def rows(x: Any, *axes: int) -> Any:
        return in_steps(x, axes, form, least=1e-19)

    def of_weight(x: Any, w: Any, s: Any) -> Any:
        weight = constrain(scaled(w, s), layout=(("x",), ()))
        return _product(rows(x, 1), weight, "b d, d f -> b f", "bf16")

    def of_rows(x: Any, w: Any, s: Any) -> Any:
        merged = constrain(rows(x, 2), layout=((), (), ("x",))).reshape(6, 4)
        return _product(merged, scaled(w, s), "b d, d f -> b f", "bf16")

    q = {"int8": "i8", "fp8": "f8_e4m3fn"}[form]
    weights = (f"{q}[6,4]", "f32[1,4]")
    return [
        (making("constrain", of_weight, **_BY_CHIP), ("f32[3,6]", *weights)),
        (making("constrain", of_weight, layout=((),)), ("f32[3,6]", *weights)),
        (making("constrain", of_rows, **_BY_CHIP), ("f32[2,3,4]", f"{q}[4,5]", "f32[1,5]")),
    ]


def _of_one_number(form: str) -> list[Example]:
    """Sums of one product, and rows of one more axis."""

    def rows(x: Any, *axes: int) -> Any:
        return in_steps(x, axes, form, least=1e-19)

    def weight(q: Any, s: Any) -> Any:
        return Traced["dequantize"](q, s, axes=(), dtype=Symbol("f32"))

    q = {"int8": "i8", "fp8": "f8_e4m3fn"}[form]
    return [
        (
            lambda x, w, s: _product(rows(x, 1), weight(w, s), "b d, d f -> b f"),
            ("f32[2,1]", f"{q}[1,4]", "f32[1,4]"),
        ),
        (
            lambda x, w, s: _product(rows(x, 1), scaled(w, s), "b d, d f -> b f"),
            ("f32[2,1]", f"{q}[1,4]", "f32[1,4]"),
        ),
        (
            lambda x, w, s: _product(
                rows(x, 1).reshape(1, 2, 3), scaled(w, s), "a b d, d f -> a b f"
            ),
            ("f32[2,3]", f"{q}[3,4]", "f32[1,4]"),
        ),
    ]


# Factors and shifts that go into weights.


def _known(x: Any) -> Any:
    return Traced["known"](x, alone=True)


def _all(number: float, *shape: int) -> Any:
    """An array of one number, as no tracing makes it a scalar."""
    return jnp.full(shape[::-1], jnp.float32(number)).reshape(shape)


def _read(x: Any) -> Any:
    """Known, and read elsewhere too."""
    return Traced["known"](x, alone=False)


def _factors(make: Callable[[Any, Any, Any], Any], rank: int) -> list[Example]:
    """Programs `make(x, w, c)` with a number c: those that move, and those that stay."""
    types = ("f32[3,4]", "f32[4,5]")
    result = (3, 5) if rank else ()

    def of(c: float) -> Callable[..., Any]:
        return lambda x, w: make(x, w, c)

    moved = [(of(c), types) for c in (0.0, -3.0, 2.0**64, 2.0**-64)]
    beyond = [(left_alone(of(c)), types) for c in (1.5 * 2.0**64, 0.75 * 2.0**-64, -(2.0**100))]
    spread = (lambda x, w: make(x, w, _all(0.5, *result)), types)
    return [*moved, *beyond, spread]


_W = ("f32[3,4]", "f32[4]", "f32[4,5]")
_MM, _TURNED = "b d, d f -> b f", "d f, b d -> b f"


def _scale_of_input() -> list[Example]:
    return [
        (lambda x, s, w: _product(_known(w), x * _known(s[None]), _TURNED), _W),
        (lambda x, s, w: _product(_known(s[None]) * x, _known(w), _MM), _W),
        (
            lambda x, s, w: _product(x * _known(s), _known(w), "d, d f -> f"),
            ("f32[4]", "f32[4]", "f32[4,5]"),
        ),
        # along another axis, along two, and of a stack
        (
            lambda x, s, w: _product(x * _known(s[:, None]), _known(w), _MM),
            ("f32[3,4]", "f32[3]", "f32[4,5]"),
        ),
        (
            lambda x, s, w: _product(x * _known(s), _known(w), "b t d, b d f -> b t f"),
            ("f32[3,2,4]", "f32[3,1,4]", "f32[3,4,5]"),
        ),
        (
            lambda x, s, w: _product(x * _known(s), _known(w), "t d b, h d k b -> t h k b"),
            ("f32[2,4,3]", "f32[1,4,1]", "f32[5,4,2,3]"),
        ),
        # of several dtypes
        (
            lambda x, s, w: _product((x * _known(s[None])).astype("float32"), _known(w), _MM),
            ("bf16[3,4]", "bf16[4]", "f32[4,5]"),
        ),
        (
            lambda x, s, w: _product((x * _known(s[None])).astype("bfloat16"), _known(w), _MM),
            ("f32[3,4]", "f32[4]", "bf16[4,5]"),
        ),
        (
            lambda x, s, w: _product((x * _known(s[None])).astype("float32"), _known(w), _MM),
            ("f64[3,4]", "f64[4]", "f32[4,5]"),
        ),
        (
            lambda x, s, w: _product((x * _known(s[None])).astype("float64"), _known(w), _MM),
            ("f32[3,4]", "f32[4]", "f64[4,5]"),
        ),
        (
            left_alone(lambda x, s, w: _product(x * _known(s[None]), _known(w), _MM)),
            ("f32[3,4]", "f32[4]", "f16[4,5]"),
        ),
        (
            left_alone(lambda x, s, w: _product(x * _known(s[None]), _known(w), _MM)),
            ("i32[3,4]", "i32[4]", "f32[4,5]"),
        ),
        (
            left_alone(lambda x, s, w: _product(x * _known(s[None]), _known(w), _MM)),
            ("f32[0,4]", "f32[4]", "f32[4,5]"),
        ),
        (
            left_alone(lambda x, s, w: _product(x * _known(s[None]), _known(w), _MM)),
            ("f32[3,4]", "f32[4]", "f32[4,0]"),
        ),
        # of weights that others read, that are quantised, or that there are two of
        (left_alone(lambda x, s, w: _product(x * _known(s[None]), _read(w), _MM)), _W),
        (
            left_alone(
                lambda x, s, q, t: _product(
                    x * _known(s[None]),
                    _known(scaled(q, t)),
                    _MM,
                )
            ),
            ("f32[3,4]", "f32[4]", "i8[4,5]", "f32[1,5]"),
        ),
        (
            left_alone(lambda x, s, w: _product(_known(x * _known(s[None])), _known(w), _MM)),
            _W,
        ),
        # what is no factor
        (left_alone(lambda x, s, w: _product(x * s[None], _known(w), _MM)), _W),
        (
            lambda x, s, w: _product(x * _known(s[None]), _known(w), _MM),
            ("f32[3,1]", "f32[4]", "f32[4,5]"),
        ),
        (
            lambda x, s, w: _product(x * _known(s), _known(w), _MM),
            ("f32[1,4]", "f32[3,4]", "f32[4,5]"),
        ),
        *_factors(lambda x, w, c: _product(x * c, _known(w), _MM), 0),
        (
            lambda x, w: _product(x * _all(0.5, 3, 4), _known(w), _MM),
            ("f32[3,4]", "f32[4,5]"),
        ),
    ]


def _shift_of_input() -> list[Example]:
    return [
        (lambda x, b, w: _product(_known(w), x + _known(b[None]), _TURNED), _W),
        (lambda x, b, w: _product(_known(b[None]) + x, _known(w), _MM), _W),
        (
            lambda x, b, w: _product(x + _known(b), _known(w), "d, d f -> f"),
            ("f32[4]", "f32[4]", "f32[4,5]"),
        ),
        (
            lambda x, b, w: _product(x + _known(b[:, None]), _known(w), _MM),
            ("f32[3,1]", "f32[3]", "f32[1,5]"),
        ),
        (
            lambda x, b, w: _product(x + _known(b[:, None]), _known(w), _MM),
            ("f32[3,4]", "f32[3]", "f32[4,5]"),
        ),
        (
            lambda x, b, w: _product(x + _known(b), _known(w), "b t d, b d f -> b t f"),
            ("f32[3,2,4]", "f32[3,1,4]", "f32[3,4,5]"),
        ),
        (
            lambda x, b, w: _product(x + _known(b), _known(w), "b t d, d h k -> k b t h"),
            ("f32[3,2,4]", "f32[1,1,4]", "f32[4,5,2]"),
        ),
        (
            lambda x, b, w: _product((x + _known(b[None])).astype("float32"), _known(w), _MM),
            ("bf16[3,4]", "bf16[4]", "f32[4,5]"),
        ),
        (
            lambda x, b, w: _product(
                (x + _known(b[None])).astype("float64"), _known(w), _MM, "f64"
            ),
            ("f32[3,4]", "f32[4]", "f64[4,5]"),
        ),
        (
            lambda x, b, w: _product((x + _known(b[None])), _known(w), _MM, "bf16"),
            ("bf16[3,4]", "bf16[4]", "bf16[4,5]"),
        ),
        (
            left_alone(lambda x, b, w: _product(x + _known(b[None]), _known(w), _MM)),
            ("f32[0,4]", "f32[4]", "f32[4,5]"),
        ),
        (
            left_alone(lambda x, b, w: _product(x + _known(b[None]), _known(w), _MM)),
            ("f32[3,0]", "f32[0]", "f32[0,5]"),
        ),
        (left_alone(lambda x, b, w: _product(x + b[None], _known(w), _MM)), _W),
        (
            lambda x, b, w: _product(x + _known(b[None]), _known(w), _MM),
            ("f32[3,1]", "f32[4]", "f32[4,5]"),
        ),
        (lambda x, w: _product(x + 0.5, _known(w), "b, f -> b f"), ("f32[3]", "f32[5]")),
        (
            lambda x, w: _product(x + 0.5, _known(w), _MM),
            ("f32[3,4]", "f32[4,5]"),
        ),
        (
            lambda x, w: _product(x + 0.5, _known(w), _MM),
            ("f32[3,1]", "f32[1,5]"),
        ),
        (
            lambda x, w: _product(x + _all(0.5, 3, 4), _known(w), _MM),
            ("f32[3,4]", "f32[4,5]"),
        ),
    ]


def _scale_of_product() -> list[Example]:
    types = ("f32[3,4]", "f32[4,5]", "f32[5]")
    return [
        (lambda x, w, s: _product(_known(w), x, _TURNED) * _known(s[None]), types),
        (lambda x, w, s: _known(s[None]) * _product(x, _known(w), _MM), types),
        (
            lambda x, w, s: _product(x, _known(w), "d, d f -> f") * _known(s),
            ("f32[4]", "f32[4,5]", "f32[5]"),
        ),
        (
            lambda x, w, s: _product(x, _known(w), _MM) * _known(s[:, None]),
            ("f32[3,4]", "f32[4,5]", "f32[3]"),
        ),
        (
            lambda x, w, s: _product(x, _known(w), "t d b, h d k b -> t h k b") * _known(s),
            ("f32[2,4,3]", "f32[5,4,2,3]", "f32[1,5,1,3]"),
        ),
        (
            lambda x, w, s: _product(x, _known(w), _MM, "f64") * _known(s[None]),
            ("f32[3,4]", "f32[4,5]", "f64[5]"),
        ),
        (
            lambda x, w, s: _product(x, _known(w), _MM) * _known(s[None]),
            ("bf16[3,4]", "bf16[4,5]", "f32[5]"),
        ),
        (
            lambda x, w, s: _product(x, _known(w), _MM) * _known(s[None]),
            ("f32[3,4]", "f64[4,5]", "f32[5]"),
        ),
        (
            left_alone(lambda x, w, s: _product(x, _known(w), _MM) * _known(s[None])),
            ("f32[3,4]", "f16[4,5]", "f32[5]"),
        ),
        (
            left_alone(lambda x, w, s: _product(x, _known(w), _MM) * _known(s[None])),
            ("f32[3,0]", "f32[0,5]", "f32[5]"),
        ),
        (left_alone(lambda x, w, s: _product(x, _read(w), _MM) * _known(s[None])), types),
        (
            left_alone(lambda x, q, t, s: _product(x, _known(scaled(q, t)), _MM) * _known(s[None])),
            ("f32[3,4]", "i8[4,5]", "f32[1,5]", "f32[5]"),
        ),
        (left_alone(lambda x, w, s: _product(_known(x), _known(w), _MM) * _known(s[None])), types),
        (lambda x, w, s: _product(x, _known(w), _MM) * s[None], types),
        (lambda x, w, s: _product(x, w, _MM) * _known(s[None]), types),
        (
            lambda x, w, s: (x + _known(w)) * _known(s),
            ("f32[3,4]", "f32[3,4]", "f32[1,4]"),
        ),
        (
            lambda x, w, s: _product(x, _known(w), _MM) * _known(s),
            ("f32[1,4]", "f32[4,5]", "f32[3,5]"),
        ),
        (
            lambda x, w, s: _product(x, _known(w), "d, d -> ") * _known(s),
            ("f32[4]", "f32[4]", "f32[3]"),
        ),
        *_factors(lambda x, w, c: _product(x, _known(w), _MM) * c, 2),
    ]


def _twice(name: str) -> list[Example]:
    """(x . known(a)) . known(b), . being a product or a sum."""

    def op(x: Any, y: Any) -> Any:
        return x * y if name == "mul" else x + y

    types = ("f32[3,4]", "f32[1,4]", "f32[3,1]")
    return [
        (lambda x, a, b: op(op(x, _known(a)), _known(b)), types),
        (lambda x, a, b: op(_known(b), op(_known(a), x)), types),
        (lambda x, a, b: op(op(x, _known(a)), _known(b)), ("bf16[3,4]", "bf16[1,4]", "bf16[3,1]")),
        (
            left_alone(lambda x, a, b: op(op(x, _known(a)), _known(b))),
            ("f32[1,4]", "f32[1,4]", "f32[3,1]"),
        ),
        (
            left_alone(lambda x, a, b: op(op(x, _known(a)), _known(b))),
            ("f32[1,4]", "f32[3,4]", "f32[3,1]"),
        ),
        (
            left_alone(lambda x, a, b: op(op(x, _known(a)), _known(b))),
            ("f16[3,4]", "f16[1,4]", "f16[3,1]"),
        ),
        (
            left_alone(lambda x, a, b: op(op(x, _known(a)), _known(b))),
            ("f32[0,4]", "f32[1,4]", "f32[1,1]"),
        ),
        (lambda x, a, b: op(op(x, _known(a)), b), types),
        (lambda x, a, b: op(op(x, a), _known(b)), types),
        (lambda x, a, b: op(x / _known(a), _known(b)), types),
        (lambda x, a, b: op(x - _known(a), _known(b)), types),
        (lambda x, a, b: op(x + _known(a) if name == "mul" else x * _known(a), _known(b)), types),
        *(
            (lambda x, a, c=c: op(op(x, _known(a)), c), types[:2])
            for c in (0.5, 0.0, 2.0**64, 2.0**-64)
        ),
        *(
            (left_alone(lambda x, a, c=c: op(op(x, _known(a)), c)), types[:2])
            for c in (1.5 * 2.0**64, 0.75 * 2.0**-64, 2.0**100)
        ),
        (lambda x, a: op(op(x, _known(a)), _all(0.5, 3, 4)), types[:2]),
    ]


def _scale_of_shifted() -> list[Example]:
    types = ("f32[3,4]", "f32[4,5]", "f32[1,5]")

    def of(c: Any) -> Callable[..., Any]:
        return lambda x, w, b: (_product(x, w, _MM) + _known(b)) * c

    return [
        (lambda x, w, b: 0.5 * (_known(b) + _product(x, w, _MM)), types),
        *((of(c), types) for c in (0.0, 2.0**64, 2.0**-64)),
        *((left_alone(of(c)), types) for c in (1.5 * 2.0**64, 0.75 * 2.0**-64, 2.0**100)),
        (lambda x, w, b: (_product(x, w, _MM) + _known(b)) * _all(0.5, 3, 5), types),
        (
            lambda x, w, b: (_product(x, w, _MM) + _known(b)) * _all(0.5, 3, 5),
            ("f32[3,4]", "f32[4,5]", "f32[3,5]"),
        ),
        (
            lambda x, w, b: (_product(x, w, _MM) + _known(b)) * _all(0.5, 3, 5),
            ("f32[1,4]", "f32[4,5]", "f32[1,5]"),
        ),
        (left_alone(lambda x, w, b: (x + _known(b)) * 0.5), ("f32[3,5]", "f32[4,5]", "f32[1,5]")),
        (lambda x, w, b: (_product(x, w, _MM) + b) * 0.5, types),
        (
            left_alone(lambda x, w, b: (_product(x, w, _MM) + _known(b)) * 0.5),
            ("f32[1,4]", "f32[4,5]", "f32[3,5]"),
        ),
        (
            left_alone(lambda x, w, b: (_product(x, w, _MM, "f16") + _known(b)) * 0.5),
            ("f16[3,4]", "f16[4,5]", "f16[1,5]"),
        ),
        (
            left_alone(lambda x, w, b: (_product(x, w, _MM) + _known(b)) * 0.5),
            ("f32[0,4]", "f32[4,5]", "f32[0,5]"),
        ),
        (left_alone(lambda x, w, b: (_product(x, w, _MM) - _known(b)) * 0.5), types),
        (lambda x, w, b: (_product(x, w, _MM) + _known(b)) * x[:, :1], types),
    ]


def _scale_before_product() -> list[Example]:
    def of(c: Any, out: str = "f32") -> Callable[..., Any]:
        return lambda x, s, w: _product(x * _known(s[None]), _read(w), _MM, out) * c

    types, w = _W, "f32[4,5]"
    return [
        *((of(c), types) for c in (0.0, 2.0**64, 2.0**-64)),
        *((left_alone(of(c)), types) for c in (1.5 * 2.0**64, 0.75 * 2.0**-64, 2.0**100)),
        (lambda x, s, w: 0.5 * _product(_known(s[None]) * x, w, _MM), types),
        (lambda x, s, w: _product(x * _known(s[None]), w, _MM) * _all(0.5, 3, 5), types),
        (
            lambda x, s, w: _product(x * _known(s[None]), w, _MM) * _all(0.5, 3, 5),
            ("f32[1,4]", "f32[4]", w),
        ),
        (lambda x, s, w: _product(x * _known(s[None]), w, _MM) * x[:, :1], types),
        (lambda x, s, w: _product(x + _known(s[None]), w, _MM) * 0.5, types),
        (lambda x, s, w: _product(x, w, _MM) * 0.5, types),
        (lambda x, s, w: (x * _known(s[None])) * 0.5, types),
        (lambda x, s, w: jnp.exp(x * _known(s[None])) * 0.5, types),
        (of(0.5, "f64"), ("f64[3,4]", "f64[4]", "f64[4,5]")),
        (of(0.5, "bf16"), ("bf16[3,4]", "bf16[4]", "bf16[4,5]")),
        (lambda x, s, w: of(jnp.float32(0.5))(x, s, w), ("bf16[3,4]", "bf16[4]", "bf16[4,5]")),
        (lambda x, s, w: of(jnp.bfloat16(0.5), "bf16")(x, s, w), _W),
        (left_alone(of(0.5, "f16")), types),
        (left_alone(of(0.5)), ("f16[3,4]", "f16[4]", "f16[4,5]")),
        (left_alone(of(0.5)), ("f32[0,4]", "f32[4]", "f32[4,5]")),
        (left_alone(of(0.5)), ("f32[3,0]", "f32[0]", "f32[0,5]")),
        (of(0.5), types),
        (
            left_alone(lambda x, s, w: _product(x * _known(s), w, _MM) * 0.5),
            ("f32[1,4]", "f32[3,4]", "f32[4,5]"),
        ),
    ]


def _scale_of_rows() -> list[Example]:
    clip, fills = (Symbol(f"GatherScatterMode.{name}") for name in ("CLIP", "FILL_OR_DROP"))

    def rows(table: Any, mode: Symbol = clip, **more: Any) -> Any:
        return Traced["take"](table, jnp.array([1, 0]), mode=mode, **more)

    types = ("f32[3,4]",)
    return [
        *((lambda t, c=c: rows(_known(t)) * c, types) for c in (0.0, 2.0**64, 2.0**-64)),
        *(
            (left_alone(lambda t, c=c: rows(_known(t)) * c), types)
            for c in (1.5 * 2.0**64, 0.75 * 2.0**-64)
        ),
        (left_alone(lambda t: rows(_known(t)) * 2.0**100), types),
        (lambda t: 0.5 * rows(_known(t)), types),
        (lambda t: rows(_known(t)) * _all(0.5, 2, 4), types),
        (lambda t: rows(_known(t)) * _all(0.5, 2, 4), ("f32[3,1]",)),
        (lambda t: rows(_known(t)) * t[:2], types),
        (lambda t: rows(_known(t), fills) * 0.5, types),
        (lambda t: rows(_known(t), fills, fill=3.0) * 0.5, types),
        (
            lambda t: Traced["take"](_known(t), jnp.array([1, 9]), mode=fills, fill=3.0) * 0.5,
            types,
        ),
        (left_alone(lambda t: rows(_read(t)) * 0.5), types),
        (lambda t: rows(t) * 0.5, types),
        (left_alone(lambda t: rows(_known(t)) * 0.5), ("f16[3,4]",)),
        (left_alone(lambda t: rows(_known(t)) * 0.5), ("f32[3,0]",)),
        (lambda t: rows(_known(t)) * 0.5, ("bf16[3,4]",)),
        (lambda t: rows(_known(t)) * 0.5, ("f64[3,4]",)),
        (lambda t: jnp.exp(_known(t)) * 0.5, types),
    ]


def _scale_of_query() -> list[Example]:
    types = ("f32[2,3]", "f32[3,4]", "f32[2,5,4]", "f32[2,5,4]")
    axes = "b k, b s k, b s v"

    def of(query: Callable[..., Any], *beside: str, given: str = "", **options: Any) -> Any:
        named = f"{', '.join((axes, *beside))} -> b v"
        more = {"given": given} if given else {}

        def program(x: Any, w: Any, k: Any, v: Any, *rest: Any) -> Any:
            q = query(x, w)
            attrs = {"scale": 0.5, **more, **options}
            attrs = {name: each for name, each in attrs.items() if each is not None}
            return Traced["attend"](q, k, v, *rest, axes=named, **attrs)

        return program

    def plain(x: Any, w: Any) -> Any:
        return _product(x, _known(w), "b d, d k -> b k")

    beside = (*types, "f32[2,5]")
    mask = (*types, "bool[2,5]")
    half = ("f16[2,3]", "f16[3,4]", "f16[2,5,4]", "f16[2,5,4]")
    narrow = tuple(each.replace("f32", "bf16") for each in types)
    wide = tuple(each.replace("f32", "f64") for each in types)
    f16, f32, bf16 = (Symbol(name) for name in ("f16", "f32", "bf16"))

    def whole(x: Any, w: Any) -> Any:
        return _product(x.astype("int32"), _known(w.astype("int32")), "b d, d k -> b k", "i32")

    def query_of(f: Callable[..., Any]) -> Example:
        return (of(f), types)

    return [
        (of(plain, scale=1.0), types),
        (of(plain, scale=None), types),
        (left_alone(of(lambda x, w: _known(w[:2]), scale=2.0**100)), types),
        (left_alone(of(plain)), ("f32[0,3]", "f32[3,4]", "f32[0,5,4]", "f32[0,5,4]")),
        (of(plain, "b s", "b s", given="mask bias", fill=-3.0), (*mask, "f32[2,5]")),
        (of(plain, scale=3.0), types),
        (of(plain, scale=0.0), types),
        *((of(plain, scale=c, base=2.0), types) for c in (2.0**64, 2.0**-64, 0.0)),
        *(
            (left_alone(of(plain, scale=c, base=2.0)), types)
            for c in (1.5 * 2.0**64, 0.75 * 2.0**-64, 2.0**100)
        ),
        (of(plain, base=2.0), types),
        (left_alone(of(plain, base=2.0, scale=1.0)), types),
        (of(plain, cap=3.0), types),
        (of(plain, "b s", given="bias"), beside),
        (of(plain, "b s", given="mask"), mask),
        (of(plain, "b n", given="sink"), (*types, "f32[2,1]")),
        (of(plain, "b s", "b s", given="mask bias"), (*mask, "f32[2,5]")),
        (left_alone(of(plain, "b s", given="bias", scale=1.0)), beside),
        (of(plain, "b s", given="bias", scale=3.0), beside),
        *(
            (of(plain, "b s", given="mask", **options), mask)
            for options in (
                {"fill": -3.0},
                {"fill": -3.0, "added": True},
                {"fill": -1e30},
                {"fill": -1e39, "added": True},
                {"fill": -3.0, "dropped": True},
                {"fill": 2.0, "added": True, "scale": 1.0},
                {"fill": -60000.0, "added": True, "logits": f16},
                {"fill": -60000.0, "added": True, "inner": f16, "logits": f32},
                {"fill": -60000.0, "added": True, "inner": f32, "logits": f16},
                {"fill": -65504.0, "added": True, "inner": f16},
                {"fill": -3.4e38, "added": True},
                {"fill": 3.4e38},
                {"fill": -3.4028234663852886e38, "added": True},
                {"fill": -3.39e38, "logits": bf16, "added": True},
                {"fill": float("-inf")},
                {"fill": float("-inf"), "scale": 1.0},
                {"fill": float("nan")},
            )
        ),
        (of(plain, "b s", given="mask", fill=-3.0), (*narrow, "bool[2,5]")),
        (of(plain, "b s", given="mask", fill=-3.0, added=True), (*wide, "bool[2,5]")),
        (of(plain, "b s", given="mask", fill=-1e300, added=True), (*wide, "bool[2,5]")),
        (of(plain), narrow),
        (of(plain), wide),
        (left_alone(of(plain)), half),
        # what stands between the query and the weight
        query_of(lambda x, w: _product(_known(w), x, "d k, b d -> b k")),
        query_of(lambda x, w: jnp.transpose(_product(x, _known(w), "b d, d k -> k b"))),
        query_of(
            lambda x, w: _product(x, _known(w), "b d, d k -> b k").reshape(4, 2).reshape(2, 4)
        ),
        query_of(lambda x, w: _product(x, _known(w), "b d, d k -> b k", "bf16").astype("float32")),
        (
            left_alone(
                of(lambda x, w: _product(x, _known(w), "b d, d k -> b k", "f16").astype("float32"))
            ),
            types,
        ),
        query_of(lambda x, w: Traced["rope"](plain(x, w), w[0, :2], w[1, :2])),
        query_of(lambda x, w: plain(x, w) + _known(w[:1])),
        query_of(lambda x, w: plain(x, w) + w[:1]),
        query_of(lambda x, w: plain(x, w) - _known(w[:1])),
        query_of(lambda x, w: plain(x, w) * _known(w[:1])),
        query_of(lambda x, w: _known(w[:2]) * _known(w[1:])),
        query_of(lambda x, w: jnp.concatenate([plain(x, w)[:, 2:], _known(w[:2, :2])], 1)),
        (left_alone(of(lambda x, w: whole(x, w).astype("float32"))), types),
        (left_alone(of(lambda x, w: Traced["shared"](plain(x, w)))), types),
        (left_alone(of(lambda x, w: jnp.stack(jnp.unstack(plain(x, w))[::-1]))), types),
        query_of(lambda x, w: _known(w[:1]) * jnp.exp(x[:, :1] * w[:1])),
        query_of(lambda x, w: jnp.exp(x[:, :1] * w[:1]) * _known(w[:1])),
        query_of(lambda x, w: _known(w[:2])),
        query_of(lambda x, w: jnp.exp(_known(w[:2]))),
        query_of(lambda x, w: jnp.exp(plain(x, w))),
        query_of(lambda x, w: jnp.exp(x[:, :1]) * w[:1]),
        query_of(lambda x, w: plain(x, w) / _known(w[:1])),
        (left_alone(of(lambda x, w: _product(x, _read(w), "b d, d k -> b k"))), types),
        (left_alone(of(lambda x, w: _product(_known(x), _known(w), "b d, d k -> b k"))), types),
        (
            left_alone(
                of(
                    lambda x, w: _product(
                        x,
                        _known(scaled(jnp.ones((3, 4), "int8"), w[:, :1])),
                        "b d, d k -> b k",
                    )
                )
            ),
            types,
        ),
    ]


def _library_products() -> list[Example]:
    """What libraries write, and what nearly is it."""

    def scale_of(x: Any, axis: Any = 1, **options: Any) -> Any:
        top = options.get("top", lambda x: jnp.max(jnp.abs(x), axis=axis, keepdims=True))(x)
        share = options.get("share", lambda top: top / jnp.asarray(127.5, x.dtype))(top)
        is_small = options.get("is_small", lambda share: share < 1e-19)(share)
        return jnp.where(is_small, jnp.asarray(options.get("one", 1.0), x.dtype), share)

    def steps(x: Any, scale: Any, round_: Callable[[Any], Any] = jnp.round) -> Any:
        return round_(x / scale).astype(jnp.int8)

    def product(q: Any, w: Any, spec: str = _MM, dtype: Any = "float32") -> Any:
        return Traced["contract"](q, w, spec=spec, dtype=Symbol("i32")).astype(dtype)

    def of(**options: Any) -> Callable[..., Any]:
        def program(x: Any, w: Any, s: Any) -> Any:
            scale = scale_of(x, **options)
            q = steps(x, scale, options.get("round_", jnp.round))
            return product(q, w) * s * scale

        return program

    types = ("f32[2,3]", "i8[3,4]", "f32[1,4]")
    square = ("f32[3,3]", "i8[3,3]", "f32[1,3]")

    def both(x: Any, y: Any, axis: int = 0) -> Any:
        one, two = scale_of(x), scale_of(y, axis)
        return product(steps(x, one), steps(y, two)) * one * two

    def turned(x: Any, w: Any, s: Any) -> Any:
        scale = scale_of(x)
        return s * (scale.T * product(w, steps(x, scale), "d f, b d -> f b"))

    def three(x: Any, w: Any, s: Any) -> Any:
        scale = scale_of(x, 2)
        return product(steps(x, scale), w, "b t d, d h k -> b t h k") * s * scale[..., None]

    def grouped(x: Any, w: Any, s: Any) -> Any:
        scale = scale_of(x, (1, 2))
        return product(steps(x, scale), w, "b h d, h d f -> b f") * s * scale[:, 0]

    def near(**options: Any) -> Example:
        """A product of two arrays that are rounded, the first otherwise than `quantize` does."""

        def program(x: Any, y: Any) -> Any:
            one, two = scale_of(x, **options), scale_of(y, 0)
            q = options.get("steps", steps)(x, one)
            return product(q, steps(y, two)) * one * two

        return making("dequantize", program), ("f32[2,3]", "f32[3,4]")

    def halves(x: Any, w: Any, s: Any, round_: Callable[[Any], Any] = jnp.round) -> Any:
        x = jnp.concatenate([jnp.full((2, 1), 127.5), jnp.sign(x) + 1.5], axis=1)
        return product(steps(x, scale_of(x), round_), w) * s * scale_of(x)

    rounded = partial(making, "quantize")
    return [
        *((rounded(of()), each) for each in (types, square)),
        *((rounded(of()), ("f32[2,3]", "i8[3,4]", each)) for each in ("f32[1,1]", "f32[]")),
        (of(), ("f32[1,3]", *types[1:])),
        (of(), ("f32[2,1]", "i8[1,4]", types[2])),
        *((of(), ("f32[2,3]", "i8[3,4]", each)) for each in ("f32[2,4]", "f32[2,1]")),
        (halves, ("f32[2,3]", "i8[4,4]", "f32[1,4]")),
        (
            lambda x, w, s: halves(x, w, s, lambda x: jax.lax.round(x)),
            ("f32[2,3]", "i8[4,4]", "f32[1,4]"),
        ),
        near(steps=lambda x, scale: steps(x, scale, lambda x: jax.lax.round(x))),
        near(steps=lambda x, scale: jnp.round(x * scale).astype(jnp.int8)),
        near(steps=lambda x, scale: (x / scale).astype(jnp.int8)),
        near(steps=lambda x, scale: steps(x + 1.0, scale)),
        near(one=2.0),
        near(is_small=lambda share: share <= 1e-19),
        near(is_small=lambda share: share >= 1e-19),
        near(is_small=lambda share: share * 2.0 < 1e-19),
        near(is_small=lambda share: share < 0.0),
        near(share=lambda top: top * 0.01),
        near(share=lambda top: top / 0.0),
        near(share=lambda top: top / (top + 1.0)),
        near(top=lambda x: jnp.sum(jnp.abs(x), axis=1, keepdims=True)),
        near(top=lambda x: jnp.max(x * x, axis=1, keepdims=True)),
        near(top=lambda x: jnp.max(jnp.abs(x + 1.0), axis=1, keepdims=True)),
        (of(is_small=lambda share: share >= 1e-19), types),
        (of(top=lambda x: jnp.sum(jnp.abs(x), axis=1, keepdims=True)), types),
        (
            lambda q, s, t: q.astype("int32").astype("float32") * s * t,
            ("i8[2,4]", "f32[1,4]", "f32[2,1]"),
        ),
        (
            lambda x, w, s, t: product(x, w, dtype="complex64") * s * t,
            ("i8[2,3]", "i8[3,4]", "c64[1,4]", "c64[2,1]"),
        ),
        (of(), ("f32[2,3]", "i4[3,4]", "f32[1,4]")),
        (of(), ("bf16[2,3]", "i8[3,4]", "bf16[1,4]")),
        (of(), ("f64[2,3]", "i8[3,4]", "f64[1,4]")),
        (both, ("f32[2,3]", "f32[3,4]")),
        (both, ("f32[3,3]", "f32[3,3]")),
        (lambda x, y: both(x, y, 1), ("f32[3,3]", "f32[3,3]")),
        (turned, ("f32[2,3]", "i8[3,4]", "f32[4,1]")),
        (rounded(three), ("f32[2,5,3]", "i8[3,4,2]", "f32[4,2]")),
        (rounded(three), ("f32[1,5,3]", "i8[3,4,2]", "f32[4,2]")),
        (three, ("f32[2,5,3]", "i8[3,4,2]", "f32[4,1]")),
        (three, ("f32[2,5,3]", "i8[3,4,2]", "f32[1,1,4,2]")),
        (rounded(grouped), ("f32[2,3,5]", "i8[3,5,4]", "f32[1,4]")),
        # scales along what is summed, and others that are none
        *((of(axis=axis), square) for axis in (0, (0, 1))),
        (of(round_=lambda x: jax.lax.round(x)), types),
        (of(round_=jnp.floor), types),
        (of(one=2.0), types),
        (of(one=0.5), types),
        (of(is_small=lambda share: share <= 1e-19), types),
        (of(is_small=lambda share: share > 1e-19), types),
        (of(is_small=lambda share: share == 0.0), types),
        (of(is_small=lambda share: share < 0.0), types),
        (of(is_small=lambda share: share * 2.0 < 1e-19), types),
        (of(is_small=lambda share: share < share + 1.0), types),
        (of(share=lambda top: top * 0.01), types),
        (of(share=lambda top: top / top), types),
        (rounded(of(share=lambda top: top / 64.0)), types),
        (of(top=lambda x: jnp.max(x, axis=1, keepdims=True)), types),
        (of(top=lambda x: jnp.min(jnp.abs(x), axis=1, keepdims=True)), types),
        (of(top=lambda x: jnp.max(jnp.abs(x + 1.0), axis=1, keepdims=True)), types),
        (of(top=lambda x: jnp.max(jnp.abs(x), axis=1)[None, :]), square),
        (rounded(of(top=lambda x: jnp.max(jnp.abs(x), axis=1)[:, None])), square),
        (rounded(of(top=lambda x: jnp.max(jnp.abs(x), axis=1).reshape(3, 1))), square),
        (of(top=lambda x: jnp.max(jnp.abs(x), axis=0)[:, None]), square),
        (of(top=lambda x: jnp.abs(x)[:, :1]), types),
        (
            lambda x, w, s: product(steps(x, scale_of(x)), w) * s * scale_of(x + 1.0),
            types,
        ),
        (lambda x, w, s: product(steps(x, scale_of(x)), w) * scale_of(x), types),
        (lambda x, w, s: product(steps(x, scale_of(x)), w) * s, types),
        (lambda x, w, s: product(steps(x, scale_of(x)), w) * s * s, types),
        (lambda x, w, s: product(steps(x, scale_of(x)), w) * s * s * scale_of(x), types),
        (
            lambda x, w, s: product(steps(x, scale_of(x)), w) * product(steps(x, scale_of(x)), w),
            types,
        ),
        (
            lambda x, w, s: product(steps(x, scale_of(x)), w) * s * scale_of(x),
            ("f32[1,3]", "i8[3,4]", "f32[2,4]"),
        ),
        (
            lambda x, w, s: product(x, w) * s * x[:, :1].astype("float32"),
            ("i8[2,3]", "i8[3,4]", "f32[1,4]"),
        ),
        (lambda x, w, s, t: product(x, w) * s * t, ("i8[2,3]", "i8[3,4]", "f32[1,4]", "f32[2,1]")),
        (lambda x, w, s, t: product(x, w) * s * t, ("i8[3,3]", "i8[3,3]", "f32[1,3]", "f32[3,1]")),
        (
            left_alone(lambda x, w, s, t: product(x, w) * s * t),
            ("u8[2,3]", "i8[3,4]", "f32[1,4]", "f32[2,1]"),
        ),
        (
            lambda x, w, s, t: product(x, w) * s * t,
            ("i8[1,3]", "i8[3,4]", "f32[1,4]", "f32[2,1]"),
        ),
        (
            lambda x, y, s, t: product(x, y, "b, f -> b f") * s * t,
            ("i8[2]", "i8[3]", "f32[2,1]", "f32[1,3]"),
        ),
        (
            lambda x, w, s: product(steps(x, x[:, :1]), w) * s * x[:, :1],
            types,
        ),
        (
            lambda x, w, s, t: product(x, w, dtype="int32") * s * t,
            ("i8[2,3]", "i8[3,4]", "i32[1,4]", "i32[2,1]"),
        ),
        (
            left_alone(
                lambda x, w, s, t: (
                    Traced["contract"](x, w, spec=_MM, dtype=Symbol("i8")).astype("float32") * s * t
                )
            ),
            ("i8[2,3]", "i8[3,4]", "f32[1,4]", "f32[2,1]"),
        ),
    ]


def _ragged(rows: Callable[[Any], Any]) -> list[Example]:
    """Ragged products of `rows` of x: of every form that there is."""

    def of(
        summed: Any = ((1,), (1,)),
        batch: Any = ((), ()),
        ragged: int = 0,
        experts: tuple[int, ...] = (0,),
        counts: tuple[int, ...] = (4, 1),
        **options: Any,
    ) -> Callable[..., Any]:
        numbers = jax.lax.RaggedDotDimensionNumbers((summed, batch), [ragged], list(experts))
        return lambda x, q, s: jax.lax.ragged_dot_general(
            rows(x),
            scaled(q, s, str(x.dtype).replace("float", "f")),
            jnp.asarray(counts, jnp.int32),
            numbers,
            **options,
        )

    x, s = "f32[6,3]", "f32[2,1,4]"
    q = "i8[2,3,4]"
    return [
        (of(((1,), (2,))), (x, "i8[2,4,3]", "f32[2,4,1]")),
        (of(counts=(4, 2)), (x, q, s)),
        (of(counts=(0, 3)), (x, q, s)),
        (of(counts=(2, 0, 3, 1)), (x, "i8[4,3,4]", "f32[4,1,4]")),
        (of(), (x, q, "f32[2,1,1]")),
        (of(), ("f16[6,3]", q, s)),
        (of(), ("f64[6,3]", q, s)),
        (of(preferred_element_type=jnp.bfloat16), (x, q, s)),
        (of(preferred_element_type=jnp.float8_e4m3fn), (x, q, s)),
        (of(), (x, "i4[2,3,4]", s)),
        (of(), (x, "i16[2,3,4]", s)),
        # scales along other axes, and no weights
        (of(), (x, q, "f32[2,3,1]")),
        (left_alone(of()), (x, q, "f32[1,1,4]")),
        (left_alone(of()), (x, q, "f32[]")),
        (left_alone(of()), (x, "i8[2,3,0]", "f32[2,1,1]")),
        (left_alone(of(counts=())), (x, "i8[0,3,4]", "f32[0,1,4]")),
        # other products
        (of(((1,), (0,)), experts=(2,)), (x, "i8[3,4,2]", "f32[1,4,2]")),
        (of(((0,), (1,)), ragged=1), ("f32[3,6]", q, s)),
        (of(((), ())), (x, "i8[2,5,4]", s)),
        (of(((0,), (0,)), experts=()), (x, "i8[6,4]", "f32[1,4]")),
        (of(((0,), (0,)), experts=()), (x, "i8[6,4,2]", "f32[1,4,2]")),
        (of(((1,), (1,)), ((0,), (0,)), experts=()), (x, "i8[6,3,4]", "f32[6,1,4]")),
        (of(), (x, "i8[2,3,4,2]", "f32[2,1,4,2]")),
        (of(((2,), (1,))), ("f32[6,5,3]", q, s)),
        (of(((1,), (1,)), ragged=0), ("f32[6,3,5]", q, s)),
        (of(((1, 2), (1, 2))), ("f32[6,3,2]", "i8[2,3,2,4]", "f32[2,1,1,4]")),
        (
            of(((2,), (2,)), ((0,), (1,)), ragged=1),
            ("f32[2,6,3]", "i8[2,2,3,4]", "f32[2,2,1,4]"),
        ),
        (
            lambda x, w, s: jax.lax.ragged_dot(rows(x), w * s, jnp.asarray([4, 1], jnp.int32)),
            (x, "f32[2,3,4]", s),
        ),
    ]


def _ragged_integers() -> list[Example]:
    def of(x: Any, q: Any, s: Any, **options: Any) -> Any:
        return jax.lax.ragged_dot(
            in_steps(x, **options),
            scaled(q, s),
            jnp.asarray([4, 1], jnp.int32),
        )

    types = ("f32[6,3]", "i8[2,3,4]", "f32[2,1,4]")
    return [
        (lambda x, q, s: of(x, q, s, form="int8"), types),
        (left_alone(lambda x, q, s: of(x, q, s, form="fp8")), types),
        (lambda x, q, s: of(x, q, s, axes=(0,)), types),
        (lambda x, q, s: of(x, q, s, axes=(0, 1)), types),
        (lambda x, q, s: of(x, q, s, lowest=-128), types),
    ]


_MATRIX = "b d, d f -> b f"


def _scale_behind() -> list[Example]:
    """Products of one array with a scale, and one without."""

    def weight(q: Any, s: Any, dtype: str = "f32") -> Any:
        return scaled(q, s, dtype)

    groups = ("i8[2,9,3]", "f32[2,1,3]")
    grouped = "b g d, g d f -> b f"
    return [
        (lambda x, w, s: _product(x, weight(w, s), grouped), ("f32[3,2,9]", *groups)),
        (lambda x, w, s: _product(x, weight(w, s), grouped), ("f32[4,2,9]", *groups)),
        (lambda x, w, s: _product(x, weight(w, s), grouped), ("f32[9,2,9]", *groups)),
        (left_alone(lambda x, w, s: _product(x, weight(w, s), grouped)), ("f32[10,2,9]", *groups)),
        (
            left_alone(lambda x, w, s: _product(x, weight(w, s), "b d, d f -> b f")),
            ("f32[1,5]", "i8[5,3]", "f32[5,1]"),
        ),
        (
            lambda x, w, s: _product(
                50.0 + 50.0 * jnp.abs(x),
                weight(jnp.clip(w, 120, 127), s * 0.001, "f16"),
                "b d, d f -> b f",
                "f16",
            ),
            ("f16[2,99]", "i8[99,3]", "f32[1,3]"),
        ),
        *(
            (
                lambda x, w, s, layout=layout: _product(
                    x, constrain(weight(w, s, "f16"), layout=layout), "a d, d b -> a b", "f16"
                ),
                (f"f16[3,{size}]", f"i8[{size},4]", "f32[1,4]"),
            )
            for size in (5, 6)
            for layout in ((("x",), ()), (("y",), ()), ((), ("x",)), (("x", "y"), ()))
        ),
        (
            lambda x, w, s: _product(x, weight(w, s), "b d, d f -> p b f", parts=2),
            ("f32[3,6]", "i8[6,4]", "f32[1,4]"),
        ),
        (lambda x, w, s: _product(x, weight(w, s), grouped, "bf16"), ("bf16[3,2,9]", *groups)),
        (lambda x, w, s: _product(x, weight(w, s), grouped, "f64"), ("f64[3,2,9]", *groups)),
        (
            lambda x, w, s: _product(x, weight(w, s), "b g d, g d f -> b f g"),
            ("f32[30,2,9]", *groups),
        ),
        (
            lambda x, w, s: _product(x, weight(w, s, "f16"), "b d, d f -> b f", "f16"),
            ("f16[2,300]", "i8[300,3]", "f32[1,3]"),
        ),
        (
            lambda x, w, s: _product(x, weight(w, s), "b d, d f -> b f"),
            ("i32[2,5]", "i8[5,3]", "f32[1,3]"),
        ),
        (
            lambda x, w, s: _product(
                constrain(x, layout=((), ("x",))), weight(w, s), "b d, d f -> b f"
            ),
            ("f32[2,6]", "i8[6,3]", "f32[1,3]"),
        ),
        (
            lambda x, w: _product(x, w, "b d, d f -> b f"),
            ("f32[2,6]", "f32[6,3]"),
        ),
        (
            lambda x, w, s: _product(x.reshape(4, 6), weight(w, s), "b d, d f -> b f"),
            ("f32[2,2,6]", "i8[6,3]", "f32[1,3]"),
        ),
        # weights of merged axes, laid out over chips, and sums of one product
        (
            lambda x, w, s: _product(x, weight(w, s).reshape(6, 4), "b d, f d -> b f"),
            ("f32[2,4]", "i8[2,3,4]", "f32[2,3,1]"),
        ),
        (
            making(
                "constrain",
                lambda x, w, s: _product(
                    x, constrain(weight(w, s, "f16"), layout=(("x",), ())), _MATRIX, "f16"
                ),
                **_BY_CHIP,
            ),
            ("f16[3,6]", "i8[6,4]", "f32[1,4]"),
        ),
        (
            making(
                "constrain",
                lambda x, w, s: _product(
                    x, constrain(weight(w, s, "f16"), layout=(("x",), ())), _MATRIX, "f16"
                ),
                layout=((),),
            ),
            ("f16[3,6]", "i8[6,4]", "f32[1,4]"),
        ),
        (
            making(
                "constrain",
                lambda x, w, s: _product(
                    constrain(x, layout=((), ("x",))), weight(w, s, "f16"), _MATRIX, "f16"
                ),
                **_BY_CHIP,
            ),
            ("f16[3,6]", "i8[6,4]", "f32[1,4]"),
        ),
        (
            lambda x, w, s: _product(
                x, Traced["dequantize"](w, s, axes=(), dtype=Symbol("f32")), _MATRIX
            ),
            ("f32[2,1]", "i8[1,4]", "f32[1,4]"),
        ),
    ]


_INTEGERS = _scaled_products("int8")


def _four() -> Any:
    return jax.lax.iota("int32", 4)


def _loop(unroll: bool | int, of: Callable[[Any, Any], Any] = jnp.matmul) -> Callable[..., Any]:
    """A loop of which the compiler is to write out so many iterations at a time."""
    return lambda x, w: jax.lax.scan(lambda y, v: (of(y, v), y), x, w, unroll=unroll)


_LOOPED = ("f32[2,4]", "f32[3,4,4]")

MORE: dict[str, list[Example]] = {
    "attend_in_groups": _attends_in_groups(),
    "expand": [
        (left_alone(lambda x: _merge(x, by="same")), ("f32[3,4]",)),
        (lambda x: _merge(x), ("f32[3,4]",)),
    ],
    "hidden_counter": [
        (left_alone(lambda x: jax.lax.slice(_four(), (0,), (1,)).reshape(1, 1) * x), ("i32[]",)),
        (left_alone(lambda x: jax.lax.slice(_four() * x, (0,), (1,)).reshape(())), ("i32[]",)),
    ],
    "integers_multiplied": [*_INTEGERS, *_over_chips("int8"), *_of_one_number("int8")],
    "narrow_floats_multiplied": [
        *_scaled_products("fp8"),
        *_over_chips("fp8"),
        *_of_one_number("fp8"),
    ],
    "product_of_integers": _library_products(),
    "put_of_spread": _puts_of_spread(),
    "ragged_integers_multiplied": [
        *_ragged_integers(),
        *_ragged(in_steps),
    ],
    "read_of_spread": [
        (lambda c: Traced["cache_read"](_spread(c, 2), 1), ("f32[3,2,8]",)),
        (lambda c: Traced["cache_read"](_spread(c, 0), 1), ("f32[3,2,8]",)),
    ],
    "scale_before_product": _scale_before_product(),
    "scale_behind_ragged_product": [
        *_ragged(lambda x: x),
        (
            left_alone(
                lambda x, q, s: jax.lax.ragged_dot(
                    x,
                    scaled(q, s),
                    jnp.asarray([4, 1], jnp.int32),
                )
            ),
            ("f32[6,0]", "i8[2,0,4]", "f32[2,1,4]"),
        ),
        (
            lambda x, q, s: jax.lax.ragged_dot(
                x,
                scaled(q, s),
                jnp.asarray([4, 1], jnp.int32),
                preferred_element_type=jnp.float32,
            ),
            ("i8[6,3]", "i8[2,3,4]", "f32[2,1,4]"),
        ),
    ],
    "scale_behind_product": [
        *_scale_behind(),
        *_INTEGERS,
        *_scaled_products("int8", plain=True),
    ],
    "scale_of_input": _scale_of_input(),
    "scale_of_product": _scale_of_product(),
    "scale_of_query": _scale_of_query(),
    "scale_of_rows": _scale_of_rows(),
    "scale_of_scaled": _twice("mul"),
    "scale_of_shifted": _scale_of_shifted(),
    "shift_of_input": _shift_of_input(),
    "shift_of_shifted": _twice("add"),
    "loop_kept": [
        (_loop(unroll=3), _LOOPED),
        (_loop(unroll=True, of=jnp.dot), _LOOPED),
        (left_alone(_loop(unroll=2)), _LOOPED),
        (left_alone(_loop(unroll=True, of=jnp.multiply)), ("f32[4,4]", "f32[3,4,4]")),
        (left_alone(_loop(unroll=True, of=lambda y, v: y + v.sum())), _LOOPED),
        (left_alone(_loop(unroll=True)), ("f32[2,4]", "f32[1,4,4]")),
    ],
    "stack_of_rows": _rows_of_a_stack(),
    "stack_of_spread": [
        *_stacks(
            lambda x: _spread(x),
            lambda x: _spread(jnp.concatenate([x, x], 1)[:, :, :1], 2),
            ("f32[2,2,2]",),
        ),
        *_stacks(lambda x: _spread(x, 2), lambda x: jnp.repeat(x, 2, axis=2), ("f32[2,3,2]",)),
        *_stacks(lambda x: _spread(x), lambda x: _spread(_spread(x), count=1), ("f32[2,3,2]",)),
    ],
    "transpose_of_spread": [
        (lambda c: jnp.transpose(_spread(c, 2), (1, 2, 0)), ("f32[3,2,8]",)),
    ],
    "unstack_of_stack": [
        (lambda x: jnp.unstack(jnp.stack([x, x + 1]), axis=1), ("f32[2]",)),
        (lambda x: jnp.unstack(jnp.stack([x, x + 1], 1), axis=1), ("f32[3]",)),
    ],
    "unstack_of_spread": [
        *_unstacks(lambda x: _spread(x), ("f32[2,3,3]",)),
        *_unstacks(lambda x: _spread(x, 2), ("f32[2,3,3]",)),
    ],
    "write_of_spread": _writes(),
    **_dequantizations(),
    **_merges(),
    **_quantized_caches(),
    **_transposed_caches(),
}
# Mutants that compute the same, by what they share.


def _equal(reason: str, *changes: str) -> dict[str, str]:
    return dict.fromkeys(changes, reason)


_PRECISION = _equal(
    "more bits or fewer: the reals are the same",
    "always `'f64'`",
    "never `'f64'`",
    "always `dtype`",
    "never `dtype`",
    "`factor.type.dtype != dtype`",
)
_OF_FACTORS = _PRECISION | _equal(
    "more bits or fewer: the reals are the same",
    "`'f64' not in (dtype, factor.type.dtype)`",
    "`make('mul', in_dtype(value, wide), in_dtype(factor, wide))` for `in_dtype(make('mul', "
    "in_dtype(value, wide), in_dtype(factor, wide) ...`",
)
_ONE_DTYPE = _equal(
    "factors of one product have one dtype",
    "`factor.type.dtype != dtype`",
    "`value` for `in_dtype(value, wide)`",
    "`factor` for `in_dtype(factor, wide)`",
)
_MARKS = _equal(
    "a mark computes nothing", "False for True", "`value` for `through(value, 'known')`"
)
_A_NUMBER = _equal(
    "a number that is spread is the same number",
    "always `constant(number(value), Type(value.type.dtype, ()))`",
    "never `constant(number(value), Type(value.type.dtype, ()))`",
)
_MIXED = "a product takes mixed dtypes, as the reals are the same"
_LONG = _equal(
    "programs here are too small to wrap: tests/test_sound_quantizing.py has the length",
    "without `if form == 'int8' and product.group_length > LONGEST_SUM`",
    "without `form == 'int8'`",
    "without `product.group_length > LONGEST_SUM`",
    "`form != 'int8'`",
    "`product.group_length >= LONGEST_SUM`",
    "without `if dtype == 'i32' and q.type.shape[axis] > LONGEST_SUM`",
    "without `dtype == 'i32'`",
    "without `q.type.shape[axis] > LONGEST_SUM`",
    "`dtype != 'i32'`",
    "`q.type.shape[axis] >= LONGEST_SUM`",
    "without `if prod((sizes[x] for x in spec.summed)) > LONGEST_SUM`",
    "`prod((sizes[x] for x in spec.summed)) >= LONGEST_SUM`",
)
_BOTH_SCALED = _equal(
    "both factors have a scale there",
    "without `if factor.scale is not None`",
    "always `self.scale.type.shape`",
    "never `value.op['layout']`",
    "`self.scale is not None`",
)
_OVER_CHIPS = _PRECISION | _equal(
    "where a sum is cut, and how it is laid out, its numbers do not tell",
    "always `axes`",
    "never `axes`",
    "`size >= 1`",
    "`bits(dtype) >= bits(result)`",
    "always `self.over_chips(mesh)`",
    "never `self.over_chips(mesh)`",
    "without `ways > 1`",
    "`ways >= 1`",
    "`self.sizes[letter] * ways`",
    "`dtype != 'f64'`",
    "always `make('reduce_sum', value, axes=axes, out_sharding=None)`",
    "`self.numbers` for `in_dtype(self.numbers, dtype)`",
)

_COPIES = "copies may be merged before they are made"

EQUAL: dict[str, dict[str, str]] = {
    "attend_in_groups": _equal("keys have as many heads as values", "1 for 0"),
    "dequantized": _equal("no integers have nine bits", "9 for 8"),
    "first_of_each": _equal(_COPIES, "without `if axis in array`"),
    "integers_multiplied": _LONG
    | _OVER_CHIPS
    | _BOTH_SCALED
    | _equal("with one scale or none it is right too", "without `len(product.scales) < 2`"),
    "merge_of_linear": _equal(
        "nothing linear needs its heads", "without `signature.kind(axis[0]) != 'map'`"
    )
    | _equal(_COPIES, "without `not holders`"),
    "merge_of_repeat": _equal("a merge of one head does nothing", "never `x`"),
    "narrow_floats_multiplied": _LONG
    | _OVER_CHIPS
    | _BOTH_SCALED
    | _equal("no product of floats gives these", "without `if op.types[0].dtype not in REALS`"),
    "product_of_integers": _LONG | _equal("no step is so far below", "129 for 128"),
    "ragged_integers_multiplied": _LONG
    | _equal("JAX has no offset yet", "without `op.get('group_offset') is None`")
    | _equal("the rule asks it before", "without `if weight.name != 'dequantize'`")
    | _equal("JAX clamps an index", "`len(counts) + 1`")
    | _equal("its rows have a scale", "never `scaled`"),
    "scale_before_product": _OF_FACTORS
    | _MARKS
    | _equal(
        "its factor is a number, which is asked before",
        "without `last.op.name == 'known'`",
        "`last.op.name != 'known'`",
        "without `not fits`",
        "never `last.op.args[0]`",
    )
    | _A_NUMBER,
    "scale_behind_product": _OVER_CHIPS
    | _equal(
        _MIXED,
        "`op.args` for `reversed(op.args)`",
        "`self.scale is not None`",
        "always `_wide(dtype)`",
    )
    | _equal("they are three dtypes at most", "`{*floats, dtype} < set(REALS)`"),
    "scale_behind_ragged_product": _LONG
    | _equal("more bits: the reals are the same", "always `'f32'`")
    | _equal("JAX has no offset yet", "without `op.get('group_offset') is None`")
    | _equal("JAX clamps an index", "`len(counts) + 1`")
    | _equal("rows behind the last expert's are zero already", "`expert <= len(counts)`")
    | _equal("its rows have no scale", "always `scaled`", "`scaled / row_scale[:, None]`"),
    "scale_of_input": _OF_FACTORS
    | _MARKS
    | _equal(
        "it is asked again, and told apart for its reason alone",
        "without `if op.args[place].type.dtype not in _WIDE`",
        "without `value.type.dtype in _WIDE`",
    )
    | _equal(_MIXED, "`x` for `in_dtype(x, op.args[1 - place].type.dtype)`"),
    "scale_of_product": _OF_FACTORS | _MARKS,
    "scale_of_query": _OF_FACTORS
    | _equal("it is the most either way", "`abs(fill) >= most`")
    | _MARKS
    | _equal(
        "its factor is one number",
        "`x in weight_letters`",
        "without `_missing(operand, op, place)`",
        "without `scale.op.name == 'known' or _is_moderate(scale)`",
        "without `scale.op.name == 'known'`",
        "`scale.op.name != 'known'`",
        "without `factor is not None`",
        "always `n`",
        "never `n`",
        "`x not in used`",
        "`operand` for `laid_out(operand, axes, shape)`",
    ),
    "scale_of_rows": _OF_FACTORS | _ONE_DTYPE,
    "scale_of_scaled": _OF_FACTORS | _ONE_DTYPE | _MARKS | _A_NUMBER,
    "scale_of_shifted": _OF_FACTORS | _ONE_DTYPE,
    "shift_of_input": _PRECISION
    | _MARKS
    | _equal(
        _MIXED,
        "`op.types[0].dtype != 'f64'`",
        "`x` for `in_dtype(x, dtype)`",
        "`reshaped(operand.value, [n for n in operand.value.type.shape if n  ...` for "
        "`in_dtype(reshaped(operand.value, [n for n in operand.value.type.sh ...`",
        "`op.args[place].op.args[0]` for `in_dtype(op.args[place].op.args[0], wide)`",
    ),
    "shift_of_shifted": _MARKS | _A_NUMBER,
    **dict.fromkeys(
        ("scan_of_dequantize", "stack_of_dequantize"),
        _equal("the forms are made already", "False for True"),
    ),
    "stack_of_rows": _equal(
        "a slice of all, in steps of one, is the whole",
        "`len(numbers) <= source.type.shape[0]`",
        "always `(step, *(1 for _ in row_shape))`",
        "`step >= 1`",
        "never `source`",
    )
    | _equal("JAX cuts no scalar", "without `not row.type.rank`"),
}
