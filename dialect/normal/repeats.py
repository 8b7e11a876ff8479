"""Repeated arrays in products: keys and values that a library repeats for each query head.

A product needs no repeated operands: an axis that one of them lacks belongs to the other alone. So
grouped attention reads each key once.
"""

from __future__ import annotations

import jax.numpy as jnp

from dialect.matching.values import reshaped
from dialect.normal.cuts import cut
from dialect.ops import lax
from rewrite import opdef
from rewrite.ir import Op, Value
from rewrite.opdef import make, with_args
from rewrite.rules import Outcome, local
from rewrite.signature import Signature, letters


@local("tile", example=lambda x: jnp.tile(x, (2, 3)), types=("f32[4,2]",))
def tile_to_broadcast(op: Op) -> Outcome:
    """tile(x)  ->  reshape(broadcast(x))"""
    source = op.args[0]
    shape: tuple[int, ...] = ()
    places = []
    for repeat, size in zip(op["reps"], source.type.shape):
        shape += (size,) if repeat == 1 else (repeat, size)
        places.append(len(shape) - 1)
    grown = make("broadcast_in_dim", source, shape=shape, broadcast_dimensions=tuple(places))
    return reshaped(grown, op.types[0].shape)


@local(
    *lax.MAPS,
    example=lambda x: jnp.repeat(x, 3, axis=0).astype("bfloat16"),
    types=("f32[2,4]",),
)
def map_of_repeat(op: Op) -> Outcome:
    """f(repeat(x))  ->  repeat(f(x))"""
    if len(op.args) != 1 or op.args[0].op.name != "reshape":
        return None
    grown = op.args[0].op.args[0]
    if grown.op.name != "broadcast_in_dim" or grown.op.args[0].type.size == grown.type.size:
        return None
    return reshaped(with_args(op, (grown,)).results[0], op.types[0].shape)


@local(
    "contract",
    keeps="reals",
    example=lambda q, k: jnp.einsum("thk,shk->hts", q, jnp.repeat(k, 3, axis=1)),
    types=("f32[5,6,4]", "f32[7,2,4]"),
)
def contract_of_repeat(op: Op) -> Outcome:
    """contract(x, repeat(y))  ->  contract(reshape(x), y), reshaped"""
    spec = Signature.parse(op["spec"])
    for i, arg in enumerate(op.args):
        parts = _repeated(arg)
        if parts is None:
            continue
        named = dict(zip(spec.inputs[i], parts))
        if all(len(sizes) == 1 for axis, sizes in named.items() if axis in spec.outputs[0]):
            continue  # another rule splits contracted axes
        return reshaped(cut(op, named).results[0], op.types[0].shape)
    return None


def _repeated(value: Value) -> list[tuple[int, ...]] | None:
    """The sizes that a reshape merges in each dimension, where one of them was broadcast."""
    if value.op.name != "reshape" or value.op.args[0].op.name != "broadcast_in_dim":
        return None
    axes = opdef.signature(value.op)
    (inner,), (outer,) = axes.inputs, axes.outputs
    sizes = dict(zip(inner, value.op.args[0].type.shape))
    if not sizes.keys() >= {(letter,) for letter in letters(outer)}:
        return None  # it cuts axes too; or, without elements, they come from nowhere
    return [tuple(sizes[letter,] for letter in axis) or (1,) for axis in outer]


@local(
    "contract",
    keeps="reals",
    example=lambda q, k: jnp.einsum("thk,shk->hts", q, jnp.broadcast_to(k, (7, 3, 4))),
    types=("f32[5,3,4]", "f32[7,1,4]"),
)
def contract_of_broadcast(op: Op) -> Outcome:
    """contract(x, broadcast(y))  ->  contract(x, y), where x has the axis too"""
    spec = Signature.parse(op["spec"])
    for i, arg in enumerate(op.args):
        inner = arg.op
        if inner.name != "broadcast_in_dim":
            continue
        shape, places = inner.args[0].type.shape, inner["broadcast_dimensions"]
        kept_dims = [d for size, d in zip(shape, places) if size == arg.type.shape[d]]
        axes = tuple(spec.inputs[i][d] for d in kept_dims)
        gone = set(letters(spec.inputs[i])) - set(letters(axes))
        if not gone <= set(letters(spec.inputs[1 - i])) & set(letters(spec.outputs[0])):
            continue
        args, inputs = list(op.args), list(spec.inputs)
        args[i] = reshaped(inner.args[0], tuple(arg.type.shape[d] for d in kept_dims))
        inputs[i] = axes
        spec_ = Signature(tuple(inputs), spec.outputs)
        return make("contract", *args, **{**dict(op.attrs), "spec": str(spec_)})
    return None
