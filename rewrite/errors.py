"""What the user reads when something is wrong: what, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_WORD, _KNOWN = 120, 2000  # characters of a word that is compared, and with how many others
_LINES = 6  # of a message that is cut short


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
        return "\n".join(lines).encode(errors="backslashreplace").decode()  # half characters too


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
    # Comparing long words takes quadratic time, and nobody mistypes them.
    known = sorted(name for name in known if 0 < len(name) <= _WORD)[:_KNOWN]
    close = difflib.get_close_matches(word[:_WORD], known, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return "known: " + ", ".join(known[:20]) + ", ..." * (len(known) > 20) if known else ""


def cause(error: Exception) -> str:
    """What an error says, whoever raised it, in short."""
    message = error.message if isinstance(error, ShardwrightError) else str(error)
    return brief(message or type(error).__name__)


def brief(text: str, most: int = 400) -> str:
    """`text` where it is short, else the beginning of it: nobody reads a screenful."""
    cut = "\n".join(text[: most + 1].split("\n")[:_LINES])
    return text if cut == text else f"{cut[: most - 4].rstrip()} ..."


def in_quotes(text: str) -> str:
    """A text of the user's in quotes, in brief: what cannot be printed is longer in quotes."""
    return brief(repr(text))
