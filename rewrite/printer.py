"""Printing: programs, graphs and attribute values as text (see `rewrite.text`)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

from rewrite import opdef
from rewrite.errors import InvalidProgram
from rewrite.ir import Graph, Op, Opaque, Origin, Record, Symbol, Type, Value
from rewrite.program import Input, Layout, Output, Program, Step
from rewrite.source import quoted

Notes = Callable[[Value], str]
Named = tuple[str, Input]  # an input, and the name that the text has for it

WIDTH = 100  # columns, for what may be broken into lines; an op never is

# What the grammar reads without quotes, at least.
_OP_NAME = re.compile(r"(?!_$)[A-Za-z_][A-Za-z0-9_.-]*")
_WORD = re.compile(r"(?!(_|none|true|false|inf)$)[A-Za-z_][A-Za-z0-9_.]*")
_LEAD = re.compile(r'".*"|\([0-9, ()]*\)')
_INLINE = re.compile(r"\([^()'\"]*\)|<[^<>]*>|[A-Za-z0-9_.+-]+")  # constants that fit in a line
_DIGEST = re.compile(r"[0-9a-f]{8,}")


def show_program(program: Program, origins: bool = False, notes: Notes | None = None) -> str:
    """The text of a program, in time linear in its size.

    `origins` adds to every op, as a comment, the user's line and the rules that it came from;
    `notes(value)` gives one more comment for a value (its axes and layout, say), or "".
    """
    printer = _Printer(origins, notes)
    inputs = list(zip(_display_names(program.inputs), program.inputs))
    values = () if program.stages else program.graph.inputs
    printer.lines.append(f"program {_word(program.name)}")
    if program.history:
        printer.block("history", (line for step in program.history for line in _step(step)))
    printer.block("inputs", printer.inputs(inputs, values))
    printer.block("outputs", _outputs(program.outputs, inputs))
    printer.lines += _filled(f"tree {_tree(program.tree[0])} -> {_tree(program.tree[1])}")
    if program.plan is not None:
        printer.block("plan", str(program.plan).split("\n"))
    if program.stages is None:
        printer.section("step", program.graph, inputs)
        return printer.text()
    stages = program.stages
    packed = list(zip(_display_names(stages.inputs), stages.inputs))
    updated = [packed[out.updates] for out in stages.outputs if out.updates is not None]
    printer.section("prepare", stages.prepare, [x for x in inputs if x[1].role == "param"])
    printer.section("adapt", stages.adapt, [x for x in inputs if x[1].role == "state"])
    printer.block("packed inputs", printer.inputs(packed, program.graph.inputs))
    printer.block("packed outputs", _outputs(stages.outputs, packed))
    printer.section("step", program.graph, packed)
    printer.section("restore", stages.restore, updated)
    return printer.text()


def show_graph(graph: Graph, origins: bool = False, notes: Notes | None = None) -> str:
    """The text of a graph by itself: `graph (%0 : f32[4]) { ... return %1 }`."""
    printer = _Printer(origins, notes)
    printer.region(graph, "graph ")
    return printer.text()


class _Printer:
    """Collects lines. Every value of a section has its name, those of regions too."""

    def __init__(self, origins: bool, notes: Notes | None) -> None:
        self.origins, self.notes = origins, notes
        self.lines: list[str] = []
        self.count = 0

    def text(self) -> str:
        return "\n".join(self.lines)

    def block(self, head: str, lines: Iterable[str]) -> None:
        self.lines.append(f"{head} {{")
        self.lines += (f"  {line}".rstrip() for line in lines)
        self.lines.append("}")

    def inputs(self, declared: Sequence[Named], values: Sequence[Value]) -> list[str]:
        lines = []
        for number, (name, source) in enumerate(declared):
            path = "" if name == f"%{source.name}" else f" {quoted(source.name)}"
            layout = "" if source.layout is None else f" @ {_layout(source.layout)}"
            axes = f" axes {quoted(source.axes)}" if source.axes else ""
            remark = self.remark(values[number : number + 1])
            role = f"{source.role} finite" if source.finite else source.role
            lines.append(f"{name}{path} : {source.type} {role}{axes}{layout}{remark}")
        return lines

    def section(self, head: str, graph: Graph, declared: Sequence[Named]) -> None:
        """A graph of those declared inputs; they are written again only where it has others."""
        self.count = 0
        if [value.type for value in graph.inputs] != [source.type for _, source in declared]:
            self.region(graph, f"{head} ")
            return
        self.lines.append(f"{head} {{")
        self.body(graph, dict(zip(graph.inputs, (name for name, _ in declared))), "  ")
        self.lines.append("}")

    def region(self, graph: Graph, head: str = "", indent: str = "") -> None:
        names = [self.fresh() for _ in graph.inputs]
        params = [f"{name} : {value.type}" for name, value in zip(names, graph.inputs)]
        remarks = [self.remark([value]) for value in graph.inputs]
        opened = f"{indent}{head}({', '.join(params)}) {{"
        if len(opened) > WIDTH or any(remarks):
            commas = [","] * (len(params) - 1) + [""]
            rows = map("".join, zip(params, commas, remarks))
            self.lines += [f"{indent}{head}(", *(f"{indent}  {row}" for row in rows)]
            opened = f"{indent}) {{"
        self.lines.append(opened)
        self.body(graph, dict(zip(graph.inputs, names)), f"{indent}  ")
        self.lines.append(f"{indent}}}")

    def body(self, graph: Graph, names: dict[Value, str], indent: str) -> None:
        for op in graph.ops:
            written = _constant(op)
            if written:
                names[Value(op, 0)] = written
            else:
                self.op(op, names, indent)
        returned = ", ".join(names[value] for value in graph.outputs)
        self.lines += _filled(f"return {returned}".rstrip(), indent)

    def op(self, op: Op, names: dict[Value, str], indent: str) -> None:
        name = head = self.fresh()
        if len(op.types) == 1:
            names[Value(op, 0)] = name
        else:
            head = f"{name}:{len(op.types)}"
            names.update((value, f"{name}.{value.index}") for value in op.results)
        lead, attrs = _attributes(op)
        args = ", ".join([names[arg] for arg in op.args])
        types = ", ".join(map(str, op.types))
        remark = self.remark(op.results, op.origin)
        called = op.name if _OP_NAME.fullmatch(op.name) else quoted(op.name)
        self.lines.append(f"{indent}{head} = {called}{lead}({args}){attrs} : {types}{remark}")
        for region in op.regions:
            self.region(region, indent=f"{indent}  ")

    def fresh(self) -> str:
        self.count += 1
        return f"%{self.count - 1}"

    def remark(self, values: Iterable[Value], origin: Origin | None = None) -> str:
        parts = [note for note in map(self.notes, values) if note] if self.notes else []
        if self.origins and origin is not None:
            parts += [part for part in (_short_origin(origin),) if part]
        return f"  // {'; '.join(parts)}".replace("\n", " ") if parts else ""


# The pieces of a line.


def show_value(value: Any) -> str:
    """An attribute value. A handle, or what should have been one, shows as `<kind 1a2b3c4d>`."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(show_value, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return float.__repr__(value)
    if isinstance(value, complex):
        sign = "" if repr(value.imag).startswith("-") else "+"
        return f"{value.real!r}{sign}{value.imag!r}j"
    if isinstance(value, Type):
        return str(value)
    if isinstance(value, Symbol):
        if value.text == "-0.0" or _WORD.fullmatch(value.text):
            return value.text
        return "'{}'".format(quoted(value.text)[1:-1].replace("'", "\\u0027"))
    if isinstance(value, Record):
        fields = ", ".join(f"{_word(name)}={show_value(item)}" for name, item in value.fields)
        return f"{_word(value.name)}({fields})"
    return _handle(value if isinstance(value, Opaque) else Opaque.of(value))


