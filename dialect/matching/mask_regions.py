"""A mask as a region: bounds on the position along the context, and what is no bound.

keys() <= p[:, None] and valid  ->  s <= p, valid

However a library computes a mask (comparisons of iotas, a slice of a triangle), its bounds are
`first <= s <= last`. Their ends are sums of row numbers, of values that do not depend on the
context (a position, a cache's index, a length) and of a constant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax
import numpy as np

from dialect.arrays.evaluate import evaluate
from dialect.matching.operands import Operand, before
from dialect.matching.values import in_shape, number
from rewrite.ir import Graph, Op, Type, Value
from rewrite.opdef import make, with_args

INTEGERS = ("i32", "i64")


@dataclass(frozen=True)
class Sum:
    """A linear form: indices along dimensions and values with their factors, and a constant.

    `whole`: nothing of it was computed in floats, or in integers that may wrap around.
    """

    dims: tuple[tuple[int, int], ...] = ()
    terms: tuple[tuple[Operand, int], ...] = ()
    number: int = 0
    whole: bool = field(default=True, compare=False)

    def plus(self, other: Sum, factor: int = 1) -> Sum:
        """self + factor * other."""
        return Sum(
            _added(self.dims, other.dims, factor),
            _added(self.terms, other.terms, factor),
            self.number + factor * other.number,
            self.whole and other.whole,
        )

    def along(self, dim: int) -> int:
        """The factor of the index along a dimension."""
        return dict(self.dims).get(dim, 0)

    def moved(self, place: Callable[[int], int | None]) -> Sum:
        """The sum with renumbered dimensions; None drops one, since its index is 0."""
        dims = ((place(dim), factor) for dim, factor in self.dims)
        terms = tuple((_replaced(operand, place), factor) for operand, factor in self.terms)
        dims = tuple(sorted((d, f) for d, f in dims if d is not None))
        return replace(self, dims=dims, terms=terms)


def _replaced(operand: Operand, place: Callable[[int], int | None]) -> Operand:
    places = (place(*axis) if axis else None for axis in operand.axes)
    return replace(operand, axes=tuple(() if d is None else (d,) for d in places))


def _added(left: tuple, right: tuple, factor: int) -> tuple:
    total = dict(left)
    for key, value in right:
        total[key] = total.get(key, 0) + factor * value
    order = list(total) if any(isinstance(key, Operand) for key in total) else sorted(total)
    return tuple((key, total[key]) for key in order if total[key])


class Bound(NamedTuple):
    """s <= one of the ends, or s >= one of them if `lowest`."""

    ends: tuple[Sum, ...]
    lowest: bool


class Condition(NamedTuple):
    """One of the conditions that a position must satisfy to be kept.

    `value` is it as a boolean with the mask's dimensions, `source` before it was laid out; `bounds`
    are those that say the same, none where it is no bound.
    """

    value: Value
    source: Value
    bounds: tuple[Bound, ...] = ()


Region = tuple[Condition, ...]


def region_of(mask: Value, context: int) -> Region:
    """The region of a boolean mask; `context` is the dimension of the context position."""
    op = mask.op
    if number(mask):
        return ()
    if op.name == "and":
        return tuple(condition for arg in op.args for condition in region_of(arg, context))
    bounds = _either(op, context) if op.name == "or" else _compared(op, context)
    if bounds:
        return (Condition(mask, mask, bounds),)
    inner = _sliced(op, context) if op.name == "dynamic_slice" else _laid_out(mask, context)
    return (Condition(mask, mask),) if inner is None else inner


def _either(op: Op, context: int) -> tuple[Bound, ...]:
    """s <= p or s <= q  ->  s <= one of p, q"""
    sides = [region_of(arg, context) for arg in op.args]
    bounds = [bound for side in sides for condition in side for bound in condition.bounds]
    if [len(side) for side in sides] != [1, 1] or len(bounds) != 2:
        return ()
    one, other = bounds
    return (Bound(one.ends + other.ends, one.lowest),) if one.lowest == other.lowest else ()


# Layout ops and slices.


def _laid_out(mask: Value, context: int) -> Region | None:
    """The region of the argument of a layout op, in the dimensions of its result."""
    operand = _inner(mask)
    if operand is None or (context,) not in operand.axes:
        return None
    place = {d: axis[0] for d, axis in enumerate(operand.axes) if axis}
    inner = region_of(operand.value, operand.axes.index((context,)))
    return _again(mask.op, inner, lambda end: end.moved(place.get))


def _again(op: Op, region: Region, moved: Callable[[Sum], Sum]) -> Region:
    """The region of the first argument of a layout op or slice as one of its result."""
    given = op.args[0].type.shape
    return tuple(
        Condition(
            with_args(op, (in_shape(value, given), *op.args[1:])).results[0],
            source,
            tuple(Bound(tuple(map(moved, ends)), lowest) for ends, lowest in bounds),
        )
        for value, source, bounds in region
    )


def _inner(value: Value) -> Operand | None:
    """The argument of a layout op, with dimensions numbered as in its result."""
    return before(value, tuple((d,) for d in range(value.type.rank)), {})


def _sliced(op: Op, context: int) -> Region:
    """The region of what a slice is cut from, in the indices of the slice."""
    starts = [_start(op, dim) for dim in range(op.types[0].rank)]
    shape = op.types[0].shape

    def moved(end: Sum) -> Sum:
        terms = tuple((_cut(operand, op), factor) for operand, factor in end.terms)
        shifted = replace(end, terms=terms).plus(starts[context], -1)
        for dim, factor in end.dims:
            shifted = shifted.plus(starts[dim], factor)
        return shifted.moved(lambda dim: dim if shape[dim] > 1 else None)

    return _again(op, region_of(op.args[0], context), moved)


def _cut(operand: Operand, op: Op) -> Operand:
    """A value beside the context, cut as a slice of the mask is."""
    if not any(operand.axes):
        return operand
    places = [axis[0] if axis else None for axis in operand.axes]
    zero = make("const", value=0, type=Type("i32", ()))
    starts = (zero if d is None else op.args[1 + d] for d in places)
    sizes = tuple(1 if d is None else op["slice_sizes"][d] for d in places)
    return replace(operand, value=make("dynamic_slice", operand.value, *starts, slice_sizes=sizes))


def _start(op: Op, dim: int) -> Sum:
    """Where a dynamic slice begins along a dimension, which is where all of it is inside."""
    start = op.args[1 + dim]
    last = op.args[0].type.shape[dim] - op["slice_sizes"][dim]
    known = number(start) if last else 0
    if known is not None:
        return Sum(number=min(max(int(known), 0), last))
    low, high = (make("const", value=end, type=Type(start.type.dtype, ())) for end in (0, last))
    return Sum(terms=((Operand(make("clamp", low, start, high), ()), 1),))


# Comparisons.

_LAST, _FIRST = (0, False), (0, True)
# comparison -> (the same with its sides exchanged, the bounds s <= end + step, or s >= end + step)
COMPARED = {
    "lt": ("gt", ((-1, False),)),
    "le": ("ge", (_LAST,)),
    "gt": ("lt", ((1, True),)),
    "ge": ("le", (_FIRST,)),
    "eq": ("eq", (_FIRST, _LAST)),
}


def _compared(op: Op, context: int) -> tuple[Bound, ...]:
    """The bounds of a comparison on the position; none if the position does not occur once."""
    if op.name not in COMPARED:
        return ()
    sides, (_, bounds) = [_sum(arg, context) for arg in op.args], COMPARED[op.name]
    if None in sides or len(bounds) > 1:
        return _stepped(op, context)
    difference = sides[0].plus(sides[1], -1)  # the op compares it with 0
    factor = difference.along(context)
    if factor not in (1, -1):
        return ()
    ((step, lowest),) = bounds
    rest = Sum(dims=((context, factor),)).plus(difference, -1).plus(Sum(number=step))
    end = rest if factor == 1 else Sum().plus(rest, -1)
    return (Bound((end,), lowest if factor == 1 else not lowest),)


def _stepped(op: Op, context: int) -> tuple[Bound, ...]:
    """s // n <= c  ->  s <= n c + n - 1,  s // n == c  ->  both bounds, however it is divided"""
    turned, compared = COMPARED[op.name]
    for bounds, arg, other in (
        (compared, *op.args),
        (COMPARED[turned][1], *op.args[::-1]),
    ):
        steps = _steps(arg, context)
        end = _sum(other, None) if steps and _varies_not(other, context) else None
        if end is None:
            continue
        length, first = steps
        ends = [(Sum().plus(end.plus(Sum(number=step)), length), lowest) for step, lowest in bounds]
        return tuple(
            Bound((end.plus(Sum(number=-first if lowest else length - 1 - first)),), lowest)
            for end, lowest in ends
        )
    return ()


