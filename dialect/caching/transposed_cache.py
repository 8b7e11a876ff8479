"""A cache with its axes in another order: `transpose` moves inward, and meets attention.

cache  ->  transpose(transpose'(cache)), at the boundary, in and out
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dialect.caching.state_forms import Change, carried_in_form, carries
from dialect.ops.nn import Traced
from rewrite.ir import Op, Symbol, Value
from rewrite.opdef import build, make
from rewrite.rules import Outcome, Rule, local
from rewrite.signature import Signature

Order = tuple[int, ...]
_CLIP = Symbol("GatherScatterMode.CLIP")


def inverse(order: Order) -> Order:
    """The permutation that undoes `order`."""
    return tuple(order.index(i) for i in range(len(order)))


def transposed(value: Value, order: Order) -> Value:
    """`value` with its axes in another order."""
    return make("transpose", value, permutation=tuple(order))


def in_order(order: Order) -> Change:
    """A state kept with its axes in this order."""
    return Change(
        lambda value: (transposed(value, order),), lambda value: transposed(value, inverse(order))
    )


@local(
    "cache_write",
    example=lambda c, new: Traced["cache_write"](jnp.transpose(c, (1, 0, 2)), new, 3, axes=(1,)),
    types=("f32[8,2,4]", "f32[2,1,4]"),
)
def write_transposed(op: Op) -> Outcome:
    """cache_write(transpose(c), new)  ->  transpose(cache_write(c, transpose'(new)))"""
    if op.args[0].op.name != "transpose":
        return None
    order = op.args[0].op["permutation"]
    new = transposed(op.args[1], inverse(order))
    written = sorted(zip((order[axis] for axis in op["axes"]), op.args[2:]))
    places, axes = (position for _, position in written), tuple(axis for axis, _ in written)
    return transposed(make("cache_write", op.args[0].op.args[0], new, *places, axes=axes), order)


@local(
    "cache_put",
    example=lambda c, new: Traced["cache_put"](
        jnp.transpose(c, (0, 2, 1)), new, jnp.full((3, 1), 2), axis=1, mode=_CLIP
    ),
    types=("f32[3,2,8]", "f32[3,1,2]"),
)
def put_transposed(op: Op) -> Outcome:
    """cache_put(transpose(c), new)  ->  transpose(cache_put(c, transpose'(new)))"""
    whole, new, positions, *layer = op.args
    order, first = whole.op.get("permutation"), len(layer)
    if order is None or order[: first + 1] != tuple(range(first + 1)):
        return None  # layers and sequences stay in front
    own = tuple(place - first for place in order[first:])
    row = transposed(new, inverse(own))
    axis = order[op["axis"]]
    attrs = {**dict(op.attrs), "axis": axis}
    return transposed(make("cache_put", whole.op.args[0], row, positions, *layer, **attrs), order)


@local(
    "cache_read",
    example=lambda c: Traced["cache_read"](jnp.transpose(c, (0, 2, 1)), 1),
    types=("f32[3,8,2]",),
)
def read_transposed(op: Op) -> Outcome:
    """cache_read(transpose(c), layer)  ->  transpose(cache_read(c, layer)), layers staying first"""
    if op.args[0].op.name != "transpose" or op.args[0].op["permutation"][0] != 0:
        return None
    rest = tuple(axis - 1 for axis in op.args[0].op["permutation"][1:])
    return transposed(make("cache_read", op.args[0].op.args[0], op.args[1]), rest)


@local(
    "attend",
    keeps="reals",  # a product may sum in another order where its operands lie otherwise
    example=lambda q, k: Traced["attend"](
        q,
        jnp.transpose(k, (1, 0)),
        jnp.transpose(k, (1, 0)),
        axes="t k, s k, s v -> t v",
    ),
    types=("f32[3,4]", "f32[4,5]"),
)
def attend_transposed(op: Op) -> Outcome:
    """attend(q, transpose(k), ..)  ->  attend(q, k, ..), its subscript reordered"""
    named = Signature.parse(op["axes"])
    args, inputs = list(op.args), list(named.inputs)
    for i in range(1, len(args)):
        if args[i].op.name == "transpose":
            order = inverse(args[i].op["permutation"])
            args[i] = args[i].op.args[0]
            inputs[i] = tuple(inputs[i][place] for place in order)
    if tuple(args) == op.args:
        return None
    axes = str(Signature(tuple(inputs), named.outputs))
    return make("attend", *args, **{**dict(op.attrs), "axes": axes})


@local(
    "scan",
    example=lambda c: jax.lax.fori_loop(0, 3, lambda i, x: x * 2, jnp.transpose(c)),
    types=("f32[2,4]",),
)
def loop_over_transposed(op: Op) -> Outcome:
    """scan(transpose(c))  ->  transpose(scan(c)), its body seeing transpose(c)"""
    for position in carries(op, "transpose"):
        order = op.args[position].op["permutation"]
        return carried_in_form(op, position, in_order(inverse(order)))
    return None


@local(
    "stack",
    example=lambda c: jnp.stack([jnp.transpose(c, (1, 0, 2)), jnp.transpose(c + 1, (1, 0, 2))]),
    types=("f32[2,3,4]",),
)
def stack_of_transposed(op: Op) -> Outcome:
    """stack(transpose(c), ..)  ->  transpose(stack(c, ..)), layers staying first"""
    inner = op.args[0].op
    alike = all(arg.op.name == "transpose" and arg.op.attrs == inner.attrs for arg in op.args)
    if not alike or op["axis"] != 0:
        return None
    stacked = make("stack", *(arg.op.args[0] for arg in op.args), axis=0)
    return transposed(stacked, (0, *(place + 1 for place in inner["permutation"])))


@local(
    "unstack",
    example=lambda c: jnp.unstack(jnp.transpose(c, (0, 2, 1)))[1],
    types=("f32[2,3,4]",),
)
def unstack_of_transposed(op: Op) -> Outcome:
    """unstack(transpose(c))  ->  transpose of each of unstack(c), layers staying first"""
    inner = op.args[0].op
    if inner.name != "transpose" or op["axis"] != 0 or inner["permutation"][0] != 0:
        return None
    rest = tuple(place - 1 for place in inner["permutation"][1:])
    parts = build("unstack", inner.args[0], axis=0).results
    return [transposed(part, rest) for part in parts]


RULES: tuple[Rule, ...] = (
    stack_of_transposed,
    unstack_of_transposed,
    write_transposed,
    put_transposed,
    read_transposed,
    attend_transposed,
    loop_over_transposed,
)