def _handle(opaque: Opaque) -> str:
    key = opaque.key
    if not (isinstance(key, str) and _DIGEST.match(key)):
        key = hashlib.sha256(repr(key).encode()).hexdigest()
    return f"<{re.sub(r'[^A-Za-z0-9_. -]', '_', opaque.kind)} {key[:8]}>"


def _attributes(op: Op) -> tuple[str, str]:
    """What stands behind the name, and what stands in braces."""
    lead_name, lead, rest = _lead_of(op.name), "", []
    for name, value in op.attrs:
        shown = show_value(value)
        if name == lead_name and _LEAD.fullmatch(shown):
            lead = f" {shown} "
        else:
            rest.append(f"{_word(name)}={shown}")
    return lead, f" {{{', '.join(rest)}}}" if rest else ""


@lru_cache(maxsize=4096)
def _lead_of(name: str) -> str | None:
    try:
        return opdef.lookup(name).lead
    except InvalidProgram:  # printed all the same: it may be what somebody is looking for
        return None


def _constant(op: Op) -> str:
    """`0.5:f32`, `(0, 1):i32[2]`; "" for what is no constant or cannot stand in a line."""
    if op.name != "const" or len(op.attrs) != 2:
        return ""
    (first, type_), (second, value) = op.attrs
    if (first, second) != ("type", "value") or (type_,) != op.types or op.args or op.regions:
        return ""
    shown = show_value(value)
    written = str(type_).replace("[]", "")
    return f"{shown}:{written}" if _INLINE.fullmatch(shown) else ""


