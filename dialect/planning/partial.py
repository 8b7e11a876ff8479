"""Plans for what is no decoder of the paper, or is one only in part.

The named partitionings (`dialect.planning.partitionings`) know a decoder's axes and ask that they
divide. Where a program has other axes too, or sizes that do not divide, this file adds what is
sensible:

- a large weight none of whose axes the plan would split is split along its largest axis without a
  name; that axis is called `wide`, and lies alike wherever it occurs
- experts of which the cost is not known are split where d_ff, inside each of them, cannot be
- large weights that a partial or fitting plan would leave whole are split over d_model

Layouts never ask an axis to be split that its mesh axes do not divide (`dialect.planning.layouts`),
so each group lists the axes in the order in which they should be tried.
"""

from __future__ import annotations

import math
from dataclasses import replace

from dialect.naming.axes import Axes, infer_axes, leaves
from dialect.planning.decoder_shape import DecoderShape
from dialect.planning.plan import Plan
from dialect.planning.uses import MeshAxes
from rewrite.ir import Type
from rewrite.program import Program

WORTH_BYTES = 1 << 20  # saved on each chip: below this an array may as well be on all of them
_PLANNED = frozenset("d_ff d_ff_per_head heads kv_heads q_per_kv vocab experts".split())


def planned_axes(program: Program, mesh: tuple[tuple[str, int], ...]) -> Axes:
    """The axes of a program, `wide` being those that only their size tells to split."""
    axes, ways = infer_axes(program), math.prod(size for _, size in mesh)
    large = [value for value in program.values("param") if worth_splitting(value.type, mesh)]
    for value in sorted(large, key=lambda value: -value.type.bytes):
        present = {name for dimension in axes.of(value) for name in dimension}
        own = [leaves(axis)[0] for axis in axes.at(value)]
        free = [leaf for leaf in own if not leaf.names and leaf.size % ways == 0]
        if present & (_PLANNED | {"wide"}) or not free:
            continue
        widest = max(free, key=lambda leaf: leaf.size)
        widest.call("wide", 1, "the largest axis of a large weight")
    return axes


def worth_splitting(type_: Type, mesh: tuple[tuple[str, int], ...]) -> bool:
    """Whether each chip saves enough by not having all of an array."""
    ways = math.prod(size for _, size in mesh)
    return type_.bytes * (ways - 1) // ways >= WORTH_BYTES


def completed(plan: Plan, shape: DecoderShape, axes: Axes) -> Plan:
    """The plan with the axes that the paper's decoders have not, and `partial` in its label."""
    everywhere = tuple(name for name, size in plan.mesh if size > 1)
    gathered = plan.split("residual").get("batch", ())
    rest = tuple(name for name in everywhere if name not in gathered)
    named = {leaf.name for found in axes.dimensions.values() for x in found for leaf in leaves(x)}
    unplanned = ("wide",) if shape.routing else ("experts", "wide")
    more = [name for name in unplanned if name in named]
    over = {"weights": everywhere, "used": rest, "hidden": rest}
    groups = [
        (group, _extended(dict(split), more, over.get(group, ()))) for group, split in plan.groups
    ]
    if everywhere and (shape.absent or plan.label.startswith("fit_")):
        groups.append(("large", (("d_model", everywhere),)))
    label = f"partial/{plan.label}" if shape.absent else plan.label
    return replace(plan, label=label, groups=tuple(groups))


def _extended(split: dict[str, MeshAxes], names: list[str], over: MeshAxes) -> tuple:
    """A group that splits more axes, those that it splits already first."""
    more = {name: over for name in names if over and name not in split}
    return tuple({**split, **more}.items())
