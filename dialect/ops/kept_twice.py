"""A cache that keeps more than itself: its transpose, or the sum over its context.

    with_columns(keys, columns) -> keys;    columns(keys) -> keys, keys with the context last
    with_total(values, total) -> values;    total(values) -> values, their sum over the context

What reads them needs one or the other (`dialect.ops.attend_sparq`).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from dialect.ops.vocabulary import word
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


def _axes(op: Op) -> tuple[Array, Array, Array]:
    """The axes of what is kept, with the axis of the op last, and without it."""
    axes, at = numbered(op.args[0].type.rank), op["axis"]
    rest = (*axes[:at], *axes[at + 1 :])
    return axes, (*rest, axes[at]), rest


def _with_columns_axes(op: Op) -> Signature:
    axes, last, _ = _axes(op)
    return Signature((axes, last), (axes,))


def _columns_axes(op: Op) -> Signature:
    axes, last, _ = _axes(op)
    return Signature((axes,), (axes, last))


def _with_total_axes(op: Op) -> Signature:
    axes, _, rest = _axes(op)
    return Signature((axes, rest), (axes,))


def _total_axes(op: Op) -> Signature:
    axes, _, rest = _axes(op)
    return Signature((axes,), (axes, rest))


def _columns_undone(op: Op) -> tuple[str, dict[str, Any]]:
    return "with_columns", {"axis": op["axis"]}


def _total_undone(op: Op) -> tuple[str, dict[str, Any]]:
    return "with_total", {"axis": op["axis"]}


_MOVES, _AXIS = Traits(moves=True, axes="axis"), Traits(axes="axis")
word(with_columns, _with_columns_axes, ("axis",), traits=_MOVES)
word(columns, _columns_axes, ("axis",), inverse=_columns_undone, traits=_MOVES)
word(with_total, _with_total_axes, ("axis",), traits=_AXIS)
word(total, _total_axes, ("axis",), inverse=_total_undone, traits=_AXIS)
