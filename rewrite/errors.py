"""What the user reads when something is wrong: what, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ShardwrightError(Exception):
    """Every error that Shardwright raises on purpose.

    `message` says what was wrong, `where` names the user's own source line (or a line of a
    pipeline file), and `hint` says what to do about it.
    """

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        self.message, self.where, self.hint = message, where, hint
        super().__init__(message)

    def __str__(self) -> str:
        lines = [self.message]
        lines += [f"  at: {self.where}"] if self.where else []
        lines += [f"  try: {self.hint}"] if self.hint else []
        return "\n".join(lines)


class TraceError(ShardwrightError):
    """The function could not be traced, or does something that cannot be rewritten safely."""


class InvalidProgram(ShardwrightError):
    """The verifier found a program that breaks the rules of the IR."""


class TextError(ShardwrightError):
    """A program, plan, rule or pipeline text could not be read."""


class PipelineError(ShardwrightError):
    """A pipeline names a pass, option or target that does not exist."""


class PlanError(ShardwrightError):
    """No layout satisfies the mesh, or the one asked for does not."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint with the known words closest to `word`, or the first of them where none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return "known: " + ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")


def caret(line: str, column: int, width: int = 1) -> str:
    """`line` with a caret under `column` (counted from 1)."""
    return f"    {line}\n    {' ' * (column - 1)}{'^' * max(1, width)}"
