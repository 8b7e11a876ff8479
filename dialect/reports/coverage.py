"""Recognition coverage: recognised pieces, unrecognised ops with the nearest rule, and costs.

Unrecognised ops are compiled as they are; this report shows their share of the cost, layer by
layer, with equal layers once. Costs are of the unsharded model, op by op
(`dialect.reports.op_cost`): after fusion a program moves fewer bytes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from dialect.arrays.components import connected
from dialect.layered.layers import find_layers
from dialect.naming.axes import infer_axes
from dialect.ops.control import given_inside
from dialect.reports.attribution import Piece, Pieces, is_index
from dialect.reports.described import Describer
from dialect.reports.op_cost import Cost, cost_of, op_cost, trips
from rewrite import opdef
from rewrite.ir import Op
from rewrite.program import Program
from rewrite.rules import Miss, Rule

_NAMES_SHOWN = 6  # names of ops per group
_RUNS_SHOWN = 4  # ranges of equal layers


@dataclass(frozen=True)
class Recognised:
    """`count` pieces of one kind, and their total cost in one run."""

    piece: str
    kind: str
    count: int
    cost: Cost


@dataclass(frozen=True)
class NearMiss:
    """The rule that came nearest to matching, why it did not match, and how many ops matched."""

    rule: str
    reason: str
    depth: int
    source: str


@dataclass(frozen=True)
class Unrecognised:
    """`count` equal groups of connected ops that no rule matched, and their total cost."""

    ops: str
    source: str
    count: int
    cost: Cost
    near: NearMiss | None


@dataclass(frozen=True)
class Part:
    """Equal layers, a loop body, or the ops around them.

    Counts and costs are of one run; a step has `times` runs. A loop has a source line.
    """

    name: str
    source: str
    times: int
    recognised: tuple[Recognised, ...]
    unrecognised: tuple[Unrecognised, ...]


@dataclass(frozen=True)
class Coverage:
    """The coverage of a step.

    - plain: the number of ops that only compute indices or change layouts, at almost no cost
    - once: the number of static ops, which depend on parameters and constants only
    - lines: the user's lines of recognised pieces
    """

    parts: tuple[Part, ...]
    plain: int
    plain_cost: Cost
    once: int
    lines: tuple[str, ...] = ()

    @property
    def recognised(self) -> tuple[Recognised, ...]:
        """All pieces of a step by name, by descending bytes."""
        pieces: dict[str, Recognised] = {}
        for part in self.parts:
            for piece in part.recognised:
                known = pieces.get(piece.piece, Recognised(piece.piece, "", 0, Cost()))
                count = known.count + part.times * piece.count
                cost = known.cost + piece.cost.times(part.times)
                pieces[piece.piece] = Recognised(piece.piece, "", count, cost)
        return tuple(sorted(pieces.values(), key=lambda piece: -piece.cost.bytes))

    @property
    def unrecognised(self) -> tuple[Unrecognised, ...]:
        """All unrecognised groups, by descending bytes."""
        groups: dict[tuple, Unrecognised] = {}
        for part in self.parts:
            for group in part.unrecognised:
                key = group.ops, group.source, group.near
                known = groups.get(key, replace(group, count=0, cost=Cost()))
                count = known.count + part.times * group.count
                cost = known.cost + group.cost.times(part.times)
                groups[key] = replace(group, count=count, cost=cost)
        return tuple(sorted(groups.values(), key=lambda group: -group.cost.bytes))

    @property
    def near_misses(self) -> tuple[NearMiss, ...]:
        """The nearest misses of unrecognised groups, deepest first."""
        misses = dict.fromkeys(group.near for group in self.unrecognised if group.near is not None)
        return tuple(sorted(misses, key=lambda near: -near.depth))

    @property
    def cost(self) -> Cost:
        """The total cost of a step."""
        items = (*self.recognised, *self.unrecognised)
        return sum((item.cost for item in items), self.plain_cost)


def coverage(program: Program, rules: Iterable[Rule] = ()) -> Coverage:
    """The coverage of a program after `recognize`.

    `rules` are the recognition rules; their misses explain unrecognised ops.
    """
    return _Survey(program, rules).coverage()


class _Survey:
    """Walks a program and its loops part by part."""

    def __init__(self, program: Program, rules: Iterable[Rule]) -> None:
        self.program = program
        axes, params = infer_axes(program), program.values("param")
        self.pieces = Pieces(program.graph, params, params, axes)
        self.describer = Describer(axes, dict(zip(program.graph.inputs, program.step_inputs)))
        self.rules: dict[str, list[Rule]] = defaultdict(list)
        for rule in rules:
            for root in rule.roots:
                self.rules[root].append(rule)
        self.once, self.plain, self.plain_cost = 0, 0, Cost()
        self.lines: set[str] = set()
        self.learn(self.pieces)

    def learn(self, pieces: Pieces) -> None:
        """Records the arguments of loops, and embedding tables, which descriptions need."""
        computed = sum(op.name != "const" for op in pieces.graph.ops)
        self.once += computed - len(pieces.ops)
        for op, piece in pieces.of.items():
            if op is piece.anchor and op.name == "take":
                self.describer.tables.add(self.describer.source(op.args[0]))
        for loop, inside in pieces.inside.items():
            for inner, given in zip(inside, given_inside(loop)):
                self.describer.enter(given)
                self.learn(inner)

    def coverage(self) -> Coverage:
        parts = [*self.unrolled(), *self.loops(self.pieces, 1)]
        shown = [part for part in parts if part.recognised or part.unrecognised]
        shown = (
            [replace(part, name="the whole step") for part in shown] if len(shown) == 1 else shown
        )
        return Coverage(
            tuple(shown), self.plain, self.plain_cost, self.once, tuple(sorted(self.lines))
        )

    def unrolled(self) -> Iterator[Part]:
        """The ops outside of loops: those around the layers, then unrolled layers, equal ones
        together."""
        layers = find_layers(self.program)
        looped = {layers.layer(loop) for loop in self.pieces.inside}
        by_layer: dict[int, list[Op]] = defaultdict(list)
        for op in self.pieces.ops:
            layer = layers.layer(self.pieces.place(op))
            by_layer[-1 if layer is None or layer in looped else layer].append(op)
        yield self.part("around the layers", "", self.pieces, by_layer.pop(-1, []))
        equal: dict[Part, list[int]] = defaultdict(list)
        for layer, ops in sorted(by_layer.items()):
            equal[self.part("", "", self.pieces, ops)].append(layer)
        for part, numbers in equal.items():
            yield replace(part, name=_layers(numbers), times=len(numbers))

    def loops(self, pieces: Pieces, times: int, inside: str = "") -> Iterator[Part]:
        """The bodies of loops, outer loops first."""
        for loop, bodies in pieces.inside.items():
            for number, body in enumerate(bodies):
                name = f"{_loop(loop, number)}{inside}"
                count = times * trips(loop)
                yield self.part(name, loop.origin.source, body, body.ops, count)
                yield from self.loops(body, count, f", in the {name}")

    def part(
        self, name: str, source: str, pieces: Pieces, ops: Sequence[Op], times: int = 1
    ) -> Part:
        members: dict[Piece, list[Op]] = defaultdict(list)
        unmatched: list[Op] = []
        for op in ops:
            piece = pieces.of.get(op)
            if piece is not None:
                members[piece].append(op)
                self.lines.add(op.origin.source)
            elif not op.regions:
                unmatched.append(op)
        recognised, unrecognised = self.recognised(members), self.unrecognised(unmatched, times)
        return Part(name, source, times, recognised, unrecognised)

    def recognised(self, members: dict[Piece, list[Op]]) -> tuple[Recognised, ...]:
        counts: dict[tuple[str, str], tuple[int, Cost]] = {}
        for piece, ops in members.items():
            key = self.describer.name_and_kind(piece, ops)
            count, cost = counts.get(key, (0, Cost()))
            counts[key] = count + 1, cost + cost_of(op for op in ops if not vanishes(op))
        return tuple(Recognised(*key, *count_and_cost) for key, count_and_cost in counts.items())

    def unrecognised(self, ops: Sequence[Op], times: int) -> tuple[Unrecognised, ...]:
        groups: Counter[Unrecognised] = Counter()
        costs = {op: Cost() if vanishes(op) else op_cost(op) for op in ops}
        plain = {op for op in ops if is_index(op) or costs[op] == Cost()}
        self.plain += len(plain)
        self.plain_cost += sum((costs[op] for op in plain), Cost()).times(times)
        for group in _connected(ops, plain):
            largest = max(group, key=lambda op: (bool(op.origin.source), costs[op].bytes))
            cost = sum((costs[op] for op in group), Cost())
            near = self.nearest_miss(group)
            group = sorted(group, key=lambda op: -costs[op].bytes)
            groups[Unrecognised(_names(group), largest.origin.source, 1, cost, near)] += 1
        return tuple(
            replace(group, count=count, cost=group.cost.times(count))
            for group, count in groups.items()
        )

    def nearest_miss(self, ops: Iterable[Op]) -> NearMiss | None:
        """The deepest miss of any rule on any of `ops`."""
        misses = [
            NearMiss(rule.name, outcome.reason, outcome.depth, op.origin.source)
            for op in ops
            for rule in self.rules[op.name]
            if isinstance(outcome := rule.apply(op), Miss)
        ]
        return max(misses, key=lambda near: near.depth, default=None)


def vanishes(op: Op) -> bool:
    """Whether a compiler reads another order of the same elements where they lie: a transpose, a
    conversion. What it stores all the same stands in the traffic of the compiled program."""
    known = opdef.traits(op)
    return len(op.args) == 1 and (bool(known.order) or known.converts)


def _connected(ops: Sequence[Op], plain: set[Op]) -> list[list[Op]]:
    """The connected components of `ops`, linked directly or through plain ops, without these."""
    linked: set[Op] = set()
    links: list[list[Op]] = []
    for op in ops:
        before = [arg.op for arg in op.args if arg.op in linked]
        if before or op not in plain:
            linked.add(op)
            links.append([op, *before])
    return [[op for op in group if op not in plain] for group in connected(links)]


# In words.


def _names(ops: Iterable[Op]) -> str:
    """`contract x2, tanh, mul`."""
    counts = Counter(op.name for op in ops)
    shown = [f"{name} x{count}" if count > 1 else name for name, count in counts.items()]
    more = len(shown) - _NAMES_SHOWN
    return ", ".join(shown[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _loop(loop: Op, number: int) -> str:
    if loop.name == "scan":
        return f"loop of {trips(loop)}"
    if loop.name == "while":
        return ("condition of a loop", "loop, counted once")[number]
    return f"branch {number}"


def _layers(numbers: Sequence[int]) -> str:
    """`layer 3`, `layers 0-79`, `10 layers: 5, 11, 17 ... 59`."""
    if len(numbers) == 1:
        return f"layer {numbers[0]}"
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    shown = [f"{start}-{end}" if end > start else f"{start}" for start, end in zip(starts, ends)]
    if len(shown) <= _RUNS_SHOWN:
        return f"layers {', '.join(shown)}"
    return f"{len(numbers)} layers: {', '.join(shown[: _RUNS_SHOWN - 1])} ... {shown[-1]}"
