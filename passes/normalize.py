"""normalize: every program in one spelling (see `dialect.normal.normal_form`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dialect.normal.normal_form import normal_form
from rewrite.driver import Report
from rewrite.passbase import Pass
from rewrite.program import Program
from rewrite.target import Target


@dataclass(frozen=True)
class Normalize(Pass):
    """Removes layout noise, turns products into `contract`, folds constants, shares equal ops."""

    keeps: ClassVar[str] = "reals"

    def run(self, program: Program, target: Target) -> Program:
        report = Report()
        graph = normal_form(program.graph, report)
        return self.recorded(program.with_graph(graph), *report.notes())
