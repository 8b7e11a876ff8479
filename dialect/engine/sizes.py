"""How large the steps of an engine are, and how many pages it has.

shapes of steps: .., rows / 16, rows / 4, rows, chunk    a closed set, each one executable

Where reading pages counts, the largest step has rows that are alone and groups for prompts, and
where drafts are verified there is one with a group for every request.

Where chips own rows and the pages of these rows, they are groups: the first has the first of the
rows of a step, and the first pages.

Rows and chunk that are not given follow from the plan: a step with more rows reads the weights for
more requests, until reading their caches or computing them takes longer than that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from dialect.engine.executables import MOST_STEPS
from dialect.serving.drafts import WAITS_S
from dialect.serving.policy import Policy, ServingError
from dialect.serving.shapes import Shape, part_of, rows_alone, rows_of, told
from dialect.simulated.step_seconds import Seconds
from dialect.token_rows.decoder import FEWEST
from rewrite.errors import nearest

_ROWS, _MOST = 16, 256  # requests that run: at least, and at most
_MORE = 4  # how much more tokens a step has for prompts, at most
_SLOWER = 1.5  # with twice the rows: from then on requests gain little of one another
_WAITS = 2.0  # times as long whoever is answered waits for a step with prompts
_STEP = 4  # between the sizes of steps
_TOGETHER = 16  # tokens of a prompt that read its pages together
_DRAFTS = (0, 1, 3, 7)  # of a request that are verified together
_STAND = (
    0.8  # of the drafts, where the plan is asked how many to verify (benchmarks/speculation.py)
)
_SHARED = ("pages", "rows", "chunk")  # of a policy: what every group has a part of
_DECIDED = {*_SHARED, "page", "groups", "steps", "drafts", "draft_s"}  # by the engine
_ROOMY = 0.9  # of the memory that the parameters leave


@dataclass(frozen=True)
class Sizes:
    """The sizes of an engine, all of them tokens but rows (requests that run), pages, and the most
    shapes of steps.

    together: whether tokens of one request read its pages together; drafts: that are verified of
    every request at once, then; guesses: whether there are drafts at all
    """

    context: int
    page: int
    rows: int
    chunk: int
    pages: int
    steps: int = MOST_STEPS
    why: str = ""  # rows and chunk are these
    parts: int = 1  # into which rows and pages can be divided
    groups: int = 1  # into which they are
    together: bool = False
    drafts: int = 0
    guesses: bool = False

    @staticmethod
    def of(
        page: int,
        room: Callable[[int], float],
        seconds: Callable[[], Seconds | None],
        context: int,
        rows: int | None = None,
        chunk: int | None = None,
        pages: int | None = None,
        steps: int = MOST_STEPS,
        parts: int = 1,
        together: bool = False,
        drafts: int | None = 0,
    ) -> Sizes:
        """Those that were asked for, the others as they fit; `context` is that of whole pages,
        `room(rows)` says how many tokens have room in memory, `seconds()` what steps take, if that
        is known. Raises ServingError.
        """
        guesses = drafts != 0
        planned = None if rows and chunk and drafts is not None else seconds()
        rows = max(FEWEST, rows or (_rows(planned) if planned else _ROWS))
        chunk = chunk or (_chunk(planned, rows, together) if planned else _MORE * rows)
        if drafts is None:
            drafts = _drafts(planned, rows) if planned else _DRAFTS[2]
        rows, chunk = (-(-size // parts) * parts for size in (rows, max(rows, chunk)))
        pages = pages or min(rows * context // page, int(_ROOMY * room(rows) / page))
        pages = pages // parts * parts
        how = {"parts": parts, "together": together, "drafts": drafts, "guesses": guesses}
        sizes = Sizes(context, page, rows, chunk, pages, steps, **how)
        why = _why(planned, rows, sizes.shapes) if planned else ""
        return replace(sizes, why=why).in_groups(1)

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
    def choices(self) -> int:
        """Tokens that a step chooses at most: of every request one, and one behind every draft."""
        return max(map(rows_of, self.shapes)) if self.guesses else self.rows

    @property
    def shapes(self) -> list[Shape]:
        """The shapes of all steps: rows that are alone, a group for every request, and the largest,
        whose prompts are in groups."""
        with_prompts = [_with_prompts(self.rows, self.chunk, self.together)]
        with_prompts *= self.chunk > self.rows
        verified = [((self.rows, 1 + self.drafts),)] if self.together and self.drafts else []
        sizes, fewest = [self.rows], max(FEWEST, self.parts)
        while len([*sizes, *verified, *with_prompts]) < self.steps:
            if (fewer := sizes[0] // _STEP // self.parts * self.parts) < fewest:
                break
            sizes.insert(0, fewer)
        return [*map(rows_alone, sizes), *verified, *with_prompts]

    def policy(self, chosen: Mapping[str, Any], seconds: Sequence[float], **decided: Any) -> Policy:
        """How requests are scheduled, as chosen by a user and decided otherwise; seconds: of the
        steps of `shapes`, if they are known."""
        shapes = [part_of(shape, self.groups) for shape in self.shapes]
        steps = zip(shapes, seconds or [0.0] * len(shapes), strict=True)
        decided |= {name: getattr(self, name) // self.groups for name in _SHARED}
        decided |= {"page": self.page, "groups": self.groups, "steps": tuple(steps)}
        return Policy(**decided, **chosen)


def must_be_options(chosen: Mapping[str, Any]) -> None:
    """Raises ServingError for what cannot be chosen of an engine's policy, before it is built."""
    known = {field.name for field in fields(Policy)} - _DECIDED
    for name in chosen:
        if name not in known:
            raise ServingError(f"an engine has no option {name!r}", hint=nearest(name, known))
    Policy(pages=1, **chosen)


