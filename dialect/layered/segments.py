"""Segments of a decoder: the ops between two consecutive values of its trunk.

An op belongs to the only segment that needs it, or to none. A segment has a canonical form, in an
order that depends on structure alone: two segments are of one kind if they have the same ops on
values of the same types.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rewrite.ir import Graph, Op, Value
from rewrite.program import Program

START, LEAF = -1, -2  # instead of the place of an op, for arguments from outside the segment
_BEFORE = -1  # instead of a segment: the op depends on no segment
_AFTER = -2  # instead of a segment: the op reads results of several segments

Ref = tuple[int, int]  # (place of an op, its result), (START, 0) or (LEAF, its number)


@dataclass(frozen=True, eq=False)
class Segment:
    """The ops between two values of the trunk.

    - `ops` compute `end` and all other results of the segment from `start` and `leaves`; `refs` are
      the references of their arguments
    - `leaves` are in the order of first use; a scalar constant is a new leaf at every use
    - `exits` are the results that ops outside of the next segment, or outputs, read
    - `keeps_state`: whether an exit is, or flows into, the new value of a state
    - `kind` is the same number for segments with the same ops on the same types
    """

    start: Value
    end: Value
    ops: tuple[Op, ...]
    refs: tuple[tuple[Ref, ...], ...]
    leaves: tuple[Value, ...]
    exits: tuple[Value, ...]
    keeps_state: bool
    kind: int


def cut(program: Program, trunk: Sequence[Value]) -> tuple[list[Segment], dict[Op, int]]:
    """(the segments between the values of a trunk, {op: number of its segment}).

    An op that several segments read belongs to none. Linear in the size of the program.
    """
    places = _Places(program.graph, trunk)
    exits = places.exits()
    states = _kept(program, places)
    kinds: dict[tuple, int] = {}
    segments = []
    for number, (start, end) in enumerate(zip(trunk, trunk[1:])):
        ops = places.ordered(number, (end, *exits[number]))
        refs, leaves = _references(start, ops)
        described = tuple(map(_described, leaves))
        rows = tuple((o.name, row, o.attrs, o.types, o.regions) for o, row in zip(ops, refs))
        kind = kinds.setdefault((start.type, rows, described), len(kinds))
        out = tuple(exits[number])
        keeps_state = any(value in states and value != end for value in out)
        segments.append(Segment(start, end, ops, refs, leaves, out, keeps_state, kind))
    return segments, {op: number for op, number in places.of.items() if number >= 0}


class _Places:
    """The segment of every op, and the inner ops of every segment.

    An inner op reads the trunk, an input that no other segment reads, or another inner op. An op
    that only one segment reads, but that reads only shared inputs (a slice of a stacked weight), is
    a leaf of the segment.
    """

    def __init__(self, graph: Graph, trunk: Sequence[Value]) -> None:
        self.graph, self.trunk = graph, trunk
        self.number = {value.op: i for i, value in enumerate(trunk)}
        self.of: dict[Op, int] = {}
        self.inner: dict[Op, int] = {}
        for op in reversed(graph.ops):
            self._place_by_readers(op)
        self.home = {value: home for value in graph.inputs for home in self._homes(value)}
        for op in graph.ops:
            if op.name != "const":
                self._place_inside(op)

    def _place_by_readers(self, op: Op) -> None:
        """Places an op with a path to the result: in the only segment that reads it."""
        if op in self.number:
            self.of[op] = self.number[op] - 1
        elif op.name != "const":
            readers = {
                self.of[user]
                for value in op.results
                for user, _ in self.graph.users.get(value, ())
                if user in self.of
            }
            if readers:
                self.of[op] = readers.pop() if len(readers) == 1 else _BEFORE

    def _homes(self, value: Value) -> Iterable[int]:
        """The one segment that reads an input, if there is one."""
        readers = {self.of.get(user, _BEFORE) for user, _ in self.graph.users.get(value, ())}
        readers.discard(_BEFORE)
        return readers if len(readers) == 1 and value.op not in self.number else ()

    def _place_inside(self, op: Op) -> None:
        if op not in self.of:
            self.of[op] = self._place_by_args(op)
        number = self.of[op]
        if number >= 0 and any(self._is_inside(arg, number) for arg in op.args):
            self.inner[op] = number

    def _is_inside(self, arg: Value, number: int) -> bool:
        if arg == self.trunk[number] or self.home.get(arg) == number:
            return True
        return self.inner.get(arg.op) == number

    def _place_by_args(self, op: Op) -> int:
        """The segment of an op without a path to the result, such as a cache's next position."""
        homes, passed = set(), set()
        for arg in op.args:
            place = self.of.get(arg.op, self.home.get(arg, _BEFORE))
            if place == _AFTER:
                return _AFTER
            if arg.op in self.number:
                passed.add(self.number[arg.op])
            elif place != _BEFORE:
                homes.add(place)
        if len(homes) == 1:
            (home,) = homes
            return home if passed <= {home, home + 1} else _AFTER
        return _AFTER if homes or passed else _BEFORE

    def exits(self) -> list[dict[Value, None]]:
        """The exits of every segment: its results that outputs or ops outside read."""
        exits: list[dict[Value, None]] = [{} for _ in self.trunk[1:]]
        for value in self.graph.outputs:
            if value.op in self.inner:
                exits[self.inner[value.op]][value] = None
        for op in self.graph.ops:
            reader = self.inner.get(op, _BEFORE)
            for arg in op.args:
                number = self.inner.get(arg.op, reader)
                goes_on = reader == number + 1 and arg == self.trunk[reader]
                if number != reader and not goes_on:
                    exits[number][arg] = None
        return exits

    def ordered(self, number: int, ends: Iterable[Value]) -> tuple[Op, ...]:
        """The inner ops of a segment in topological order, by depth-first search from `ends`."""
        order: dict[Op, None] = {}
        for end in ends:
            stack = [end.op]
            while stack:
                waiting = [
                    arg.op
                    for arg in reversed(stack[-1].args)
                    if self.inner.get(arg.op) == number and arg.op not in order
                ]
                if waiting:
                    stack += waiting
                else:
                    order[stack.pop()] = None
        return tuple(order)


