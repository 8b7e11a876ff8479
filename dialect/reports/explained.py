"""What `recognize` found in a program, and what `quantize` did, kept for whoever asks."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from dialect.display.tables import Table
from dialect.reports.coverage import coverage
from dialect.reports.coverage_text import coverage_tables
from dialect.reports.provenance import provenance, provenance_tables
from dialect.reports.quant_report import packed, packed_table
from rewrite.manager import Hook, PassReport
from rewrite.passbase import Pass
from rewrite.program import Program
from rewrite.rules import Rule

RECOGNIZE, QUANTIZE = "recognize", "quantize"


class Explained(Hook):
    """Listens for the program as `recognize` leaves it, and as `quantize` does: later passes take
    its pieces apart.

    Nothing is worked out before it is asked for.
    """

    program: Program | None = None
    rules: tuple[Rule, ...] = ()
    quantized: Program | None = None

    def after(self, step: Pass, program: Program, report: PassReport) -> None:
        if step.pass_name() == RECOGNIZE:
            self.program, self.rules = program, step.rewrites
        if step.pass_name() == QUANTIZE:
            self.quantized = program

    def tables(self) -> list[Table]:
        """Coverage and axes, where the pipeline recognizes; bytes, where it quantizes."""
        made = [packed_table(packed(self.quantized))] if self.quantized else []
        if self.program is None:
            return made
        found = coverage(self.program, self.rules)
        return [*made, *coverage_tables(found), *provenance_tables(provenance(self.program))]

    def facts(self) -> dict[str, Any] | None:
        """The same for machines."""
        if self.program is None:
            return None
        found = coverage(self.program, self.rules)
        told = asdict(found) | {
            name: [asdict(each) for each in getattr(found, name)]
            for name in ("recognised", "unrecognised", "near_misses")
        }
        return {
            "coverage": told | {"cost": asdict(found.cost)},
            "axes": asdict(provenance(self.program)),
        }
