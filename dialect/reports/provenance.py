"""The named axes of a program, and the provenance of their names."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from dialect.display.tables import Table, brief
from dialect.naming.axes import infer_axes
from dialect.naming.axis import NAMES, Axes, leaves
from dialect.reports.described import unnumbered
from rewrite.ir import Value
from rewrite.program import ROLES, Program


@dataclass(frozen=True)
class InputAxes:
    """The axes of an input, `d_model (heads d_head)`; `count`: equal inputs of other layers."""

    name: str
    role: str
    type: str
    axes: str
    count: int


@dataclass(frozen=True)
class NamedAxis:
    """An axis: its name, its size, and the op (with source line) that named it."""

    name: str
    size: int
    named_by: str


@dataclass(frozen=True)
class Provenance:
    """The axes of all inputs, and the provenance of their names."""

    inputs: tuple[InputAxes, ...]
    axes: tuple[NamedAxis, ...]


def provenance(program: Program) -> Provenance:
    """The axes of a program's inputs and outputs; inputs of equal layers are merged."""
    axes, graph = infer_axes(program), program.graph
    declared = list(zip(graph.inputs, program.step_inputs))
    counts = Counter(
        (unnumbered(input_.name), input_.role, str(input_.type), axes.show(value))
        for value, input_ in declared
    )
    inputs = [InputAxes(*fields_, count) for fields_, count in counts.items()]
    naming: dict[tuple[str, int], tuple[int, str]] = {}
    for value in (*graph.inputs, *graph.outputs):
        for name, size, source in _named(axes, value):
            naming[name, size] = max(source, naming.get((name, size), source), key=lambda t: t[0])
    named = [NamedAxis(*axis, where) for axis, (_, where) in naming.items()]
    return Provenance(
        tuple(sorted(inputs, key=lambda entry: ROLES.index(entry.role))),
        tuple(sorted(named, key=lambda entry: (NAMES.index(entry.name), entry.size))),
    )


def _named(axes: Axes, value: Value) -> Iterator[tuple[str, int, tuple[int, str]]]:
    """(name, size, (priority, provenance)) of every named axis of a value."""
    for axis in axes.at(value):
        for name, group in itertools.groupby(leaves(axis), key=lambda leaf: leaf.name):
            parts = list(group)
            size = math.prod(leaf.size for leaf in parts)
            if name != "_" and size > 1:
                yield name, size, parts[0].names[name]


def provenance_tables(report: Provenance) -> list[Table]:
    """The inputs by role, and the names with their provenance."""
    inputs = [
        (entry.name, str(entry.count), entry.type, entry.axes or "-") for entry in report.inputs
    ]
    named = [(entry.name, str(entry.size), brief(entry.named_by)) for entry in report.axes]
    return [
        Table("axes", ("input", ">count", "type", "axes"), tuple(inputs)),
        Table("names of axes", ("axis", ">size", "named by"), tuple(named)),
    ]