def _display_names(declared: Sequence[Input]) -> list[str]:
    """`%params/wq` for an input: its name where the grammar can read it, and unique."""
    taken: dict[str, int] = {}
    names = []
    for source in declared:
        name = re.sub(r"[^A-Za-z0-9_./-]+|^/|/$|/(?=/)", "_", source.name)
        name = name if re.match("[A-Za-z_]", name) else f"_{name}"  # numbers are for ops
        while name in taken:
            taken[name] += 1
            name = f"{name}_{taken[name]}"
        taken[name] = 1
        names.append(f"%{name}")
    return names


def _outputs(declared: Sequence[Output], inputs: Sequence[Named]) -> list[str]:
    return [
        quoted(out.name) + ("" if out.updates is None else f" updates {inputs[out.updates][0]}")
        for out in declared
    ]


def _step(step: Step) -> list[str]:
    asked = (f" asks {_word(key)}={_word(value)}" for key, value in step.requests)
    lines = [f"{quoted(step.text)} {step.keeps}{''.join(asked)}"]
    for remark in step.remarks:
        about = f" of {quoted(remark.of)} as {quoted(remark.kind)}"
        lines.append(f"  - {quoted(remark.text)}{about if remark.of or remark.kind else ''}")
    return lines


def _layout(layout: Layout) -> str:
    """`(x y, _)`: the mesh axes of every dimension, `_` where it is not sharded."""
    shown = (" ".join(map(_word, dimension)) or "_" for dimension in layout)
    return f"({', '.join(shown)})"


def _tree(tree: Any) -> str:
    if isinstance(tree, dict):
        keys = {key: quoted(key) if isinstance(key, str) else str(key) for key in tree}
        return f"{{{', '.join(f'{keys[key]}: {_tree(item)}' for key, item in tree.items())}}}"
    if isinstance(tree, list):
        return f"[{', '.join(map(_tree, tree))}]"
    if isinstance(tree, tuple):
        return f"({', '.join(map(_tree, tree))}{',' if len(tree) == 1 else ''})"
    return show_value(tree)


def _short_origin(origin: Origin) -> str:
    source = "/".join(origin.source.replace("\\", "/").split("/")[-2:])
    return " ".join([source, *(["by", ", ".join(origin.rules)] if origin.rules else [])]).strip()


def _word(text: str) -> str:
    return text if _WORD.fullmatch(text) else quoted(text)


def _filled(text: str, indent: str = "") -> list[str]:
    """`text` broken at spaces outside quotes, but not behind a key; continuations indented."""
    if len(indent) + len(text) <= WIDTH:
        return [indent + text]
    lines, line = [], indent
    for word in re.findall(r'(?:"(?:[^"\\]|\\.)*"(?:: )?|[^" ])+', text):
        if len(line) + len(word) > WIDTH and line.strip():
            lines.append(line.rstrip())
            line = f"{indent}  "
        line += f"{word} "
    return [*lines, line.rstrip()]
