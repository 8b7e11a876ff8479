"""The difference of two programs: what was replaced by what, where, and what that saves.

    difference(before, after) -> Difference

Ops that neither program lacks are counted; the others stand in `Change`s, each of them what one
place in the user's code became. Costs are op by op, before fusion, times how often a step runs
them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dialect.ops.control import given_inside
from dialect.ops.sharding import sides
from dialect.printed.listing import Part
from dialect.printed.matched import Roots, line_of, matches, paired, roots
from dialect.printed.program_lines import graph_inputs, listed
from dialect.printed.shared import with_equal_values_once
from dialect.printed.words import Line
from dialect.reports.op_cost import Cost, cost_of
from rewrite.dataflow import known_values
from rewrite.ir import Graph, Op, Type, Value
from rewrite.program import Program


@dataclass(frozen=True)
class Side:
    """One program's ops of a change: their lines, their cost in a step, their collectives."""

    lines: tuple[Line, ...]
    cost: Cost
    collectives: tuple[tuple[str, int], ...]  # (kind, how often in a step)


@dataclass(frozen=True)
class Change:
    """What one place became. `sources`: the user's lines; `rules`: what rewrote them."""

    sources: tuple[str, ...]
    rules: tuple[str, ...]
    before: Side
    after: Side


@dataclass(frozen=True)
class PartDifference:
    """The changes in a part that a step runs `times`, and how many ops are the same in both."""

    name: str
    times: int
    source: str
    same: int
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Totals:
    """One program: ops, cost of a step, collectives of a step, bytes of parameters and state."""

    ops: int
    cost: Cost
    collectives: tuple[tuple[str, int], ...]
    bytes: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Difference:
    """Two programs. `inputs`: (path, type before or "", type after or "") where they differ."""

    names: tuple[str, str]
    before: Totals
    after: Totals
    inputs: tuple[tuple[str, str, str], ...]
    parts: tuple[PartDifference, ...]

    @property
    def is_empty(self) -> bool:
        """Whether the programs are the same."""
        return not self.inputs and not any(part.changes for part in self.parts)


def difference(before: Program, after: Program, names: tuple[str, str] = ("", "")) -> Difference:
    """The difference of the steps of two programs; `names` says what they are."""
    one, other = _sided(before), _sided(after)
    parts = [_compared(pair, one, other) for pair in paired(one.listing.parts, other.listing.parts)]
    return Difference(
        names,
        _totals(one),
        _totals(other),
        _inputs(before, after),
        tuple(part for part in parts if part.same or part.changes),
    )


_recent: list[tuple[Program, _Sided]] = []  # what one pass gives, the next one gets


def _sided(program: Program) -> _Sided:
    """A program, listed. Equal programs may come from other lines, so the object itself counts."""
    known = next((side for other, side in _recent if other is program), None)
    side = known or _Sided(with_equal_values_once(program))
    _recent[:] = [(program, side), *(pair for pair in _recent if pair[0] is not program)][:2]
    return side


