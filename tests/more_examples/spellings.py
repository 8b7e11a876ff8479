"""For the rules that bring spellings to one: the normal form, and recognition."""

from __future__ import annotations

from collections.abc import Callable
from string import ascii_lowercase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dialect.ops.vocabulary import Traced
from rewrite.ir import Symbol
from tests.more_examples.forms import left_alone

Example = tuple[Callable[..., Any], tuple[str, ...]]

_ALL = f"{' '.join(ascii_lowercase)}, z -> {' '.join(ascii_lowercase[:-1])}"
ONE, TWO = ("f32[4]",), ("f32[4]",) * 2
NO_ZERO = "float8_e8m0fnu"  # a format of powers of two


_MIXED = ("f32[3,2]", "f32[3,2,4]", "f32[2,4,5]")  # weights, hidden values, experts


def _experts(h: Any, w: Any) -> Any:
    """The result of every expert for every token."""
    dtype = "bf16" if h.dtype == jnp.bfloat16 else "f32"
    return _product("t e f, e f d -> t e d", h, w, dtype)


def _product(spec: str, x: Any, y: Any, dtype: str = "f32") -> Any:
    return Traced["contract"](x, y, spec=spec, dtype=Symbol(dtype))


def _in_steps(x: Any) -> Any:
    q, scale = Traced["quantize"](x, axes=(2,), form="int8")
    return Traced["dequantize"](q, scale, axes=(2,), dtype=Symbol("f32"))


def _ones(rank: int) -> str:
    """The type of an array of one element."""
    return f"f32[{','.join('1' * rank)}]"


def _over_last(x: Any, y: Any) -> Any:
    """A product summed over the last axis of both."""
    return lax.dot_general(x, y, (((x.ndim - 1,), (y.ndim - 1,)), ((), ())))


def _key() -> Any:
    with jax.ensure_compile_time_eval():
        return jax.random.key(0)


def _positive(x: Any) -> Any:
    return jnp.where(x > 0, x, jnp.full(x.shape, 2.0))


def _often_rounded(x: Any) -> Any:
    for _ in range(2):
        x = x.astype("bfloat16").astype("float32")
    return x


def _far(x: Any) -> Any:
    """Eight ops behind x."""
    for _ in range(4):
        x = jnp.sin(jnp.cos(x))
    return x


def _siblings(of: Callable[..., Any], *types: str) -> Example:
    """A stack of what a function makes of x and each part of w, and of other arrays."""
    return lambda x, w, *more: jnp.stack([of(x, part, *more) for part in w]), types


def _masks(read: Callable[[Any], Any]) -> list[Example]:
    """Numbers made of masks, and what is not quite one, each read."""

    def example(of: Callable[..., Any], *types: str) -> Example:
        return lambda *arrays: read(of(*arrays)), types or ONE

    return [
        example(lambda x: jnp.where(x > 0, 0.0, 3.0)),
        example(lambda x: jnp.where(x > 0, 0.5, 3.0).astype("int32").astype("float32")),
        example(lambda x: 1 - (x > 0).astype("float32")),
        example(lambda x: (x > 0).astype("float32")[None].reshape(2, 2, 1).T),
        example(lambda x: (x > 0).astype("bfloat16").astype("float32")),
        # near misses
        example(lambda x: (x > 0).astype(NO_ZERO)),
        example(lambda x: (x > 0).astype(NO_ZERO).astype("float32")),
        example(lambda x: jnp.sin(x)),
        example(lambda x: 1 - x),
        example(lambda x: x.astype("int32").astype("float32")),
        example(lambda x, y: y - (x > 0), *TWO),
        example(lambda x, y: jnp.where(x > 0, y, 3.0), *TWO),
        example(lambda x, y: jnp.where(x > 0, 3.0, y), *TWO),
        example(lambda i: lax.select_n(i, *(jnp.full(4, n) for n in (1.0, 0.0))), "i32[4]"),
        example(lambda i: lax.select_n(i, *(jnp.full(4, n) for n in (1.0, 0.0, 4.0))), "i32[4]"),
        example(lambda x: lax.select_n(x > 0, jnp.full(4, 2.0), jnp.full(4, 0.0)), "f32[]"),
        example(lambda x: lax.select_n(x > 0, jnp.full(4, 2.0))),
    ]


_WHERE_ELSE = "it holds there too: this only says in which direction"
_MADE_BY = {
    "`value.op.name not in names`": _WHERE_ELSE,
    "without `not steps`": _WHERE_ELSE,
    **dict.fromkeys(("without `steps > 0`", "`steps >= 0`", "1 for 0"), "only how far it looks"),
    "without `value.op.name not in lax.MAPS`": _WHERE_ELSE,
    "without `bool(whole)`": _WHERE_ELSE,
    "without `all((made_by(names, arg, steps - 1) for arg in whole))`": _WHERE_ELSE,
    "`number(arg) is not None`": _WHERE_ELSE,
    "`arg.type.shape != value.type.shape`": _WHERE_ELSE,
    "`steps + 1`": _WHERE_ELSE,
}

_TO_ITS_OWN_SHAPE = "a reshape to the shape that an array has does nothing"
_PRINTED = "a constant that is only longer to print"

_LOOP = ("f32[2]", "f32[3,2]", "f32[2]")


def _positions(steps: int, j: Any) -> Any:
    """What is computed of positions in so many steps."""
    places = jnp.arange(8)
    for _ in range(steps):
        places = places * j
    return places


def _same(row: Any) -> Any:
    """A row as it is, which JAX does not take for the scanned array."""
    return lax.stop_gradient(row)


def _waves(x: Any, axis: int) -> Any:
    """A stack of what is computed from x."""
    return jnp.stack([jnp.sin(x), jnp.cos(x)], axis)


