"""What runs in one step: rows of tokens, each against its own pages."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import NamedTuple

from dialect.serving.requests import Request


class Row(NamedTuple):
    """`count` tokens of a request from position `start` on, computed in one step.

    answers: whether the last of them is the last of the request, so that the next is sampled.
    """

    request: Request
    start: int
    count: int
    answers: bool

    @property
    def length(self) -> int:
        """Positions that the row reads: all before it, and its own."""
        return self.start + self.count

    @property
    def tokens(self) -> array[int]:
        """Its tokens; none for a token that a queued step has still to answer."""
        return self.request.tokens[self.start : self.length]

    @property
    def table(self) -> list[int]:
        """The page of every `Pages.size` positions; read it before the next step is scheduled."""
        return self.request.table


@dataclass
class Step:
    """The rows of a step, those of every group one after the other.

    copies: (group, page, its copy), done first; no copy reads what another writes. All rows are
    written before any is read.
    """

    rows: list[Row] = field(default_factory=list)
    copies: list[tuple[int, int, int]] = field(default_factory=list)

    def demand(self, groups: int = 1) -> Demand:
        """What the step asks of the machine, where every group waits for the slowest."""
        tokens, positions, pairs = ([0] * groups for _ in range(3))
        answers = 0
        for request, start, count, answering in self.rows:
            group, length = request.group, start + count
            tokens[group] += count
            positions[group] += length
            pairs[group] += count * length
            answers += answering
        most = [groups * max(counts) for counts in (tokens, positions, pairs)]
        return Demand(len(self.rows), most[0], answers, most[1], most[2])


@dataclass(frozen=True)
class Demand:
    """What a step asks of the machine.

    - rows: of the step; tokens: that it computes; answers: that it samples
    - positions: of the cache that its rows read
    - pairs: of a query and a key
    """

    rows: int
    tokens: int
    answers: int
    positions: int
    pairs: int
