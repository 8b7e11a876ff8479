"""planted: the normal form with a wrong rule among its own, or a pass that breaks on an op."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dialect.normal.normal_form import RULES
from rewrite.driver import rewrite
from rewrite.passbase import Pass
from rewrite.program import Program
from rewrite.target import Target
from tests import planted_rules


@dataclass(frozen=True)
class Planted(Pass):
    """Runs the wrong rule of this name, or raises KeyError at an op of the name `crash`."""

    keeps: ClassVar[str] = "reals"
    rule: str = ""
    crash: str = ""

    def run(self, program: Program, target: Target) -> Program:
        inside = [op for op, parents in program.graph.walk() if parents or not self.rule]
        if any(op.name == self.crash for op in inside):
            raise KeyError(self.crash)
        wrong = [rule for rule in planted_rules.RULES if rule.name == self.rule]
        return program.with_graph(rewrite(program.graph, (*wrong, *RULES)))