def _varies_not(value: Value, context: int) -> bool:
    return value.type.shape[context : context + 1] in ((), (1,))


def _steps(value: Value, context: int) -> tuple[int, int] | None:
    """(n, a) if the integers along the context, known and the same in all rows, are (s + a) // n
    for n of at least 2."""
    size = value.type.shape[context] if value.type.rank > context else 1
    if value.type.size != size or size < 2 or value.type.dtype not in INTEGERS:
        return None
    if not is_known(value):
        return None
    with jax.ensure_compile_time_eval():
        steps = np.asarray(evaluate(Graph((), (value,)), [])[0]).reshape(-1).astype(np.int64)
    rises = np.flatnonzero(np.diff(steps))
    if len(rises) < 2:
        return None
    length = int(rises[1] - rises[0])
    first = int(steps[rises[0] + 1]) * length - int(rises[0] + 1)
    same = np.array_equal(steps, (np.arange(size) + first) // length)
    return (length, first) if same and length > 1 else None


def is_known(value: Value) -> bool:
    """Whether a value depends on constants alone."""
    op = value.op
    return op.name != "input" and not op.regions and all(map(is_known, op.args))


def linear(value: Value) -> Sum:
    """A value as a linear form of its indices and of others."""
    axes = tuple((d,) if size > 1 else () for d, size in enumerate(value.type.shape))
    return _sum(value, None) or Sum(terms=((Operand(value, axes), 1),))


def _sum(value: Value, context: int | None) -> Sum | None:
    """A value as a linear form; None if it depends on the context in another way. `context` None:
    the value does not depend on the context."""
    total = _parts(value, context)
    return total and replace(total, whole=total.whole and value.type.dtype in INTEGERS)


def _parts(value: Value, context: int | None) -> Sum | None:
    op, known = value.op, number(value)
    if known is not None:
        return Sum(number=int(known)) if float(known).is_integer() else None
    if op.name == "iota":
        return Sum(dims=((op["dimension"], 1),))
    if op.name == "convert_element_type":
        return _sum(op.args[0], context)
    if op.name in ("add", "sub"):
        rank = value.type.rank
        sides = [_sum(arg, context if arg.type.rank == rank else None) for arg in op.args]
        return None if None in sides else sides[0].plus(sides[1], 1 if op.name == "add" else -1)
    inner = _inner(value)
    if inner is not None:
        place = {d: axis[0] for d, axis in enumerate(inner.axes) if axis}
        within = next((d for d, outer in place.items() if outer == context), None)
        total = _sum(inner.value, within)
        return None if total is None else total.moved(place.get)
    varies = context is not None and not _varies_not(value, context)
    axes = tuple((d,) if size > 1 else () for d, size in enumerate(value.type.shape))
    return None if varies else Sum(terms=((Operand(value, axes), 1),))