def _with_prompts(rows: int, chunk: int, together: bool) -> Shape:
    """The step of so many tokens, of which those beyond the rows are of prompts."""
    if not together or chunk - rows < _TOGETHER:
        return rows_alone(chunk)
    return ((rows, 1), (-((rows - chunk) // _TOGETHER), _TOGETHER))


def _rows(seconds: Seconds) -> int:
    """Requests that run at a time."""
    rows = _ROWS
    while rows < _MOST and seconds(2 * rows) < _SLOWER * seconds(rows):
        rows *= 2
    return rows


def _chunk(seconds: Seconds, rows: int, together: bool) -> int:
    """Tokens of a step in which prompts are computed beside so many that are answered."""
    chunk, most_s = rows, _WAITS * seconds(rows)
    while chunk < _MORE * rows:
        if seconds(rows, _with_prompts(rows, 2 * chunk, together)) > most_s:
            break
        chunk *= 2
    return chunk


def _drafts(seconds: Seconds, rows: int) -> int:
    """Drafts of each of so many requests with which the most tokens are computed in a second."""

    def tokens_per_s(drafts: int) -> float:
        tokens = (1 - _STAND ** (drafts + 1)) / (1 - _STAND)
        return tokens / (seconds(rows, ((rows, 1 + drafts),)) + WAITS_S * (drafts > 0))

    return max(_DRAFTS, key=tokens_per_s)


def _why(seconds: Seconds, rows: int, shapes: Sequence[Shape]) -> str:
    steps = [rows_alone(2 * rows), *shapes[shapes.index(rows_alone(rows)) :]]
    taken = ", ".join(f"{told(step)} rows {1e3 * seconds(rows, step):.3g} ms" for step in steps)
    return f"by the plan of {rows} rows: a step of {taken}"


def whole_pages(page: int, context: int, **asked: int | None) -> int:
    """The tokens of the pages that hold a context. Raises ServingError where a size is none."""
    for name, value in {"max_context": context, **asked}.items():
        if value is not None and value < 1:
            name = "max_pages" if name == "pages" else name
            raise ServingError(f"{name} is {value}, and must be at least 1")
    return -(-context // page) * page
