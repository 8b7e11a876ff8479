"""From a plan to the layout of a tensor: which group it belongs to, by the axes that it has.

A `Plan` says how each group of tensors lies on the mesh; this file says which group a tensor is
in. Weights and state are told by their role, activations by their axes.
"""

from __future__ import annotations

from dataclasses import replace

from dialect.axes import Names, infer_axes
from rewrite.plan import Plan
from rewrite.program import Input, Layout, Program

_HEADS = {"heads", "kv_heads", "q_per_kv", "d_head"}


def activation_group(names: Names) -> str | None:
    """`logits`, `hidden` (heads or d_ff), `residual`, or None for anything else."""
    present = {name for dimension in names for name in dimension}
    if "vocab" in present:
        return "logits"
    if present & (_HEADS | {"d_ff"}):
        return "hidden"
    return "residual" if "d_model" in present else None


def input_group(role: str, names: Names) -> str | None:
    """The group of an input: `weights`, `tables`, `cache`, or None for an argument (replicated).

    A table of rows over the vocabulary that holds heads is split over these, like the weights it
    was computed with: each chip looks up its own.
    """
    present = {name for dimension in names for name in dimension}
    if role == "param":
        return "tables" if "vocab" in present and not present & _HEADS else "weights"
    return "cache" if role == "state" and "context" in present else None


def product_layout(plan: Plan, names: Names) -> Layout:
    """How a product over heads, d_ff or the vocabulary lies: as the weights that it reads.

    Only the batch may be split further. Asked for a finer layout than its weights have, the
    compiler rather moves the weights.
    """
    over_vocab = any("vocab" in dimension for dimension in names)
    if over_vocab and "vocab" not in plan.split("tables"):
        return plan.layout("logits", names)
    weights = plan.layout("tables" if over_vocab else "used", names)
    taken = {axis for axes in weights for axis in axes}
    batch = plan.split("hidden").get("batch", ())
    free = tuple(axis for axis in batch if axis not in taken)
    return tuple(free if "batch" in dimension else axes for dimension, axes in zip(names, weights))


def with_input_layouts(program: Program) -> Program:
    """`program` with the plan's layout on every input of its step."""
    if program.plan is None:
        return program
    axes = infer_axes(program)
    values = zip(program.graph.inputs, program.step_inputs)
    inputs = tuple(_laid_out(each, axes.of(value), program.plan) for value, each in values)
    if program.stages is None:
        return replace(program, inputs=inputs)
    return replace(program, stages=replace(program.stages, inputs=inputs))


def _laid_out(each: Input, names: Names, plan: Plan) -> Input:
    group = input_group(each.role, names)
    layout: Layout = plan.layout(group, names) if group else tuple(() for _ in names)
    return replace(each, layout=layout)
