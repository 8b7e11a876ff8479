"""What the axes of a program are, and what named each of them."""

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
    """The axes of an input, `d_model (heads d_head)`; `count` layers have an input like it."""

    name: str
    role: str
    type: str
    axes: str
    count: int


@dataclass(frozen=True)
class NamedAxis:
    """An axis: its name, its size, and the op, with its source line, that named it."""

    name: str
    size: int
    named_by: str


@dataclass(frozen=True)
class Provenance:
    """The axes of all inputs, and where each of their names comes from."""

    inputs: tuple[InputAxes, ...]
    axes: tuple[NamedAxis, ...]


def provenance(program: Program) -> Provenance:
    """What the axes of a program's inputs are called, and why. Layers that are alike count once."""
    axes, graph = infer_axes(program), program.graph
    declared = list(zip(graph.inputs, program.step_inputs))
    found = Counter(
        (unnumbered(each.name), each.role, str(each.type), axes.show(value))
        for value, each in declared
    )
    inputs = [InputAxes(*told, count) for told, count in found.items()]
    telling: dict[tuple[str, int], tuple[int, str]] = {}
    for value in (*graph.inputs, *graph.outputs):
        for name, size, told in _named(axes, value):
            telling[name, size] = max(told, telling.get((name, size), told), key=lambda t: t[0])
    named = [NamedAxis(*axis, where) for axis, (_, where) in telling.items()]
    return Provenance(
        tuple(sorted(inputs, key=lambda each: ROLES.index(each.role))),
        tuple(sorted(named, key=lambda each: (NAMES.index(each.name), each.size))),
    )


def _named(axes: Axes, value: Value) -> Iterator[tuple[str, int, tuple[int, str]]]:
    """(name, size, (priority, provenance)) of each named axis of a value."""
    for axis in axes.at(value):
        for name, group in itertools.groupby(leaves(axis), key=lambda leaf: leaf.name):
            parts = list(group)
            size = math.prod(leaf.size for leaf in parts)
            if name != "_" and size > 1:
                yield name, size, parts[0].names[name]


def provenance_tables(found: Provenance) -> list[Table]:
    """The inputs by role, and the names with what gave them."""
    inputs = [(each.name, str(each.count), each.type, each.axes or "-") for each in found.inputs]
    named = [(each.name, str(each.size), brief(each.named_by)) for each in found.axes]
    return [
        Table("axes", ("input", ">count", "type", "axes"), tuple(inputs)),
        Table("names of axes", ("axis", ">size", "named by"), tuple(named)),
    ]
