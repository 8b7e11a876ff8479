"""The layers of an unrolled decoder, found by structure alone, never by name.

Consecutive segments of the trunk that repeat are a *run* of isomorphic groups. A leaf that only one
group reads (weights, a cache) may differ from group to group; a leaf that several groups read (a
mask, rotary angles, shared weights) must be the same in all of them.
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

_LONGEST_GROUP = 64  # segments: a dozen layers of five segments


@dataclass(frozen=True)
class Run:
    """`repeats` isomorphic groups of `period` segments, from segment number `first`."""

    first: int
    period: int
    repeats: int

    @property
    def stop(self) -> int:
        """The number of the first segment after the run."""
        return self.first + self.period * self.repeats


@dataclass(frozen=True, eq=False)
class Layers:
    """The result of `find_layers`.

    - `segment_of`: the segment number of an op. Ops that several segments read have none, nor have
      ops in the bodies of loops
    - `spread`: the distance from the first to the last segment that reads a leaf
    """

    segments: tuple[Segment, ...]
    runs: tuple[Run, ...]
    segment_of: dict[Op, int]
    spread: dict[Value, int]

    def groups(self, run: Run) -> list[tuple[Segment, ...]]:
        """The groups of a run, as segments."""
        begins = range(run.first, run.stop, run.period)
        return [self.segments[begin : begin + run.period] for begin in begins]

    @cached_property
    def pieces(self) -> tuple[range, ...]:
        """The segment numbers of every layer.

        A layer begins with the segment that keeps a state (its cache); in a program without state a
        layer is a group of a run. The last layer is no longer than the longest before it.
        """
        begins = [n for n, segment in enumerate(self.segments) if segment.keeps_state]
        if not begins:
            begins = [n for run in self.runs for n in range(run.first, run.stop, run.period)]
        ends = [*begins[1:], len(self.segments)]
        longest = max((b - a for a, b in zip(begins, ends[:-1])), default=len(self.segments))
        return tuple(range(a, min(b, a + longest)) for a, b in zip(begins, ends))

    @cached_property
    def layer_of_segment(self) -> dict[int, int]:
        """{number of a segment: its layer, from 0}."""
        return {number: layer for layer, segments in enumerate(self.pieces) for number in segments}

    def layer(self, op: Op) -> int | None:
        """The layer of an op; None for ops that layers share."""
        return self.layer_of_segment.get(self.segment_of.get(op))

    def difference(self, layer: int, other: int) -> tuple[int, str]:
        """(number of leading segments that are isomorphic, the first difference in words or "")."""
        pairs = list(zip(self.pieces[layer], self.pieces[other]))
        for same, pair in enumerate(pairs):
            first, second = (self.segments[number] for number in pair)
            words = difference(first, second) or self._read_in_common(first, second)
            if words:
                return same, words
        return len(pairs), ""

    def _read_in_common(self, first: Segment, second: Segment) -> str:
        for leaf, theirs in zip(first.leaves, second.leaves):
            common = self.spread[leaf] or self.spread[theirs]
            if leaf != theirs and leaf.op.name != "const" and common:
                return f"it reads {leaf.op.told} where the other reads another"
        return ""


def find_layers(program: Program, through_loops: bool = False) -> Layers:
    """The layers of a program's step. It should be normalised, so that equal ops are shared.

    A program without a trunk, or with its layers in a scan, has no runs; `through_loops` a scan
    whose rows are a state is in a piece. Linear in size.
    """
    segments, segment_of = cut(program, find_trunk(program, through_loops))
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
    """Disjoint runs, in order, chosen greedily so that few ops stay unrolled.

    A group must read parameters, since repeated arithmetic without them is no layer. If possible it
    begins with the segment that keeps a state.
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
        best = max(within(first, stop), key=lambda scored: scored[:2], default=None)
        if best is not None:
            run = best[2]
            chosen.append(run)
            free += [(first, run.first), (run.stop, stop)]
    return sorted(chosen, key=lambda run: run.first)


def _stretches(
    segments: Sequence[Segment], spread: dict[Value, int]
) -> Iterator[tuple[int, int, int]]:
    """(period, first, stop) of every maximal range of segments that repeats with a period."""
    kinds = [segment.kind for segment in segments]

    def alike(number: int, period: int) -> bool:
        if kinds[number] != kinds[number + period]:
            return False
        return all(
            leaf == opposite
            or leaf.op.name == "const"
            or (spread[leaf] < period and spread[opposite] < period)
            for leaf, opposite in zip(segments[number].leaves, segments[number + period].leaves)
        )

    for period in range(1, min(_LONGEST_GROUP, len(segments) // 2) + 1):
        first = 0
        for number in range(len(segments) - period + 1):
            if number + period == len(segments) or not alike(number, period):
                if number - first >= period:
                    yield period, first, number + period
                first = number + 1
