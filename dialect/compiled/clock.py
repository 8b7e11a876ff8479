"""Time on one chip whose matrix unit, HBM and links work side by side.

What is started runs beside what comes after it until somebody waits for it. Transfers over the
same links go one after the other. HBM serves the instruction that runs first, and with the time
that leaves moves what was started, in the order of the starts.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Spent:
    """Seconds of the step, each counted once, by what the chip was waiting for."""

    compute_s: float = 0.0
    hbm_s: float = 0.0
    link_s: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.compute_s + other.compute_s, self.hbm_s + other.hbm_s, self.link_s + other.link_s
        )

    def times(self, count: int) -> Spent:
        return Spent(self.compute_s * count, self.hbm_s * count, self.link_s * count)

    @property
    def time_s(self) -> float:
        return self.compute_s + self.hbm_s + self.link_s


@dataclass(frozen=True)
class Work:
    """Seconds that each part of the chip needs by itself; `links`: those it takes, by any name."""

    compute_s: float = 0.0
    hbm_s: float = 0.0
    link_s: float = 0.0
    links: tuple[Hashable, ...] = ()

    @property
    def time_s(self) -> float:
        """Alone on the chip."""
        return max(self.compute_s, self.hbm_s, self.link_s)


@dataclass
class Clock:
    """The time, when links are free, when transfers arrive, and what HBM has yet to move."""

    now_s: float = 0.0
    links_free_s: dict[Hashable, float] = field(default_factory=dict)
    arrives_s: dict[str, float] = field(default_factory=dict)
    moving: list[tuple[str, float]] = field(default_factory=list)

    def copy(self) -> Clock:
        links, arrives = dict(self.links_free_s), dict(self.arrives_s)
        return Clock(self.now_s, links, arrives, list(self.moving))

    def run(self, work: Work) -> Spent:
        """Does some work, all its parts at once, and returns when the slowest is done."""
        own_s = max(work.compute_s, work.hbm_s)
        link_s = self._over_links(work) - self.now_s
        self._pass(max(own_s, link_s), work.hbm_s)
        exposed_s = max(0.0, link_s - own_s)
        if work.compute_s >= work.hbm_s:
            return Spent(compute_s=own_s, link_s=exposed_s)
        return Spent(hbm_s=own_s, link_s=exposed_s)

    def start(self, name: str, work: Work) -> None:
        """Begins a transfer beside whatever follows."""
        self.arrives_s[name] = self._over_links(work)
        self.moving.append((name, work.hbm_s))

    def wait(self, name: str) -> Spent:
        """Until a transfer has ended; nothing for one that was never started."""
        if name not in self.arrives_s:
            return Spent()
        link_s = max(0.0, self.arrives_s.pop(name) - self.now_s)
        before = [each for each, _ in self.moving].index(name) + 1
        hbm_s = sum(left_s for _, left_s in self.moving[:before])
        self._pass(max(link_s, hbm_s), 0.0)
        return Spent(link_s=link_s) if link_s > hbm_s else Spent(hbm_s=hbm_s)

    def repeat(self, count: int, each_s: float) -> None:
        """As much again as has just been done, `count` times."""
        self.now_s += count * each_s

    def _over_links(self, work: Work) -> float:
        """When its part over links is done; they are taken until then."""
        if not work.link_s:
            return self.now_s
        ends_s = max([self.now_s, *self._free(work.links)]) + work.link_s
        self.links_free_s |= dict.fromkeys(work.links, ends_s)
        return ends_s

    def _free(self, links: Iterable[Hashable]) -> list[float]:
        return [self.links_free_s.get(link, 0.0) for link in links]

    def _pass(self, seconds: float, busy_s: float) -> None:
        """Lets time pass, in which HBM is busy for some, and moves what was started in the rest."""
        self.now_s += seconds
        spare_s = seconds - busy_s
        for number, (name, left_s) in enumerate(self.moving):
            moved_s = min(left_s, spare_s)
            self.moving[number] = (name, left_s - moved_s)
            spare_s -= moved_s
        self.moving = [each for each in self.moving if each[0] in self.arrives_s]
