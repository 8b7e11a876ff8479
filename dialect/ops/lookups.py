"""Rows of a table by their number, and numbers as NumPy counts them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dialect.arrays.attributes import decode
from dialect.ops.vocabulary import elementwise, word
from rewrite.ir import Op, Symbol
from rewrite.opdef import Traits
from rewrite.signature import Signature, numbered

# What an index out of bounds does, as an attribute of the ops that take and write.
CLIP = Symbol("GatherScatterMode.CLIP")
DROP = Symbol("GatherScatterMode.FILL_OR_DROP")
PROMISED = Symbol("GatherScatterMode.PROMISE_IN_BOUNDS")


def take(table: Any, ids: Any, *, mode: Any, fill: Any = None) -> Any:
    """Rows of a table. table: [v, ...], ids: [...]; `mode` says what an id out of bounds does.

    Where it fills, it fills with `fill`, or with NaN.
    """
    rest = tuple(range(ids.ndim, ids.ndim + table.ndim - 1))
    numbers = jax.lax.GatherDimensionNumbers(
        offset_dims=rest, collapsed_slice_dims=(0,), start_index_map=(0,)
    )
    sizes = (1, *table.shape[1:])
    options = {} if fill is None else {"fill_value": fill}
    return jax.lax.gather(table, ids[..., None], numbers, sizes, mode=decode(mode), **options)


def wrap(i: Any, *, size: int) -> Any:
    """An index that counts from the end where it is negative: i < 0 -> i + size. Elementwise."""
    return jnp.where(i < 0, i + jnp.asarray(size, i.dtype), i)


def modulo(i: Any, *, size: int) -> Any:
    """i modulo size, never negative: the place in a ring buffer. Elementwise."""
    return jnp.mod(i, jnp.asarray(size, i.dtype))


def _take_axes(op: Op) -> Signature:
    table, ids = (arg.type for arg in op.args)
    rows = numbered(ids.rank, "r")
    rest = numbered(table.rank - 1)
    return Signature(((("v",), *rest), rows), ((*rows, *rest),), frozenset("v"))


for _reference in (wrap, modulo):
    word(_reference, elementwise, ("size",), traits=Traits(batches=True))
word(take, _take_axes, ("mode", "fill"), traits=Traits(moves=True, picks=True, fills=True))
