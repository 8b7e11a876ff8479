"""What runs in one step: rows of tokens, each against its own pages."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import NamedTuple

from dialect.serving.requests import Request


class Row(NamedTuple):
    """`count` tokens of a request from position `start` on, computed in one step.

    answers: whether the last of them is the last of the request, so that the next is sampled.
    drafts: the last of them, if guessed: behind them, and before, tokens are sampled too.
    """

    request: Request
    start: int
    count: int
    answers: bool
    drafts: Sequence[int] = ()

    @classmethod
    def next(cls, decoding: Sequence[Request], drafts: Mapping[int, Sequence[int]]) -> list[Row]:
        """The tokens of requests that decode, and behind some of them, by their places, drafts;
        all count as scheduled."""
        columns = decoding, [request.scheduled for request in decoding]
        constant = repeat(1), repeat(True), repeat(())
        rows = list(map(tuple.__new__, repeat(cls), zip(*columns, *constant)))  # faster than `cls`
        for request in decoding:
            request.scheduled = request.length
            request.length += 1
        for at, guesses in drafts.items():
            request, start, *_ = rows[at]
            rows[at] = cls(request, start, 1 + len(guesses), True, guesses)
            request.scheduled += len(guesses)
        return rows

    @property
    def length(self) -> int:
        """Positions that the row reads: all before it, and its own."""
        return self.start + self.count

    @property
    def tokens(self) -> array[int]:
        """Its tokens; none for a token that a queued step has still to answer."""
        known = self.request.tokens[self.start : self.length - len(self.drafts)]
        return known + array("i", self.drafts)

    @property
    def table(self) -> list[int]:
        """The page of every `Pages.size` positions; read it before the next step is scheduled."""
        return self.request.table

    def taken(self, sampled: Sequence[int]) -> Sequence[int]:
        """The tokens that the request gets, of those sampled before and behind its drafts: up to
        the first that is not its draft, and none behind a token of `stop`.

        What follows a draft that was not sampled was computed for another text. As a draft is
        certain and every position has noise of its own, this is the algorithm 1 of Leviathan et
        al. 2023: a draft x stands with probability p(x), and where it does not, the token is drawn
        from the others. The tokens are those that the request gets without drafts.
        """
        if not self.drafts:
            return sampled
        stop = self.request.stop
        pairs = enumerate(zip(sampled, self.drafts), 1)
        ends = (at for at, (token, draft) in pairs if token != draft or token in stop)
        return sampled[: next(ends, len(sampled))]


@dataclass
class Step:
    """The rows of a step, those of every group one after the other.

    copies: (group, page, its copy), done first; no copy reads what another writes. All rows are
    written before any is read.
    """

    rows: list[Row] = field(default_factory=list)
    copies: list[tuple[int, int, int]] = field(default_factory=list)
