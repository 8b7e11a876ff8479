"""Layout noise: reshapes, transposes and broadcasts that are redundant."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from dialect.matching.operands import transposed
from dialect.matching.values import number, reshaped, through
from dialect.normal.cuts import cut_inside, cuts
from dialect.ops import lax
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
        return None  # `constant_fold` gives it the conversion's strong type
    return op.args[0] if op.args[0].type.dtype == op.types[0].dtype else None


@local("squeeze", example=lambda x: jnp.squeeze(x, 1), types=("f32[4,1]",))
def squeeze_to_reshape(op: Op) -> Outcome:
    """squeeze(x)  ->  reshape(x)"""
    return reshaped(op.args[0], op.types[0].shape)


@local("broadcast_in_dim", example=lambda x: x[:, None], types=("f32[4]",))
def expand_to_reshape(op: Op) -> Outcome:
    """broadcast(x) that only adds axes of size one  ->  reshape(x)"""
    same = op.args[0].type.size == op.types[0].size
    rising = op["broadcast_dimensions"] == tuple(sorted(op["broadcast_dimensions"]))
    return reshaped(op.args[0], op.types[0].shape) if same and rising else None


@local(
    "reshape",
    example=lambda x: jax.lax.reshape(x, (8,), dimensions=(1, 0)),
    types=("f32[4,2]",),
)
def reshape_in_order(op: Op) -> Outcome:
    """reshape(x) that reads the dimensions in another order  ->  reshape(transpose(x))"""
    order = op.get("dimensions")
    if order is None:
        return None
    return reshaped(make("transpose", op.args[0], permutation=order), op.types[0].shape)


@local("reshape", example=lambda x: x.reshape(4, 2).reshape(8, 1), types=("f32[8]",))
def reshape_of_reshape(op: Op) -> Outcome:
    """reshape(reshape(x))  ->  reshape(x), and reshape(x) to x's own shape  ->  x"""
    source = op.args[0]
    if source.type.shape == op.types[0].shape:
        return source
    return reshaped(source.op.args[0], op.types[0].shape) if source.op.name == "reshape" else None


@local(
    *lax.MAPS,
    example=lambda x: jnp.exp(jnp.sum(x, axis=-1, keepdims=True)),
    types=("f32[2,4]",),
)
def statistic_reshaped_last(op: Op) -> Outcome:
    """f(reshape(sum(x)))  ->  reshape(f(sum(x))), towards the reader of a statistic"""
    shaped = [arg for arg in op.args if arg.type.shape and number(arg) is None]
    if not shaped or any(arg.op.name != "reshape" for arg in shaped):
        return None
    sources = [arg.op.args[0] for arg in shaped]
    (shape, *other_shapes) = {source.type.shape for source in sources}
    same = all(arg.type.shape == op.types[0].shape for arg in shaped) and not other_shapes
    if not same or not shape or not any(made_by(lax.REDUCTIONS, inner) for inner in sources):
        return None
    args = [arg.op.args[0] if arg in shaped else _splat(arg, shape) for arg in op.args]
    return reshaped(make(op.name, *args, **dict(op.attrs)), op.types[0].shape)


def _splat(value: Value, shape: tuple[int, ...]) -> Value:
    """A value of equal elements in another shape; a scalar stays one."""
    if not value.type.shape:
        return value
    scalar = through(value, "broadcast_in_dim", "reshape")
    return make("broadcast_in_dim", scalar, shape=shape, broadcast_dimensions=())


@local("reshape", example=lambda x, w: (x @ w + 1).reshape(3, 2, 2), types=("f32[3,5]", "f32[5,4]"))
def cut_inward(op: Op) -> Outcome:
    """reshape(f(x, y)) that cuts axes apart  ->  f(reshape(x), reshape(y)), towards a product"""
    return cut_towards(op, "contract")


@local(
    "reshape",
    example=lambda x: jnp.unstack(x)[1].reshape(2, 2, 2),
    types=("f32[3,4,2]",),
)
def cut_through_unstack(op: Op) -> Outcome:
    """reshape(unstack(x)[i]) that cuts axes apart  ->  unstack(reshape(x))[i]"""
    return cut_inside(op) if op.args[0].op.name == "unstack" and cuts(op) else None


def cut_towards(op: Op, name: str) -> Outcome:
    """reshape(f(x, y))  ->  f(reshape(x), reshape(y)), where x or y come from ops of this name."""
    inner = op.args[0].op
    if inner.name not in lax.MAPS or not cuts(op) or not made_by((name,), op.args[0]):
        return None
    return cut_inside(op)