def _added_at_origin(x: Any, y: Any) -> Any:
    """A scatter-add of one window that is smaller than x, at no index."""
    numbers = lax.ScatterDimensionNumbers((0,), (), ())
    return lax.scatter_add(x, jnp.zeros((0,), "int32"), y, numbers)


def _rows_of_loop(x: Any) -> Any:
    return jax.lax.scan(lambda total, row: (total + row, total * row), x[0], x)[1]


def _looped(length: int, **how: Any) -> Any:
    """A loop whose trips read a value from outside, a carry and two rows, and stack two results."""

    def loop(x: Any, w: Any, v: Any) -> Any:
        def trip(total: Any, rows: Any) -> Any:
            return total * rows[0] + x, (total, rows[1] - x)

        return lax.scan(trip, x + 1, (w, v), length, **how)

    return loop


_ONE_TRIP = ("f32[2]", "f32[1,2]", "f32[1,3,2]")

MORE: dict[str, list[Example]] = {
    "single_trip": [
        (_looped(1), _ONE_TRIP),
        (_looped(1, reverse=True, unroll=True), _ONE_TRIP),
        (lambda x: lax.scan(lambda c, _: (c + x, None), x, length=1)[0], ("f32[2]",)),
        (lambda w: lax.scan(lambda _, row: (None, row + 1), None, w)[1], ("f32[1,2]",)),
        (left_alone(_looped(2)), ("f32[2]", "f32[2,2]", "f32[2,3,2]")),
        (left_alone(lambda w: lax.scan(lambda c, r: (c, r), 1.0, w)), ("f32[0,2]",)),
    ],
    "row_of_loop": [
        (left_alone(lambda x: _rows_of_loop(x)[:, :, :1].reshape(3, 2)), ("f32[2,3,2]",)),
        (left_alone(lambda x: _rows_of_loop(x)[1:2]), ("f32[2,3]",)),
    ],
    "broadcast_by_consumer": [
        (lambda x, y: x + lax.broadcast_in_dim(y, (3, 4), (1,)), ("f32[3,4]", "f32[4]")),
        (lambda x, y: x + lax.broadcast_in_dim(y, (3, 4, 2), (2, 1)), ("f32[3,4,2]", "f32[2,4]")),
    ],
    "broadcast_outward": [
        (
            lambda x, y: jnp.broadcast_to(x[:, None], (4, 3)) * jnp.sin(y),
            ("f32[4]", "f32[4,3]"),
        ),
        (
            lambda x, y: lax.select_n(
                lax.broadcast_in_dim(x, (4, 3, 2), (0,)) > 0,
                lax.broadcast_in_dim(y, (4, 3, 2), (1,)),
                lax.broadcast_in_dim(x, (4, 3, 2), (0,)),
            ),
            ("f32[4]", "f32[3]"),
        ),
        (lambda x: jnp.exp(lax.broadcast_in_dim(x, (3, 4, 2), (2, 1))), ("f32[2,4]",)),
        # ops that broadcast nothing by themselves
        (lambda x: jax.grad(lambda x: jnp.sum(x) + jnp.sum(jnp.sin(x)))(x), ONE),
    ],
    "choice_of_masks": [
        (lambda x, y: jnp.where(x > 0, True, y > 0), TWO),
        (lambda x, y: jnp.where(x > 0, False, y > 0), TWO),
        (lambda x, y: jnp.where(x > 0, y > 0, True), TWO),
        (lambda x, y: lax.select_n(x > 0, jnp.full(4, False), y > 0), ("f32[]", "f32[4]")),
        (lambda x, y: jnp.where(x > 0, y, 0.0), TWO),
        (lambda x, y, z: jnp.where(x > 0, y > 0, z > 0), ("f32[4]",) * 3),
        (lambda x, y: lax.select_n(x > 0, y > 0), TWO),
        (lambda i, y: lax.select_n(i, jnp.full(4, False), y > 0), ("i32[4]", "f32[4]")),
        (lambda i, y: lax.select_n(i, jnp.full(4, False), y > 0, y < 2), ("i32[4]", "f32[4]")),
    ],
    "concatenate_to_stack": [
        (lambda x, y: jnp.concatenate([x[None], y[None]]), ("f32[3]",) * 2),
        (
            lambda x, y: jnp.concatenate([lax.reshape(each, (3, 1, 4)) for each in (x, y)], axis=1),
            ("f32[3,4]",) * 2,
        ),
    ],
    "constant_fold": [
        (lambda x: x + lax.neg(np.ones((2, 32), np.float32)), ("f32[2,32]",)),
        (lambda x: x + lax.broadcast_in_dim(np.ones(2, np.float32), (2, 3), (0,)), ("f32[2,3]",)),
        (lambda x: (x, lax.reshape(_key(), (1,))), ONE),
    ],
    "contract_of_broadcast": [
        (
            lambda q, k: jnp.einsum("thk,shk->hts", q, lax.broadcast_in_dim(k, (7, 3, 4), (2, 0))),
            ("f32[5,3,4]", "f32[4,7]"),
        ),
        (
            lambda q, k: jnp.einsum("hk,shk->hs", q, jnp.broadcast_to(k, (7, 3, 4))),
            ("f32[3,4]", "f32[7,1,4]"),
        ),
    ],
    "contract_of_merge": [
        (lambda x, w: x.reshape(6, 4) @ w, ("f32[2,3,4]", "f32[4,5]")),
        # what is stacked along an axis that is merged with the next, and with none
        (lambda x, w: _waves(x, 1).reshape(3, 8) @ w, ("f32[3,4]", "f32[8,5]")),
        (
            lambda x, w: jnp.einsum("ab,bc->ac", _waves(x, 2).reshape(12, 2).T, w),
            ("f32[3,4]", "f32[12,5]"),
        ),
        # neighbours that were stacked
        (left_alone(lambda x, w: _waves(x, 2).reshape(3, 8) @ w), ("f32[3,4]", "f32[8,5]")),
    ],
    "product_without_sum": [
        (lambda x, w: jnp.einsum("abc,ca->abc", x, w), ("f32[2,3,4]", "f32[4,2]")),
        (lambda x, w: jnp.einsum("a,ba->ba", w, x), ("f32[3,4]", "f32[4]")),
        # near misses
        (left_alone(lambda x, w: x @ w), ("f32[4,4]", "f32[4,4]")),
        (left_alone(lambda x, w: jnp.einsum("ba,a->ba", x, w)), ("i32[3,4]", "i32[4]")),
        (left_alone(lambda x, w: jnp.einsum("a,b->ab", x, w)), ("f32[3]", "f32[4]")),
    ],
    "sum_of_scatter": [
        (left_alone(lambda x, y, i: x.at[i].add(y)), ("f32[4]", "f32[4]", "i32[4]")),
        (left_alone(_added_at_origin), ("f32[4]", "f32[2]")),
    ],
    "weights_of_sum": [
        (
            lambda r, h, w: jnp.einsum("edt,te->dt", jnp.einsum("efd,tef->edt", w, h), r),
            _MIXED,
        ),
        (
            lambda r, h, w: jnp.einsum("te,ted->td", r, _experts(h, w).astype("float32")),
            ("f32[3,2]", "bf16[3,2,4]", "bf16[2,4,5]"),
        ),
        (
            lambda r, h, w: _product("e t, t e d -> t d", r, _experts(h, w)),
            ("f32[2,3]", *_MIXED[1:]),
        ),
        (
            lambda r, h, w: _product("t e, t e d -> t d", r, _product("t e, e d -> t e d", h, w)),
            ("f32[3,2]", "f32[3,2]", "f32[2,5]"),
        ),
        # near misses
        (lambda r, h, w: jnp.einsum("t,ted->td", r, _experts(h, w)), ("f32[3]", *_MIXED[1:])),
        (
            left_alone(lambda r, h, w: _product("t e, t e d -> t e d", r, _experts(h, w))),
            _MIXED,
        ),
        (lambda r, h, w: jnp.einsum("ted,ted->td", r, _experts(h, w)), ("f32[3,2,5]", *_MIXED[1:])),
        (
            lambda r, h, w: _product("t e k, t e d -> t k d", r, _experts(h, w)),
            ("f32[3,2,6]", *_MIXED[1:]),
        ),
        (lambda r, h, w: jnp.einsum("te,ted->td", r, jnp.sin(_experts(h, w))), _MIXED),
        (lambda r, h, w: jnp.einsum("te,ted->td", r, _experts(h, w)), ("i32[3,2]", *_MIXED[1:])),
        (
            lambda r, h, w: jnp.einsum("te,ted->td", r, jnp.einsum("tef,fd->ted", h, w)),
            (*_MIXED[:2], "f32[4,5]"),
        ),
        (
            lambda r, h, w: _product(
                "t e, t e d -> t d", r, _product("t e f, e f d -> t e d", h, w, "i8")
            ),
            _MIXED,
        ),
        (
            left_alone(lambda r, h, w: jnp.einsum("te,ted->td", r, _experts(_in_steps(h), w))),
            _MIXED,
        ),
    ],
    "unchanged_by_loop": [
        (lambda x, w, y: lax.scan(lambda c, row: (c * row * y, _same(row)), x, w), _LOOP),
        (lambda x, w, y: lax.scan(lambda c, row: (c * y, (_same(row), row * y)), x, w), _LOOP),
        # near misses
        (left_alone(lambda x, w, y: lax.scan(lambda c, row: (_same(row), c * y), x, w)), _LOOP),
        (left_alone(lambda x, w, y: lax.scan(lambda c, row: (c * y, row * y), x, w)), _LOOP),
    ],
    "contract_of_repeat": [
        (
            lambda q, k: jnp.einsum(
                "thk,hk->ht", q, jnp.broadcast_to(k[:, None, None], (2, 1, 3, 4)).reshape(6, 4)
            ),
            ("f32[5,6,4]", "f32[2,4]"),
        ),
        (
            lambda q, k: jnp.einsum(
                "thxk,hxk->ht", q, jnp.broadcast_to(k[:, None], (2, 3, 4)).reshape(6, 1, 4)
            ),
            ("f32[5,6,1,4]", "f32[2,4]"),
        ),
        (
            lambda q, k: jnp.einsum(
                "thk,hk->ht", q, jnp.broadcast_to(k[:, :, None], (1, 2, 3, 4)).reshape(6, 4)
            ),
            ("f32[5,6,4]", "f32[1,2,4]"),
        ),
        (
            left_alone(
                lambda q, k: jnp.einsum(
                    "hxk,hxk->hk", q, jnp.broadcast_to(k, (6, 4)).reshape(6, 1, 4)
                )
            ),
            ("f32[6,1,4]", "f32[6,1]"),
        ),
        (
            lambda q, k: jnp.einsum("thk,hk->ht", q, jnp.broadcast_to(k, (6, 4)).reshape(4, 6)),
            ("f32[5,4,6]", "f32[6,1]"),
        ),
        (
            lambda q, k: jnp.einsum("thk,shk->hts", q, jnp.repeat(k, 3, axis=1)),
            ("f32[5,0,4]", "f32[7,0,4]"),
        ),
        (
            lambda q, k: jnp.einsum("thk,hk->ht", q, jnp.repeat(k, 3, axis=0)),
            ("f32[5,6,4]", "f32[2,4]"),
        ),
        # of what is summed
        (
            lambda q, k: jnp.einsum("thk,shk->ts", q, jnp.repeat(k, 3, axis=1)),
            ("f32[5,6,4]", "f32[7,2,4]"),
        ),
    ],
    "convert_of_mask": [
        (lambda x: (x > 0).astype(NO_ZERO).astype("float32"), ONE),
    ],
    "cut_inward": [
        (lambda x, w, y: (x @ w + y).reshape(3, 2, 2), ("f32[3,5]", "f32[5,4]", "f32[1,4]")),
        (
            left_alone(lambda x, w: jnp.sin(jnp.sort(x @ w)).reshape(3, 2, 2)),
            ("f32[3,5]", "f32[5,4]"),
        ),
        (left_alone(lambda x: jnp.sin(jnp.cos(x)).reshape(3, 2, 2)), ("f32[3,4]",)),
        # norms of all heads together
        (
            left_alone(
                lambda x, w: (
                    (y := x @ w) * lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + 1e-5)
                ).reshape(3, 2, 2)
            ),
            ("f32[3,5]", "f32[5,4]"),
        ),
        (
            left_alone(
                lambda x, w: ((y := x @ w) - jnp.mean(y, -1, keepdims=True)).reshape(3, 2, 2)
            ),
            ("f32[3,5]", "f32[5,4]"),
        ),
        (
            lambda x, w: ((x @ w) * jnp.max(x, -1, keepdims=True)).reshape(3, 2, 2),
            ("f32[3,5]", "f32[5,4]"),
        ),
        (
            lambda x, w, y: (x @ w + y).reshape(2, 3, 5, 2, 2),
            ("f32[2,3,5,7]", "f32[7,4]", "f32[2,1,5,1]"),
        ),
        (lambda x, w: (x @ w + 1).reshape(3, 2, 1, 2), ("f32[3,5]", "f32[5,4]")),
        # torn where something broadcasts
        (
            lambda x, w, y: (x @ w + y).reshape(4, 6, 3, 2),
            ("f32[6,4,5]", "f32[5,6]", "f32[1,4,6]"),
        ),
        (lambda x, w: jnp.sin(jnp.cos(jnp.sin(x @ w))).reshape(3, 2, 2), ("f32[3,5]", "f32[5,4]")),
        (
            lambda x, w: jnp.sin(jnp.cos(jnp.sin(jnp.cos(x @ w)))).reshape(3, 2, 2),
            ("f32[3,5]", "f32[5,4]"),
        ),
    ],
    "cut_through_unstack": [
        (lambda x: jnp.unstack(x, axis=1)[1].reshape(2, 2, 1, 2), ("f32[4,3,2]",)),
        (lambda x: jnp.unstack(x)[1].reshape(3, 2, 2, 2), ("f32[3,6,4]",)),
        (lambda x: jnp.unstack(x, axis=1)[1].reshape(4, 6, 3, 2), ("f32[6,2,4,6]",)),
        (lambda x: jnp.unstack(x, axis=1)[1].reshape(2, 2), ("f32[4,2,1]",)),
    ],
    "div_by_root": [
        (lambda x, y: x / jnp.sqrt(jnp.exp(y)).reshape(2, 2), ("f32[2,2]", "f32[4]")),
        (lambda y: 1 / jnp.sqrt(jnp.exp(y)), ONE),
        (lambda y: jnp.ones(3) / jnp.sqrt(jnp.exp(y)), ("f32[]",)),
    ],
    "dot_to_contract": [
        # as many axes as there are letters, and more
        (_over_last, (_ones(14), _ones(13))),
        (_over_last, (_ones(14), _ones(14))),
    ],
    "expand_to_reshape": [
        (lambda x: lax.broadcast_in_dim(x, (4, 2), (1, 0)), ("f32[2,4]",)),
    ],
    "imag_of_rotation": [
        (lambda x: jnp.imag(jnp.exp(x * 1j)), ONE),
        (lambda x: jnp.imag(jnp.exp(1j * x.astype("bfloat16"))), ONE),
        # near misses
        (lambda x: jnp.imag(jnp.exp(2j * x)), ONE),
        (lambda x: jnp.imag(jnp.exp(1j * x)), ("c64[4]",)),
    ],
    "known_choice": [
        (lambda x: lax.select_n(jnp.int32(7), x, x + 1, x * 2), ONE),
        (lambda x: lax.select_n(jnp.int32(-1), x, x + 1, x * 2), ONE),
    ],
    "mask_times_number": [
        *_masks(lambda value: value * value.dtype.type(4)),
        (lambda x: jnp.where(x > 0, 2.0, 3.0) * jnp.full((3, 4), 2.0), ("f32[1,4]",)),
    ],
    "mask_with_itself": [
        (lambda x, y: (x > 0) ^ ((x > 0) & (y > 0)), TWO),
        (lambda x, y: (x > 0) ^ ((y > 0) & (x > 0)), TWO),
        (lambda x, y: ((y > 0) & (x > 0)) ^ (x > 0), TWO),
        (lambda x, y: (x > 0) & ((x > 0) & (y > 0)), TWO),
        (lambda x, y: (x > 0) | ((x > 0) & (y > 0)), TWO),
        (lambda x, y: (x > 0) ^ ((x > 0) | (y > 0)), TWO),
        (lambda x, y, z: (x > 0) ^ ((z > 0) & (y > 0)), ("f32[4]",) * 3),
    ],
    "mask_with_splat": [
        (lambda x: (x > 0) & False, ONE),
        (lambda x: (x > 0) | False, ONE),
        (lambda x: (x > 0) | True, ONE),
        (lambda x: (x > 0) ^ False, ONE),
        (lambda x: (x > 0) ^ True, ONE),
        (lambda i: i & 1, ("i32[4]",)),
    ],
    "max_of_more": [
        (lambda x: jnp.maximum(x, -jnp.inf), ONE),
        (lambda x, y: jnp.maximum(jnp.minimum(x, -1.0), jnp.exp(y)), TWO),
        (lambda x: lax.max(0.0, jnp.sqrt(x)), ("f32[64]",)),
        (lambda i: jnp.maximum(lax.iota("int32", 4), jnp.maximum(i, 5)), ("i32[]",)),
    ],
    "merge_of_stack": [
        (lambda x: jnp.stack([x], axis=1).reshape(3, 4), ("f32[3,4]",)),
        (lambda x, y: jnp.stack([x, y]).reshape(6, 4), ("f32[3,4]",) * 2),
    ],
    "neutral": [
        (lambda x: lax.mul(1.0, x), ONE),
    ],
    "not_of_comparison": [
        (lambda i: ~(i < 2), ("i32[4]",)),
        (lambda i: ~(i <= 2), ("i32[4]",)),
        (lambda i: ~(i > 2), ("i32[4]",)),
        (lambda i: ~(i == 2), ("i32[4]",)),
        (lambda i: ~(i != 2), ("i32[4]",)),
        (lambda x: ~(x >= 2.0), ONE),
    ],
    "contract_of_dropped": [
        (lambda x, w: jnp.transpose(x, (2, 1, 0))[:, 0] @ w, ("f32[3,1,2]", "f32[3,4]")),
        (lambda x, w: w @ jnp.transpose(x, (3, 0, 1, 2))[..., 0, 0], ("f32[3,1,1,2]", "f32[4,2]")),
        # near misses
        (lambda x, w: jnp.transpose(x, (1, 0, 2)).reshape(2, 0) @ w, ("f32[0,1,2]", "f32[0,4]")),
        (lambda x, w: jnp.transpose(x, (1, 0)).reshape(1, 2, 3) @ w, ("f32[3,2]", "f32[3,4]")),
        (lambda x, w: jnp.transpose(x, (2, 1, 0)).reshape(6) @ w, ("f32[3,1,2]", "f32[6,4]")),
        (lambda x, w: jnp.transpose(x, (2, 1, 0)).reshape(3, 2) @ w, ("f32[3,1,2]", "f32[2,4]")),
        (lambda x, w: x.reshape(4) @ w, ("f32[1,4]", "f32[4,4]")),
    ],
    "complex_of_sum": [
        (lambda x, y: y * 1j + x, TWO),
        (lambda x, y: x.astype("bfloat16") + 1j * y.astype("float16"), TWO),
        (lambda x, y: x + 1j * y, ("f32[4]", "f64[4]")),
        # near misses
        (lambda x, y: x + 2j * y, TWO),
        (lambda x, y: x + 1j * y, ("c64[4]", "f32[4]")),
        (lambda x, y: x + 1j * y, ("f64[4]", "f32[4]")),
        (lambda x, y: x + 1j * y, ("f32[4]", "c64[4]")),
        (lambda x, y: x + 1j * y, ("c64[4]", "f64[4]")),
        (lambda x, y: x + 1j * y, ("f64[4]", "c64[4]")),
        (lambda x, y: x + 1j / y, TWO),
        (lambda x, y: x + 1 * y, TWO),
    ],
    "part_of_complex": [
        (lambda x, y: jnp.real(lax.complex(x, y)), TWO),
    ],
    "part_of_layout": [
        (lambda z: jnp.imag(z.reshape(2, 2)), ("c64[4]",)),
        (lambda z: jnp.imag(z.T), ("c64[2,3]",)),
        (lambda z: jnp.real(z[1:]), ("c64[4]",)),
        (lambda z: jnp.real(jnp.broadcast_to(z, (3, 4))), ("c64[4]",)),
        # near misses
        (lambda z: jnp.real(jnp.cumsum(z)), ("c64[4]",)),
        (lambda z, w: jnp.real(jnp.concatenate([z, w])), ("c64[4]",) * 2),
    ],
    "part_of_product": [
        (
            lambda x, y: jnp.imag(lax.complex(x, y).reshape(2, 2) * lax.complex(x, x + y)[:2]),
            ("f32[4]",) * 2,
        ),
        (
            lambda x, y: jnp.real(lax.complex(x, y).reshape(4) * lax.complex(y, x).reshape(4)),
            ("f32[2,2]",) * 2,
        ),
        (lambda x, y, z: jnp.imag(z * lax.complex(x, y)), (*TWO, "c64[4]")),
        # near misses
        (left_alone(lambda z, w: jnp.real(z * w)), ("c64[4]",) * 2),
        (lambda x, y, z: jnp.real(z + lax.complex(x, y)), (*TWO, "c64[4]")),
        (left_alone(lambda x, y, z: jnp.real(z * jnp.sqrt(lax.complex(x, y)))), (*TWO, "c64[4]")),
        (
            left_alone(lambda x, y, z: jnp.real(z * jnp.concatenate([lax.complex(x, y), z[4:]]))),
            (*TWO, "c64[8]"),
        ),
    ],
    "real_of_rotation": [
        (lambda x: jnp.real(jnp.exp(x * 1j)), ONE),
        (lambda x: jnp.real(jnp.exp(1j * x.astype("bfloat16"))), ONE),
        # near misses
        (lambda x: jnp.real(jnp.exp(2j * x)), ONE),
        (lambda x: jnp.real(jnp.exp(1j * x)), ("c64[4]",)),
    ],
    "plain_slice": [
        (lambda x: lax.slice(x, (0,), (4,)), ONE),
    ],
    "power_to_root": [
        (lambda x: jnp.square(x) ** jnp.float32(0.5), ONE),
        # near misses
        (left_alone(lambda x: lax.pow(x, jnp.full(4, 0.5))), ONE),
        (left_alone(lambda x: lax.pow(x, jnp.full(4, -0.5))), ONE),
        (left_alone(lambda x: jnp.square(x) ** 0.25), ONE),
    ],
    "product_of_masks": [
        (lambda x, y: ((x > 0) * 1)[None] * ((y > 0) * 1).reshape(1, 4), TWO),
        (lambda x, y: (x > 0).astype(NO_ZERO) * (y > 0).astype(NO_ZERO), TWO),
        (lambda x, y: (x > 0) * 1 * jnp.sin(y).astype("int32"), TWO),
    ],
    "reshape_of_broadcast": [
        (lambda x: jnp.broadcast_to(x[:, None], (0, 3)).reshape(0, 3, 1), ("f32[0]",)),
        (lambda x: jnp.broadcast_to(x[:, None], (4, 3)).reshape(3, 4), ONE),
        (lambda x: jnp.broadcast_to(x[:, None], (4, 3)).reshape(12), ONE),
        (lambda x: lax.broadcast_in_dim(x, (3, 4, 2), (2, 1)).reshape(3, 1, 4, 2), ("f32[2,4]",)),
        (lambda x: jnp.broadcast_to(x[:, None, None], (4, 1, 3)).reshape(4, 3), ONE),
        (lambda x: jnp.broadcast_to(x, (3, 1, 4)).reshape(1, 3, 4, 1), ("f32[1,4]",)),
        (lambda x: jnp.broadcast_to(x, (2, 2)).reshape(1, 2, 2), ("f32[2,1]",)),
        (lambda x: jnp.broadcast_to(x, (2, 2)).reshape(2, 1, 2), ("f32[2]",)),
    ],
    "sign_outward": [
        (lambda x, y: -x / y, TWO),
        (lambda x, y: lax.div(-x, y), ("i32[4]",) * 2),
    ],
    "slice_of_broadcast": [
        (
            lambda x, i: lax.dynamic_slice(
                lax.broadcast_in_dim(x, (3, 4, 2), (2, 1)), (i, i, 0), (1, 2, 2)
            ),
            ("f32[2,4]", "i32[]"),
        ),
        (
            lambda x, i: lax.dynamic_slice(jnp.broadcast_to(x, (3, 2)), (i, i), (1, 1)),
            ("f32[2]", "i32[]"),
        ),
    ],
    "slice_of_mask": [
        (lambda x, i: lax.dynamic_slice(x > 0, (i,), (2,)), ("f32[4]", "i32[]")),
        (lambda i: lax.dynamic_slice(jnp.arange(8) * 2 - 3, (i,), (2,)), ("i32[]",)),
        (
            lambda i, j: lax.dynamic_slice(
                jnp.broadcast_to(jnp.arange(8), (3, 8)) * j, (i, i), (2, 2)
            ),
            ("i32[]", "i32[]"),
        ),
        (lambda i, j: lax.dynamic_slice(_positions(7, j), (i,), (2,)), ("i32[]", "i32[]")),
        # near misses: all of it, as deep as it does not look, and no positions
        (left_alone(lambda x, i: lax.dynamic_slice(x > 0, (i,), (4,))), ("f32[4]", "i32[]")),
        (
            left_alone(lambda i, j: lax.dynamic_slice(_positions(8, j), (i,), (2,))),
            ("i32[]", "i32[]"),
        ),
        (left_alone(lambda x, i: lax.dynamic_slice(x * 2, (i,), (2,))), ("f32[4]", "i32[]")),
    ],
    "slice_of_reshape": [
        (
            lambda x, i: lax.dynamic_slice((x > 0).reshape(1, 4, 1, 2), (0, i, 0, i), (1, 2, 1, 1)),
            ("f32[4,2]", "i32[]"),
        ),
        (
            lambda x, i: lax.dynamic_slice((x > 0).reshape(4, 2), (i, 0), (2, 2)),
            ("f32[4,1,2]", "i32[]"),
        ),
        (lambda i: lax.dynamic_slice((jnp.arange(8) * 2)[None], (0, i), (1, 2)), ("i32[]",)),
        (
            lambda x, i: lax.dynamic_slice((x > 0).reshape(4), (i,), (2,)),
            ("f32[4,1]", "i32[]"),
        ),
        (
            lambda i, j: lax.dynamic_slice(_positions(6, j)[None], (0, i), (1, 2)),
            ("i32[]", "i32[]"),
        ),
        # near misses: nothing of it, as deep as it does not look, and no positions
        (
            left_alone(lambda x, i: lax.dynamic_slice((x > 0)[None], (0, i), (0, 2))),
            ("f32[4]", "i32[]"),
        ),
        (
            left_alone(lambda i, j: lax.dynamic_slice(_positions(7, j)[None], (0, i), (1, 2))),
            ("i32[]", "i32[]"),
        ),
        (
            left_alone(lambda x, i: lax.dynamic_slice((x * 2)[None], (0, i), (1, 2))),
            ("f32[4]", "i32[]"),
        ),
    ],
    "slice_of_positions": [
        (
            lambda i: lax.dynamic_slice(lax.broadcasted_iota("uint8", (3, 8), 1), (i, 0), (2, 3)),
            ("i32[]",),
        ),
        (
            lambda i: lax.dynamic_slice(lax.broadcasted_iota("int32", (3, 8), 0), (i, i), (2, 8)),
            ("i32[]",),
        ),
        (lambda i: lax.dynamic_slice(jnp.arange(129), (i,), (2,)), ("i8[]",)),
        # near misses: no integers, and an end that its place does not reach
        (left_alone(lambda i: lax.dynamic_slice(jnp.arange(8.0), (i,), (2,))), ("i32[]",)),
        (left_alone(lambda i: lax.dynamic_slice(jnp.arange(130), (i,), (2,))), ("i8[]",)),
    ],
    "stack_of_same": [
        _siblings(lambda x, w, y: jnp.sin(x @ w + y), "f32[4]", "f32[2,4,5]", "f32[5]"),
        _siblings(lambda x, w, y: jnp.sin(x @ w + y), "f32[4]", "f32[5,4,5]", "f32[5]"),
        _siblings(lambda x, w: x @ w, "f32[3,4]", "f32[1,4,5]"),
        _siblings(lambda x, w: _far(x @ w), "f32[3,4]", "f32[2,4,5]"),
        _siblings(lambda x, w: jnp.sin(x @ w).T, "f32[2,3,4]", "f32[2,4,5]"),
        _siblings(lambda x, w: jnp.sin(x @ w).reshape(5, 3), "f32[3,4]", "f32[2,4,5]"),
        _siblings(lambda x, w, y: jnp.sin(x @ w + y), "f32[3,4]", "f32[2,4,5]", "f32[3,5]"),
        _siblings(lambda x, w, y: jnp.sin(x @ w + y), "f32[3,4]", "f32[2,4,5]", "f32[1,5]"),
        _siblings(lambda x, w, y: jnp.sin(x @ w * y), "f32[3,4]", "f32[2,4,5]", "f32[]"),
        _siblings(
            lambda x, w: Traced["contract"](x, w, spec="a z, z b -> a b"), "f32[3,4]", "f32[2,4,5]"
        ),
        (
            lambda x, w, s: jnp.stack([jnp.sin(x @ w[0] * s[0]), jnp.sin(x @ w[1] * s[1])]),
            ("f32[3,4]", "f32[2,4,5]", "f32[2]"),
        ),
        (
            lambda x, w: jnp.stack([jnp.sin(x @ part) for part in jnp.unstack(w, axis=1)]),
            ("f32[3,4]", "f32[4,2,5]"),
        ),
        (
            lambda x, w: jnp.stack([jnp.sin(x @ part) for part in jnp.unstack(w)], axis=1),
            ("f32[3,4]", "f32[2,4,5]"),
        ),
        (lambda x, w: jnp.stack([x @ w[:1], x @ w[1:]]), ("f32[3,1]", "f32[2,5]")),
        (lambda x, w: jnp.stack([x @ w[:, :1], x @ w[:, 1:]]), ("f32[3,4]", "f32[4,2]")),
        # near misses
        (
            lambda x, w: jnp.stack([jnp.sin(x @ part) for part in jnp.unstack(w)[::-1]]),
            ("f32[3,4]", "f32[2,4,5]"),
        ),
        (
            lambda x, v, y, w: jnp.stack([x @ v, y @ w]),
            ("f32[3,4]", "f32[4,5]", "f32[3,6]", "f32[6,5]"),
        ),
        (
            lambda x, w, i: jnp.stack([x @ w[:1], x @ lax.dynamic_slice(w, (i, 0), (1, 5))]),
            ("f32[3,1]", "f32[2,5]", "i32[]"),
        ),
        (lambda x, w: jnp.stack([x @ w[:1, :1], x @ w[1:, 1:]]), ("f32[3,1]", "f32[2,2]")),
        (lambda x, w: jnp.stack([x @ w[:1, :2], x @ w[1:, :2]]), ("f32[3,1]", "f32[2,3]")),
        (lambda x, w: jnp.stack([x @ w[0:0], x @ w[1:1]]), ("f32[3,0]", "f32[2,5]")),
        (lambda x, w: jnp.stack([x @ w[:, :1], x @ lax.top_k(w, 1)[0]]), ("f32[3,4]", "f32[4,2]")),
        _siblings(lambda x, w: jnp.cumsum(x @ w, axis=0), "f32[3,4]", "f32[2,4,5]"),
        _siblings(lambda x, w: Traced["contract"](x, w, spec=_ALL), _ones(26), "f32[2,1]"),
    ],
    "statistic_reshaped_last": [
        (lambda x, s: jnp.sum(x, axis=-1, keepdims=True) * s, ("f32[2,4]", "f32[1,1]")),
        (left_alone(lambda x: jnp.sin(jnp.sort(jnp.sum(x, -1)))[:, None] * 2.0), ("f32[2,4]",)),
        (left_alone(lambda x: jnp.sin(jnp.cos(x))[:, None] * 2.0), ("f32[2]",)),
        (lambda x: jnp.sum(x, axis=-1, keepdims=True) * 0.5, ("f32[2,4]",)),
        (lambda x: jnp.sum(x, axis=-1, keepdims=True) * jnp.full((2, 1), 0.5), ("f32[2,4]",)),
        (lambda x, s: jnp.sum(x, axis=-1, keepdims=True) * s, ("f32[2,4]", "f32[]")),
        (
            lambda x, p: jnp.where(
                p[:, None], jnp.sum(x, -1, keepdims=True), jnp.full((2, 1), 2.0)
            ),
            ("f32[2,4]", "bool[2]"),
        ),
        (lambda x: _positive(jnp.sum(x, axis=-1, keepdims=True)), ("f32[2,4]",)),
        (lambda x: jnp.sin(jnp.exp(jnp.sum(x, axis=-1))[:, None]), ("f32[2,4]",)),
        (
            lambda x: jnp.sin(jnp.exp(jnp.sin(jnp.sin(jnp.exp(jnp.sum(x, axis=-1)))))[:, None]),
            ("f32[2,4]",),
        ),
        # reshaped otherwise
        (lambda x: jnp.sum(x, axis=1)[:, None] * jnp.sum(x, axis=1), ("f32[2,4]",)),
        (
            lambda x, y: jnp.sum(x, axis=1)[:, None] * y.reshape(2, 1),
            ("f32[2,4]", "f32[1,2]"),
        ),
    ],
    "test_of_mask": [
        *_masks(lambda value: value > value.dtype.type(0.5)),
        (lambda x: (x > 0).astype(NO_ZERO).astype("float32") != 0, ONE),
        (lambda x: lax.dynamic_slice(x > 0, (0, 0), (2, 2)) == True, ("f32[2,2]",)),  # noqa: E712
        (lambda x: lax.gt(jnp.full(4, 2.5), jnp.where(x > 0, 0.0, 3.0)), ONE),
    ],
    "transpose_of_transpose": [
        (lambda x: jnp.transpose(jnp.transpose(x, (1, 2, 0)), (1, 2, 0)), ("f32[2,3,4]",)),
    ],
    "variance": [
        (
            lambda x: jnp.mean(x * x, 0)[:, None] - _often_rounded(jnp.mean(x, 0))[:, None] ** 2,
            ("f32[2,3]",),
        ),
        (
            lambda x: jnp.mean(x * x, 0)[None] - _often_rounded(jnp.mean(x, 0))[:, None] ** 2,
            ("f32[2,3]",),
        ),
        (lambda x: jnp.mean(x * x, 0) - jnp.mean(x, 1) ** 2, ("f32[3,3]",)),
        (
            lambda x: jnp.mean(x * x, 0, keepdims=True) - (jnp.mean(x, 0) ** 2)[:, None],
            ("f32[2,3]",),
        ),
        (
            lambda x: (
                jnp.mean(x * x, 1).astype("bfloat16") - jnp.mean(x, 1).astype("bfloat16") ** 2
            ),
            ("f32[2,3]",),
        ),
    ],
}
_CLAMPED = "a start goes no further than the slice fits"
_NO_SUM = "a product that sums nothing is no `contract`"

