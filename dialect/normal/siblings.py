"""Siblings: isomorphic expressions, one for each expert or head, become one batched expression.

    stack(f(x[0], w[0]), f(x[1], w[1]), ...)  ->  f over a new leading axis of x and w

A mixture of experts that its library unrolled (128 products a layer) becomes one batched product.
Weights that are separate arrays are stacked, which `stage` does once.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from dialect.matching.values import reshaped
from dialect.ops.follow import followed
from rewrite import opdef
from rewrite.ir import Op, Value
from rewrite.opdef import make
from rewrite.rules import Miss, Outcome, local
from rewrite.signature import Signature

_LARGEST = 100  # ops of an expression that is folded: an expert has some twenty
_LETTERS = "zyxwvutsrqponmlkjihgfedcba"


@local(
    "stack",
    example=lambda x, w: jnp.stack([jax.nn.relu(x @ w[0]), jax.nn.relu(x @ w[1])]),
    types=("f32[3,4]", "f32[2,4,5]"),
    keeps="reals",
)
def stack_of_same(op: Op) -> Outcome:
    """stack(f(x, w[0]), f(x, w[1]), ..)  ->  f(x, w) with one axis more"""
    if not _a_product(op.args[0]):
        return None
    batched = _Batched(len(op.args)).of(op.args)
    if batched is None:
        return Miss("its parts are not the same expression of slices in order", 3)
    axis = op["axis"]
    if axis == 0:
        return batched
    order = (*range(1, axis + 1), 0, *range(axis + 1, batched.type.rank))
    return make("transpose", batched, permutation=order)


@local(
    "concatenate",
    example=lambda x, y: jnp.concatenate([x[:, None], y[:, None]], axis=1),
    types=("f32[3,4]", "f32[3,4]"),
)
def concatenate_to_stack(op: Op) -> Outcome:
    """concat(x[None], y[None])  ->  stack(x, y)"""
    axis, shape = op["dimension"], op.types[0].shape
    inner = (*shape[:axis], *shape[axis + 1 :])
    if any(arg.type.shape[axis] != 1 or not _expanded(arg, inner) for arg in op.args):
        return None
    return make("stack", *(reshaped(arg, inner) for arg in op.args), axis=axis)


def _expanded(value: Value, inner: tuple[int, ...]) -> bool:
    """Whether an axis of size one was added to a value of this shape, or of a broadcast one."""
    if value.op.name == "broadcast_in_dim":
        return value.op.args[0].type.rank > 0
    return value.op.name == "reshape" and value.op.args[0].type.shape == inner


def _a_product(value: Value, steps: int = 8) -> bool:
    """Whether an expression computes a product within its last ops."""
    if value.op.name == "contract" or steps == 0:
        return value.op.name == "contract"
    return any(_a_product(arg, steps - 1) for arg in value.op.args)


class _Batched:
    """Batches `count` values of isomorphic expressions into one with a new leading axis."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.memo: dict[tuple[Value, ...], Value | None] = {}

    def of(self, values: Sequence[Value]) -> Value | None:
        values = tuple(values)
        if len(self.memo) > _LARGEST:
            return None
        if values not in self.memo:
            self.memo[values] = None
            self.memo[values] = self.batched(values)
        return self.memo[values]

    def batched(self, values: tuple[Value, ...]) -> Value | None:
        first = values[0].op
        if any(value.type != values[0].type for value in values):
            return None
        indexed = self.indexed(values)
        if indexed is not None:
            return indexed
        if all(value.op.name == "input" for value in values):
            return make("stack", *values, axis=0)
        form = (first.name, first.attrs, len(first.args))
        if any((op.name, op.attrs, len(op.args)) != form for op, _ in values):
            return None
        if not opdef.traits(first).batches:
            return None
        args = [self.argument(column) for column in zip(*(value.op.args for value in values))]
        if None in args or not any(batched for _, batched in args):
            return None
        return self.rebuilt(first, args)

    def argument(self, column: tuple[Value, ...]) -> tuple[Value, bool] | None:
        """(the operand of all siblings, whether it has the new axis)."""
        if all(value == column[0] for value in column):
            return column[0], False
        stacked = self.of(column)
        return None if stacked is None else (stacked, True)

    def indexed(self, values: tuple[Value, ...]) -> Value | None:
        """The source of which the values are slices 0, 1, 2 ... along an axis, that axis first."""
        op, ops = values[0].op, [value.op for value in values]
        if any(sibling.name != op.name or sibling.args != op.args for sibling in ops):
            return None
        if op.name == "unstack":
            complete = list(values) == list(op.results)
            return self.first(*op.args, op["axis"]) if complete else None
        if op.name != "slice":
            return None
        (source,), shape = op.args, op.types[0].shape
        starts = [sibling["start_indices"] for sibling in ops]
        moving = [d for d, place in enumerate(zip(*starts)) if len(set(place)) > 1]
        if len(moving) != 1 or shape[moving[0]] != 1:
            return None
        (axis,) = moving
        sliced = [size for d, size in enumerate(shape) if d != axis]
        full = [size for d, size in enumerate(source.type.shape) if d != axis]
        if [start[axis] for start in starts] != list(range(self.count)) or sliced != full:
            return None
        if source.type.shape[axis] != self.count:
            return None
        return reshaped(self.first(source, axis), (self.count, *shape))

    def first(self, source: Value, axis: int) -> Value:
        order = (axis, *(d for d in range(source.type.rank) if d != axis))
        return make("transpose", source, permutation=order) if axis else source

    def rebuilt(self, op: Op, args: list[tuple[Value, bool]]) -> Value | None:
        axes = opdef.signature(op)
        fresh = next(((x,) for x in _LETTERS if x not in axes.letters), None)
        if fresh is None:
            return None
        known = opdef.traits(op)
        if known.lacked:
            args = [(self.repeated(*arg), True) for arg in args]
        pairs = zip(axes.inputs, args)
        inputs = tuple((fresh, *array) if batched else array for array, (_, batched) in pairs)
        now = Signature(inputs, ((fresh, *axes.outputs[0]),))
        named = known.spelled or known.lacked  # any other matches dimensions by their place
        operands = [arg[0] if named else self.widened(*arg, op) for arg in args]
        return make(op.name, *operands, **followed(op, axes, now, {fresh: self.count}))

    def widened(self, arg: Value, batched: bool, op: Op) -> Value:
        """An operand of an elementwise op, broadcast to the rank of the batched result: a shared
        one lacks the new axis, one scalar per sibling has no other."""
        shape = op.types[0].shape
        if batched and arg.type.rank == 1 and shape:
            return make(
                "broadcast_in_dim", arg, shape=(self.count, *shape), broadcast_dimensions=(0,)
            )
        return self.repeated(arg, batched or not arg.type.shape)

    def repeated(self, arg: Value, batched: bool) -> Value:
        """An operand with the new axis."""
        if batched:
            return arg
        places = tuple(range(1, arg.type.rank + 1))
        grown = (self.count, *arg.type.shape)
        return make("broadcast_in_dim", arg, shape=grown, broadcast_dimensions=places)
