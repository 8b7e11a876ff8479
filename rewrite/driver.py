"""The driver: applies rules to a graph until none fires, once per distinct value.

One sweep from inputs to outputs. Every op is rebuilt on its rewritten arguments, equal ops become
one, and rules are tried at it until none fires; what a rule makes is swept the same way. Regions
are rewritten as graphs of their own, equal regions once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from rewrite.errors import InvalidProgram
from rewrite.firings import allowed
from rewrite.ir import Graph, Op, Origin, Value
from rewrite.opdef import with_args
from rewrite.rules import KNOWN, Miss, Rule

Done = dict[Value, Value]  # each value in its final form
Shared = dict[tuple[Any, ...], Op]  # name, arguments, attributes, regions -> the op
_DEEPEST_CHAIN = 150  # rules that fire on what rules made; none of ours needs ten


@dataclass
class Report:
    """What happened: how often each rule fired, and where each only nearly did.

    `needs` has what rules that fired ask of their operands, proven or known.
    """

    fired: dict[str, int] = field(default_factory=dict)
    needs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    near: dict[str, dict[Op, Miss]] = field(default_factory=dict)

    def count(self, rule: Rule) -> None:
        """Counts one firing of a rule."""
        self.fired[rule.name] = self.fired.get(rule.name, 0) + 1
        if rule.needs:
            self.needs[rule.name] = rule.needs

    def missed(self, rule: Rule, miss: Miss, op: Op) -> None:
        """Notes that a rule nearly fired at an op."""
        self.near.setdefault(rule.name, {})[op] = miss

    def forget_all_but(self, graph: Graph) -> None:
        """Forgets what was missed at ops that did not stay: another rule took them."""
        stayed = {op for op, _ in graph.walk()}
        for name, places in self.near.items():
            self.near[name] = {op: miss for op, miss in places.items() if op in stayed}

    @property
    def misses(self) -> dict[str, tuple[Miss, Origin]]:
        """The deepest near miss of each rule."""
        deepest = {
            name: max(places.items(), key=lambda place: place[1].depth)
            for name, places in self.near.items()
            if places
        }
        return {name: (miss, op.origin) for name, (op, miss) in deepest.items()}

    def notes(self) -> tuple[str, ...]:
        """One line per rule that fired, one per rule that only nearly did."""
        lines = []
        for name, count in sorted(self.fired.items()):
            proven = ", ".join(need for need in self.needs.get(name, ()) if need not in KNOWN)
            lines.append(f"{name}: {count}" + (f", proven: {proven}" if proven else ""))
        for name, (miss, origin) in sorted(self.misses.items()):
            if name not in self.fired:
                where = f" at {origin.source}" if origin.source else ""
                lines.append(f"{name} nearly fired{where}: {miss.reason}")
        return tuple(lines)


def rewrite(graph: Graph, rules: Iterable[Rule], report: Report | None = None) -> Graph:
    """`graph` with the rules applied everywhere, equal ops shared, dead ops gone."""
    by_root: dict[str, list[Rule]] = {}
    for rule in rules:
        for root in rule.roots:
            by_root.setdefault(root, []).append(rule)
    report = report if report is not None else Report()
    rewritten = _Driver(by_root, report).graph(graph)
    report.forget_all_but(rewritten)
    return rewritten


class _Driver:
    def __init__(self, rules: dict[str, list[Rule]], report: Report) -> None:
        self.rules, self.report = rules, report
        self.regions: dict[Graph, Graph] = {}
        self.depth = 0

    def region(self, graph: Graph) -> Graph:
        """`graph` once for all regions equal to it."""
        if graph not in self.regions:
            self.regions[graph] = self.graph(graph)
        return self.regions[graph]

    def graph(self, graph: Graph) -> Graph:
        done = {value: value for value in graph.inputs}
        self.sweep(graph.ops, done, {})
        return Graph(graph.inputs, tuple(done[value] for value in graph.outputs))

    def sweep(self, ops: Iterable[Op], done: Done, shared: Shared) -> None:
        """Rewrites ops in order; `done` maps each value to its final form."""
        for op in ops:
            if op.results[0] not in done:
                self.settle(op, done, shared)

    def settle(self, op: Op, done: Done, shared: Shared) -> None:
        """Rebuilds one op and fires rules at it until none does."""
        rebuilt = self.rebuild(op, done, shared)
        results = rebuilt.results
        if results[0] not in done:
            replacement = self.fire(rebuilt)
            if replacement is None:
                done.update(zip(results, results))
            else:
                self.depth += 1
                if self.depth > _DEEPEST_CHAIN:
                    names = ", ".join(replacement[0].op.origin.rules[-3:])
                    raise InvalidProgram(f"rules do not come to an end at {op.name}: {names}")
                self.sweep(_fresh_ops(replacement, done), done, shared)
                done.update(zip(results, (done[value] for value in replacement)))
                self.depth -= 1
        if op is not rebuilt:
            done.update(zip(op.results, [done[value] for value in results]))

    def rebuild(self, op: Op, done: Done, shared: Shared) -> Op:
        args = tuple(done[arg] for arg in op.args)
        regions = tuple(self.region(region) for region in op.regions)
        rebuilt = with_args(op, args, regions)
        key = (rebuilt.name, args, rebuilt.attrs, regions)
        return shared.setdefault(key, rebuilt)

    def fire(self, op: Op) -> tuple[Value, ...] | None:
        misses: list[tuple[Rule, Miss]] = []
        for rule in self.rules.get(op.name, ()):
            outcome = rule.apply(op)
            if isinstance(outcome, Miss):
                misses.append((rule, outcome))
            elif outcome is not None:
                replacement = (outcome,) if isinstance(outcome, Value) else tuple(outcome)
                if replacement == op.results or not allowed(rule, op, replacement):
                    continue
                _check_types(replacement, op, rule)
                self.report.count(rule)
                return _signed(replacement, op, rule)
        for rule, miss in misses:  # where another rule fired, nothing was missed
            self.report.missed(rule, miss, op)
        return None


def _check_types(replacement: tuple[Value, ...], op: Op, rule: Rule) -> None:
    """Raises InvalidProgram where a rule gives arrays of other shapes or dtypes."""
    types = tuple(value.type for value in replacement)
    if [(t.dtype, t.shape) for t in types] == [(t.dtype, t.shape) for t in op.types]:
        return
    was, would = (", ".join(map(str, group)) for group in (op.types, types))
    message = f"the rule {rule.name} would turn {op.name} of type {was} into {would}"
    raise InvalidProgram(message, where=op.origin.source)


def _fresh_ops(replacement: tuple[Value, ...], done: dict[Value, Value]) -> list[Op]:
    """The ops behind `replacement` that the sweep has not seen, arguments first."""
    order: list[Op] = []
    seen: set[Op] = set()
    stack: list[tuple[Op, bool]] = [(value.op, False) for value in reversed(replacement)]
    while stack:
        op, ready = stack.pop()
        if ready:
            order.append(op)
            continue
        if op in seen or op.results[0] in done:
            continue
        seen.add(op)
        stack.append((op, True))
        stack += [(arg.op, False) for arg in reversed(op.args)]
    return order


def _signed(replacement: tuple[Value, ...], op: Op, rule: Rule) -> tuple[Value, ...]:
    """The values of a rule, its new root carrying where it came from."""
    signed: dict[Op, Op] = {}
    for value in replacement:
        root = value.op
        if root is op or root in signed or root.name == "input" or root.origin.rules:
            continue
        signed[root] = replace(root, origin=op.origin.then(rule.name))
    return tuple(Value(signed.get(value.op, value.op), value.index) for value in replacement)
