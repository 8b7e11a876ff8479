"""Products of which some weights are zero: of every few along the axis that is summed, the least.

contract(x, w)  ->  contract(x, masked(w, w * w))

Weights keep their shape. Two of every four is the pattern that sparse matrix units multiply without
the zeros (Mishra et al. 2021, arXiv:2104.08378).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dialect.matching.values import in_dtype
from dialect.naming.axes import Axes
from dialect.staging.parameter_paths import Paths, parameter_paths, paths_in, paths_inside, shown
from rewrite import opdef
from rewrite.dataflow import rebuilt
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import make, with_args
from rewrite.program import Program
from rewrite.rules import FLOATS
from rewrite.signature import letters


@dataclass
class Masking:
    """Keeps `keep` of every `of` weights. What became of every parameter: masked, or why not."""

    keep: int
    of: int
    axes: Axes
    masked: dict[str, None] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def of_program(self, program: Program) -> Program:
        """The program with its weights masked."""
        return program.with_graph(self.graph(program.graph, parameter_paths(program)))

    def graph(self, graph: Graph, names: Paths) -> Graph:
        """A graph, loops inside it too; `names` are of the parameters behind its inputs."""
        paths = paths_in(graph, names)

        def visit(op: Op, args: tuple[Value, ...]) -> Sequence[Value]:
            regions = op.regions
            if op.get("length") is not None:
                regions = (self.graph(op.regions[0], paths_inside(op, paths)),)
            moved = with_args(op, args, regions)
            about = opdef.traits(op)
            if about.linear != "each" or not about.sums:
                return moved.results
            weights = [i for i, arg in enumerate(op.args[:2]) if arg in paths]
            if len(weights) != 1 or op.args[1 - weights[0]].type.rank == 0:
                return moved.results
            return self.product(op, moved, weights[0], shown(paths[op.args[weights[0]]]))

        return rebuilt(graph, visit)

    def product(self, op: Op, moved: Op, at: int, name: str) -> Sequence[Value]:
        """The results of a product with its weight masked."""
        weight, signature = op.args[at], opdef.signature(op)
        inside, out = letters(signature.inputs[at]), {*letters(signature.outputs[0])}
        summed = [d for d, letter in enumerate(inside) if letter not in out]
        if not summed:
            return moved.results
        reason = self.why_not(weight, summed[-1])
        if reason:
            self.left[name] = reason
            return moved.results
        self.masked[name] = None
        wide = in_dtype(moved.args[at], "f32")
        how = {"axis": summed[-1], "keep": self.keep, "of": self.of}
        args = list(moved.args)
        args[at] = make("masked", args[at], make("mul", wide, wide), **how)
        return with_args(moved, tuple(args)).results

    def why_not(self, weight: Value, axis: int) -> str:
        """Why a weight stays as it is; empty if it does not."""
        size = weight.type.shape[axis]
        if weight.type.dtype not in FLOATS:
            return f"it is {weight.type.dtype}"
        if any("vocab" in names for names in self.axes.of(weight)):
            return "it is a table over the vocabulary"
        return f"{self.of} do not divide the {size} that are summed" if size % self.of else ""
