"""The pass manager: runs passes in order, checks and times each, and tells whoever listens."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from rewrite.errors import ShardwrightError
from rewrite.passbase import Pass
from rewrite.program import KEEPS, Program
from rewrite.target import Target


class PassError(ShardwrightError):
    """A pass broke: it raised something unforeseen, or returned what is no program."""


@dataclass(frozen=True)
class PassReport:
    """What one pass did: its canonical text, its time in seconds, the ops of the step, its notes.

    `keeps` is the weakest promise among the steps that the pass added to the history.
    """

    text: str
    seconds: float
    ops_before: int
    ops_after: int
    notes: tuple[str, ...]
    keeps: str


class Hook:
    """Listens to a run. Each method does nothing until a subclass says otherwise."""

    def before(self, step: Pass, program: Program) -> None:
        """Called with the program that `step` is about to get."""

    def after(self, step: Pass, program: Program, report: PassReport) -> None:
        """Called with the verified program that `step` gave. If it raises, `step` failed."""

    def failed(
        self, rest: Sequence[Pass], program: Program, target: Target, error: Exception
    ) -> None:
        """Called when `rest[0]` failed on `program` with `error`, before that is raised."""

    def finished(self, reports: Sequence[PassReport]) -> None:
        """Called once, after the last pass."""


def run(
    program: Program, passes: Sequence[Pass], target: Target, hooks: Sequence[Hook] = ()
) -> tuple[Program, tuple[PassReport, ...]]:
    """`program` after all passes, verified after each, and a report per pass.

    Raises InvalidProgram with the pass that broke the program, PassError where a pass broke
    itself, and whatever ShardwrightError a pass raises on purpose.
    """
    program.verify(blame="before the first pass")
    reports: list[PassReport] = []
    for number, step in enumerate(passes):
        for hook in hooks:
            hook.before(step, program)
        try:
            result, report = _apply(step, program, target)
            for hook in hooks:
                hook.after(step, result, report)
        except ShardwrightError as error:
            for hook in hooks:
                hook.failed(passes[number:], program, target, error)
            raise
        program = result
        reports.append(report)
    for hook in hooks:
        hook.finished(reports)
    return program, tuple(reports)


def _apply(step: Pass, program: Program, target: Target) -> tuple[Program, PassReport]:
    started = time.perf_counter()
    try:
        result = step.run(program, target)
    except ShardwrightError:
        raise
    except Exception as error:
        raise _broken(step, error) from error
    seconds = time.perf_counter() - started
    if not isinstance(result, Program):
        raise PassError(f"pass {step} returned a {type(result).__name__}, not a Program")
    result = _in_history(step, program, result)
    result.verify(blame=f"pass {step}")
    added = result.history[len(program.history) :]
    report = PassReport(
        text=str(step),
        seconds=seconds,
        ops_before=program.graph.op_count,
        ops_after=result.graph.op_count,
        notes=tuple(note for entry in added for note in entry.notes),
        keeps=max((entry.keeps for entry in added), key=KEEPS.index),
    )
    return result, report


def _in_history(step: Pass, program: Program, result: Program) -> Program:
    """`result` with the pass in its history, where the pass itself did not see to that."""
    known = len(program.history)
    if result.history[:known] != program.history:
        raise PassError(f"pass {step} changed the history of the passes before it")
    added = [entry.text for entry in result.history[known:]]
    return result if str(step) in added else step.recorded(result)


def _broken(step: Pass, error: Exception) -> PassError:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return PassError(
        f"pass {step} failed with {type(error).__name__}: {error}",
        where=f"{frame.filename}:{frame.lineno}",
        hint="the program it got was valid, so this is a mistake in the pass: report it with the "
        "file that --crash-reproducer writes",
    )
