"""Layout noise: reshapes, transposes and broadcasts that say nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from dialect import lax
from dialect.values import reshaped
from rewrite.ir import Op, Value
from rewrite.opdef import make
from rewrite.rules import Outcome, local


@local(*lax.IDENTITIES, example=lambda x: jax.lax.stop_gradient(x), types=("f32[4]",))
def identity(op: Op) -> Outcome:
    """copy(x), stop_gradient(x), name(x)  ->  x"""
    return op.args[0]


@local(
    "convert_element_type",
    example=lambda x: jax.lax.convert_element_type(x, "float32"),
    types=("f32[4]~",),
)
def convert_to_same(op: Op) -> Outcome:
    """convert(x: T) to T  ->  x"""
    if op.args[0].op.name == "const":
        return None  # folded, it becomes as strongly typed as its conversion
    return op.args[0] if op.args[0].type.dtype == op.types[0].dtype else None


@local("squeeze", example=lambda x: jnp.squeeze(x, 1), types=("f32[4,1]",))
def squeeze_to_reshape(op: Op) -> Outcome:
    """squeeze(x)  ->  reshape(x)"""
    return reshaped(op.args[0], op.types[0].shape)


@local("broadcast_in_dim", example=lambda x: x[:, None], types=("f32[4]",))
def expand_to_reshape(op: Op) -> Outcome:
    """broadcast(x) that only adds axes of size one  ->  reshape(x)"""
    same = op.args[0].type.size == op.types[0].size and len(op.args) == 1
    rising = op["broadcast_dimensions"] == tuple(sorted(op["broadcast_dimensions"]))
    return reshaped(op.args[0], op.types[0].shape) if same and rising else None


@local("reshape", example=lambda x: x.reshape(4, 2).reshape(8, 1), types=("f32[8]",))
def reshape_of_reshape(op: Op) -> Outcome:
    """reshape(reshape(x))  ->  reshape(x), and reshape(x) to x's own shape  ->  x"""
    source = op.args[0]
    if source.type.shape == op.types[0].shape:
        return source
    if op.get("dimensions") is None and source.op.name == "reshape":
        return reshaped(source.op.args[0], op.types[0].shape)
    return None


@local("split", example=lambda x: jnp.split(x, 2, axis=1)[1], types=("f32[4,2]",))
def split_to_slices(op: Op) -> Outcome:
    """split(x)  ->  its slices"""
    source, axis, start, parts = op.args[0], op["axis"], 0, []
    for size in op["sizes"]:
        first, last = [0] * source.type.rank, list(source.type.shape)
        first[axis], last[axis] = start, start + size
        parts.append(make("slice", source, start_indices=tuple(first), limit_indices=tuple(last)))
        start += size
    return parts


@local("transpose", example=lambda x: x.T.T, types=("f32[4,2]",))
def transpose_of_transpose(op: Op) -> Outcome:
    """transpose(transpose(x))  ->  transpose(x), and one that moves nothing  ->  x"""
    order = op["permutation"]
    if order == tuple(range(len(order))):
        return op.args[0]
    if op.args[0].op.name != "transpose":
        return None
    inner = op.args[0].op
    return make(
        "transpose", inner.args[0], permutation=tuple(inner["permutation"][i] for i in order)
    )


@local(
    *lax.BROADCASTING,
    example=lambda x, y: x + jnp.broadcast_to(y[None, :], (3, 4)),
    types=("f32[3,4]", "f32[4]"),
)
def broadcast_by_consumer(op: Op) -> Outcome:
    """f(x, broadcast(y))  ->  f(x, y with axes of size one), which f broadcasts by itself"""
    args = list(op.args)
    for i, arg in enumerate(args):
        if arg.op.name != "broadcast_in_dim" or len(arg.op.args) > 1:
            continue
        shorter = _unbroadcast(arg)
        others = [other.type.shape for j, other in enumerate(args) if j != i]
        if shorter.type.shape and not any(others):
            continue  # scalars alone would not give the result its rank
        if _broadcast_shape([*others, shorter.type.shape]) == op.types[0].shape:
            args[i] = shorter
    if tuple(args) == op.args:
        return None
    return make(op.name, *args, **dict(op.attrs))


def _unbroadcast(value: Value) -> Value:
    source, places = value.op.args[0], value.op["broadcast_dimensions"]
    if not source.type.shape:
        return source
    shape = [1] * value.type.rank
    for size, place in zip(source.type.shape, places):
        shape[place] = size
    return reshaped(source, tuple(shape)) if tuple(shape) != source.type.shape else source


def _broadcast_shape(shapes: list[tuple[int, ...]]) -> tuple[int, ...] | None:
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        return None


