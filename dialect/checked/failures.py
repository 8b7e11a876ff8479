"""A failure run again, and compared with other failures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dialect.checked.bisect import NumbersError, VerifyNumbers
from dialect.checked.reduced import Watch, reduced
from dialect.checked.reproducer import Failure, first_line
from dialect.compiled.compiling import Compilable, compiled
from rewrite import manager
from rewrite.errors import ShardwrightError
from rewrite.passbase import Pass
from rewrite.program import Program
from rewrite.target import Target


@dataclass(frozen=True)
class Rerun:
    """Runs a failure again, on the machine that its pipeline names."""

    failure: Failure
    mesh: Any
    target: Target

    def error(self) -> Exception | None:
        """The error that it ends in; None if it no longer fails."""
        return self.error_of(self.failure.program, self.failure.pipeline.passes(), blame=True)

    def reduced(self, seconds: float, watch: Watch) -> Failure:
        """A smaller program and fewer passes that end in the same error."""
        expected = _kind_of(self.error())

        def fails(program: Program, passes: tuple[Pass, ...]) -> bool:
            error = self.error_of(program, passes)
            return error is not None and _kind_of(error) == expected

        passes = self.failure.pipeline.passes()
        program, passes = reduced(self.failure.program, passes, fails, seconds, watch)
        pipeline = replace(self.failure.pipeline, phases=(("", passes),))
        error = first_line(self.error_of(program, passes, blame=True))
        return replace(self.failure, program=program, pipeline=pipeline, error=error)

    def error_of(
        self, program: Program, passes: Sequence[Pass], blame: bool = False
    ) -> Exception | None:
        """The error of these passes on a program; None if they run."""
        kind, seed = self.failure.kind, self.failure.seed
        hooks = [VerifyNumbers(self.target, seed, blame)] if kind == "numbers" else []
        try:
            lowered, _ = manager.run(program, passes, self.target, hooks)
            if kind == "compilation":
                compiled(Compilable(lowered, self.mesh))
        except Exception as error:  # a failure may be of any kind
            return error
        return None


def _kind_of(error: Exception) -> tuple[str, ...]:
    """What makes two errors the same: the pass, and the words without their numbers."""
    if isinstance(error, NumbersError):
        return "numbers", error.departure.step.pass_name()
    line = first_line(error)
    if isinstance(error, manager.PassError):
        cause = error.__cause__
        step = re.match(r"PassError: pass (\w+)", line)
        return "pass", step[1] if step else "", type(cause).__name__
    words = re.sub(r"%\S+|\[[^\]]*\]|\d+", "", line)
    return (type(error).__name__, words if isinstance(error, ShardwrightError) else "")
