"""Repeats in a graph: consecutive ops that do the same, layer after layer.

    a b c d e d' e' d'' e'' f    ->    a b c [d e] x3 f

Ops are the same where their names, types and regions are, and their arguments correspond: the same
value, inputs of one type, constants, or the results of corresponding ops. Numbers in attributes and
constants may differ, such as the layer that a slice begins at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rewrite.ir import Graph, Op, Value

_NEAREST = 32  # repetitions of an op that are tried as the next layer
_LEAST = 12  # ops that a fold covers
_LONGEST = 2000  # ops of a repetition


@dataclass(frozen=True)
class Fold:
    """`times` repetitions of `period` ops, from op number `start` of `in_order`."""

    start: int
    period: int
    times: int

    @property
    def stop(self) -> int:
        """The number of the first op behind it."""
        return self.start + self.period * self.times


def is_constant(op: Op) -> bool:
    """Whether an op is an array that is known: it is shown where it is read, or in short."""
    return not op.args and op.get("value") is not None


def in_order(graph: Graph, params: Iterable[Value]) -> list[Op]:
    """The ops, those that no parameter reaches first: what layers share is not in the first."""
    reached = {value.op for value in params}
    for op in graph.ops:
        if any(arg.op in reached for arg in op.args):
            reached.add(op)
    shared = [op for op in graph.ops if op not in reached and not is_constant(op)]
    return [*shared, *(op for op in graph.ops if op in reached and not is_constant(op))]


def folds(ops: Sequence[Op]) -> list[Fold]:
    """The repeats among ops in order, those that cover most first where several overlap."""
    search = _Search(ops)
    repeats, at = [], 0
    while at < len(ops):
        fold = search.longest_from(at)
        if fold is None:
            at += 1
            continue
        repeats.append(fold)
        at = fold.stop
    return repeats


class _Search:
    def __init__(self, ops: Sequence[Op]) -> None:
        self.ops = ops
        self.place = {op: number for number, op in enumerate(ops)}
        keys = [(op.name, op.types, tuple(map(_kind, op.args))) for op in ops]
        self.next: list[list[int]] = [[] for _ in ops]
        later: dict[object, list[int]] = defaultdict(list)
        for number in range(len(ops) - 1, -1, -1):
            known = later[keys[number]]
            self.next[number] = known[: -_NEAREST - 1 : -1]
            known.append(number)
        self.keys = keys

    def longest_from(self, at: int) -> Fold | None:
        """The fold from op `at` that covers most ops, of the shortest period among those."""
        best, covered = None, _LEAST - 1
        for other in self.next[at]:
            period = other - at
            if period > _LONGEST:
                break
            if best and period % best.period == 0:  # the same layers, two at a time
                continue
            times = self.times(at, period)
            if times > 1 and period * times > covered:
                best, covered = Fold(at, period, times), period * times
        return best

    def times(self, start: int, period: int) -> int:
        """How often the ops from `start` repeat; 1 if they do not."""
        end = start
        while end + period < len(self.ops) and self.same(end, end + period, start + period):
            end += 1
        return 1 + (end - start) // period

    def same(self, one: int, other: int, first: int) -> bool:
        """Whether two ops a period apart correspond. `first`: where the second repetition begins;
        what the first one is given may come from anywhere."""
        if self.keys[one] != self.keys[other]:
            return False
        a, b = self.ops[one], self.ops[other]
        if not _alike(a.attrs, b.attrs) or len(a.regions) != len(b.regions):
            return False
        if any(p != q for p, q in zip(a.regions, b.regions)):
            return False
        period, is_first = other - one, one < first
        return all(
            self.agree(x, y, period, first - period if is_first else -1)
            for x, y in zip(a.args, b.args)
        )

    def agree(self, x: Value, y: Value, period: int, start: int) -> bool:
        """Whether arguments of ops a period apart correspond. `start`: where the repeats begin, if
        x is read in the first; -1 otherwise."""
        if x == y:
            return True
        at, to = self.place.get(x.op), self.place.get(y.op)
        if to is None:  # an input, or a constant
            return at is None and x.type == y.type
        if at is not None and to - at == period:
            return x.index == y.index
        return 0 <= start <= to and (at is None or at < start)


def _kind(value: Value) -> object:
    return value.type, value.index


def _alike(one: object, other: object) -> bool:
    """Whether attributes are the same but for numbers."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    if type(one) is int and type(other) is int:
        return True
    return one == other
