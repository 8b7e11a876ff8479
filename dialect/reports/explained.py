"""A hook that keeps the results of `recognize` and `quantize` for reports."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from dialect.display.tables import Table
from dialect.reports.coverage import coverage
from dialect.reports.coverage_text import coverage_tables
from dialect.reports.moved_bytes import moved_by_line, moved_table
from dialect.reports.provenance import provenance, provenance_tables
from dialect.reports.quant_report import packed, packed_table
from rewrite.manager import Hook, PassReport
from rewrite.passbase import Pass
from rewrite.program import Program
from rewrite.rules import Rule

RECOGNIZE, QUANTIZE = "recognize", "quantize"


class Explained(Hook):
    """Keeps the first program, and those after `recognize` and after `quantize`, which later passes
    change; of every pass its text, and the ops before and after it.

    Reports are computed on request.
    """

    program: Program | None = None
    rules: tuple[Rule, ...] = ()
    quantized: Program | None = None
    original: Program | None = None

    def __init__(self) -> None:
        self.ops: list[tuple[str, int, int]] = []

    def before(self, step: Pass, program: Program) -> None:
        """Keeps what the first pass gets."""
        self.original = self.original or program

    def after(self, step: Pass, program: Program, report: PassReport) -> None:
        """Keeps the program after either pass."""
        self.ops.append((report.text, report.ops_before, report.ops_after))
        if step.pass_name() == RECOGNIZE:
            self.program, self.rules = program, step.rewrites
        if step.pass_name() == QUANTIZE:
            self.quantized = program

    def tables(self) -> list[Table]:
        """Coverage and axes, if the pipeline has `recognize`; bytes, if it has `quantize`."""
        tables = [packed_table(packed(self.quantized))] if self.quantized else []
        if self.program is None:
            return tables
        report = coverage(self.program, self.rules)
        return [*tables, *coverage_tables(report), *provenance_tables(provenance(self.program))]

    def moved(self, executable: Any, mesh: Any) -> list[Table]:
        """What of the traffic of the compiled program was not recognised; of one for a TPU."""
        if self.program is None or mesh.devices.flat[0].platform != "tpu":
            return []
        return [moved_table(coverage(self.program, self.rules), moved_by_line(executable))]

    def facts(self) -> dict[str, Any] | None:
        """The same as data for JSON; None without `recognize`."""
        if self.program is None:
            return None
        report = coverage(self.program, self.rules)
        facts = asdict(report) | {
            name: [asdict(entry) for entry in getattr(report, name)]
            for name in ("recognised", "unrecognised", "near_misses")
        }
        return {
            "coverage": facts | {"cost": asdict(report.cost)},
            "axes": asdict(provenance(self.program)),
        }
