"""What can be chosen of how requests are scheduled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dialect.serving.drafts import paying
from dialect.serving.requests import Request
from dialect.serving.shapes import Priced, Shape, rows_alone, rows_of
from rewrite.errors import ShardwrightError, nearest

# Whose pages are taken first, of the running requests of the lowest priority: the least.
# Arguments: when the request joined, as a place among the running; the request.
VICTIMS: dict[str, Callable[[int, Request], int]] = {
    "last": lambda place, request: -place,  # last in, first out
    "cheapest": lambda place, request: request.scheduled,  # the fewest tokens to compute again
    "largest": lambda place, request: -len(request.table),  # frees the most
}


class ServingError(ShardwrightError):
    """Something cannot be served as it was asked for."""


def nothing(request: Request) -> int:
    """Reserves no more than a request has."""
    return 0


@dataclass(frozen=True)
class Policy:
    """How requests are scheduled. Raises ServingError for what cannot work.

    - page: tokens of a page; pages, rows: of every group
    - groups: groups of chips with pages of their own, as the batch is split in attention
    - chunk: the most tokens of one step and group, those that decode included
    - steps: the shapes of the steps that a group can have, the largest last, and their seconds
      (0 where they are not known); by default one of `chunk` rows
    - shares: whether requests that begin alike share pages
    - victim: whose pages are taken where there are too few (`VICTIMS`)
    - patience: seconds after which a request goes before all that came later
    - spare: the part of the pages that is left for running requests to grow into
    - most_waiting: requests beyond these are refused, not kept
    - reserved: tokens that pages are set aside for when a request joins
    - drafts: the most drafts of a request that a step verifies; draft_s: see
      `dialect.serving.drafts.paying`
    """

    pages: int
    page: int = 128
    rows: int = 256
    groups: int = 1
    chunk: int = 512
    shares: bool = True
    victim: str = "last"
    patience: float = 30.0
    spare: float = 0.01
    most_waiting: int = 1_000_000
    reserved: Callable[[Request], int] = nothing
    drafts: int = 0
    steps: Priced = ()
    draft_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("pages", "page", "rows", "groups"):
            if getattr(self, name) < 1:
                raise ServingError(f"{name} is {getattr(self, name)}, and must be at least 1")
        if (most := rows_of(self.largest)) < self.rows:
            raise ServingError(f"{self.rows} rows cannot decode in steps of {most} tokens")
        if self.victim not in VICTIMS:
            raise ServingError(
                f"no victim policy {self.victim!r}", hint=nearest(self.victim, VICTIMS)
            )

    def loses(self, running: Sequence[Request]) -> Request:
        """The one of several requests whose pages are taken: never the oldest."""
        prefers, oldest = VICTIMS[self.victim], min(request.number for request in running)
        victims = [
            (request.priority, prefers(place, request), -place, request)
            for place, request in enumerate(running)
            if request.number != oldest
        ]
        return min(victims)[-1]

    def paying(
        self, decoding: int, prompts: Sequence[int], requests: Sequence[Request]
    ) -> dict[int, int]:
        """How many drafts of some requests to verify, by their places, in a step in which so many
        decode and the tokens of prompts are computed."""
        offers = [  # plain tuples: a class is called for each
            (min(self.drafts, r.limit - r.length - 1), r.drafts.chance, r.length - len(r.tokens))
            for r in requests
        ]
        steps = self.steps or ((self.largest, 0.0),)
        return paying(decoding, prompts, offers, steps, self.draft_s)

    @property
    def largest(self) -> Shape:
        """The shape of the largest step."""
        return self.steps[-1][0] if self.steps else rows_alone(self.chunk)

    @property
    def most_tokens(self) -> int:
        """The longest request that can be served: one with all pages of a group."""
        return self.pages * self.page
