"""A clock for one chip whose matrix unit, HBM and links work in parallel.

An asynchronous transfer overlaps with the instructions after its start until one waits for it.
Transfers over the same link are serialised. HBM serves the running instruction first, and uses its
spare time for started transfers, in the order of their starts.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Spent:
    """Seconds of the step by the bottleneck; every second is counted once."""

    compute_s: float = 0.0
    hbm_s: float = 0.0
    link_s: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.compute_s + other.compute_s, self.hbm_s + other.hbm_s, self.link_s + other.link_s
        )

    def times(self, count: float) -> Spent:
        """The same, `count` times."""
        return Spent(self.compute_s * count, self.hbm_s * count, self.link_s * count)

    @property
    def time_s(self) -> float:
        """Seconds in total."""
        return self.compute_s + self.hbm_s + self.link_s


@dataclass(frozen=True)
class Work:
    """Seconds that an instruction needs of every unit of the chip; `links`: the links it uses."""

    compute_s: float = 0.0
    hbm_s: float = 0.0
    link_s: float = 0.0
    links: tuple[Hashable, ...] = ()

    @property
    def time_s(self) -> float:
        """Seconds without any other work on the chip."""
        return max(self.compute_s, self.hbm_s, self.link_s)


@dataclass(frozen=True)
class Busy:
    """A unit of the chip ("compute", "HBM" or "links") that works from `start_s` for `seconds`.

    of: the instruction, or the name of the transfer, that it works for.
    """

    of: Hashable
    unit: str
    start_s: float
    seconds: float


@dataclass
class Clock:
    """The current time, when links become free, when transfers arrive, pending HBM time, and a log
    of what was done when."""

    now_s: float = 0.0
    links_free_s: dict[Hashable, float] = field(default_factory=dict)
    arrives_s: dict[str, float] = field(default_factory=dict)
    moving: list[tuple[str, float]] = field(default_factory=list)
    log: list[Busy] = field(default_factory=list)

    def copy(self) -> Clock:
        """An independent clock with the same state, and an empty log."""
        links, arrives = dict(self.links_free_s), dict(self.arrives_s)
        return Clock(self.now_s, links, arrives, list(self.moving))

    def run(self, work: Work, of: Hashable = "") -> Spent:
        """Runs an instruction until its slowest unit is done."""
        local_s = max(work.compute_s, work.hbm_s)
        self._note(of, "compute", self.now_s, work.compute_s)
        self._note(of, "HBM", self.now_s, work.hbm_s)
        link_s = self._over_links(work, of) - self.now_s
        self._pass(max(local_s, link_s), work.hbm_s)
        exposed_s = max(0.0, link_s - local_s)
        if work.compute_s >= work.hbm_s:
            return Spent(compute_s=local_s, link_s=exposed_s)
        return Spent(hbm_s=local_s, link_s=exposed_s)

    def start(self, name: str, work: Work) -> None:
        """Starts an asynchronous transfer."""
        self.arrives_s[name] = self._over_links(work, name)
        self.moving.append((name, work.hbm_s))

    def wait(self, name: str) -> Spent:
        """Waits for a transfer to end; returns at once for one that was never started."""
        if name not in self.arrives_s:
            return Spent()
        link_s = max(0.0, self.arrives_s.pop(name) - self.now_s)
        before = [other for other, _ in self.moving].index(name) + 1
        hbm_s = sum(left_s for _, left_s in self.moving[:before])
        self._pass(max(link_s, hbm_s), 0.0)
        return Spent(link_s=link_s) if link_s > hbm_s else Spent(hbm_s=hbm_s)

    def repeat(self, count: float, once_s: float) -> None:
        """Advances the time by `count` more runs of `once_s`."""
        self.now_s += count * once_s

    def _over_links(self, work: Work, of: Hashable) -> float:
        """Reserves the links, and returns the time at which the transfer is done."""
        if not work.link_s:
            return self.now_s
        ends_s = max([self.now_s, *self._free(work.links)]) + work.link_s
        self.links_free_s |= dict.fromkeys(work.links, ends_s)
        self._note(of, "links", ends_s - work.link_s, work.link_s)
        return ends_s

    def _note(self, of: Hashable, unit: str, start_s: float, seconds: float) -> None:
        if seconds > 0:
            self.log.append(Busy(of, unit, start_s, seconds))

    def _free(self, links: Iterable[Hashable]) -> list[float]:
        return [self.links_free_s.get(link, 0.0) for link in links]

    def _pass(self, seconds: float, busy_s: float) -> None:
        """Advances the time; HBM is busy for `busy_s`, and serves started transfers in the rest."""
        self.now_s += seconds
        spare_s = seconds - busy_s
        for number, (name, left_s) in enumerate(self.moving):
            moved_s = min(left_s, spare_s)
            self._note(name, "HBM", self.now_s - spare_s, moved_s)
            self.moving[number] = (name, left_s - moved_s)
            spare_s -= moved_s
        self.moving = [transfer for transfer in self.moving if transfer[0] in self.arrives_s]
