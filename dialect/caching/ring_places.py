"""Which caches a ring can hold: those of which only the last places are read, up to the one that is
written.

    cache_write(cache, new, p),  attend{p - n < s <= p}(q, cache, ..),  p + 1 leaves the step

What the masks of a step keep may be said of other inputs than `p`: of the positions that its caller
gives, or of another layer's counter. A ring is right where they are the place that is written, and
`dialect.caching.claimed_positions` sees to that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from dialect.caching.claimed_positions import places_written
from dialect.caching.counted_positions import CountedPositions, Counter
from dialect.caching.state_forms import Forms, sources, writes_places
from dialect.matching.attend_bounds import kept_by
from dialect.naming.axes import Axes
from dialect.normal.every_attention import attentions
from dialect.ops.attend import names_of
from dialect.ops.scores import masks_out
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import traits


class Held(NamedTuple):
    """What a ring holds of a cache, in the form that the step has it in.

    - axis, context: the dimension of the cache's context, and its size
    - window, size: the positions that attention keeps, and the places of the ring
    - position: the number of the state that is the place to be written next
    - rows: the dimension along which there are several positions; None where all share one
    - claimed: the numbers of other inputs up to which it is read, as the position
    """

    axis: int
    context: int
    window: int
    size: int
    position: int
    rows: int | None
    claimed: tuple[int, ...]


class _Use(NamedTuple):
    """An op that reads or writes these states, in the bodies of its `parents`."""

    op: Op
    parents: tuple[Op, ...]
    states: frozenset[int]


class RingPlaces:
    """The caches of a program by the number of their input: `rings`, and why others are none.

    given: the program's arguments, by their number; chunk: as many places are written at a time, in
    this step or another.
    """

    def __init__(
        self, graph: Graph, forms: Forms, axes: Axes, given: Mapping[int, Value], chunk: int = 1
    ) -> None:
        self.forms, self.axes, self.given, self.chunk = forms, axes, given, chunk
        self.numbers = {value: number for number, value in enumerate(graph.inputs)}
        self.counted: dict[tuple[int, int], CountedPositions] = {}
        self.reads = [
            _Use(op, parents, self._states(_caches(op), parents))
            for op, parents in attentions(graph)
        ]
        self.writes = [
            _Use(op, parents, self._states(op.args[:1], parents))
            for op, parents in graph.walk()
            if writes_places(op)
        ]
        self.rings: dict[int, Held] = {}
        self.refused: dict[int, str] = {}
        for number, axis in self._caches():
            ring = self._ring(number, axis)
            if isinstance(ring, str):
                self.refused[number] = ring
            else:
                self.rings[number] = ring

    def windows(self, numbers: Sequence[int]) -> dict[Op, int]:
        """The attentions to these caches whose window is a mask, and how long it is."""
        return {
            use.op: self.rings[number].window
            for number in numbers
            for use in self.reads
            if number in use.states and not use.op.get("window")
        }

    def claims(self, numbers: Sequence[int]) -> dict[Op, Value]:
        """The attentions to these caches that are read up to another input than the position, and
        the places that are written (`places_written`)."""
        return {
            use.op: places_written(write.op)
            for number in numbers
            if self.rings[number].claimed
            for write in self.writes
            if number in write.states
            for use in self.reads
            if number in use.states
        }

    def _states(self, values: Sequence[Value], parents: tuple[Op, ...]) -> frozenset[int]:
        """The states that these values, in the bodies of some loops, are forms of."""
        arguments: dict[Value, Value] = {}
        for op in parents:
            for region in op.regions:
                arguments |= dict(zip(region.inputs, op.args[len(op.args) - len(region.inputs) :]))
        inputs = {source for value in values for source in sources(value, arguments)}
        return frozenset(self.numbers[v] for v in inputs if self.numbers.get(v) in self.forms)

    def _caches(self) -> Iterator[tuple[int, int]]:
        """Every state with a context that an attention reads, and the dimension of that."""
        for number in sorted({number for use in self.reads for number in use.states}):
            names = self._names(number)
            if ("context",) in names:
                yield number, names.index(("context",))

    def _names(self, number: int) -> list[tuple[str, ...]]:
        return list(self.axes.of(self.forms[number][0]))

    def _ring(self, number: int, axis: int) -> Held | str:
        shape = self.forms[number][0].type.shape
        writes, reads = (
            [use for use in uses if number in use.states] for uses in (self.writes, self.reads)
        )
        count = max((use.op.args[1].type.shape[axis - len(shape)] for use in writes), default=1)
        positions = self._positions(shape[axis], count)
        written = [_place(use, axis - len(shape), positions) for use in writes]
        read = [_window(use, positions) for use in reads]
        for why in (*written, *read):
            if isinstance(why, str):
                return why
        places = {place for place in written if isinstance(place, Counter)}
        windows = [window for window in read if not isinstance(window, str)]
        ends = {end for _, end in windows} - places
        is_alone = {use.parents for use in writes} == {use.parents for use in reads}
        if len(places) != 1 or ends and not is_alone:
            return "it is written at another position than it is read up to"
        sizes, place = sorted({size for size, _ in windows}), places.pop()
        if place.by_row and not all(end.by_row for end in ends):
            return "it is written at places of its rows, and read up to one that they share"
        if place.by_layer and place.by_row:
            return "each of its layers counts positions of its rows"
        if len(sizes) > 1:
            return f"windows of {' and '.join(map(str, sizes))} positions read it"
        size = sizes[0] + max(count, self.chunk) - 1
        if size >= shape[axis]:
            return "its window is all of the context"
        rows = self._names(number).index(("batch",)) if place.by_row else None
        rows = 0 if place.by_layer else rows
        claimed = tuple(sorted({end.source for end in ends}))
        return Held(axis, shape[axis], sizes[0], size, place.source, rows, claimed)

    def _positions(self, context: int, count: int) -> CountedPositions:
        key = context, count
        if key not in self.counted:
            self.counted[key] = CountedPositions(self.forms, self.given, context, count)
        return self.counted[key]


def _caches(op: Op) -> list[Value]:
    """The keys and values of an attention, with their scales."""
    return [arg for name, arg in zip(names_of(op), op.args) if name.startswith(("key", "value"))]


def _place(use: _Use, axis: int, positions: CountedPositions) -> Counter | str:
    """Whose position the places are that are written along an axis, counted from the last one; or
    why a ring cannot be written so."""
    op = use.op
    along = op[traits(op).axes]
    along = along if isinstance(along, tuple) else (along,)
    if axis + op.types[0].rank != along[-1]:
        return f"all of its context is written: {op.told}"
    table = positions.of(places_written(op), use.parents)
    place = table and table.counter(positions.count)
    if place is None or not positions.is_counted(place):
        return f"the step does not count the place that is written: {op.told}"
    return place


def _window(use: _Use, positions: CountedPositions) -> tuple[int, Counter] | str:
    """How many positions an attention keeps, and whose the last of them is; or why it has no window
    that ends where the step writes."""
    op, (first, last, rest) = use.op, _bounds(use.op)
    if op.get("blocks") or op.get("sparq") or op.get("sinks"):
        return f"its attention is in blocks, or has sinks or sparq already: {op.told}"
    if "fill" in names_of(op) or not masks_out(op.get("fill")):
        return f"what its mask leaves out may have a weight: {op.told}"
    if not all(map(_is_written, _caches(op))):
        return f"it is read before it is written: {op.told}"
    if rest is not None:
        return f"its mask depends on data: {op.told}"
    if last is None or (first is None and not op.get("window")):
        return f"its attention has no window: {op.told}"
    end = positions.of(last, use.parents)
    place = end and (end.counter(positions.count) or end.of_queries(positions.count))
    if end is None or place is None:
        return f"its window does not end at a position: {op.told}"
    if first is None:
        return op["window"], place
    start = positions.of(first, use.parents)
    size = start and start.source == end.source and start.places_up_to(end)
    return (size, place) if size else f"its window is not as long at every position: {op.told}"


def _bounds(op: Op) -> tuple[Value | None, Value | None, Value | None]:
    """The first and the last position that an attention keeps, and what else its mask says."""
    if not op.get("window"):
        return kept_by(op)[:3]
    named = dict(zip(names_of(op), op.args))
    return named.get("first"), named.get("last"), named.get("mask")


def _is_written(value: Value) -> bool:
    """Whether what is read of a cache is a layer that was written before."""
    layer: tuple[Value, ...] = ()
    while value.op.args and not writes_places(value.op):
        layer = value.op.args[1:] if traits(value.op).of_cache else layer
        value = value.op.args[0]
    return bool(value.op.args) and set(layer) <= {*value.op.args[2:]}
