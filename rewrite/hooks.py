"""What can be watched while passes run: the IR, the times, and a file that reproduces a crash."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rewrite.manager import Hook, PassReport
from rewrite.passbase import Pass
from rewrite.pipeline import Pipeline
from rewrite.program import Program
from rewrite.target import Target

Write = Callable[[str], None]
_REPRODUCER = "//! "  # a comment to the program's reader


def to_stderr(text: str) -> None:
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
        for each in reports:
            counts = f"{each.ops_before:>8} {each.ops_after:>8}"
            lines.append(f"{each.seconds * 1e3:>10.1f} {counts}  {each.text}")
        total_s = sum(each.seconds for each in reports)
        self.write("\n".join([*lines, f"{total_s * 1e3:>10.1f} {'':>17}  total"]))


@dataclass(frozen=True)
class Reproducer(Hook):
    """Writes the program that a pass failed on, with the passes that were still to run.

    The file is a program text that begins with the pipeline in comments; `reproduced` reads it.
    """

    path: Path
    write: Write = to_stderr

    def failed(self, rest: Sequence[Pass], program: Program, target: Target) -> None:
        try:
            self.save(reproducer(rest, program, target))
        except Exception as error:
            # Nothing may hide the failure of the pass, which is raised right after this.
            self.write(f"no reproducer could be written to {self.path}: {error}")
        else:
            self.write(f"pass {rest[0]} failed; {self.path} reproduces it")

    def save(self, text: str) -> None:
        # Renamed into place, so that the file is there whole or not at all.
        unfinished = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(self.path)
        finally:
            unfinished.unlink(missing_ok=True)


def reproducer(passes: Sequence[Pass], program: Program, target: Target) -> str:
    """A program text that carries the pipeline to run on it."""
    pipeline = Pipeline((("", tuple(passes)),), target.topology, target.mesh)
    header = [_REPRODUCER + line for line in str(pipeline).split("\n")]
    return "\n".join([*header, f"{program}\n"])


def reproduced(text: str) -> tuple[Program, Pipeline]:
    """Reads what `reproducer` wrote. Raises TextError or PipelineError."""
    lines = [line for line in text.split("\n") if line.startswith(_REPRODUCER)]
    pipeline = "\n".join(line.removeprefix(_REPRODUCER) for line in lines)
    return Program.parse(text), Pipeline.parse(pipeline, source="reproducer")
