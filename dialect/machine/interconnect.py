"""What joins the chips under a mesh axis: rings of links, switches, and networks.

    size          how many chips it joins
    bytes_per_s   what a chip sends over one link, one way
    links         over how many links a chip receives at once
    hops          steps of a collective, one after the other; of a permute to the next chip
    hop_s         how long a step takes, however few bytes it moves
    all_to_all    bytes on a chip's links per byte that it holds, in an all-to-all
    part(size)    what joins `size` of the chips

A mesh axis that takes several physical axes lies on several of these; `dialect.machine.collectives`
costs what is exchanged over them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Ring:
    """A run of neighbouring chips along one physical axis; `closed` where it wraps around."""

    size: int
    closed: bool
    bytes_per_s: float
    hop_s: float

    @property
    def links(self) -> int:
        """Both neighbours send; the end of an open run has but one, and must wait for it."""
        return 2 if self.closed else 1

    @property
    def hops(self) -> int:
        return self.size - 1

    @property
    def hops_to_next(self) -> int:
        """What the last chip of an open run sends to the first goes all the way back."""
        return 1 if self.closed else self.size - 1

    @property
    def all_to_all(self) -> float:
        """A message passes a quarter of a ring on its way, over each of two links."""
        return self.size / 4

    def part(self, size: int) -> Ring:
        return replace(self, size=size, closed=self.closed and size == self.size)


@dataclass(frozen=True)
class Switch:
    """Chips of which each reaches every other at once."""

    size: int
    bytes_per_s: float
    hop_s: float

    links = 1
    hops = 1
    hops_to_next = 1

    @property
    def all_to_all(self) -> float:
        return (self.size - 1) / self.size

    def part(self, size: int) -> Switch:
        return replace(self, size=size)


@dataclass(frozen=True)
class Network(Switch):
    """The data-centre network between slices: each chip sends by its share of it."""


Links = Ring | Switch | Network
