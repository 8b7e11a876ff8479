"""recognize: lax ops become the decoder's own vocabulary (see `dialect.ops.nn`).

Recognition is by structure, never by name, and loses nothing: every op carries its reference.
What is not recognised stays as it is and still compiles, shards and quantises.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from typing import ClassVar

from dialect.matching.proofs import beside_parameters
from dialect.normal import repeats
from dialect.normal.normal_form import RULES as NORMAL_FORM
from dialect.normal.normal_form import rules_of, typed_as
from dialect.quantized import dequantized, integer_products
from dialect.recognition import (
    activations,
    attention,
    caches,
    indexing,
    layer_loops,
    norms,
    rotary,
    softmaxes,
)
from dialect.recognition.projections import cut_projections
from rewrite.driver import Report, rewrite
from rewrite.ir import Value
from rewrite.passbase import Pass
from rewrite.program import Program
from rewrite.rules import Rule
from rewrite.target import Target

RULES: tuple[Rule, ...] = rules_of(
    repeats,
    softmaxes,
    attention,
    norms,
    rotary,
    activations,
    indexing,
    layer_loops,
    caches,
    dequantized,
    integer_products,
)


@dataclass(frozen=True)
class Recognize(Pass):
    """Finds attention, norms, rope, feed-forward units, embeddings and cache writes."""

    keeps: ClassVar[str] = "reals"
    rewrites: ClassVar[tuple[Rule, ...]] = RULES

    def run(self, program: Program, target: Target) -> Program:
        report = Report()
        rules = (*NORMAL_FORM, *RULES)
        with beside_parameters(_originals(program)) as parameters:
            graph = rewrite(program.graph, rules, report)
            cut = cut_projections(graph, program.values("param"))
            graph = rewrite(cut, rules, report) if cut is not graph else graph
        graph = typed_as(program.graph, graph)
        return self.recorded(
            _taken_finite(program.with_graph(graph), parameters.finite), *report.notes()
        )


def _originals(program: Program) -> list[Value]:
    """The parameters that `prepare` sees: not those of a staged program, which are packed."""
    return program.values("param") if program.stages is None else []


def _taken_finite(program: Program, values: Set[Value]) -> Program:
    """The program, these inputs declared to be finite."""
    if not values:
        return program
    pairs = zip(program.graph.inputs, program.inputs, strict=True)
    inputs = tuple(replace(each, finite=True) if v in values else each for v, each in pairs)
    return replace(program, inputs=inputs)
