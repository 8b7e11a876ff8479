"""The sharding of a tensor under a plan: the group of the tensor, and the plan's sharding of it.

The group of weights and state follows from their role, that of activations from their axes. An
axis that its mesh axes do not divide is not sharded, and shardings that the program declares are
kept.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

from dialect.naming.axes import HEADS, Axes, Names, leaves
from dialect.planning.fallback_plans import planned_axes, worth_splitting
from dialect.planning.plan import Plan
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import traits
from rewrite.program import Input, Layout, Program

OF_HEADS = {*HEADS, "d_head"}
_PLACES = {"context", "pages"}  # what a cache is over
_STREAM = ("d_model",)
_INNER = {"d_ff", "d_ff_per_head", "experts", "wide"}


def layout_of(plan: Plan, group: str, axes: Axes, value: Value) -> Layout:
    """The sharding of a value that is in this group: mesh axes per dimension."""
    sizes, split = dict(plan.mesh), plan.split(group)
    names: list[tuple[str, ...]] = []
    for dimension in axes.at(value):
        parts = itertools.groupby(leaves(dimension), key=lambda leaf: leaf.name)
        letters = [(name, math.prod(leaf.size for leaf in part)) for name, part in parts]
        ways = (math.prod(sizes[axis] for axis in split.get(name, ())) for name, _ in letters)
        padded = math.prod(size for _, size in letters) != dimension.size
        fits = (size % by == 0 and not padded for (_, size), by in zip(letters, ways))
        names.append(tuple(name if fit else "_" for (name, _), fit in zip(letters, fits)))
    return plan.layout(group, tuple(names))


def activation_group(names: Names) -> str | None:
    """The group of an activation: `logits`, `hidden` (heads, d_ff, experts), `residual`, or None.

    Router scores are in `residual`: choosing among the experts needs the scores of all of them.
    """
    present = {name for dimension in names for name in dimension}
    if "vocab" in present:
        return "logits"
    inner = present & (OF_HEADS | _INNER)
    if inner and (inner != {"experts"} or "d_model" in present):
        return "hidden"
    return "residual" if inner or "d_model" in present else None


def input_group(role: str, names: Names) -> str | None:
    """The group of an input: `weights`, `tables`, `cache`, `attention`, `hidden`, or None for what
    is replicated: arguments, and routers, which give the scores of all experts.

    A precomputed table over the vocabulary that has heads is sharded over them, like the weights
    that it was computed with. State without places is sharded like the activations that it
    holds; state with only a batch axis like a cache.
    """
    present = {name for dimension in names for name in dimension}
    if role == "param":
        if names[-1:] == (("experts",),) and len(names) - (("layers",) in names) <= 2:
            return None
        return "tables" if "vocab" in present and not present & OF_HEADS else "weights"
    if role != "state":
        return None
    if present & _PLACES:
        return "cache"
    if present & OF_HEADS:
        return "attention"
    if {("layers",), ("batch",), _STREAM}.issuperset(names) and _STREAM in names:
        return "residual"
    return "hidden" if present & _INNER else "cache"


def product_layout(plan: Plan, axes: Axes, value: Value) -> Layout:
    """The sharding of a product over heads, d_ff or the vocabulary: that of the weights it reads.

    Only the batch may be sharded further: for any finer sharding the weights would be moved.
    """
    names = axes.of(value)
    over_vocab = any("vocab" in dimension for dimension in names)
    if over_vocab and "vocab" not in plan.split("tables"):
        return layout_of(plan, "logits", axes, value)
    weights = layout_of(plan, "tables" if over_vocab else "used", axes, value)
    rows = ["batch" in dimension for dimension in names]
    taken = {
        axis for mesh_axes, is_batch in zip(weights, rows) if not is_batch for axis in mesh_axes
    }
    batch = plan.split("residual").get("batch", ())
    free = tuple(axis for axis in batch if axis not in taken)
    return tuple(free if is_batch else mesh_axes for mesh_axes, is_batch in zip(weights, rows))


def hidden_layout(plan: Plan, axes: Axes, value: Value) -> Layout:
    """The sharding of hidden values: rows as in the plan, other axes as in the weights that read
    them, over the mesh axes that shard no rows."""
    rows = layout_of(plan, "hidden", axes, value)
    weights = layout_of(plan, "used", axes, value)
    taken = {axis for mesh_axes in rows for axis in mesh_axes}
    free = (tuple(axis for axis in mesh_axes if axis not in taken) for mesh_axes in weights)
    return tuple(row_axes or other for row_axes, other in zip(rows, free))


def with_input_layouts(program: Program) -> Program:
    """`program` with a sharding on every input of its step: the declared one, or the plan's."""
    known = _declared_layouts(program)
    if program.plan is None and not known:
        return program
    axes = planned_axes(program, program.plan.mesh) if program.plan else Axes()
    inputs = tuple(
        replace(
            input_, layout=known.get(value) or planned_layout(program.plan, axes, value, input_)
        )
        for value, input_ in zip(program.graph.inputs, program.step_inputs)
    )
    if program.stages is None:
        return replace(program, inputs=inputs)
    return replace(program, stages=replace(program.stages, inputs=inputs))


