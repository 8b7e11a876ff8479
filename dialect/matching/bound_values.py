"""The bounds of a mask as arrays: the first and the last position that each row keeps.

attend(q, k, v, mask)  ->  attend(q, k, v, first, last, what is left of the mask)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np

from dialect.matching.mask_regions import Bound, Sum, region_of
from dialect.matching.operands import Operand, transposed
from dialect.matching.values import in_dtype, in_shape, reshaped
from rewrite.ir import Symbol, Type, Value
from rewrite.opdef import make

_FAR = 1 << 30  # beyond all positions, and far from where 32 bits end


class Kept(NamedTuple):
    """The positions that a mask keeps: `first <= s <= last`, where there is such a bound, and
    `rest`, a boolean. The bounds are i32, of the mask's shape with one position, or of size one."""

    first: Value | None
    last: Value | None
    rest: Value | None
    bounds: tuple[Bound, ...]


def kept(mask: Value, context: int) -> Kept:
    """What a boolean mask keeps; `context` is the dimension of the context position."""
    region = region_of(mask, context)
    known = [
        condition
        for condition in region
        if condition.bounds and all(map(_is_whole, condition.bounds))
    ]
    bounds = [bound for condition in known for bound in condition.bounds]
    rest = [condition.value for condition in region if condition not in known]
    shape = mask.type.shape

    def tightest(lowest: bool, narrower: str, wider: str) -> Value | None:
        ends = [
            _joined(wider, (_value(end, shape) for end in bound.ends))
            for bound in bounds
            if bound.lowest == lowest
        ]
        return _joined(narrower, ends) if ends else None

    return Kept(
        tightest(True, "max", "min"),
        tightest(False, "min", "max"),
        _joined("and", (_ranked(condition, shape) for condition in rest)) if rest else None,
        tuple(bounds),
    )


def _is_whole(bound: Bound) -> bool:
    return all(end.whole for end in bound.ends)


def _joined(name: str, values: Iterable[Value]) -> Value:
    return reduce(lambda left, right: make(name, left, right), dict.fromkeys(values))


def _ranked(value: Value, shape: tuple[int, ...]) -> Value:
    return value if value.type.rank == len(shape) else in_shape(value, shape)


def _value(end: Sum, shape: Sequence[int]) -> Value:
    """A sum as an array of the rank of this shape, of size one where nothing varies."""
    ones, parts = (1,) * len(shape), []
    for dim, factor in end.dims:
        row = (*ones[:dim], shape[dim], *ones[dim + 1 :])
        counter = make("iota", dtype=Symbol("i32"), shape=(shape[dim],), dimension=0)
        parts.append(_times(reshaped(counter, row), factor))
    is_computed = bool(parts) or len(end.terms) > 1 or end.number
    for operand, factor in end.terms:
        term = in_dtype(_placed(operand, len(shape)), "i32")
        if is_computed or factor != 1:
            most = _FAR // abs(factor)
            term = make("max", make("min", term, integer(most)), integer(-most))
        parts.append(_times(term, factor))
    if end.number or not parts:
        parts.append(reshaped(integer(end.number), ones) if not parts else integer(end.number))
    return reduce(lambda left, right: make("add", left, right), parts)


def _times(value: Value, factor: int) -> Value:
    return value if factor == 1 else make("mul", value, integer(factor))


def integer(number: int) -> Value:
    """A constant in i32."""
    return make("const", value=number, type=Type("i32", ()))


def _placed(operand: Operand, rank: int) -> Value:
    """The value with its dimensions where the mask has them."""
    value, axes = operand.value, operand.axes
    held = [d for d, axis in enumerate(axes) if axis]
    places = [axes[d][0] for d in held]
    sizes = {axes[d][0]: value.type.shape[d] for d in held}
    shape = tuple(sizes.get(d, 1) for d in range(rank))
    if places != sorted(places):
        value = reshaped(value, tuple(value.type.shape[d] for d in held))
        value = transposed(value, sorted(range(len(places)), key=places.__getitem__))
    return value if value.type.shape == shape else reshaped(value, shape)


def visited_blocks(
    bounds: Sequence[Bound],
    time: int | None,
    sizes: tuple[int, int],
    blocks: tuple[int, int],
    sinks: int = 0,
    cells: tuple[np.ndarray, int] | None = None,
) -> int:
    """How many of the blocks of queries and keys hold a position that is kept, when the context is
    full: the last query's last position is the last of the context, and queries follow one another.

    time: the dimension of the queries in the mask; sizes, blocks: of queries and of keys. Of the
    first `sinks` positions those up to the last are kept in any case. cells: a map, and how many
    positions its rows and columns stand for.
    """
    first, last = _rows(bounds, time, *sizes)
    rows, keys = (min(block, size) for block, size in zip(blocks, sizes))
    lows = first.reshape(-1, rows).min(axis=1) // keys
    highs = last.reshape(-1, rows).max(axis=1) // keys
    number = np.arange(sizes[1] // keys)
    kept = (number >= lows[:, None]) | (number * keys < sinks)
    kept &= number <= highs[:, None]
    if cells is not None:
        at = [
            np.minimum(places // cells[1], len(cells[0]) - 1)
            for places in (last, np.arange(sizes[1]))
        ]
        mapped = cells[0][at[0]].reshape(-1, rows, cells[0].shape[1]).any(axis=1)[:, at[1]]
        kept &= mapped.reshape(len(mapped), -1, keys).any(axis=2)
    return int(kept.sum())


def _rows(
    bounds: Sequence[Bound], time: int | None, queries: int, keys: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last position of each query, when the context is full."""
    bases: dict[Sum, int] = {}
    last = np.full(queries, keys - 1)
    for bound in bounds:
        if bound.lowest:
            continue
        rows = []
        for end in bound.ends:
            moved, base = _moved(end, time, queries)
            bases[base] = 0 if base == Sum() else keys - 1 - int(moved[-1])
            rows.append(moved + bases[base])
        last = np.minimum(last, np.max(rows, axis=0))
    first = np.zeros(queries, int)
    for bound in bounds:
        if bound.lowest:
            moved_ends = [_moved(end, time, queries) for end in bound.ends]
            rows = [
                moved + bases.get(base, -keys if base.terms else 0) for moved, base in moved_ends
            ]
            first = np.maximum(first, np.min(rows, axis=0))
    return first, last


def _moved(end: Sum, time: int | None, queries: int) -> tuple[np.ndarray, Sum]:
    """How an end moves with the query, and the base from which."""
    at, base = np.arange(queries), Sum(terms=end.terms)
    if time is None:
        return 0 * at + end.number, base
    moved = end.along(time) * at + end.number
    for operand, factor in end.terms:
        if (time,) in operand.axes:
            moved = moved + at // abs(factor) * factor
    return moved, base