EQUAL: dict[str, dict[str, str]] = {
    "broadcast_by_consumer": {"always `reshaped(source, tuple(shape))`": _TO_ITS_OWN_SHAPE},
    "constant_fold": {
        "without `if op.name == 'broadcast_in_dim' and (not op.args[0].type.shape)`": _PRINTED,
        "without `op.types[0].size > _LARGEST_FOLDED`": _PRINTED,
    },
    "concatenate_to_stack": {
        "without `not _expanded(arg, inner)`": _WHERE_ELSE,
        "`value.op.args[0].type.rank >= 0`": _WHERE_ELSE,
        "without `value.op.args[0].type.shape == inner`": _WHERE_ELSE,
    },
    "contract_of_repeat": {
        "without `if axis in spec.outputs[0]`": _WHERE_ELSE,
        "without `if all((len(sizes) == 1 for axis, sizes in named.items() if axis in s ...`": (
            _WHERE_ELSE
        ),
        "without `value.op.args[0].op.name != 'broadcast_in_dim'`": _WHERE_ELSE,
    },
    "convert_to_same": {
        "without `if op.args[0].op.name == 'const'`": "only whether the constant is weakly typed"
    },
    "cut_inward": {
        **_MADE_BY,
        "without `inner.name not in lax.MAPS`": "a product is cut by another rule before",
        "without `not made_by((name,), op.args[0])`": _WHERE_ELSE,
    },
    "dot_to_contract": {
        "without `if op.get('out_sharding') is not None`": "where it lies is no number",
        "always `{'precision': precision}`": "none is what it is where nothing is said",
        "never `{'precision': precision}`": "on a CPU every precision is the same",
        "`precision is None`": "on a CPU every precision is the same",
    },
    "map_of_repeat": {
        "without `if grown.op.name != 'broadcast_in_dim' or grown.op.args[0].type.size  ...`": (
            _WHERE_ELSE
        ),
        "without `grown.op.args[0].type.size == grown.type.size`": _WHERE_ELSE,
    },
    "mask_times_number": {
        "without `op.name == 'select_n'`": "nothing else reads a mask and two numbers",
        "without `op.args[0].type.dtype == 'bool'`": "the select that it makes is of the same mask",
    },
    "mask_with_itself": {"without `if op.types[0].dtype != 'bool'`": "it is so of integers, too"},
    "power_of_two": {"without `base.type.dtype not in REALS`": "it holds of all, about"},
    "power_to_root": {"without `base.type.dtype not in REALS`": "it holds of all, about"},
    "slice_of_mask": {"never `constant(0, i.type)`": _CLAMPED},
    "slice_of_broadcast": {
        "without `source.type.rank != inner.type.rank`": "of a scalar nothing is sliced",
        "never `constant(0, i.type)`": _CLAMPED,
    },
    "stack_of_same": {
        "without `steps == 0`": _WHERE_ELSE,
        "`steps + 1`": _WHERE_ELSE,
        "without `if len(self.memo) > _LARGEST`": _WHERE_ELSE,
        "`len(self.memo) >= _LARGEST`": _WHERE_ELSE,
        "always `make('transpose', source, permutation=order)`": "it moves nothing",
        "without `shape`": "it grows nothing",
    },
    "tile_to_broadcast": {"never `(size,)`": "repeated once it is as it was"},
    "variance": {
        "arguments swapped in `make('sub', source, reshaped(mean, tuple(sizes)))`": "it is squared"
    },
    "statistic_reshaped_last": {
        **_MADE_BY,
        "without `not shape`": _WHERE_ELSE,
        "without `not any((made_by(lax.REDUCTIONS, inner) for inner in sources))`": _WHERE_ELSE,
    },
    "weights_of_sum": {
        "without `not outer.summed`": _NO_SUM,
        "`summed < set(spec.inputs[1 - h])`": _NO_SUM,
        "`weighted` for `in_dtype(weighted, factor.type.dtype)`": "it only is wider",
    },
}
