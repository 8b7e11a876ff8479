"""A part of a mask is computed, and not the mask: only what a slice reads of positions.

Libraries compute the mask of their longest context, 32,768 by 32,768 positions of it, and slice the
row of one token out of it in every layer.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dialect.arrays.dtypes import dtype_of
from dialect.jaxprs.jaxpr import constant
from dialect.matching.values import in_dtype, in_shape, is_iota, reshaped, through
from dialect.normal.layout_rules import narrow
from dialect.ops import lax
from rewrite.ir import Op, Type, Value
from rewrite.opdef import make, traits
from rewrite.rules import Miss, Outcome, local


def _places(i: jax.Array) -> jax.Array:
    return i.astype("int32")


def _sliced(value: Value, op: Op) -> Value:
    """What `op`, a dynamic_slice, reads of a value that is broadcast to the shape that it slices:
    a scalar, or axes of size one, are read whole."""
    if not value.type.rank:
        return value
    full = op.args[0].type.shape
    thin = [size == 1 != whole for size, whole in zip(value.type.shape, full)]
    at = [constant(0, i.type) if one else i for i, one in zip(op.args[1:], thin)]
    sizes = tuple(1 if one else size for size, one in zip(op["slice_sizes"], thin))
    return make("dynamic_slice", value, *at, slice_sizes=sizes)


@local(
    "dynamic_slice",
    example=lambda x, i: jax.lax.dynamic_slice(
        jnp.broadcast_to(x, (3, 4)), (0, _places(i)), (1, 2)
    ),
    types=("f32[4]", "f32[]"),
)
def slice_of_broadcast(op: Op) -> Outcome:
    """dynamic_slice(broadcast(x))  ->  broadcast(dynamic_slice(x))"""
    inner = op.args[0]
    source = narrow(inner)
    if source == inner or source.type.rank != inner.type.rank:
        return None
    return in_shape(_sliced(source, op), op.types[0].shape)


@local(
    "dynamic_slice",
    example=lambda x, i: jax.lax.dynamic_slice(x[:, None] > x, (_places(i), 0), (1, 4)),
    types=("f32[4]", "f32[]"),
)
def slice_of_mask(op: Op) -> Outcome:
    """dynamic_slice(x >= y)  ->  dynamic_slice(x) >= dynamic_slice(y), and so for `and`, `not` ..

    For booleans, and for numbers of positions: arrays that need never be stored.
    """
    whole, inner = op.args[0], op.args[0].op
    if inner.name not in lax.MAPS or op.types[0].shape == whole.type.shape:
        return None
    if whole.type.dtype != "bool" and not _is_counted(whole):
        return None
    parts = [_sliced(arg, op) for arg in inner.args]
    return make(inner.name, *parts, **dict(inner.attrs))


def _is_counted(value: Value, steps: int = 8) -> bool:
    """Whether a value is computed from positions and scalars alone."""
    op = value.op
    if not value.type.rank:
        return True
    inside = op.name in lax.MAPS or traits(op).moves
    return inside and steps > 0 and all(_is_counted(arg, steps - 1) for arg in op.args)


@local(
    "dynamic_slice",
    example=lambda x, i: jax.lax.dynamic_slice((x > 0)[None], (0, _places(i)), (1, 2)),
    types=("f32[4]", "f32[]"),
)
def slice_of_reshape(op: Op) -> Outcome:
    """dynamic_slice(reshape(m)) that moves axes of size one alone  ->  reshape(dynamic_slice(m))"""
    whole = op.args[0]
    source, sizes = through(whole, "reshape"), whole.type.shape
    if source == whole or not (whole.type.dtype == "bool" or _is_counted(whole)):
        return None
    longer = [d for d, size in enumerate(sizes) if size != 1]
    if [sizes[d] for d in longer] != [size for size in source.type.shape if size != 1]:
        return None
    if 0 in op.types[0].shape:
        return None
    starts, parts = iter([op.args[1 + d] for d in longer]), iter(longer)
    ones = [size == 1 for size in source.type.shape]
    zero = constant(0, op.args[1].type)
    at = [zero if one else next(starts) for one in ones]
    taken = tuple(1 if one else op["slice_sizes"][next(parts)] for one in ones)
    return reshaped(make("dynamic_slice", source, *at, slice_sizes=taken), op.types[0].shape)


@local(
    "dynamic_slice",
    example=lambda i: jax.lax.dynamic_slice(jnp.arange(8), (_places(i),), (2,)),
    types=("f32[]",),
)
def slice_of_positions(op: Op) -> Outcome:
    """dynamic_slice(iota(s), i, n)  ->  iota(n) + clamp(0, i, s - n), for integers"""
    counted, inner = op.args[0].type, op.args[0].op
    if not is_iota(op.args[0]) or counted.dtype[0] not in "iu":
        return None
    axis, shape = inner["dimension"], op["slice_sizes"]
    start, last = op.args[1 + axis], counted.shape[axis] - shape[axis]
    if last > np.iinfo(dtype_of(start.type.dtype)).max:
        return Miss(f"{start.type} does not reach its end", 2)
    attrs: dict[str, Any] = dict(inner.attrs) | {"shape": shape}
    scalar = Type(start.type.dtype, ())
    inside = make("clamp", constant(0, scalar), start, constant(last, scalar))
    return make("add", make("iota", **attrs), in_shape(in_dtype(inside, counted.dtype), shape))
