"""A graph as lines: repeated ops once, every value with its name, constants in short."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dialect.ops.control import given_inside
from dialect.printed.folds import Fold, folds, in_order, is_constant
from dialect.printed.names import Names
from dialect.printed.words import Line, Word, line
from dialect.reports.described import unnumbered
from rewrite import opdef
from rewrite.ir import Graph, Op, Opaque, Symbol, Value
from rewrite.text import show_value

_SHORT = 6  # numbers of a constant that are shown
_WIDE = 88  # columns of attributes


@dataclass
class Part:
    """Ops of a graph that a step runs `times`: those around the layers (name ""), the first of
    layers that are the same, or the body of a loop."""

    times: int
    name: str
    graph: Graph
    ops: list[Op] = field(default_factory=list)


class Listing:
    """Writes graphs as lines, with these names. `note(value)`: what stands behind a value."""

    def __init__(
        self, names: Names, note: Callable[[Value], str], fold: bool = True, sources: bool = False
    ) -> None:
        self.names, self.note, self.fold, self.sources = names, note, fold, sources
        self.instead: dict[Value, str] = {}
        self.line_of: dict[Op, Line] = {}
        self.parts: list[Part] = []
        self.times = 1

    def show(self, value: Value) -> str:
        """A value's name, or a constant in short."""
        if is_constant(value.op) and not isinstance(value.op["value"], Opaque):
            return constant(value)
        return self.instead.get(value) or self.names.of.get(value, "?")

    def body(self, graph: Graph, params: Sequence[Value], depth: int) -> list[Line]:
        """The ops of a graph; repeated ones once."""
        ops = in_order(graph, params) if self.fold else list(graph.ops)
        ops = [op for op in ops if not is_constant(op) or isinstance(op["value"], Opaque)]
        around = Part(self.times, "", graph)
        self.parts.append(around)
        lines: list[Line] = []
        at = 0
        for fold in folds(ops) if self.fold else []:
            around.ops += [*ops[at : fold.start]]
            lines += self.ops(graph, ops[at : fold.start], depth)
            lines += self.folded(graph, ops, fold, depth)
            at = fold.stop
        around.ops += ops[at:]
        return lines + self.ops(graph, ops[at:], depth)

    def ops(
        self, graph: Graph, ops: Sequence[Op], depth: int, is_layer: bool = False
    ) -> list[Line]:
        """One line for each op, and those of its regions behind it."""
        self.names.ops(graph, ops, is_layer)
        return [shown for op in ops for shown in self.op(op, depth)]

    def folded(self, graph: Graph, ops: Sequence[Op], fold: Fold, depth: int) -> Iterator[Line]:
        """The first repetition, under how often there is one and what the next one reads."""
        repeats = [ops[at : at + fold.period] for at in range(fold.start, fold.stop, fold.period)]
        self.starred(*repeats[:2])
        self.parts.append(
            Part(self.times * fold.times, f"{fold.times} layers", graph, list(repeats[0]))
        )
        shown = self.ops(graph, repeats[0], depth + 1, is_layer=True)
        words = (Word(f"{fold.times} times", "fold"), Word(self.carried(*repeats[:2])))
        yield Line(words, depth=depth)
        yield from shown
        self.rename(repeats)

    def starred(self, first: Sequence[Op], second: Sequence[Op]) -> None:
        """Inputs that differ from layer to layer are named with a star."""
        for a, b in zip(first, second):
            for x, y in zip(a.args, b.args):
                if x != y and x in self.names.of and not (x.op.args or x.op.attrs):
                    self.instead[x] = unnumbered(self.names.of[x])

    def carried(self, first: Sequence[Op], second: Sequence[Op]) -> str:
        """`, reading embedding the first time, then x.5:`."""
        inside = {value for op in first for value in op.results}
        starts: dict[str, str] = {}
        for a, b in zip(first, second):
            for x, y in zip(a.args, b.args):
                if y in inside and x != y:
                    starts[self.show(x)] = self.show(y)
        shown = (f"{start} the first time, then {then}" for start, then in starts.items())
        return f", reading {'; '.join(shown)}:" if starts else ":"

    def rename(self, repeats: Sequence[Sequence[Op]]) -> None:
        """What is read behind a fold: of the last repetition by its name in the first."""
        for number, repeat in enumerate(repeats):
            which = "" if number == len(repeats) - 1 else f"[{number}]"
            for op, other in zip(repeats[0], repeat):
                for value, same in zip(op.results, other.results):
                    self.instead[same] = self.names.of[value] + which

    def op(self, op: Op, depth: int) -> Iterator[Line]:
        """`x = name "axes" (arguments) {attributes} : type`, then the bodies of a loop."""
        lead, attrs = self.attributes(op)
        results = ", ".join(collapsed([self.show(value) for value in op.results]))
        words = [Word(results, "name"), Word(" = "), Word(op.name, "op")]
        words += [Word(f' "{lead}" ', "attr")] if lead else []
        args = "" if op.regions else ", ".join(collapsed([self.show(arg) for arg in op.args]))
        words += [Word(f"({args})")] if not op.regions else []
        words += [Word(f" {attrs}", "attr")] if attrs else []
        note = "" if op.regions else self.note(op.results[0])
        types = "" if op.regions else ", ".join(dict.fromkeys(map(str, op.types)))
        self.line_of[op] = Line(tuple(words), types, self.behind(op, note), depth)
        yield self.line_of[op]
        for number, region in enumerate(op.regions):
            yield from self.region(op, number, region, depth + 1)

    def behind(self, op: Op, note: str) -> str:
        """What stands behind an op."""
        if not self.sources or not op.origin.source:
            return note
        source = "/".join(op.origin.source.split("/")[-2:])
        by = f" by {', '.join(op.origin.rules)}" if op.origin.rules else ""
        return "; ".join(filter(None, [note, source + by]))

    def region(self, op: Op, number: int, region: Graph, depth: int) -> Iterator[Line]:
        """What a body is given under another name, its ops, and what it returns."""
        is_choice = not any(carried for _, carried in given_inside(op)[-1].values())
        if len(op.regions) > 1:
            yield line(
                f"branch {number}" if is_choice else ("condition", "body")[number],
                "fold",
                depth=depth,
            )
        given = given_inside(op)[number]
        self.name_inner(op, given)
        for inner, (arg, carried) in given.items():
            inside, outside = self.show(inner), self.show(arg)
            if inside != outside:
                how = " at first" if carried else "[i]" if op.get("length") is not None else ""
                words = (Word(inside, "name"), Word(f" = {outside}{how}"))
                yield Line(words, str(inner.type), self.note(inner), depth)
        trips = max(1, op.get("length", 1))
        self.times *= trips
        body = len(self.parts)
        yield from self.body(region, (), depth)
        self.parts[body].name = f"loop of {trips}" if trips > 1 else op.name
        self.times //= trips
        yield line(f"return {', '.join(map(self.show, region.outputs))}", depth=depth)

    def name_inner(self, op: Op, given: dict[Value, tuple[Value, bool]]) -> None:
        """Inputs of a body that are the same in every trip are called as outside."""
        fixed = op.get("consts", len(op.args))
        same = [
            inner
            for number, (inner, (_, carried)) in enumerate(given.items())
            if number < fixed and not carried
        ]
        shown = {inner: self.show(arg) for inner, (arg, _) in given.items()}
        self.names.inner(shown, same)

    def attributes(self, op: Op) -> tuple[str, str]:
        """The axes of an op, and its attributes but for those that its type tells."""
        leads = opdef.lookup(op.name).lead
        told = (Symbol(op.types[0].dtype), op.types[0].shape, op.types[0]) if op.types else ()
        lead, rest = "", []
        for name, value in op.attrs:
            if name == leads and isinstance(value, str):
                lead = value
            elif value not in told and value is not False and name not in _LOOP:
                rest.append(f"{name}={short(value)}")
        return lead, f"{{{', '.join(rest)}}}" if rest else ""


