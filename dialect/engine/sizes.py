"""How large the steps of an engine are, and how many pages it has.

token rows of a step: 2, .., rows / 4, rows, chunk    a closed set, each one executable

Where chips own rows and the pages of these rows, they are groups: the first has the first of the
rows of a step, and the first pages.

Rows and chunk that are not given follow from the plan: a step with more rows reads the weights for
more requests, until reading their caches or computing them takes longer than that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from dialect.engine.executables import MOST
from dialect.engine.packing import GROUP
from dialect.engine.step_seconds import Seconds
from dialect.engine.token_rows import FEWEST
from dialect.serving.policy import Policy, ServingError
from rewrite.errors import nearest

_ROWS, _MOST = 16, 256  # requests that run: at least, and at most
_MORE = 4  # how much more tokens a step has for prompts, at most
_SLOWER = 1.5  # with twice the rows: from then on requests gain little of one another
_WAITS = 2.0  # times as long whoever is answered waits for a step with prompts
_STEP = 4  # between the sizes of steps
_SHARED = ("pages", "rows", "chunk")  # of a policy: what every group has a part of
_ROOMY = 0.9  # of the memory that the parameters leave


@dataclass(frozen=True)
class Sizes:
    """The sizes of an engine, all of them tokens but rows (requests that run), pages, and the most
    steps of several sizes."""

    context: int
    page: int
    rows: int
    chunk: int
    pages: int
    steps: int = MOST - 1
    why: str = ""  # rows and chunk are these
    parts: int = 1  # into which rows and pages can be divided
    groups: int = 1  # into which they are

    @staticmethod
    def of(
        page: int,
        room: Callable[[int], float],
        seconds: Callable[[], Seconds | None],
        context: int,
        rows: int | None = None,
        chunk: int | None = None,
        pages: int | None = None,
        steps: int = MOST - 1,
        parts: int = 1,
    ) -> Sizes:
        """Those that were asked for, the others as they fit; `context` is that of whole pages,
        `room(context)` says how many tokens have room in memory, `seconds()` what a step of some
        rows takes, if that is known. Raises ServingError.
        """
        planned = None if rows and chunk else seconds()
        rows = max(FEWEST, rows or (_rows(planned) if planned else _ROWS))
        chunk = chunk or (_chunk(planned, rows) if planned else _MORE * rows)
        rows, chunk = (-(-size // parts) * parts for size in (rows, max(rows, chunk)))
        most = rows * context // page
        pages = pages or min(most, int(_ROOMY * room(context) / page))
        pages = pages // parts * parts
        why = _told(planned, rows, chunk) if planned else ""
        return Sizes(context, page, rows, chunk, pages, steps, why, parts).in_groups(1)

    def in_groups(self, count: int) -> Sizes:
        """With so many groups. Raises ServingError where one has no room for the context."""
        if self.pages // count * self.page < self.context:
            whose = f"{self.pages // count} pages of {self.page} tokens"
            raise ServingError(
                f"{whose} are too few for a request of {self.context}",
                hint="a smaller max_context, more max_pages, or more chips",
            )
        return replace(self, groups=count)

    @property
    def first_pages(self) -> list[int]:
        """The first page of every group."""
        return [self.pages // self.groups * group for group in range(self.groups)]

    @property
    def token_rows(self) -> list[int]:
        """The token rows of all steps, the largest first."""
        sizes = [self.chunk, self.rows] if self.chunk > self.rows else [self.rows]
        fewest = max(FEWEST, self.parts)
        while sizes[-1] > fewest and len(sizes) < self.steps:
            sizes.append(max(fewest, sizes[-1] // _STEP // self.parts * self.parts))
        return sizes

    @property
    def together(self) -> tuple[int, int]:
        """The rows of the largest step whose prompts are in groups: rows that are alone, and those
        in groups of `GROUP`, one more than a single prompt fills."""
        return self.rows, GROUP * (1 - (self.rows - self.chunk) // GROUP)

    def policy(self, chosen: Mapping[str, Any], **decided: Any) -> Policy:
        """How requests are scheduled, as chosen by a user and decided otherwise. Raises
        ServingError for what cannot be chosen."""
        decided |= {name: getattr(self, name) // self.groups for name in _SHARED}
        decided |= {"page": self.page, "groups": self.groups}
        known = {field.name for field in fields(Policy)} - {*decided}
        for name in chosen:
            if name not in known:
                raise ServingError(f"an engine has no option {name!r}", hint=nearest(name, known))
        return Policy(**decided, **chosen)


def _rows(seconds: Seconds) -> int:
    """Requests that run at a time."""
    rows = _ROWS
    while rows < _MOST and seconds(2 * rows) < _SLOWER * seconds(rows):
        rows *= 2
    return rows


def _chunk(seconds: Seconds, rows: int) -> int:
    """Tokens of a step in which prompts are computed beside so many that are answered."""
    chunk = rows
    while chunk < _MORE * rows and seconds(2 * chunk) <= _WAITS * seconds(rows):
        chunk *= 2
    return chunk


def _told(seconds: Seconds, rows: int, chunk: int) -> str:
    shown = (f"{1e3 * seconds(size):.3g}" for size in (rows, 2 * rows, chunk))
    return "by the plan steps of {}, {} and {} tokens take {}, {} and {} ms".format(
        rows, 2 * rows, chunk, *shown
    )


def whole_pages(page: int, context: int, **asked: int | None) -> int:
    """The tokens of the pages that hold a context. Raises ServingError where a size is none."""
    for name, value in {"max_context": context, **asked}.items():
        if value is not None and value < 1:
            name = "max_pages" if name == "pages" else name
            raise ServingError(f"{name} is {value}, and must be at least 1")
    return -(-context // page) * page
