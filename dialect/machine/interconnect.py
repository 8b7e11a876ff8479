"""The physical links of a mesh axis: rings, switches, and networks.

    size          number of chips
    bytes_per_s   bandwidth of one link, in one direction
    links         number of links over which a chip receives at once
    hops          sequential steps of a collective
    hops_to_next  sequential steps of a collective-permute to the next chip
    hop_s         seconds of a step, independent of bytes
    all_to_all    bytes over a chip's links per byte of local data, in an all-to-all
    part(size)    the links of `size` of the chips

A mesh axis over several physical axes has several of these. `dialect.machine.collectives` computes
the cost of collectives over them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Ring:
    """Neighbouring chips along one physical axis; `closed` if the axis wraps around."""

    size: int
    closed: bool
    bytes_per_s: float
    hop_s: float

    @property
    def links(self) -> int:
        """2 if both neighbours send; the ends of an open axis have one neighbour, and limit it."""
        return 2 if self.closed else 1

    @property
    def hops(self) -> int:
        """Steps until data from every chip has reached every other."""
        return self.size - 1

    @property
    def hops_to_next(self) -> int:
        """1, or all steps back to the first chip on an open axis."""
        return 1 if self.closed else self.size - 1

    @property
    def all_to_all(self) -> float:
        """A message passes a quarter of the ring on average, over either of two links."""
        return self.size / 4

    def part(self, size: int) -> Ring:
        """The links of `size` neighbouring chips: open, unless it is the full ring."""
        return replace(self, size=size, closed=self.closed and size == self.size)


@dataclass(frozen=True)
class Switch:
    """Chips that are all connected to one switch."""

    size: int
    bytes_per_s: float
    hop_s: float

    links = 1
    hops = 1
    hops_to_next = 1

    @property
    def all_to_all(self) -> float:
        """All local data but a chip's shard."""
        return (self.size - 1) / self.size

    def part(self, size: int) -> Switch:
        """The same switch with `size` chips."""
        return replace(self, size=size)


@dataclass(frozen=True)
class Network(Switch):
    """The data-centre network between slices, with a chip's share of its bandwidth."""


Links = Ring | Switch | Network
