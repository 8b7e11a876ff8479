"""A decoder cut into segments: what lies between two neighbouring values of its trunk.

Every op has at most one segment: the one that alone asks for it. Two segments are of one kind
where they are the same ops on values of the same types, in an order that depends on structure
alone; so a segment has a canonical form, and comparing two costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rewrite.ir import Graph, Op, Value
from rewrite.program import Program

START, LEAF = -1, -2  # the place of an argument that is no op of its segment
_BEFORE = -1  # no segment's: it depends on nothing that segments compute
_AFTER = -2  # no segment's: it reads what several of them compute

Ref = tuple[int, int]  # (place of an op, its result), (START, 0) or (LEAF, its number)


@dataclass(frozen=True, eq=False)
class Segment:
    """The ops between two values of the trunk.

    - `ops` compute `end` and every other result of the segment from `start` and `leaves`;
      `refs` says for each argument of each op which of these it is;
    - `leaves` are read in order of first use; a scalar constant is a new leaf at every use;
    - `exits` are the results that others than the next segment read, outputs of the program too;
    - `keeps_state`: whether an exit is a new value of some state, or goes into one;
    - `kind` is the same number for segments that are the same ops on the same types.
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
    """The segments between the values of a trunk, and for each op that has one its number.

    An op that many segments read belongs to none. Linear in the size of the program.
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
    """Which segment each op is of, and which ops are inner: those that differ with the segment.

    An inner op reads the trunk, an input that no other segment reads, or another inner op. What
    is only asked for by one segment and reads nothing of its own (a slice of a stacked weight)
    is a leaf of it.
    """

    def __init__(self, graph: Graph, trunk: Sequence[Value]) -> None:
        self.graph, self.trunk = graph, trunk
        self.number = {value.op: i for i, value in enumerate(trunk)}
        self.of: dict[Op, int] = {}
        self.inner: dict[Op, int] = {}
        for op in reversed(graph.ops):
            self._place_on_the_way(op)
        self.home = {value: home for value in graph.inputs for home in self._homes(value)}
        for op in graph.ops:
            if op.name != "const":
                self._place_inside(op)

    def _place_on_the_way(self, op: Op) -> None:
        """What only one segment reads on the way to the result is that segment's."""
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
            self.of[op] = self._aside(op)
        number = self.of[op]
        if number >= 0 and any(self._is_own(arg, number) for arg in op.args):
            self.inner[op] = number

    def _is_own(self, arg: Value, number: int) -> bool:
        if arg == self.trunk[number] or self.home.get(arg) == number:
            return True
        return self.inner.get(arg.op) == number

    def _aside(self, op: Op) -> int:
        """The segment of an op that has no part in the result: a cache's next position, say."""
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
        """For each segment its results that outputs, or ops of no segment, read."""
        found: list[dict[Value, None]] = [{} for _ in self.trunk[1:]]
        for value in self.graph.outputs:
            if value.op in self.inner:
                found[self.inner[value.op]][value] = None
        for op in self.graph.ops:
            reader = self.inner.get(op, _BEFORE)
            for arg in op.args:
                number = self.inner.get(arg.op, reader)
                goes_on = reader == number + 1 and arg == self.trunk[reader]
                if number != reader and not goes_on:
                    found[number][arg] = None
        return found

    def ordered(self, number: int, ends: Iterable[Value]) -> tuple[Op, ...]:
        """The inner ops of a segment, arguments first, in the order in which `ends` ask."""
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
    """The results of segments that are a new value of some state, or go into one."""
    found: set[Value] = set()
    pairs = zip(program.graph.outputs, program.step_outputs, strict=True)
    stack = [value for value, out in pairs if out.updates is not None]
    while stack:
        value = stack.pop()
        if value not in found:
            found.add(value)
            stack += () if value.op in places.inner else value.op.args
    return found


def _references(
    start: Value, ops: tuple[Op, ...]
) -> tuple[tuple[tuple[Ref, ...], ...], tuple[Value, ...]]:
    """For each argument of each op what it is, and the leaves in order of first use."""
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
    """Whether a value is a scalar constant, of which layers may have each their own."""
    return value.op.name == "const" and not value.type.shape


def _described(leaf: Value) -> tuple:
    """What alike segments have in common of a leaf: its type, and of a constant array itself."""
    is_array = leaf.op.name == "const" and leaf.type.shape
    return (leaf.type, leaf.op.name == "const", leaf.op.attrs if is_array else ())


def difference(one: Segment, other: Segment) -> str:
    """The first thing in which `one` is not of the other's kind, in words; empty where it is."""
    for op, row, theirs, their_row in zip(one.ops, one.refs, other.ops, other.refs):
        if op.name != theirs.name:
            return f"{op.told} stands where the other has {theirs.name}"
        if op.types != theirs.types:
            types = (" ".join(map(str, each.types)) for each in (op, theirs))
            return f"{op.told} gives {next(types)} where the other gives {next(types)}"
        for (name, value), (_, their_value) in zip(op.attrs, theirs.attrs):
            if value != their_value:
                return f"{op.told} has another {name} than the other"
        for ref, their_ref in zip(row, their_row):
            if ref != their_ref:
                return f"{op.told} reads its arguments from elsewhere"
            leaves = (one.leaves[ref[1]], other.leaves[ref[1]]) if ref[0] == LEAF else ()
            if leaves and _described(leaves[0]) != _described(leaves[1]):
                return (
                    f"{op.told} reads {leaves[0].type} where the other reads {leaves[1].type}"
                    + (", another constant" if leaves[0].type == leaves[1].type else "")
                )
    if len(one.ops) != len(other.ops):
        return f"it has {len(one.ops)} ops where the other has {len(other.ops)}"
    return "" if one.kind == other.kind else "its ops have other regions"
