"""A request: its tokens, how far they are computed, and how it ended."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from dataclasses import InitVar, dataclass, field

from dialect.serving.drafts import Drafts


@dataclass(eq=False, slots=True)
class Request:
    """A prompt to be continued by at most `most_new` tokens, or up to a token of `stop`.

    - priority: higher goes first; user: whose share of the service it counts against
    - deadline: the second by which it must have ended; arrived: the second of its arrival

    - drafts: its guesses of what comes next; None for none

    What the scheduler keeps:

    - tokens: those known, prompt first; length: those that queued steps are sure to give, too
    - asked: those of the prompt; limit: the most that it can come to have
    - scheduled: positions whose keys and values queued steps have written, of drafts too
    - cached: tokens that were in the cache when it first ran (-1 before)
    - table: the page of every `Pages.size` positions; shared: how many of the first of them are in
      the tree
    - first_token_at, ended_at: seconds; ended: why ("" while it has not)
    """

    prompt: InitVar[Iterable[int]]
    # What every step looks at lies side by side.
    tokens: array[int] = field(init=False)
    asked: int = field(init=False)
    limit: int = field(init=False)
    length: int = field(init=False)
    scheduled: int = field(init=False, default=0)
    table: list[int] = field(init=False, default_factory=list)
    ended: str = field(init=False, default="")

    most_new: int
    stop: frozenset[int] = frozenset()
    priority: int = 0
    user: str = ""
    deadline: float = math.inf
    arrived: float = 0.0
    drafts: Drafts | None = None

    number: int = -1
    group: int = 0
    cached: int = -1
    shared: int = 0
    first_token_at: float = math.nan
    ended_at: float = math.nan

    def __post_init__(self, prompt: Iterable[int]) -> None:
        self.tokens = array("i", prompt)
        self.asked = self.length = len(self.tokens)
        self.limit = self.asked + self.most_new

    @property
    def unknown(self) -> int:
        """Tokens that queued steps have still to answer."""
        return self.length - len(self.tokens)

    @property
    def prompt_bytes(self) -> bytes:
        """The prompt, to sort by: requests that begin alike stand side by side."""
        return self.tokens[: self.asked].tobytes()

    @property
    def answer(self) -> array[int]:
        """The new tokens that are known."""
        return self.tokens[self.asked :]
