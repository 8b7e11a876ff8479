"""What was asked for and is not so: said first, and an error where `strict` is asked for."""

from __future__ import annotations

from collections.abc import Iterable

from rewrite.errors import ShardwrightError
from rewrite.program import NOT_DONE, NOTHING_DONE, Program


class NotDone(ShardwrightError):
    """Something that was asked for did not happen, or was compiled in another way than planned."""


def not_done(program: Program) -> list[str]:
    """What passes were asked for and did not do, as it is said first."""
    return [f"not done: {text}" for text in program.remarks_of(NOT_DONE, NOTHING_DONE)]


def must_have_begun(program: Program) -> None:
    """Raises NotDone for a pass that was named and found nothing to do."""
    lines = program.remarks_of(NOTHING_DONE)
    if lines:
        raise NotDone("\n  ".join(lines), hint="leave the pass out, or see `shardwright coverage`")


def must_be_empty(complaints: Iterable[str]) -> None:
    """Raises NotDone with all of them."""
    lines = list(complaints)
    if lines:
        message = "\n  ".join(["not all that was asked for was done:", *lines])
        raise NotDone(message, hint="without strict these are only said, before all else")