def _kept(program: Program, places: _Places) -> set[Value]:
    """The results of segments that are, or flow into, the new value of a state."""
    kept: set[Value] = set()
    pairs = zip(program.graph.outputs, program.step_outputs, strict=True)
    stack = [value for value, out in pairs if out.updates is not None]
    while stack:
        value = stack.pop()
        if value not in kept:
            kept.add(value)
            stack += () if value.op in places.inner else value.op.args
    return kept


def _references(
    start: Value, ops: tuple[Op, ...]
) -> tuple[tuple[tuple[Ref, ...], ...], tuple[Value, ...]]:
    """(the reference of every argument of every op, the leaves in the order of first use)."""
    place = {op: i for i, op in enumerate(ops)}
    numbers: dict[Value, int] = {}
    leaves: list[Value] = []

    def reference(arg: Value) -> Ref:
        if arg == start:
            return (START, 0)
        if arg.op in place:
            return (place[arg.op], arg.index)
        if arg not in numbers or is_number(arg):
            numbers[arg] = len(leaves)
            leaves.append(arg)
        return (LEAF, numbers[arg])

    rows = tuple(tuple(reference(arg) for arg in op.args) for op in ops)
    return rows, tuple(leaves)


def is_number(value: Value) -> bool:
    """Whether a value is a scalar constant, which may differ between layers."""
    return value.op.name == "const" and not value.type.shape


def _described(leaf: Value) -> tuple:
    """What leaves of isomorphic segments share: the type, and the elements of a constant array."""
    is_array = leaf.op.name == "const" and leaf.type.shape
    return (leaf.type, leaf.op.name == "const", leaf.op.attrs if is_array else ())


def difference(first: Segment, second: Segment) -> str:
    """The first difference between two segments of different kinds, in words; else ""."""
    for op, row, theirs, their_row in zip(first.ops, first.refs, second.ops, second.refs):
        if op.name != theirs.name:
            return f"{op.told} stands where the other has {theirs.name}"
        if op.types != theirs.types:
            types = (" ".join(map(str, op_.types)) for op_ in (op, theirs))
            return f"{op.told} gives {next(types)} where the other gives {next(types)}"
        for (name, value), (_, their_value) in zip(op.attrs, theirs.attrs):
            if value != their_value:
                return f"{op.told} has another {name} than the other"
        for ref, their_ref in zip(row, their_row):
            if ref != their_ref:
                return f"{op.told} reads its arguments from elsewhere"
            leaves = (first.leaves[ref[1]], second.leaves[ref[1]]) if ref[0] == LEAF else ()
            if leaves and _described(leaves[0]) != _described(leaves[1]):
                return (
                    f"{op.told} reads {leaves[0].type} where the other reads {leaves[1].type}"
                    + (", another constant" if leaves[0].type == leaves[1].type else "")
                )
    if len(first.ops) != len(second.ops):
        return f"it has {len(first.ops)} ops where the other has {len(second.ops)}"
    return "" if first.kind == second.kind else "its ops have other regions"
