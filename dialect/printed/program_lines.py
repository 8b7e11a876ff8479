"""A program as lines for people.

    x.1 = rms_norm(x) {epsilon=1e-05}                      : f32[8,1,8192]   // batch 1 d_model
    80 times, with x.2 = embedding, then x.5:
      q = contract "a b c, c d e -> a b d e" (x.1, params/layers/*/wq)  : bf16[8,1,64,128]

Layers that repeat are there once. Constants are in short, attributes that the type tells are left
out. `str(program)` is the text that reads back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dialect.naming.axes import infer_axes
from dialect.ops.sharding import Sides, laid_out
from dialect.printed.listing import Listing, collapsed
from dialect.printed.names import Names
from dialect.printed.shared import with_equal_values_once
from dialect.printed.words import Line, Word, line
from dialect.reports.described import unnumbered
from rewrite.ir import Type, Value
from rewrite.program import Input, Program


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
    listing, body = listed(program, name, note, fold=fold, sources=sources)
    returned = ", ".join(collapsed([listing.show(value) for value in graph.outputs]))
    counted = f"{graph.op_count} ops"
    return [line(name, "head", counted), *body, line(f"return {returned}", depth=1)]


def listed(
    program: Program,
    name: str,
    note: Callable[[Value], str],
    *,
    fold: bool = True,
    sources: bool = False,
) -> tuple[Listing, list[Line]]:
    """A listing of one graph of a program, and the lines of its ops."""
    graph, declared = program.graphs[name], graph_inputs(program, name)
    names = Names()
    names.inputs(graph.inputs, [source.name for source in declared])
    listing = Listing(names, note, fold, sources)
    params = [value for value, source in zip(graph.inputs, declared) if source.role == "param"]
    return listing, listing.body(graph, params, 1)


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
