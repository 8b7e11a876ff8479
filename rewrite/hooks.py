"""What can be watched while passes run: the IR and the times."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rewrite.manager import Hook, PassReport
from rewrite.passbase import Pass
from rewrite.program import Program

Write = Callable[[str], None]


def to_stderr(text: str) -> None:
    """Where text goes unless another place is named."""
    print(text, file=sys.stderr)


@dataclass(frozen=True)
class PrintAfterAll(Hook):
    """Prints the program after every pass."""

    write: Write = to_stderr

    def after(self, step: Pass, program: Program, report: PassReport) -> None:
        self.write(f"// after {step}\n{program}")


@dataclass(frozen=True)
class PrintBefore(Hook):
    """Prints the program that the pass of this name gets, each time it runs."""

    name: str
    write: Write = to_stderr

    def before(self, step: Pass, program: Program) -> None:
        if step.pass_name() == self.name:
            self.write(f"// before {step}\n{program}")


@dataclass(frozen=True)
class TimePasses(Hook):
    """Prints one line per pass at the end: time in milliseconds, ops before and after, text."""

    write: Write = to_stderr

    def finished(self, reports: Sequence[PassReport]) -> None:
        lines = [f"{'ms':>10} {'ops':>8} {'->':>8}  pass"]
        for report in reports:
            counts = f"{report.ops_before:>8} {report.ops_after:>8}"
            lines.append(f"{report.seconds * 1e3:>10.1f} {counts}  {report.text}")
        total_s = sum(report.seconds for report in reports)
        self.write("\n".join([*lines, f"{total_s * 1e3:>10.1f} {'':>17}  total"]))