def made_by(names: tuple[str, ...], value: Value, steps: int = 4) -> bool:
    """Whether the value comes from ops of these names alone, through elementwise ops of its shape;
    what is broadcast there, such as a number, aside. But a norm, which scales a row by a statistic
    of itself, needs the row as it is."""
    if value.op.name in names:
        return True
    if not steps or value.op.name not in lax.MAPS:
        return False
    whole = [arg for arg in value.op.args if arg.type.shape == value.type.shape]
    aside = [arg for arg in value.op.args if arg not in whole]
    if any(_reads(arg, row) for arg in aside for row in whole):
        return False
    return bool(whole) and all(made_by(names, arg, steps - 1) for arg in whole)


def _reads(value: Value, source: Value, steps: int = 8) -> bool:
    """Whether a value is computed from another in so many steps."""
    return value == source or (
        steps > 0 and any(_reads(arg, source, steps - 1) for arg in value.op.args)
    )


@local(
    "reshape",
    example=lambda x, y: jnp.stack([x, y], axis=1).reshape(3, 8),
    types=("f32[3,4]", "f32[3,4]"),
)
def merge_of_stack(op: Op) -> Outcome:
    """reshape(stack(x, y)) that merges the new axis with the next  ->  concat(x, y)"""
    inner = op.args[0].op
    if inner.name != "stack" or inner["axis"] == inner.types[0].rank - 1:
        return None
    axis, shape = inner["axis"], inner.args[0].type.shape
    if op.types[0].shape != (*shape[:axis], shape[axis] * len(inner.args), *shape[axis + 1 :]):
        return None
    return make("concatenate", *inner.args, dimension=axis)


@local(*lax.REDUCTIONS, example=lambda x: jnp.sum(x[:, None], axis=1), types=("f32[4]",))
def reduce_of_one(op: Op) -> Outcome:
    """sum(x) over axes of size one  ->  reshape(x)"""
    all_ones = all(op.args[0].type.shape[axis] == 1 for axis in op["axes"])
    return reshaped(op.args[0], op.types[0].shape) if all_ones else None


@local("transpose", example=lambda x: jnp.transpose(x, (1, 0, 2)), types=("f32[4,1,2]",))
def transpose_of_ones(op: Op) -> Outcome:
    """transpose(x) that moves only axes of size one  ->  reshape(x)"""
    moved = [i for i in op["permutation"] if op.args[0].type.shape[i] != 1]
    return reshaped(op.args[0], op.types[0].shape) if moved == sorted(moved) else None


@local("slice", example=lambda x: jax.lax.slice(x, (1,), (3,), (1,)), types=("f32[4]",))
def plain_slice(op: Op) -> Outcome:
    """slice(x) of all of x  ->  x, and strides of one are dropped"""
    if op.types[0].shape == op.args[0].type.shape:
        return op.args[0]
    if set(op.get("strides") or ()) != {1}:
        return None
    bounds = {name: op[name] for name in ("start_indices", "limit_indices")}
    return make("slice", op.args[0], **bounds)


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
    keeps="reals",
)
def broadcast_by_consumer(op: Op) -> Outcome:
    """f(x, broadcast(y))  ->  f(x, y with axes of size one), which f broadcasts implicitly

    XLA turns a division by an implicit broadcast into a product with the reciprocal: `reals`.
    """
    args = list(op.args)
    for i, arg in enumerate(args):
        if arg.op.name != "broadcast_in_dim":
            continue
        shorter = unbroadcast(arg)
        shapes = [operand.type.shape for j, operand in enumerate(args) if j != i]
        if _broadcast_shape([*shapes, shorter.type.shape]) == op.types[0].shape:
            args[i] = shorter
    if tuple(args) == op.args:
        return None
    return make(op.name, *args, **dict(op.attrs))


def unbroadcast(value: Value) -> Value:
    """The value before a broadcast, with axes of size one to be broadcast implicitly."""
    source, places = value.op.args[0], value.op["broadcast_dimensions"]
    if source.type.shape in ((), value.type.shape):
        return source  # one that changes no shape moves nothing
    shape = [1] * value.type.rank
    for size, place in zip(source.type.shape, places):
        shape[place] = size
    source = transposed(source, sorted(range(len(places)), key=places.__getitem__))
    return reshaped(source, tuple(shape)) if tuple(shape) != source.type.shape else source


def narrow(value: Value) -> Value:
    """The value before a broadcast: a scalar, or with axes of size one."""
    return unbroadcast(value) if value.op.name == "broadcast_in_dim" else value


def _broadcast_shape(shapes: list[tuple[int, ...]]) -> tuple[int, ...] | None:
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        return None
