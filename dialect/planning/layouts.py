"""From a plan to the layout of a tensor: which group it belongs to, by the axes that it has.

A `Plan` says how each group of tensors lies on the mesh; this file says which group a tensor is
in. Weights and state are told by their role, activations by their axes. An axis that its mesh axes
do not divide stays whole, and what the user decided stays as it is.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

from dialect.naming.axes import HEADS, Axes, Names, leaves
from dialect.planning.partial import planned_axes, worth_splitting
from dialect.planning.plan import Plan
from rewrite.ir import Value
from rewrite.program import Input, Layout, Program

OF_HEADS = {*HEADS, "d_head"}
_INNER = {"d_ff", "d_ff_per_head", "experts", "wide"}


def layout_of(plan: Plan, group: str, axes: Axes, value: Value) -> Layout:
    """The mesh axes of each dimension of a value that is in this group."""
    sizes, split = dict(plan.mesh), plan.split(group)
    names: list[tuple[str, ...]] = []
    for dimension in axes.at(value):
        parts = itertools.groupby(leaves(dimension), key=lambda leaf: leaf.name)
        found = [(name, math.prod(leaf.size for leaf in part)) for name, part in parts]
        ways = (math.prod(sizes[axis] for axis in split.get(name, ())) for name, _ in found)
        padded = math.prod(size for _, size in found) != dimension.size
        fits = (size % by == 0 and not padded for (_, size), by in zip(found, ways))
        names.append(tuple(name if fit else "_" for (name, _), fit in zip(found, fits)))
    return plan.layout(group, tuple(names))


def activation_group(names: Names) -> str | None:
    """`logits`, `hidden` (heads, d_ff, experts), `residual`, or None for anything else.

    The scores of experts are wanted whole, to choose among them: they lie as the residual does.
    """
    present = {name for dimension in names for name in dimension}
    if "vocab" in present:
        return "logits"
    inner = present & (OF_HEADS | _INNER)
    if inner and (inner != {"experts"} or "d_model" in present):
        return "hidden"
    return "residual" if inner or "d_model" in present else None


def input_group(role: str, names: Names) -> str | None:
    """The group of an input: `weights`, `tables`, `cache`, or None for what is on every chip:
    arguments, and routers, which give the scores of all experts.

    A table of rows over the vocabulary that holds heads is split over these, like the weights it
    was computed with: each chip looks up its own. State that is no cache lies as the activations
    that it is made of; what says nothing but its batch lies as a cache does.
    """
    present = {name for dimension in names for name in dimension}
    if role == "param":
        if names[-1:] == (("experts",),) and len(names) - (("layers",) in names) <= 2:
            return None
        return "tables" if "vocab" in present and not present & OF_HEADS else "weights"
    if role != "state":
        return None
    if "context" not in present and present & OF_HEADS:
        return "attention"
    return "hidden" if "context" not in present and present & _INNER else "cache"


def product_layout(plan: Plan, axes: Axes, value: Value) -> Layout:
    """How a product over heads, d_ff or the vocabulary lies: as the weights that it reads.

    Only the batch may be split further. Asked for a finer layout than its weights have, the
    compiler rather moves the weights.
    """
    names = axes.of(value)
    over_vocab = any("vocab" in dimension for dimension in names)
    if over_vocab and "vocab" not in plan.split("tables"):
        return layout_of(plan, "logits", axes, value)
    weights = layout_of(plan, "tables" if over_vocab else "used", axes, value)
    rows = ["batch" in dimension for dimension in names]
    taken = {axis for each, is_batch in zip(weights, rows) if not is_batch for axis in each}
    batch = plan.split("residual").get("batch", ())
    free = tuple(axis for axis in batch if axis not in taken)
    return tuple(free if is_batch else each for each, is_batch in zip(weights, rows))


def hidden_layout(plan: Plan, axes: Axes, value: Value) -> Layout:
    """How hidden values lie: rows as the plan says, the rest as the weights they are read with,
    over mesh axes that split no rows."""
    rows = layout_of(plan, "hidden", axes, value)
    weights = layout_of(plan, "used", axes, value)
    taken = {axis for each in rows for axis in each}
    free = (tuple(axis for axis in each if axis not in taken) for each in weights)
    return tuple(one or other for one, other in zip(rows, free))


def with_input_layouts(program: Program) -> Program:
    """`program` with a layout on every input of its step: the one it has, or the plan's."""
    known = _kept(program)
    if program.plan is None and not known:
        return program
    axes = planned_axes(program, program.plan.mesh) if program.plan else Axes()
    inputs = tuple(
        replace(each, layout=known.get(value) or planned_layout(program.plan, axes, value, each))
        for value, each in zip(program.graph.inputs, program.step_inputs)
    )
    if program.stages is None:
        return replace(program, inputs=inputs)
    return replace(program, stages=replace(program.stages, inputs=inputs))


def _kept(program: Program) -> dict[Value, Layout]:
    """The layouts that are decided: of a staged program, those of what goes in unchanged."""
    declared = zip(program.graph.inputs, program.step_inputs)
    known = {value: each.layout for value, each in declared if each.layout}
    if program.stages is None:
        return known
    packed = [*program.stages.prepare.outputs, *program.stages.adapt.outputs]
    for role, graph in (("param", program.stages.prepare), ("state", program.stages.adapt)):
        users = [each for each in program.inputs if each.role == role]
        layouts = {value: each.layout for value, each in zip(graph.inputs, users) if each.layout}
        known |= {
            value: layouts[each]
            for value, each in zip(program.graph.inputs, packed)
            if each in layouts
        }
    return known


def planned_layout(plan: Plan | None, axes: Axes, value: Value, each: Input) -> Layout:
    """The plan's layout of an input: whole without a plan, and where no group is known."""
    group = input_group(each.role, axes.of(value)) if plan else None
    if group is None:
        return ((),) * each.type.rank
    layout = layout_of(plan, group, axes, value)
    if any(layout) or each.role != "param" or not worth_splitting(each.type, plan.mesh):
        return layout
    return layout_of(plan, "large", axes, value)
