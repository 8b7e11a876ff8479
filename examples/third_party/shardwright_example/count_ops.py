"""count_ops: what a program is made of, noted in its history; put it around a pass to compare."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from rewrite.passbase import Pass
from rewrite.program import Program
from rewrite.target import Target


@dataclass(frozen=True)
class CountOps(Pass):
    """Counts the ops of the step by name, those in loop bodies included, each body once.

    `top` is how many names to note, the most frequent first; 0 notes all.
    """

    keeps: ClassVar[str] = "bits"
    top: int = 0

    def run(self, program: Program, target: Target) -> Program:
        counts = Counter(op.name for op, _ in program.graph.walk())
        most = counts.most_common(self.top or None)
        return self.recorded(program, *(f"{name}: {count}" for name, count in most))
