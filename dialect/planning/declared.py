"""The shardings that a program declares itself, and how far a plan is from them.

They are kept (`retarget`), so that what a plan says of other layouts of these values would not be
true: `plan` chooses among the partitionings that leave the fewest bytes to be resharded beside
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dialect.naming.axes import Axes
from dialect.ops.sharding import laid_out
from dialect.planning.decoder import executions
from dialect.planning.layouts import OF_HEADS, activation_group, input_group, layout_of
from dialect.planning.plan import Plan
from rewrite.ir import Value
from rewrite.program import Layout, Program


@dataclass(frozen=True)
class Declared:
    """A value whose sharding the program declares, and the `group` of a plan that it is of."""

    value: Value
    group: str
    layout: Layout
    bytes: int  # in a step, of all chips


def declared_shardings(program: Program, axes: Axes) -> Iterator[Declared]:
    """The activations and caches of a program that it lays out itself, where a plan does too."""
    for value, input_ in zip(program.graph.inputs, program.step_inputs):
        group = input_group(input_.role, axes.of(value))
        if input_.layout and input_.role == "state" and group:
            yield Declared(value, group, input_.layout, value.type.bytes)
    for op, times in executions(program):
        value = op.results[0]
        layout, group = laid_out(value), _group(axes, value)
        if layout and group:
            yield Declared(value, group, layout, times * value.type.bytes)


def _group(axes: Axes, value: Value) -> str | None:
    names = axes.of(value)
    of_heads = any(OF_HEADS.intersection(dimension) for dimension in names)
    return "attention" if of_heads else activation_group(names)


def resharded_bytes(plan: Plan, axes: Axes, declared: Sequence[Declared]) -> int:
    """Bytes in a step of the values that the plan has in another layout than the program."""
    return sum(known.bytes for known in declared if not _agrees(plan, axes, known))


def _agrees(plan: Plan, axes: Axes, known: Declared) -> bool:
    sizes = dict(plan.mesh)
    planned = layout_of(plan, known.group, axes, known.value)
    pairs = zip(planned, known.layout, strict=True)
    return all(
        asked is None or _split(axes_, sizes) == _split(asked, sizes) for axes_, asked in pairs
    )


def _split(mesh_axes: tuple[str, ...], sizes: dict[str, int]) -> tuple[str, ...]:
    """The mesh axes of more than one chip."""
    return tuple(axis for axis in mesh_axes if sizes[axis] > 1)
