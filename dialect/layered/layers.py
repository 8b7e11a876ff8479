"""The layers of a decoder that is written out, found by structure alone.

Neighbouring segments of the trunk that repeat are a *run*: one layer after another, or groups of
several kinds in turn. What a segment reads is either its own (weights, a cache) and differs from
layer to layer, or it is read by others as well (a mask, angles, shared weights) and must then be
the same throughout. Nothing is ever asked by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from dialect.layered.segments import Segment, cut, difference
from dialect.layered.trunk import find_trunk
from rewrite.dataflow import bound_values
from rewrite.ir import Op, Value
from rewrite.program import Program

_LONGEST_GROUP = 64  # segments that repeat together: a dozen layers in five pieces each


@dataclass(frozen=True)
class Run:
    """`repeats` groups of `period` segments each, alike group by group, from segment `first`."""

    first: int
    period: int
    repeats: int

    @property
    def stop(self) -> int:
        """The first segment behind the run."""
        return self.first + self.period * self.repeats


@dataclass(frozen=True, eq=False)
class Layers:
    """What `find_layers` found.

    - `segment_of`: the number of its segment for each op that has one. Ops that several segments
      read have none, nor have those in the bodies of loops;
    - `spread`: for each leaf the distance from the first to the last segment that reads it.
    """

    segments: tuple[Segment, ...]
    runs: tuple[Run, ...]
    segment_of: dict[Op, int]
    spread: dict[Value, int]

    def groups(self, run: Run) -> list[tuple[Segment, ...]]:
        """The segments of each group of a run."""
        begins = range(run.first, run.stop, run.period)
        return [self.segments[begin : begin + run.period] for begin in begins]

    @cached_property
    def pieces(self) -> tuple[range, ...]:
        """For each layer the numbers of its segments.

        A layer begins with the segment that keeps a state (its cache); in a program without one
        each group of a run is a layer. The last is no longer than the longest before it.
        """
        begins = [n for n, segment in enumerate(self.segments) if segment.keeps_state]
        if not begins:
            begins = [n for run in self.runs for n in range(run.first, run.stop, run.period)]
        ends = [*begins[1:], len(self.segments)]
        longest = max((b - a for a, b in zip(begins, ends[:-1])), default=len(self.segments))
        return tuple(range(a, min(b, a + longest)) for a, b in zip(begins, ends))

    @cached_property
    def layer_of_segment(self) -> dict[int, int]:
        """The layer, from 0, of each segment that is in one."""
        return {number: layer for layer, own in enumerate(self.pieces) for number in own}

    def layer(self, op: Op) -> int | None:
        """The layer that an op belongs to, or None: what layers share belongs to none."""
        return self.layer_of_segment.get(self.segment_of.get(op))

    def kinds(self, layer: int) -> tuple[int, ...]:
        """The kinds of a layer's segments: the same for layers that are the same program."""
        return tuple(self.segments[number].kind for number in self.pieces[layer])

    def difference(self, layer: int, other: int) -> tuple[int, str]:
        """(pieces that are alike, the first thing that is not, in words); empty if all are."""
        pairs = list(zip(self.pieces[layer], self.pieces[other]))
        for same, pair in enumerate(pairs):
            one, two = (self.segments[number] for number in pair)
            told = difference(one, two) or self._read_in_common(one, two)
            if told:
                return same, told
        return len(pairs), ""

    def _read_in_common(self, one: Segment, other: Segment) -> str:
        for leaf, theirs in zip(one.leaves, other.leaves):
            common = self.spread[leaf] or self.spread[theirs]
            if leaf != theirs and leaf.op.name != "const" and common:
                return f"it reads {leaf.op.told} where the other reads another"
        return ""


def find_layers(program: Program) -> Layers:
    """The layers of a program's step, which should be normalised, so that equal ops are one.

    A program without a trunk, or whose layers are a loop already, has no runs. Linear in size.
    """
    segments, segment_of = cut(program, find_trunk(program))
    spread = _spread(segments)
    weights = bound_values(program.graph, program.values("param"))
    return Layers(tuple(segments), tuple(_runs(segments, spread, weights)), segment_of, spread)


def _spread(segments: Sequence[Segment]) -> dict[Value, int]:
    first: dict[Value, int] = {}
    spread: dict[Value, int] = {}
    for number, segment in enumerate(segments):
        for leaf in segment.leaves:
            spread[leaf] = number - first.setdefault(leaf, number)
    return spread


def _runs(
    segments: Sequence[Segment], spread: dict[Value, int], weights: frozenset[Value]
) -> list[Run]:
    """Disjoint runs, in order, chosen so that the fewest ops stay written out.

    A group reads parameters: what repeats without them is arithmetic, and no layer. Where it can
    it begins as a layer does, with the segment that keeps a state.
    """
    stretches = list(_stretches(segments, spread))
    sizes, weighted = [0], [0]
    for segment in segments:
        sizes.append(sizes[-1] + len(segment.ops))
        weighted.append(weighted[-1] + any(leaf in weights for leaf in segment.leaves))

    def within(first: int, stop: int) -> Iterator[tuple[int, int, Run]]:
        for period, begin, end in stretches:
            begin, end = max(begin, first), min(end, stop)
            if end - begin < 2 * period:
                continue
            spare = range(begin, begin + (end - begin) % period + 1)
            begin = next((n for n in spare if segments[n].keeps_state), begin)
            run = Run(begin, period, (end - begin) // period)
            if weighted[begin + period] > weighted[begin]:
                yield sizes[run.stop] - sizes[begin + period], -period, run

    chosen: list[Run] = []
    free = [(0, len(segments))]
    while free:
        first, stop = free.pop()
        best = max(within(first, stop), key=lambda each: each[:2], default=None)
        if best is not None:
            run = best[2]
            chosen.append(run)
            free += [(first, run.first), (run.stop, stop)]
    return sorted(chosen, key=lambda run: run.first)


def _stretches(
    segments: Sequence[Segment], spread: dict[Value, int]
) -> Iterator[tuple[int, int, int]]:
    """(period, first, stop) of each stretch that repeats with a period, whole groups or not."""
    kinds = [segment.kind for segment in segments]

    def alike(number: int, period: int) -> bool:
        if kinds[number] != kinds[number + period]:
            return False
        return all(
            one == other
            or one.op.name == "const"
            or (spread[one] < period and spread[other] < period)
            for one, other in zip(segments[number].leaves, segments[number + period].leaves)
        )

    for period in range(1, min(_LONGEST_GROUP, len(segments) // 2) + 1):
        first = 0
        for number in range(len(segments) - period + 1):
            if number + period == len(segments) or not alike(number, period):
                if number - first >= period:
                    yield period, first, number + period
                first = number + 1
