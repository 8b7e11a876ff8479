"""A program as lines for people.

    x.1 = rms_norm(x) {epsilon=1e-05}                      : f32[8,1,8192]   // batch 1 d_model
    80 times, with x.2 = embedding, then x.5:
      q = contract "a b c, c d e -> a b d e" (x.1, params/layers/*/wq)  : bf16[8,1,64,128]

Layers that repeat are there once. Constants are in short, attributes that the type tells are left
out. `str(program)` is the text that reads back.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dialect.naming.axes import infer_axes
from dialect.ops.control import given_inside
from dialect.ops.sharding import Sides, laid_out
from dialect.printed.folds import Fold, folds, in_order, is_constant
from dialect.printed.names import Names
from dialect.printed.shared import with_equal_values_once
from dialect.printed.words import Line, Word, line
from dialect.reports.described import unnumbered
from rewrite import opdef
from rewrite.ir import Graph, Op, Opaque, Symbol, Type, Value
from rewrite.program import Input, Program
from rewrite.text import show_value

_SHORT = 6  # numbers of a constant that are shown
_WIDE = 88  # columns of attributes


def program_lines(
    program: Program, *, fold: bool = True, axes: bool | None = None, sources: bool = False
) -> list[Line]:
    """The lines of a program.

    - fold: repeated layers once
    - axes: names of axes and shardings behind every value. None: where a pass has run, since what
      recognition finds names most of them
    - sources: the user's line, and the rules that made the op of it
    """
    program = with_equal_values_once(program) if fold else program
    noted = bool(program.history) if axes is None else axes
    note = axis_notes(program) if noted else lambda value: ""
    done = ", ".join(step.text for step in program.history) or "as traced"
    lines = [line(program.name, "head", done)]
    lines += _declared("inputs", program.inputs, fold)
    if program.stages:
        lines += _declared("packed inputs", program.stages.inputs, fold)
    for name, graph in program.graphs.items():
        if graph.ops or name == "step":
            lines += graph_section(program, name, note, fold=fold, sources=sources)
    return lines


def graph_section(
    program: Program,
    name: str,
    note: Callable[[Value], str],
    *,
    fold: bool = True,
    sources: bool = False,
) -> list[Line]:
    """The lines of one graph of a program: `step`, or a stage beside it."""
    graph = program.graphs[name]
    declared = graph_inputs(program, name)
    names = Names()
    names.inputs(graph.inputs, [source.name for source in declared])
    listing = Listing(names, note, fold, sources)
    params = [value for value, source in zip(graph.inputs, declared) if source.role == "param"]
    body = listing.body(graph, params, 1)
    returned = ", ".join(collapsed([listing.show(value) for value in graph.outputs]))
    counted = f"{graph.op_count} ops"
    return [line(name, "head", counted), *body, line(f"return {returned}", depth=1)]


def graph_inputs(program: Program, name: str) -> Sequence[Input]:
    """The declared inputs of one of a program's graphs."""
    if name == "step":
        return program.step_inputs
    if name == "restore":
        updated = [out.updates for out in program.step_outputs if out.updates is not None]
        return [program.step_inputs[number] for number in updated]
    role = {"prepare": "param", "adapt": "state"}[name]
    return [source for source in program.inputs if source.role == role]


def axis_notes(program: Program) -> Callable[[Value], str]:
    """The axes of a value and where they are split: `batch 1 heads@x,y d_head`."""
    axes = infer_axes(program)
    layouts = {
        value: source.layout
        for value, source in zip(program.graph.inputs, program.step_inputs)
        if source.layout is not None
    }

    def note(value: Value) -> str:
        dimensions = axes.of(value)
        if not any(name != "_" for names in dimensions for name in names):
            return ""
        layout = laid_out(value) or layouts.get(value) or ((),) * value.type.rank
        shown = tuple(".".join(names) or "1" for names in dimensions)
        return str(Sides(shown, layout, layout))

    return note


def _declared(head: str, inputs: Sequence[Input], fold: bool) -> list[Line]:
    """Inputs by role; those of equal layers together."""
    counts: dict[tuple[str, Type, str, Any], int] = {}
    for source in inputs:
        name = unnumbered(source.name) if fold else source.name
        key = name, source.type, source.role, source.layout
        counts[key] = counts.get(key, 0) + 1
    lines = [line(head, "head", f"{len(inputs)} {'arrays' if len(inputs) > 1 else 'array'}")]
    for (name, type_, role, layout), count in counts.items():
        words = [Word(name, "name"), *([Word(f" x{count}", "fold")] if count > 1 else [])]
        split = "".join(f" {axis}" for axes in layout or () for axis in axes)
        lines.append(Line(tuple(words), str(type_), f"{role}{' @' if split else ''}{split}", 1))
    return lines


class Listing:
    """Writes graphs as lines, with these names. `note(value)`: what stands behind a value."""

    def __init__(
        self, names: Names, note: Callable[[Value], str], fold: bool = True, sources: bool = False
    ) -> None:
        self.names, self.note, self.fold, self.sources = names, note, fold, sources
        self.instead: dict[Value, str] = {}

    def show(self, value: Value) -> str:
        """A value's name, or a constant in short."""
        if is_constant(value.op) and not isinstance(value.op["value"], Opaque):
            return constant(value)
        return self.instead.get(value) or self.names.of.get(value, "?")

    def body(self, graph: Graph, params: Sequence[Value], depth: int) -> list[Line]:
        """The ops of a graph; repeated ones once."""
        ops = in_order(graph, params) if self.fold else list(graph.ops)
        ops = [op for op in ops if not is_constant(op) or isinstance(op["value"], Opaque)]
        lines: list[Line] = []
        at = 0
        for fold in folds(ops) if self.fold else []:
            lines += self.ops(graph, ops[at : fold.start], depth)
            lines += self.folded(graph, ops, fold, depth)
            at = fold.stop
        return lines + self.ops(graph, ops[at:], depth)

    def ops(self, graph: Graph, ops: Sequence[Op], depth: int) -> list[Line]:
        """One line for each op, and those of its regions behind it."""
        self.names.ops(graph, ops)
        return [shown for op in ops for shown in self.op(op, depth)]

    def folded(self, graph: Graph, ops: Sequence[Op], fold: Fold, depth: int) -> Iterator[Line]:
        """The first repetition, under how often there is one and what the next one reads."""
        repeats = [ops[at : at + fold.period] for at in range(fold.start, fold.stop, fold.period)]
        self.starred(*repeats[:2])
        shown = self.ops(graph, repeats[0], depth + 1)
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
        yield Line(tuple(words), types, self.behind(op, note), depth)
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
            own, outside = self.show(inner), self.show(arg)
            if own != outside:
                how = " at first" if carried else "[i]" if op.get("length") is not None else ""
                words = (Word(own, "name"), Word(f" = {outside}{how}"))
                yield Line(words, str(inner.type), self.note(inner), depth)
        yield from self.body(region, (), depth)
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
    shown = [show_value(each) for each in content]
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
