"""Fallback shardings for programs that are not, or only partly, a decoder that the planner knows.

The named partitionings (`dialect.planning.partitionings`) need the axes of a decoder, and mesh axes
that divide them. For other axes and sizes this file adds:

- an axis that leads back to the residual stream, and that no attention has, is d_ff: the heads or
  channels of a layer with another state
- a large weight with no axis that the plan shards is sharded along its largest unnamed axis, which
  is then called `wide` and has the same sharding in all tensors
- experts whose cost is unknown are sharded where d_ff cannot be
- large weights that a partial or `fit_` plan would replicate are sharded over d_model

An axis that its mesh axes do not divide is never sharded (`dialect.planning.layouts`), so a group
lists its axes in the order in which they are tried.
"""

from __future__ import annotations

import math
from dataclasses import replace

from dialect.naming.axes import HEADS, Axes, Axis, infer_axes, leaves, leaves_of
from dialect.planning.blocks import has, is_attention, weight_over
from dialect.planning.decoder import executions
from dialect.planning.decoder_shape import DecoderShape
from dialect.planning.mesh_roles import MeshAxes
from dialect.planning.plan import Plan
from rewrite.ir import Type
from rewrite.program import Program
from rewrite.signature import Signature

WORTH_BYTES = 1 << 20  # arrays are replicated if sharding saves less than this on every chip
_PLANNED = frozenset("d_ff d_ff_per_head heads kv_heads q_per_kv vocab experts".split())
_PLACES = ("context", "pages", "time")
_UNPLANNED = ("_", "d_head", *HEADS)  # where no attention has them


def planned_axes(program: Program, mesh: tuple[tuple[str, int], ...]) -> Axes:
    """The axes of a program; those that lead back to the residual stream are named `d_ff`, unnamed
    ones that are sharded only because of their size `wide`."""
    axes, ways = infer_axes(program), math.prod(size for _, size in mesh)
    _name_inner(axes, program, _attended(axes, program))
    large = [value for value in program.values("param") if worth_splitting(value.type, mesh)]
    for value in sorted(large, key=lambda value: -value.type.bytes):
        present = {name for dimension in axes.of(value) for name in dimension}
        majors = [leaves(axis)[0] for axis in axes.at(value)]
        free = [leaf for leaf in majors if not leaf.names and leaf.size % ways == 0]
        if present & (_PLANNED | {"wide"}) or not free:
            continue
        widest = max(free, key=lambda leaf: leaf.size)
        widest.call("wide", 1, "the largest axis of a large weight")
    return axes


def _attended(axes: Axes, program: Program) -> set[Axis]:
    """The axes of what attention reads, and of states that have places for it."""
    ops = (op for op, _ in executions(program) if is_attention(axes, op))
    values = [arg for op in ops for arg in op.args]
    values += [x for x in program.values("state") if any(has(axes.of(x), each) for each in _PLACES)]
    return {leaf for value in values for leaf in leaves_of(axes.at(value))}


def _name_inner(axes: Axes, program: Program, attended: set[Axis]) -> None:
    """Names what products with weights sum on the way back to the residual stream. Heads of states
    without attention are heads to a reader, and to a plan what their weights are."""
    for state in program.values("state"):
        for leaf in leaves_of(axes.at(state)):
            if leaf not in attended and leaf.name in (*HEADS, "d_head") and leaf.size > 1:
                leaf.call("d_ff", 95, "heads of a state that no attention reads")
    ops = [op for op, _ in executions(program)]
    for op in ops:
        back = "spec" in dict(op.attrs) and has(axes.of(op.results[0]), "d_model")
        weights = [i for i, arg in enumerate(op.args) if weight_over(axes, arg, "d_model")]
        if not back or len(weights) != 1:
            continue
        spec, (number,) = Signature.parse(op["spec"]), weights
        arrays = zip(axes.at(op.args[number]), spec.inputs[number])
        summed = leaves_of(axis for axis, dimension in arrays if {*dimension} & {*spec.summed})
        if not attended.intersection(summed):
            for leaf in summed:
                if leaf.name in _UNPLANNED and leaf.size > 1:
                    leaf.call("d_ff", 95, op.told)


def worth_splitting(type_: Type, mesh: tuple[tuple[str, int], ...]) -> bool:
    """Whether sharding an array over the whole mesh saves at least `WORTH_BYTES` per chip."""
    ways = math.prod(size for _, size in mesh)
    return type_.bytes * (ways - 1) // ways >= WORTH_BYTES


def with_fallback_layouts(plan: Plan, shape: DecoderShape, axes: Axes) -> Plan:
    """The plan with shardings of `wide`, `experts` and large weights.

    A decoder with missing parts gets `partial/` in front of the plan's label.
    """
    everywhere = tuple(name for name, size in plan.mesh if size > 1)
    gathered = plan.split("residual").get("batch", ())
    rest = tuple(name for name in everywhere if name not in gathered)
    dimensions = (axis for axes_of_value in axes.dimensions.values() for axis in axes_of_value)
    names = {leaf.name for axis in dimensions for leaf in leaves(axis)}
    unplanned = ("wide",) if shape.routing else ("experts", "wide")
    more = [name for name in unplanned if name in names]
    over = {"weights": everywhere, "used": rest, "hidden": rest}
    groups = [
        (group, _extended(dict(split), more, over.get(group, ()))) for group, split in plan.groups
    ]
    if everywhere and (shape.absent or plan.label.startswith("fit_")):
        groups.append(("large", (("d_model", everywhere),)))
    label = f"partial/{plan.label}" if shape.absent else plan.label
    return replace(plan, label=label, groups=tuple(groups))


def _extended(split: dict[str, MeshAxes], names: list[str], over: MeshAxes) -> tuple:
    """A group with these axes sharded as well, after those that it shards already."""
    more = {name: over for name in names if over and name not in split}
    return tuple({**split, **more}.items())
