"""unroll: a loop over layers is written out, layer after layer.

scan(body, x, ws)  ->  body(... body(body(x, ws[0]), ws[1]) ...)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dialect.layered.loops import unrolled
from dialect.normal.normal_form import EXACT_RULES, normal_form, typed_as
from rewrite.ir import Graph, Value
from rewrite.opdef import with_args
from rewrite.passbase import Pass
from rewrite.program import Program
from rewrite.target import Target


@dataclass(frozen=True)
class Unroll(Pass):
    """Writes out every loop of at most `most` iterations."""

    most: int = 256

    keeps: ClassVar[str] = "reals"  # what is written out comes in normal form

    def run(self, program: Program, target: Target) -> Program:
        memo: dict[Value, Value] = {value: value for value in program.graph.inputs}
        notes = []
        for op in program.graph.ops:
            moved = with_args(op, tuple(memo[arg] for arg in op.args))
            results = moved.results
            if op.name == "scan" and 0 < op["length"] <= self.most:
                results = unrolled(moved)
                notes.append(f"{op['length']} iterations written out")
            elif op.name == "scan":
                why = f"longer than most={self.most}" if op["length"] else "nothing to write out"
                notes.append(f"a loop of {op['length']} stays: {why}")
            memo.update(zip(op.results, results))
        graph = Graph(program.graph.inputs, tuple(memo[v] for v in program.graph.outputs))
        graph = typed_as(program.graph, normal_form(graph, rules=EXACT_RULES))
        return self.said(program.with_graph(graph), *notes)
