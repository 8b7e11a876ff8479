"""audit: the lowered program, compiled, beside its plan. It stands last in a pipeline.

    ..., plan, shard, stage, lower, audit{strict=true}

Collectives that the plan does not ask for are surprises. Each is told with its kind, axes and
bytes, with how often it runs, and with the operation and the user's line that it was made for.
`strict` refuses a program with a surprise larger than `tolerance`, a fraction of the plan's bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from dialect.display.quantities import percent, size
from dialect.reports.audit import Audit as Audited
from dialect.reports.audit import audit
from dialect.reports.collective_text import shown, user_lines
from rewrite.errors import PlanError
from rewrite.passbase import Pass
from rewrite.program import Program
from rewrite.target import Target


@dataclass(frozen=True)
class Audit(Pass):
    """Compares the collectives and the memory of the compiled program with the plan's."""

    strict: bool = False
    tolerance: float = 0.01

    keeps: ClassVar[str] = "bits"

    def run(self, program: Program, target: Target) -> Program:
        if self.tolerance < 0:
            raise PlanError(f"tolerance={self.tolerance} is no fraction of the plan's bytes")
        if program.plan is None or program.plan.predicted is None:
            if self.strict:
                hint = "run `plan` and `shard` before `lower` and `audit`"
                raise PlanError("there is no plan that says what it exchanges", hint=hint)
            return self.recorded(program, "no plan says what is exchanged, so nothing is compared")
        audited = audit(program, target)
        large = list(self.surprises(audited, program))
        if self.strict and large:
            message = f"the compiled program exchanges what {program.plan.label} does not ask for"
            hint = "other constraints there, another plan, or audit{strict=false} to accept it"
            raise PlanError("\n  ".join([f"{message}:", *large]), hint=hint)
        return self.recorded(program, *totals(audited), *large, *self.rest(audited), *audited.notes)

    def surprises(self, audited: Audited, program: Program) -> Iterator[str]:
        """Those that are too large, in words."""
        lines = user_lines(program.graph)
        for exchange in audited.unplanned_above(self.tolerance):
            share = percent(exchange.bytes, audited.planned_bytes)
            what = shown(exchange.collective, lines)
            yield f"not planned: {what}: {size(exchange.bytes)}, {share} of the plan"

    def rest(self, audited: Audited) -> Iterator[str]:
        """What is too small to be named, and what the plan asks for in vain."""
        limit = self.tolerance * audited.planned_bytes
        small = [surprise.bytes for surprise in audited.unplanned if surprise.bytes <= limit]
        if small:
            share = percent(sum(small), audited.planned_bytes)
            yield f"not planned, too small to be named: {len(small)}, together {share} of the plan"
        for exchange, left in audited.missing:
            if left > limit:
                what = f"{exchange.kind} over {' '.join(exchange.axes)} for {exchange.part}"
                share = percent(left, audited.planned_bytes)
                yield f"planned, not compiled: {what}: {size(left)}, {share} of the plan"


def totals(audited: Audited) -> Iterator[str]:
    """Bytes per chip, compiled and planned."""
    pairs = (
        ("received per chip and step", audited.compiled_bytes, audited.planned_bytes),
        ("memory per chip", audited.compiled_memory_bytes, audited.planned_memory_bytes),
    )
    for what, compiled_bytes, planned_bytes in pairs:
        times = f" ({compiled_bytes / planned_bytes:.3f} times)" if planned_bytes else ""
        yield f"{what}: {size(compiled_bytes)}, planned {size(planned_bytes)}{times}"
