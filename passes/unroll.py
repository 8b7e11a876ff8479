"""unroll: a loop over layers is unrolled.

scan(body, x, ws)  ->  body(... body(body(x, ws[0]), ws[1]) ...)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from dialect.layered.loops import unrolled
from dialect.normal.normal_form import EXACT_RULES, normal_form, typed_as
from rewrite.dataflow import rebuilt
from rewrite.ir import Op, Value
from rewrite.opdef import with_args
from rewrite.passbase import Pass
from rewrite.program import Program
from rewrite.target import Target


@dataclass(frozen=True)
class Unroll(Pass):
    """Writes out every loop of at most `most` iterations."""

    most: int = 256

    keeps: ClassVar[str] = "reals"  # unrolled layers are brought to normal form

    def run(self, program: Program, target: Target) -> Program:
        notes: list[str] = []

        def visit(op: Op, args: tuple[Value, ...]) -> Sequence[Value]:
            moved = with_args(op, args)
            if op.name != "scan":
                return moved.results
            if 0 < op["length"] <= self.most:
                notes.append(f"{op['length']} iterations written out")
                return unrolled(moved)
            why = f"longer than most={self.most}" if op["length"] else "nothing to write out"
            notes.append(f"a loop of {op['length']} stays: {why}")
            return moved.results

        graph = normal_form(rebuilt(program.graph, visit), rules=EXACT_RULES)
        return self.recorded(program.with_graph(typed_as(program.graph, graph)), *notes)
