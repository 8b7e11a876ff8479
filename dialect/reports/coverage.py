"""What of a program was recognised, what nearly was and why not, and what each piece costs.

Nothing that is not recognised stops compilation: it stays as it is. This says what it costs to
leave it so, layer by layer, equal layers once. Costs are those of the whole model before it is
split over chips, each op by itself (`dialect.reports.op_cost`): what a compiler fuses moves
fewer bytes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from dialect.layered.layers import find_layers
from dialect.naming.axes import infer_axes
from dialect.reports.attribution import Piece, Pieces, given_inside, is_index
from dialect.reports.described import Describer
from dialect.reports.op_cost import Cost, cost_of, op_cost, trips
from rewrite.ir import Op
from rewrite.program import Program
from rewrite.rules import Miss, Rule

_NAMES_SHOWN = 6  # ops of a group
_RUNS_SHOWN = 4  # of layers that are alike


@dataclass(frozen=True)
class Recognised:
    """`count` pieces of one kind, and what all of them cost in one run."""

    piece: str
    kind: str
    count: int
    cost: Cost


@dataclass(frozen=True)
class NearMiss:
    """The rule that came nearest to taking an op, why it did not, and how many ops had matched."""

    rule: str
    reason: str
    depth: int
    source: str


@dataclass(frozen=True)
class Unrecognised:
    """`count` equal groups of connected ops that no rule took, and what all of them cost."""

    ops: str
    source: str
    count: int
    cost: Cost
    near: NearMiss | None


@dataclass(frozen=True)
class Part:
    """Layers that are the same program, a loop's body, or what lies around them.

    What it holds is counted once; a step runs it `times`. A loop has a source line.
    """

    name: str
    source: str
    times: int
    recognised: tuple[Recognised, ...]
    unrecognised: tuple[Unrecognised, ...]


@dataclass(frozen=True)
class Coverage:
    """What a step consists of.

    - plain: how many ops only index or rename, and cost next to nothing;
    - once: how many depend on parameters and constants alone, so that no step needs them.
    """

    parts: tuple[Part, ...]
    plain: int
    plain_cost: Cost
    once: int

    @property
    def recognised(self) -> tuple[Recognised, ...]:
        """All pieces of a step by their name, the dearest in bytes first."""
        found: dict[str, Recognised] = {}
        for part in self.parts:
            for each in part.recognised:
                known = found.get(each.piece, Recognised(each.piece, "", 0, Cost()))
                count = known.count + part.times * each.count
                cost = known.cost + each.cost.times(part.times)
                found[each.piece] = Recognised(each.piece, "", count, cost)
        return tuple(sorted(found.values(), key=lambda each: -each.cost.bytes))

    @property
    def unrecognised(self) -> tuple[Unrecognised, ...]:
        """All that was not recognised, the dearest in bytes first."""
        found: dict[tuple, Unrecognised] = {}
        for part in self.parts:
            for each in part.unrecognised:
                key = each.ops, each.source, each.near
                known = found.get(key, replace(each, count=0, cost=Cost()))
                count = known.count + part.times * each.count
                cost = known.cost + each.cost.times(part.times)
                found[key] = replace(each, count=count, cost=cost)
        return tuple(sorted(found.values(), key=lambda each: -each.cost.bytes))

    @property
    def near_misses(self) -> tuple[NearMiss, ...]:
        """The nearest miss of each unrecognised group, deepest first."""
        found = dict.fromkeys(each.near for each in self.unrecognised if each.near is not None)
        return tuple(sorted(found, key=lambda near: -near.depth))

    @property
    def cost(self) -> Cost:
        """What a step costs, everything included."""
        every = (*self.recognised, *self.unrecognised)
        return sum((each.cost for each in every), self.plain_cost)


def coverage(program: Program, rules: Iterable[Rule] = ()) -> Coverage:
    """What is recognised in a program that has been through `recognize`.

    `rules` are those that recognise: what they say of the ops they left is why they left them.
    """
    return _Survey(program, rules).coverage()


class _Survey:
    """Walks a program and its loops part by part."""

    def __init__(self, program: Program, rules: Iterable[Rule]) -> None:
        self.program = program
        axes, params = infer_axes(program), program.values("param")
        self.whole = Pieces(program.graph, params, params, axes)
        self.describer = Describer(axes, dict(zip(program.graph.inputs, program.step_inputs)))
        self.rules: dict[str, list[Rule]] = defaultdict(list)
        for rule in rules:
            for root in rule.roots:
                self.rules[root].append(rule)
        self.once, self.plain, self.plain_cost = 0, 0, Cost()
        self.learn(self.whole)

    def learn(self, pieces: Pieces) -> None:
        """Remembers what is given to loops, and the tables of embeddings, before the words."""
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
        parts = [*self.written_out(), *self.loops(self.whole, 1)]
        told = [part for part in parts if part.recognised or part.unrecognised]
        told = [replace(part, name="the whole step") for part in told] if len(told) == 1 else told
        return Coverage(tuple(told), self.plain, self.plain_cost, self.once)

    def written_out(self) -> Iterator[Part]:
        """What lies outside of loops: around the layers, and layers that are alike together."""
        layers = find_layers(self.program)
        looped = {layers.layer(loop) for loop in self.whole.inside}
        by_layer: dict[int, list[Op]] = defaultdict(list)
        for op in self.whole.ops:
            layer = layers.layer(self.whole.place(op))
            by_layer[-1 if layer is None or layer in looped else layer].append(op)
        yield self.part("around the layers", "", self.whole, by_layer.pop(-1, []))
        alike: dict[Part, list[int]] = defaultdict(list)
        for layer, ops in sorted(by_layer.items()):
            alike[self.part("", "", self.whole, ops)].append(layer)
        for part, numbers in alike.items():
            yield replace(part, name=_layers(numbers), times=len(numbers))

    def loops(self, pieces: Pieces, times: int, inside: str = "") -> Iterator[Part]:
        """The bodies of loops, the outer before the inner."""
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
        left: list[Op] = []
        for op in ops:
            piece = pieces.of.get(op)
            if piece is not None:
                members[piece].append(op)
            elif not op.regions:
                left.append(op)
        recognised, unrecognised = self.recognised(members), self.unrecognised(left, times)
        return Part(name, source, times, recognised, unrecognised)

    def recognised(self, members: dict[Piece, list[Op]]) -> tuple[Recognised, ...]:
        found: dict[tuple[str, str], tuple[int, Cost]] = {}
        for piece, ops in members.items():
            key = self.describer.name_and_kind(piece, ops)
            count, cost = found.get(key, (0, Cost()))
            found[key] = count + 1, cost + cost_of(ops)
        return tuple(Recognised(*key, *counted) for key, counted in found.items())

    def unrecognised(self, ops: Sequence[Op], times: int) -> tuple[Unrecognised, ...]:
        found: Counter[Unrecognised] = Counter()
        costs = {op: op_cost(op) for op in ops}
        plain = {op for op in ops if is_index(op) or costs[op] == Cost()}
        self.plain += len(plain)
        self.plain_cost += sum((costs[op] for op in plain), Cost()).times(times)
        for group in _connected(ops, plain):
            dearest = max(group, key=lambda op: (bool(op.origin.source), costs[op].bytes))
            cost = sum((costs[op] for op in group), Cost())
            near = self.nearest_miss(group)
            group = sorted(group, key=lambda op: -costs[op].bytes)
            found[Unrecognised(_names(group), dearest.origin.source, 1, cost, near)] += 1
        return tuple(
            replace(each, count=count, cost=each.cost.times(count)) for each, count in found.items()
        )

    def nearest_miss(self, ops: Iterable[Op]) -> NearMiss | None:
        """The deepest miss of any rule at any of `ops`."""
        found = [
            NearMiss(rule.name, outcome.reason, outcome.depth, op.origin.source)
            for op in ops
            for rule in self.rules[op.name]
            if isinstance(outcome := rule.apply(op), Miss)
        ]
        return max(found, key=lambda near: near.depth, default=None)


def _connected(ops: Sequence[Op], plain: set[Op]) -> list[list[Op]]:
    """Ops that feed each other, directly or through plain ones; the plain ones are left out."""
    leader: dict[Op, Op] = {}

    def first(op: Op) -> Op:
        while leader[op] is not op:
            leader[op] = leader[leader[op]]
            op = leader[op]
        return op

    for op in ops:
        before = [first(arg.op) for arg in op.args if arg.op in leader]
        if op in plain and not before:
            continue
        leader[op] = before[0] if before else op
        for other in before[1:]:
            leader[first(other)] = first(op)
    groups: dict[Op, list[Op]] = defaultdict(list)
    for op in ops:
        if op not in plain:
            groups[first(op)].append(op)
    return list(groups.values())


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
    shown = [f"{one}-{other}" if other > one else f"{one}" for one, other in zip(starts, ends)]
    if len(shown) <= _RUNS_SHOWN:
        return f"layers {', '.join(shown)}"
    return f"{len(numbers)} layers: {', '.join(shown[: _RUNS_SHOWN - 1])} ... {shown[-1]}"
