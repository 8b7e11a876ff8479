"""Operands before they were laid out for their reader, with the letters of their axes.

A library brings a mask of [b, s] to [b, h, t, s] before it uses it, by reshapes, transposes and
broadcasts in any order. `bare` undoes these, and records in `axes` what they did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

from dialect.matching.values import in_shape, reshaped, shaped
from rewrite.ir import Value
from rewrite.opdef import make
from rewrite.signature import Array, letters


@dataclass(frozen=True)
class Operand:
    """A value and the letters of its dimensions: none for size one, several for merged axes."""

    value: Value
    axes: Array

    @property
    def sizes(self) -> dict[str, int]:
        """The size of every letter; merged axes have theirs together under the first."""
        return {axis[0]: n for axis, n in zip(self.axes, self.value.type.shape) if axis}

    def along(self, axis: str) -> int:
        """The dimension that is this axis."""
        return self.axes.index((axis,))


def named(value: Value, axes: Array) -> Operand:
    """A value whose dimensions have these letters, except those of size one."""
    sizes = zip(value.type.shape, axes)
    return Operand(value, tuple(axis if size != 1 else () for size, axis in sizes))


def bare(operand: Operand, sizes: Mapping[str, int]) -> Operand:
    """The operand before reshapes, transposes and broadcasts; `sizes` are those of the letters.

    Merged dimensions are split, so that each has one letter or none.
    """
    operand = unlaid(operand, sizes)
    value, axes = operand.value, operand.axes
    if any(len(dimension) > 1 for dimension in axes):
        split = tuple(axis for dimension in axes for axis in ([(x,) for x in dimension] or [()]))
        shape = tuple(sizes[axis[0]] if axis else 1 for axis in split)
        return Operand(reshaped(value, shape), split)
    return Operand(value, axes)


def unlaid(operand: Operand, sizes: Mapping[str, int]) -> Operand:
    """The operand before reshapes, transposes and broadcasts, its dimensions as merged as they were
    there."""
    while (source := before(operand.value, operand.axes, sizes)) is not None:
        operand = source
    return operand


def before(value: Value, axes: Array, sizes: Mapping[str, int]) -> Operand | None:
    """The operand one layout op earlier; None if no such op made it. `sizes` are those of letters
    that a reshape may merge."""
    op = value.op
    if op.name == "broadcast_in_dim" and len(op.args) == 1:
        return named(op.args[0], tuple(axes[place] for place in op["broadcast_dimensions"]))
    if op.name == "transpose":
        order = op["permutation"]
        return Operand(op.args[0], tuple(axes[order.index(i)] for i in range(len(order))))
    if op.name == "reshape":
        operand = Operand(value, axes)
        return moved_ones(operand, op.args[0]) or regrouped(operand, op.args[0], sizes)
    return None


def regrouped(operand: Operand, value: Value, sizes: Mapping[str, int]) -> Operand | None:
    """Another value of the same elements in the same order, with the operand's axes, where each of
    its dimensions has some of them whole; `sizes` are those of the letters."""
    remaining, axes = list(letters(operand.axes)), []
    for size in value.type.shape:
        dimension, held = [], 1
        while held < size and remaining:
            dimension.append(remaining.pop(0))
            held *= sizes.get(dimension[-1], size + 1)
        if held != size:
            return None
        axes.append(tuple(dimension))
    return None if remaining else Operand(value, tuple(axes))


def moved_ones(operand: Operand, value: Value) -> Operand | None:
    """Another value with the operand's axes, if both differ in dimensions of size one alone."""
    old, new = operand.value.type.shape, value.type.shape
    if [size for size in old if size != 1] != [size for size in new if size != 1]:
        return None
    remaining = (axis for axis, size in zip(operand.axes, old) if size != 1)
    return Operand(value, tuple(next(remaining) if size != 1 else () for size in new))


def combined(name: str, operands: Sequence[Operand], order: Sequence[str]) -> Operand:
    """The operands combined by a commutative op, each once, with their axes in this order."""
    several = list(dict.fromkeys(operands))
    if len(several) == 1:
        return several[0]
    used = [x for x in order if any((x,) in operand.axes for operand in several)]
    parts = [arranged(operand, used) for operand in several]
    value = reduce(lambda left, right: make(name, left, right), parts)
    return Operand(value, tuple((x,) for x in used))


def in_parts(
    operands: Sequence[Operand], counts: Sequence[int], axis: str, order: Sequence[str]
) -> Operand:
    """Operands one after another along an axis, `counts` places of it each, with their axes in this
    order; one that lacks an axis is the same along it."""
    used = [x for x in order if x == axis or any((x,) in operand.axes for operand in operands)]
    sizes = {
        x: size
        for operand in operands
        for dimension, size in zip(operand.axes, operand.value.type.shape)
        for x in dimension
    }
    parts = [
        in_shape(arranged(operand, used), tuple((sizes | {axis: count})[x] for x in used))
        for operand, count in zip(operands, counts)
    ]
    whole = make("concatenate", *parts, dimension=used.index(axis))
    return Operand(whole, tuple((x,) for x in used))


def arranged(operand: Operand, order: Sequence[str]) -> Value:
    """The value with these axes, size one where it lacks one."""
    sizes = operand.sizes
    held_axes = [x for (x,) in filter(None, operand.axes)]
    value = shaped(operand.value, tuple(sizes[x] for x in held_axes))
    value = transposed(value, [held_axes.index(x) for x in order if x in held_axes])
    return shaped(value, tuple(sizes.get(x, 1) for x in order))


def untransposed(value: Value) -> tuple[Value, tuple[int, ...]]:
    """(x, order) of transpose(x, order); a value that is none, with its dimensions in order."""
    if value.op.name == "transpose":
        return value.op.args[0], value.op["permutation"]
    return value, tuple(range(value.type.rank))


def transposed(value: Value, order: Sequence[int]) -> Value:
    """The value with its dimensions in another order."""
    if list(order) == sorted(order):
        return value
    return make("transpose", value, permutation=tuple(order))


def laid_out(operand: Operand, axes: Array, shape: tuple[int, ...]) -> Value:
    """The value with dimensions of these letters, merged where they have several, in that shape."""
    wanted = letters(axes)
    held_axes = [x for (x,) in filter(None, operand.axes)]
    if held_axes != list(wanted):
        operand = Operand(arranged(operand, wanted), tuple((x,) for x in wanted))
    return shaped(operand.value, shape)
