"""lower: from the decoder's vocabulary to what the compiler takes.

Exchanges become constraints; attention in blocks runs on its owners; scales move behind their
products, so that weights stay integers in memory; experts in a loop over layers are read from the
stack of all layers where the chip has a kernel for it; every composite is replaced by its
reference; the state is donated, and the compiler chooses its memory layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from dialect.compiled.compilers import apart, has_ragged_kernel, hidden_counter, made_first
from dialect.compiled.constraints import constrained
from dialect.compiled.layer_attention import attend_in_stack
from dialect.compiled.owners import owned
from dialect.compiled.paged_attention import attend_by_page
from dialect.compiled.split_contexts import attend_to_parts
from dialect.compiled.stacked_experts import experts_in_stack
from dialect.jaxprs.expanded import reference_graph
from dialect.machine.chips import Chip
from dialect.machine.mesh import Topology
from dialect.matching.values import rounding
from dialect.normal.expert_products import experts_of_all_rows
from dialect.ops.nn import Traced
from dialect.ops.tensor import PRODUCTS
from dialect.quantized.scaled_products import SCALES, scale_behind_product, scaled_products  # noqa: F401
from dialect.staging.binding import region_bound
from rewrite.dataflow import bound_values
from rewrite.driver import Report, rewrite
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import substitute
from rewrite.passbase import Pass
from rewrite.program import Program
from rewrite.rules import Outcome, Rule
from rewrite.target import Target


class _Composites:
    """The ops with a reference in lax, those that a package defined behind this module too."""

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(Traced))


def _expand(op: Op) -> Outcome:
    """composite(x)  ->  its reference, in lax"""
    if op.get("by") == "same":
        return None  # whoever adapts a state looks whether its heads are (dialect.prepared.state)
    if op.get("visits"):
        return None  # the scope of its loop says how often it runs (dialect.arrays.expected_trips)
    graph = reference_graph(op)
    return substitute(apart(op, graph), made_first(op, graph), origin=op.origin)


EXPAND = Rule(
    name="expand",
    doc=str(_expand.__doc__),
    roots=_Composites(),
    apply=_expand,
    keeps="bits",
    example=lambda x: Traced["softmax"](x),
    types=("f32[2,4]",),
)


EXPANSION: tuple[Rule, ...] = (attend_to_parts, EXPAND, hidden_counter)


@dataclass(frozen=True)
class Lower(Pass):
    """Expands exchanges into constraints, composites into lax; scales behind their products."""

    keeps: ClassVar[str] = "reals"

    def run(self, program: Program, target: Target) -> Program:
        moved, expanded = Report(), Report()
        mesh, chip = dict(target.mesh), _chip(target.topology)
        planned = program.plan
        over = (dict(planned.mesh), _chip(planned.target)) if planned else (mesh, chip)
        told = constrained(program.graph, *over)
        told = rewrite(told, [attend_by_page, attend_in_stack])
        pages = planned.split("cache").get("pages", ()) if planned else ()
        scaled = rewrite(owned(told, over[0], pages), scaled_products(chip, mesh), moved)
        if chip and has_ragged_kernel(chip):
            scaled = rewrite(scaled, [experts_of_all_rows, experts_in_stack])
        lowered = replace(program, graph=rewrite(scaled, EXPANSION, expanded))
        if program.stages is not None:
            stages = {
                name: rewrite(getattr(program.stages, name), [EXPAND])
                for name in ("prepare", "adapt", "restore")
            }
            lowered = replace(lowered, stages=replace(program.stages, **stages))
        widened = dict.fromkeys(_widened(scaled, program.values("param")))
        return self.recorded(lowered, *expanded.notes(), *moved.notes(), *widened)


def _chip(topology: str) -> Chip | None:
    return Topology.parse(topology).chip if topology else None


def _widened(graph: Graph, params: Iterable[Value]) -> Iterator[str]:
    """Products whose weights are dequantised before they multiply. (Activations that are rounded to
    steps on their way into a product are no array that is stored.)"""
    bound = bound_values(graph, params)
    for op in graph.ops:
        scaled = (arg for arg in op.args if arg.op.name == "dequantize")
        if op.name in PRODUCTS and any(arg in bound or not rounding(arg) for arg in scaled):
            yield f"dequantised before its product, which may store it wide: {op.origin.source}"
        for region in op.regions:
            yield from _widened(region, region_bound(op, bound))
