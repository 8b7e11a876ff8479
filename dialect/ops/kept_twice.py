"""A cache that keeps more than itself: its transpose, or the sum over its context.

    with_columns(keys, columns) -> keys;    columns(keys) -> keys, keys with the context last
    with_total(values, total) -> values;    total(values) -> values, their sum over the context

What reads them needs one or the other (`dialect.ops.attend_sparq`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from dialect.ops.vocabulary import along, word
from rewrite.ir import Op
from rewrite.opdef import Traits
from rewrite.signature import Array, Signature, numbered


def with_columns(keys: Any, columns: Any, *, axis: int) -> Any:
    """The keys, which are kept a second time with their `axis` last: `columns`.

    Raises ValueError where these have other sizes or another dtype.
    """
    _must_be(columns, (*keys.shape[:axis], *keys.shape[axis + 1 :], keys.shape[axis]), keys.dtype)
    return keys


def columns(keys: Any, *, axis: int) -> list[Any]:
    """[keys, keys with their `axis` last]"""
    return [keys, jnp.moveaxis(keys, axis, -1)]


def with_total(values: Any, total: Any, *, axis: int) -> Any:
    """The values, whose sum over an `axis` is kept beside them, in f32.

    Raises ValueError where this has other sizes or another dtype.
    """
    _must_be(total, (*values.shape[:axis], *values.shape[axis + 1 :]), jnp.float32)
    return values


def total(values: Any, *, axis: int) -> list[Any]:
    """[values, their sum over an `axis` in f32]"""
    return [values, jnp.sum(values.astype(jnp.float32), axis=axis)]


def _must_be(array: Any, shape: tuple[int, ...], dtype: Any) -> None:
    if (array.shape, array.dtype) != (shape, dtype):
        kept = f"{array.dtype}{list(array.shape)}"
        raise ValueError(f"{kept} is kept, and should be {jnp.dtype(dtype)}{list(shape)}")


def _and_last(op: Op) -> tuple[Array, Array]:
    """The axes of an array, and those with the axis of the op last."""
    whole, at = numbered(op.args[0].type.rank), op["axis"]
    return whole, (*whole[:at], *whole[at + 1 :], whole[at])


def _and_rest(op: Op) -> tuple[Array, Array]:
    """The axes of an array, and those without the axis of the op."""
    whole, reordered = _and_last(op)
    return whole, reordered[:-1]


def _joined(axes: Callable[[Op], tuple[Array, Array]]) -> Callable[[Op], Signature]:
    return lambda op: Signature(axes(op), axes(op)[:1])


def _apart(axes: Callable[[Op], tuple[Array, Array]]) -> Callable[[Op], Signature]:
    return lambda op: Signature(axes(op)[:1], axes(op))


_MOVES, _AXIS = Traits(moves=True, axes="axis"), Traits(axes="axis")
word(with_columns, _joined(_and_last), ("axis",), traits=_MOVES)
word(columns, _apart(_and_last), ("axis",), inverse=along("with_columns"), traits=_MOVES)
word(with_total, _joined(_and_rest), ("axis",), traits=_AXIS)
word(total, _apart(_and_rest), ("axis",), inverse=along("with_total"), traits=_AXIS)
