"""recognize: lax ops become the decoder's own vocabulary (see `dialect.nn`).

Recognition is by structure, never by name, and loses nothing: every op carries its reference.
What is not recognised stays as it is and still compiles, shards and quantises.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import ClassVar

from dialect import activations, caches, dequantized, indexing, norms, rotary
from dialect.attention import attend_of_softmax
from dialect.nn import softmax
from dialect.normal_form import RULES as NORMAL_FORM
from dialect.normal_form import normal_form, rules_of
from dialect.projections import cut_projections
from dialect.vocabulary import Traced
from rewrite.driver import Report, rewrite
from rewrite.ir import Op
from rewrite.passbase import Pass
from rewrite.program import Program
from rewrite.rules import Outcome, Rule, local, pattern
from rewrite.target import Target

softmax_by_hand = pattern(
    "softmax",
    "exp(x - max(x)) / sum(exp(x - max(x)))  ->  softmax(x)",
    before=softmax,
    after=Traced["softmax"],
    example=("f32[2,8]",),
    normal=normal_form,
)


@local(
    "contract",
    example=lambda q, k, v: softmax(q @ k.T * 0.5) @ v,
    types=("f32[3,4]", "f32[5,4]", "f32[5,4]"),
    keeps="reals",
)
def attend(op: Op) -> Outcome:
    """softmax(mask(scale * (q . k))) . v  ->  attend(q, k, v, mask)"""
    return attend_of_softmax(op)


RULES: tuple[Rule, ...] = rules_of(
    sys.modules[__name__], norms, rotary, activations, indexing, caches, dequantized
)


@dataclass(frozen=True)
class Recognize(Pass):
    """Finds attention, norms, rope, feed-forward units, embeddings and cache writes."""

    keeps: ClassVar[str] = "reals"

    def run(self, program: Program, target: Target) -> Program:
        report = Report()
        rules = (*NORMAL_FORM, *RULES)
        graph = rewrite(program.graph, rules, report)
        cut = cut_projections(graph, program.values("param"))
        graph = rewrite(cut, rules, report) if cut is not graph else graph
        return self.said(program.with_graph(graph), *report.notes())