class _Sided:
    """One of the programs, listed."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.listing, _ = listed(program, "step", lambda value: "")
        inputs = graph_inputs(program, "step")
        self.static = static_ops(program)
        self.roots = roots(program.graph, [source.name for source in inputs])

    def side(self, ops: Sequence[Op], times: int) -> Side:
        """The ops as one side of a change."""
        cost = self.cost(ops, times)
        lines = tuple(self.listing.line_of[op] for op in ops)
        return Side(lines, cost, collectives_of(ops, times))

    def cost(self, ops: Sequence[Op], times: int) -> Cost:
        """What ops cost in a step; nothing where they depend on parameters alone."""
        paid = (op for op in ops if not op.regions and op not in self.static)
        return cost_of(paid).times(times)


def static_ops(program: Program) -> set[Op]:
    """The ops of a step that depend on parameters and constants alone: they are done once."""
    return _static(program.graph, program.values("param"))


def _static(graph: Graph, fixed: Sequence[Value]) -> set[Op]:
    known = known_values(graph, fixed)
    static = {value.op for value in known}
    for op in graph.ops:
        for region, given in zip(op.regions, given_inside(op)):
            inner = [v for v, (arg, carried) in given.items() if arg in known and not carried]
            static |= _static(region, inner)
    return static


def collectives_of(ops: Iterable[Op], times: int = 1) -> tuple[tuple[str, int], ...]:
    """The collectives that exchanges, and constraints lowered from them, stand for, by kind."""
    counts: Counter[str] = Counter()
    for op in ops:
        layouts, why = op.get("layouts"), op.get("why") or ""
        said = sides(layouts).collectives(op.get("sums", ())) if layouts else why.partition(": ")[2]
        kinds = (kind.split()[0] for kind in said.split(", ") if " " in kind)
        counts.update(kinds)
    return tuple((kind, count * times) for kind, count in sorted(counts.items()))


def _totals(side: _Sided) -> Totals:
    counts: Counter[str] = Counter()
    for part in side.listing.parts:
        counts.update(dict(collectives_of(part.ops, part.times)))
    held: Counter[str] = Counter()
    for source in side.program.step_inputs:
        held[source.role] += source.type.bytes
    cost = sum((side.cost(part.ops, part.times) for part in side.listing.parts), Cost())
    ops = side.program.graph.op_count
    return Totals(ops, cost, tuple(sorted(counts.items())), tuple(held.items()))


def _inputs(before: Program, after: Program) -> tuple[tuple[str, str, str], ...]:
    one, other = (
        {source.name: source.type for source in program.step_inputs} for program in (before, after)
    )

    def shown(type_: Type | None) -> str:
        return "" if type_ is None else str(type_)

    names = dict.fromkeys([*one, *other])
    return tuple(
        (name, shown(one.get(name)), shown(other.get(name)))
        for name in names
        if one.get(name) != other.get(name)
    )


def _compared(pair: tuple[Part | None, Part | None], one: _Sided, other: _Sided) -> PartDifference:
    before, after = pair
    present = after or before
    assert present is not None
    empty = Part(present.times, "", present.graph)
    before, after = before or empty, after or empty
    same = matches(before, after, one.roots, other.roots)
    kept = set(same.values())
    gone = [op for op in before.ops if op not in same]
    new = [op for op in after.ops if op not in kept]
    changes = []
    behind = _behind(gone, same, one.roots) | _behind(new, {op: op for op in kept}, other.roots)
    for olds, news in _grouped(gone, new, before, after, behind):
        ops = [*news, *olds]
        lines = dict.fromkeys(line_of(op) for op in ops if line_of(op))
        rules = dict.fromkeys(rule for op in news for rule in op.origin.rules)
        sides_ = one.side(olds, before.times), other.side(news, after.times)
        changes.append(Change(tuple(lines), tuple(rules), *sides_))
    source = next(filter(None, map(line_of, present.ops)), "")
    return PartDifference(present.name, present.times, source, len(same), tuple(changes))


def _behind(ops: Sequence[Op], same: Mapping[Op, Op], of: Roots) -> dict[Op, object]:
    """{op: what it reads and the second program has too: an input's path, or else an op}."""
    read: dict[Op, object] = {}
    for op in ops:
        paths, ops_ = map(of.get, op.args), (same.get(arg.op) for arg in op.args)
        read[op] = next(filter(None, [*paths, *ops_]), None)
    return read


Group = tuple[list[Op], list[Op]]


def _grouped(
    gone: list[Op], new: list[Op], before: Part, after: Part, behind: Mapping[Op, object]
) -> Iterator[Group]:
    """What is gone and what is new, by place: the user's line, and a line that only lost ops with
    the one that they flow into."""
    places = _places(new, after, behind) | _places(gone, before, behind)
    grew = {places[op] for op in new}
    joined: dict[object, object] = {}
    for op in gone:
        place = places[op]
        into = (places[reader] for reader in _readers(op, before) if reader in places)
        other = next((other for other in into if other != place), None)
        if place not in grew and other is not None:
            joined.setdefault(place, other)
    groups: dict[object, Group] = {}
    for number, ops in ((1, new), (0, gone)):
        for op in ops:
            groups.setdefault(_last(places[op], joined), ([], []))[number].append(op)
    order = {op: number for number, op in enumerate([*before.ops, *after.ops])}
    for olds, news in groups.values():
        yield sorted(olds, key=order.__getitem__), sorted(news, key=order.__getitem__)


def _readers(op: Op, part: Part) -> Iterator[Op]:
    return (reader for value in op.results for reader, _ in part.graph.users.get(value, ()))


def _places(ops: Sequence[Op], part: Part, behind: Mapping[Op, object]) -> dict[Op, object]:
    """{op: the user's line}. An op without one is where it is read, or else where what it reads is
    made; `behind` tells what both programs read."""
    places: dict[Op, object] = {op: line_of(op) for op in ops if line_of(op)}
    for op in reversed(ops):
        read = next((places[reader] for reader in _readers(op, part) if reader in places), None)
        if op not in places and read is not None:
            places[op] = read
    for op in ops:
        maker = next((places[arg.op] for arg in op.args if arg.op in places), None)
        read = behind.get(op)  # a path where it is an input: that begins a place of its own
        places.setdefault(op, read if isinstance(read, str) else maker or read or op)
    return places


def _last(place: object, joined: Mapping[object, object]) -> object:
    """Where a place has gone in the end."""
    seen = set()
    while place in joined and place not in seen:
        seen.add(place)
        place = joined[place]
    return place


def short_source(source: str) -> str:
    """`llama.py:83 (block)`: the file's name, the line, the function's."""
    place, _, function = source.partition(" (")
    name = re.sub(r".*<locals>\.", "", function.rstrip(")"))
    return f"{place.replace(chr(92), '/').rpartition('/')[2]} {name}".strip()
