"""quantize: weights that only products read become integers with one scale per output channel.

contract(x, w)  ->  contract(x, dequantize(quantize(w)))

The scale commutes with the product, so `lower` moves it behind; `quantize(w)` depends on
parameters alone, so `stage` computes it once. What is left alone is reported with the reason.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from dialect import quant  # noqa: F401  (defines the ops)
from dialect.axes import Axes, infer_axes
from dialect.binding import bound_values, region_bound
from rewrite.ir import Graph, Op, Symbol, Value
from rewrite.opdef import make, with_args
from rewrite.passbase import Pass
from rewrite.program import Program
from rewrite.signature import Signature, letters
from rewrite.target import Target

_FLOATS = {"f32", "bf16", "f16"}


@dataclass(frozen=True)
class Quantize(Pass):
    """Quantises weights, symmetric per output channel.

    `skip` is a regular expression on the parameter's path. Weights over the vocabulary (tables
    and head) are left alone unless `vocab` says otherwise.
    """

    weights: Literal["int8", "int4"] = "int8"
    skip: str = ""
    vocab: bool = False

    keeps: ClassVar[str] = "approx"

    def run(self, program: Program, target: Target) -> Program:
        axes = infer_axes(program)
        names = {
            value: frozenset({each.name})
            for value, each in zip(program.graph.inputs, program.inputs)
            if each.role == "param"
        }
        notes = _Notes()
        graph = self.graph(program.graph, names, axes, notes)
        return self.said(program.with_graph(graph), *notes.lines())

    def graph(
        self, graph: Graph, names: dict[Value, frozenset[str]], axes: Axes, notes: _Notes
    ) -> Graph:
        """`names` gives the parameters that each bound input of the graph comes from."""
        bound = bound_values(graph, names)
        paths = dict(names)
        memo: dict[Value, Value] = {value: value for value in graph.inputs}
        for op in graph.ops:
            if op.results[0] in bound:
                whole = frozenset().union(*(paths.get(arg, frozenset()) for arg in op.args))
                paths.update(dict.fromkeys(op.results, whole))
            args = tuple(memo[arg] for arg in op.args)
            regions = op.regions
            if op.name == "scan":
                body = op.regions[0]
                outer = dict(zip(body.inputs, op.args))
                inner = {v: paths[outer[v]] for v in region_bound(op, bound)}
                regions = (self.graph(body, inner, axes, notes),)
            moved = with_args(op, args, regions)
            if op.name == "contract":
                moved = self.product(op, moved, bound, paths, axes, notes)
            memo.update(zip(op.results, moved.results))
        return Graph(graph.inputs, tuple(memo[value] for value in graph.outputs))

    def product(
        self,
        op: Op,
        moved: Op,
        bound: frozenset[Value],
        paths: dict[Value, frozenset[str]],
        axes: Axes,
        notes: _Notes,
    ) -> Op:
        """The product with its weight, if it has one, quantised."""
        weights = [i for i, arg in enumerate(op.args) if arg in bound]
        if len(weights) != 1:
            return moved
        (position,) = weights
        weight = op.args[position]
        name = ", ".join(sorted(paths[weight]))
        spec = Signature.parse(op["spec"])
        own, other = letters(spec.inputs[position]), letters(spec.inputs[1 - position])
        out = letters(spec.outputs[0])
        summed = tuple(i for i, x in enumerate(own) if x in other and x not in out)
        reason = self.reason(weight, name, summed, axes)
        if reason:
            notes.skipped[name] = reason
            return moved
        notes.quantised[name] = None
        args = list(moved.args)
        scale = make("weight_scale", args[position], axes=summed, form=self.weights)
        q = make("quantize", args[position], scale, form=self.weights)
        args[position] = make("dequantize", q, scale, dtype=Symbol(weight.type.dtype))
        return with_args(moved, tuple(args))

    def reason(self, weight: Value, name: str, summed: tuple[int, ...], axes: Axes) -> str | None:
        """Why a weight is left alone, or None."""
        if weight.type.dtype not in _FLOATS:
            return f"it is {weight.type.dtype} already"
        if weight.op.name == "dequantize":
            return "it is quantised already"
        if not summed or len(summed) == weight.type.rank:
            return "the product does not sum one of its axes and keep another"
        if self.skip and re.search(self.skip, name):
            return f"its path matches skip={self.skip!r}"
        if not self.vocab and any("vocab" in names for names in axes.of(weight)):
            return "it is a table over the vocabulary (quantize{vocab=true} takes it too)"
        return None


class _Notes:
    """What was quantised and what was not, by parameter."""

    def __init__(self) -> None:
        self.quantised: dict[str, None] = {}
        self.skipped: dict[str, str] = {}

    def lines(self) -> list[str]:
        lines = [f"{len(self.quantised)} weights quantised: {', '.join(self.quantised)}"]
        return lines + [f"{name} left alone: {reason}" for name, reason in self.skipped.items()]
