"""rules: applies the rules of a file (see `dialect.user.rule_file`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from dialect.normal.normal_form import normal_form, typed_as
from dialect.user.rule_file import read_rules
from rewrite.driver import Report, rewrite
from rewrite.errors import PipelineError
from rewrite.passbase import Pass
from rewrite.program import KEEPS, Program, Step, remarks
from rewrite.source import read_file
from rewrite.target import Target


@dataclass(frozen=True)
class Rules(Pass):
    """Applies your own rules, wherever they match. `file` is read when the pass runs."""

    file: str = ""

    keeps: ClassVar[str] = "reals"

    def run(self, program: Program, target: Target) -> Program:
        path = Path(self.file)
        if not path.is_file():
            raise PipelineError(
                f"there is no rule file {self.file!r}", hint='rules{file="my.rules"}'
            )
        rules = read_rules(read_file(path, "rule file"), str(path), normal_form)
        report = Report()
        graph = typed_as(program.graph, rewrite(program.graph, rules, report))
        fired = [rule.keeps for rule in rules if rule.name in report.fired]
        step = Step(str(self), max(fired, key=KEEPS.index, default="bits"), remarks(report.notes()))
        return replace(program, graph=graph, history=(*program.history, step))