def _declared_layouts(program: Program) -> dict[Value, Layout]:
    """The shardings that the program declares for inputs of its step; in a staged program also
    those of originals that `prepare` and `adapt` return unchanged."""
    declared = zip(program.graph.inputs, program.step_inputs)
    known = {value: input_.layout for value, input_ in declared if input_.layout}
    if program.stages is None:
        return known
    packed = [*program.stages.prepare.outputs, *program.stages.adapt.outputs]
    for role, graph in (("param", program.stages.prepare), ("state", program.stages.adapt)):
        users = [input_ for input_ in program.inputs if input_.role == role]
        layouts = {
            value: input_.layout for value, input_ in zip(graph.inputs, users) if input_.layout
        }
        known |= {
            value: layouts[source]
            for value, source in zip(program.graph.inputs, packed)
            if source in layouts
        }
    return known


def planned_layout(plan: Plan | None, axes: Axes, value: Value, input_: Input) -> Layout:
    """The plan's sharding of an input: replicated without a plan or without a group."""
    group = input_group(input_.role, axes.of(value)) if plan else None
    if group is None:
        return ((),) * input_.type.rank
    layout = layout_of(plan, group, axes, value)
    if any(layout) or input_.role != "param" or not worth_splitting(input_.type, plan.mesh):
        return layout
    return layout_of(plan, "large", axes, value)


def pinned_values(program: Program) -> frozenset[Value]:
    """The values whose sharding the program declares, and those that follow from declared inputs.

    No plan changes them. A value follows if it is another form of a pinned value, is written to or
    read from a pinned cache, or is a product with one.
    """
    declared = zip(program.graph.inputs, program.step_inputs)
    inputs = frozenset(value for value, input_ in declared if input_.layout)
    return frozenset(_pinned_in(program.graph, inputs))


def _pinned_in(graph: Graph, inputs: frozenset[Value]) -> Iterator[Value]:
    """Pinned values of a graph and of its loop bodies; `inputs` are its declared inputs, and
    `follows` those values that have the sharding of one."""
    pinned, follows = set(inputs), set(inputs)
    for op in graph.ops:
        if op.name == "constrain":
            pinned.update(op.results, _forms_of(op.args[0]))
        elif _is_form(op) and op.args[0] in pinned:
            pinned.update(op.results)
        elif op.name in ("contract", "attend") and follows & set(op.args):
            pinned.update(op.results, op.args[:1] if op.name == "attend" else ())
        if (traits(op).of_cache or _is_form(op)) and op.args[0] in follows:
            follows.update(op.results)
            pinned.update(op.args[1:2])
        for region in op.regions:
            pairs = zip(op.args, region.inputs) if op.name == "scan" else ()
            yield from _pinned_in(region, frozenset(x for arg, x in pairs if arg in follows))
    yield from pinned


def _forms_of(value: Value) -> Iterator[Value]:
    """A value, and the values that it is a reshape, transpose or conversion of."""
    yield value
    while _is_form(value.op):
        value = value.op.args[0]
        yield value


def _is_form(op: Op) -> bool:
    """Whether the result has the elements of the argument in another shape, order or dtype."""
    known = traits(op)
    moves = (known.view or known.order) and len(op.args) == 1
    return bool(known.converts or (moves and op.args[0].type.size == op.types[0].size))
