"""fold_scales: parameter-only factors are folded into weights (see `dialect.staging.fold_rules`).

contract(norm(x) * s, w) * c  ->  contract(norm(x), (s * w) * c)

Norm scales and biases, 1 / sqrt(d_head), log2(e), the scales of embedding and logits are multiplied
into weights once, in `prepare`, as in the code of Pope et al. 2022 (arXiv:2211.05102). Exact over
the reals; each weight is rounded once more, so quantise after this pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dialect.normal.normal_form import normal_form, rules_of
from dialect.staging import fold_rules
from dialect.staging.marks import marked, unmarked
from rewrite.driver import Report, rewrite
from rewrite.passbase import Pass
from rewrite.program import Program
from rewrite.target import Target


@dataclass(frozen=True)
class FoldScales(Pass):
    """Folds norm scales, 1/sqrt(d_head) and constants into neighbouring weights."""

    keeps: ClassVar[str] = "reals"

    def run(self, program: Program, target: Target) -> Program:
        report = Report()
        before = marked(program.graph, program.values("param"))
        graph = unmarked(rewrite(before, rules_of(fold_rules), report))
        notes = report.notes() or ("nothing to fold",)
        return self.recorded(program.with_graph(normal_form(graph)), *notes)
