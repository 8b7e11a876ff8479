"""recognize: lax ops become the composite ops of a decoder (see `dialect.ops.nn`).

Recognition is by structure, never by name, and loses nothing: the definition of every composite op
has a reference in lax. Ops that are not recognised stay and still compile, shard and quantise.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from typing import ClassVar

from dialect.matching.proofs import beside_parameters
from dialect.normal import repeats
from dialect.normal.normal_form import RULES as NORMAL_FORM
from dialect.normal.normal_form import rules_of, typed_as
from dialect.normal.padding import without_padding
from dialect.quantized import dequantized, integer_products
from dialect.recognition import (
    activations,
    attention,
    axes_of_one,
    caches,
    computed_tables,
    indexing,
    layer_loops,
    norms,
    page_tables,
    partial_softmaxes,
    rotary,
    scaled_caches,
    softmaxes,
    stacked_pools,
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
    computed_tables,
    layer_loops,
    axes_of_one,
    caches,
    stacked_pools,
    page_tables,
    dequantized,
    integer_products,
    scaled_caches,
)
# Before the parts of an attention are attentions of their own, which read integers too.
FIRST: tuple[Rule, ...] = rules_of(scaled_caches, partial_softmaxes)


@dataclass(frozen=True)
class Recognize(Pass):
    """Finds attention, norms, rope, feed-forward units, embeddings and cache writes."""

    keeps: ClassVar[str] = "reals"
    rewrites: ClassVar[tuple[Rule, ...]] = tuple(dict.fromkeys((*FIRST, *RULES)))

    def run(self, program: Program, target: Target) -> Program:
        report = Report()
        rules = (*NORMAL_FORM, *RULES)
        with beside_parameters(_user_parameters(program)) as parameters:
            graph = rewrite(rewrite(program.graph, FIRST, report), rules, report)
            cut = cut_projections(without_padding(graph), program.values("param"))
            graph = rewrite(cut, rules, report) if cut is not graph else graph
        graph = typed_as(program.graph, graph)
        return self.recorded(
            _taken_finite(program.with_graph(graph), parameters.finite), *report.notes()
        )


def _user_parameters(program: Program) -> list[Value]:
    """The user's parameters, of which `prepare` can check that they are finite; none if the program
    is staged, whose parameters are packed."""
    return program.values("param") if program.stages is None else []


def _taken_finite(program: Program, values: Set[Value]) -> Program:
    """The program with these inputs declared to be finite."""
    if not values:
        return program
    pairs = zip(program.graph.inputs, program.inputs, strict=True)
    inputs = tuple(replace(input_, finite=True) if v in values else input_ for v, input_ in pairs)
    return replace(program, inputs=inputs)
