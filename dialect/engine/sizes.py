"""How large the steps of an engine are, and how many pages it has.

token rows of a step: 2, .., rows / 4, rows, chunk    a closed set, each one executable
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from dialect.engine.executables import MOST
from dialect.engine.token_rows import FEWEST
from dialect.serving.policy import Policy, ServingError
from rewrite.errors import nearest

_ROWS, _MORE = 16, 4  # requests that run; how much more tokens a step has for prompts
_STEP = 4  # between the sizes of steps
_DECIDED = ("pages", "page", "rows", "chunk")  # of a policy
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

    @staticmethod
    def of(
        page: int,
        room: Callable[[int], float],
        context: int,
        rows: int | None = None,
        chunk: int | None = None,
        pages: int | None = None,
        steps: int = MOST - 1,
    ) -> Sizes:
        """Those that were asked for, the others as they fit; `room(context)` says how many tokens
        have room in memory. Raises ServingError.
        """
        asked = {"max_context": context, "rows": rows, "chunk": chunk, "max_pages": pages}
        for name, value in asked.items():
            if value is not None and value < 1:
                raise ServingError(f"{name} is {value}, and must be at least 1")
        context = -(-context // page) * page
        rows = max(FEWEST, rows or _ROWS)
        most = rows * context // page
        pages = pages or min(most, int(_ROOMY * room(context) / page))
        if pages * page < context:
            raise ServingError(
                f"{pages} pages of {page} tokens are too few for a request of {context}",
                hint="a smaller max_context, more max_pages, or more chips",
            )
        return Sizes(context, page, rows, max(rows, chunk or _MORE * rows), pages, steps)

    @property
    def token_rows(self) -> list[int]:
        """The token rows of all steps, the largest first."""
        sizes = [self.chunk, self.rows] if self.chunk > self.rows else [self.rows]
        while sizes[-1] > FEWEST and len(sizes) < self.steps:
            sizes.append(max(FEWEST, sizes[-1] // _STEP))
        return sizes

    def policy(self, chosen: Mapping[str, Any], **decided: Any) -> Policy:
        """How requests are scheduled, as chosen by a user and decided otherwise. Raises
        ServingError for what cannot be chosen."""
        decided |= {name: getattr(self, name) for name in _DECIDED}
        known = {field.name for field in fields(Policy)} - {*decided}
        for name in chosen:
            if name not in known:
                raise ServingError(f"an engine has no option {name!r}", hint=nearest(name, known))
        return Policy(**decided, **chosen)