_LOOP = ("carry", "consts", "cond_consts", "body_consts")  # how a loop numbers its arguments


def short(value: Any) -> str:
    """An attribute's text, cut where it is long."""
    text = show_value(value)
    return text if len(text) <= _WIDE else f"{text[: _WIDE - 4]} ..."


def constant(value: Value) -> str:
    """`0.5`, `(0, 1, 2, ... 31):i32[32]`, or for a large one its type and range."""
    content, type_ = value.op["value"], value.type
    if isinstance(content, Opaque):
        return f"<{type_}>"
    if not isinstance(content, tuple):
        return show_value(content)
    shown = [show_value(number) for number in content]
    if len(shown) > _SHORT:
        shown = [*shown[:3], "...", shown[-1]]
    return f"({', '.join(shown)}):{type_}"


def collapsed(names: Sequence[str]) -> list[str]:
    """`k[0], k[1], k[2]` becomes `k x3`, and `params/0/wq, params/1/wq` `params/*/wq x2`."""
    shown: list[str] = []
    for pattern, run in itertools.groupby(names, key=_unnumbered):
        same = list(run)
        shown += [f"{pattern} x{len(same)}"] if len(set(same)) == len(same) > 1 else same
    return shown


def _unnumbered(name: str) -> str:
    return unnumbered(re.sub(r"\[\d+\]$", "", name)) if "[" in name or "/" in name else name
