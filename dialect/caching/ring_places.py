"""Which caches a ring can hold: those of which only the last places are read, up to the one that is
written.

    cache_write(cache, new, p),  attend{p - n < s <= p}(q, cache, ..),  p + 1 leaves the step
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dialect.caching.counted_positions import CountedPositions, Table
from dialect.caching.state_forms import Forms, sources, writes_places
from dialect.matching.attend_bounds import kept_by
from dialect.naming.axes import Axes
from dialect.normal.every_attention import attentions
from dialect.ops.attend import names_of
from dialect.ops.scores import CONTEXT
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import traits
from rewrite.signature import Signature


class Held(NamedTuple):
    """What a ring needs to know of its cache.

    axis, context: which dimension of the cache is its context, and how long; size: places of the
    ring; position: the number of the state that is written next; rows: along which axis of the
    cache there are several of them.
    """

    axis: int
    context: int
    size: int
    position: int
    rows: int | None


@dataclass(frozen=True)
class _Reader:
    op: Op
    parents: tuple[Op, ...]
    states: frozenset[int]


class RingPlaces:
    """The caches of a program by the number of their input: `rings`, or why one cannot be a ring.

    windows: attentions to rings, with what their masks keep, but for those with a window already
    """

    def __init__(self, graph: Graph, forms: Forms, axes: Axes) -> None:
        self.forms, self.axes = forms, axes
        self.numbers = {value: number for number, value in enumerate(graph.inputs)}
        self.counted: dict[int, CountedPositions] = {}
        self.readers = [
            _Reader(op, parents, states)
            for op, parents in attentions(graph)
            if (states := self._states(self._over_context(op), parents))
        ]
        self.writers = [
            _Reader(op, parents, self._states(op.args[:1], parents))
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
            reader.op: self.rings[number].size
            for number in numbers
            for reader in self._of(self.readers, number)
            if not reader.op.get("window")
        }

    def _caches(self) -> Iterator[tuple[int, int]]:
        """Every state with a context that an attention reads, and the dimension of that."""
        read = {number for reader in self.readers for number in reader.states}
        for number in sorted(read):
            names = [name[:1] for name in self.axes.of(self.forms[number][0])]
            if ("context",) in names:
                yield number, names.index(("context",))

    def _ring(self, number: int, axis: int) -> Held | str:
        value = self.forms[number][0]
        context = value.type.shape[axis]
        positions = self.counted.setdefault(context, CountedPositions(self.forms, context))
        written = [self._written(writer, axis, value, positions) for writer in self._of(self.writers, number)]
        read = [_window(reader, positions) for reader in self._of(self.readers, number)]
        for why in (*written, *read):
            if isinstance(why, str):
                return why
        if not written:
            return "nothing is written into it"
        places = [*written, *(last for _, last in read)]
        if len({(place.state, place.layers, place.difference.shape) for place in places}) > 1:
            return "its places are counted by several positions"
        sizes, place = {size for size, _ in read}, places[0]
        if len(sizes) > 1 or max(sizes) >= context:
            return f"windows of {sorted(sizes)} read it" if len(sizes) > 1 else "its window is all"
        names = [name[:1] for name in self.axes.of(value)]
        by_row = place.difference.shape[1] > 1
        if by_row and ("batch",) not in names:
            return "its rows have no axis"
        rows = 0 if place.layers else names.index(("batch",)) if by_row else None
        return Held(axis, context, sizes.pop(), place.state, rows)

    def _of(self, readers: Sequence[_Reader], number: int) -> list[_Reader]:
        return [reader for reader in readers if number in reader.states]

    def _written(self, writer: _Reader, axis: int, cache: Value, positions: CountedPositions) -> Table | str:
        """The places that a write names along the context; or why a ring cannot be written so."""
        op = writer.op
        axis -= cache.type.rank - op.types[0].rank
        along = op.get(traits(op).axes)
        along = along if isinstance(along, tuple) else (along,)
        new = op.args[1]
        if axis not in along:
            return f"{op.told} writes all of its context"
        if new.type.shape[axis - op.types[0].rank] > 1:
            return f"{op.told} writes several places, and needs those before them"
        table = positions.of(op.args[2 + along.index(axis)], writer.parents)
        if table is None or table.difference is None or table.difference.any():
            return f"{op.told} writes a place that the step does not count"
        return table

    def _over_context(self, op: Op) -> list[Value]:
        """The arguments of an attention over its context."""
        inputs = Signature.parse(op["axes"]).inputs
        return [arg for arg, axes in zip(op.args, inputs) if CONTEXT in axes]

    def _states(self, values: Sequence[Value], parents: tuple[Op, ...]) -> frozenset[int]:
        """The states that these values, in the bodies of some loops, are forms of."""
        arguments: dict[Value, Value] = {}
        for op in parents:
            for region in op.regions:
                arguments |= dict(zip(region.inputs, op.args[len(op.args) - len(region.inputs) :]))
        inputs = {source for value in values for source in sources(value, arguments)}
        return frozenset(self.numbers[v] for v in inputs if self.numbers.get(v) in self.forms)


def _window(reader: _Reader, positions: CountedPositions) -> tuple[int, Table] | str:
    """How many of the last positions an attention keeps, and the last; or why it is not so."""
    op, where = reader.op, reader.op.origin.source
    if op.get("blocks") or op.get("sparq") or op.get("sinks"):
        return f"its attention is in blocks, or has sinks or sparq already: {where}"
    if op.get("window"):
        named = dict(zip(names_of(op), op.args))
        first, last, rest = named.get("first"), named["last"], named.get("mask")
    else:
        first, last, rest, _ = kept_by(op)
    if rest is not None:
        return f"its mask depends on data: {where}"
    if last is None or (first is None) == (not op.get("window")):
        return f"its attention has no window: {where}"
    end = positions.of(last, reader.parents)
    if end is None or end.difference is None or end.difference.any():
        return f"its window does not end at a position that the step counts: {where}"
    if first is None:
        return op["window"], end
    start = positions.of(first, reader.parents)
    if start is None or start.difference is None or start.state != end.state:
        return f"its window does not begin at a position that the step counts: {where}"
    size = 1 - int(start.difference[-1, 0])
    wanted = np.maximum(end.values - (size - 1), 0)
    if size < 1 or not np.array_equal(np.maximum(start.values, 0).reshape(wanted.shape), wanted):
        return f"its window is not as long for every position: {where}"
    return size, end
