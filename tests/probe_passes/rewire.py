"""rewire: a pass that behaves, or misbehaves in the way that its option names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from rewrite.errors import PlanError
from rewrite.ir import Graph, Op, Value
from rewrite.passbase import Pass
from rewrite.program import Program
from rewrite.target import Target

Way = Literal["double", "silent", "crash", "refuse", "invalid", "forget", "nothing"]


@dataclass(frozen=True)
class Rewire(Pass):
    """Puts a `probe.double` behind the first output; without `double`, goes wrong instead."""

    keeps: ClassVar[str] = "approx"
    way: Way = "double"

    def run(self, program: Program, target: Target) -> Program:
        doubled = self.doubled(program)
        match self.way:
            case "double":
                return self.recorded(doubled, "doubled once", f"on {target.topology}")
            case "silent":
                return doubled
            case "crash":
                raise ZeroDivisionError("one by none")
            case "refuse":
                raise PlanError("no plan fits", hint="more chips")
            case "invalid":
                return self.doubled(program, rank=3)
            case "forget":
                return replace(doubled, history=())
            case "nothing":
                return None  # type: ignore[return-value]

    def doubled(self, program: Program, rank: int = 1) -> Program:
        last = program.graph.outputs[0]
        kind = replace(last.type, shape=(2,) * rank)
        op = Op("probe.double", (last,), (), (kind,))
        return program.with_graph(Graph(program.graph.inputs, (Value(op, 0),)))
