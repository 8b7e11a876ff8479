"""A load, served in several ways on several meshes, and a table of how that went."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dialect.display.quantities import percent
from dialect.display.tables import Table
from dialect.machine.mesh import Topology
from dialect.planning.decoder_shape import DecoderShape
from dialect.serving.policy import Policy
from dialect.simulated.arrivals import Arrival
from dialect.simulated.figures import Figures
from dialect.simulated.methods import METHODS
from dialect.simulated.placement import Placement, Typical


@dataclass(frozen=True)
class Load:
    """Requests, and how they are called in a table. rate: requests a second; inf: all at once."""

    name: str
    rate: float
    arrivals: Sequence[Arrival]


@dataclass(frozen=True)
class Run:
    """One load, served in one way.

    owner: of the pages, where it was asked for; room: tokens that they hold; rows, chunk: requests
    and tokens of a step; page: tokens of one, 0 for batches and slots.
    """

    load: str
    rate: float
    mesh: str
    plan: str
    owner: str
    groups: int
    room: int
    rows: int
    chunk: int
    page: int
    method: str
    figures: Figures


@dataclass(frozen=True)
class Comparison:
    """All combinations of its fields.

    - owners: what owns the pages: "heads", "batch", or "" for what is better
    - longest: tokens of the longest request that static batches and slots have room for
    - rows, chunk, room: instead of what follows from the plan
    - drafts: the most of a request that a step verifies, where its arrival says how likely they are
    """

    shape: DecoderShape
    loads: Sequence[Load]
    topologies: Sequence[Topology]
    owners: Sequence[str] = ("",)
    methods: Sequence[str] = tuple(METHODS)
    pages: Sequence[int] = (128,)
    longest: int = 8192
    rows: int | None = None
    chunk: int | None = None
    room: int | None = None
    drafts: int = 16
    victim: str = "last"
    shares: bool = True

    def __len__(self) -> int:
        return len(list(self._varied()))

    def _varied(self) -> Iterator[tuple[Load, Topology, str, str, int]]:
        """Of static batches and slots, which have no pages, only one of every kind."""
        for load, topology, owner, method in itertools.product(
            self.loads, self.topologies, self.owners, self.methods
        ):
            for page in self.pages if method == "pages" else (0,):
                yield load, topology, owner, method, page

    def _typical(self, load: Load, method: str) -> Typical:
        prompt, new = means(load.arrivals)
        held = prompt + new / 2 if method == "pages" else self.longest
        return Typical(prompt, new, held, self.longest, load.rate)

    def runs(self) -> Iterator[Run]:
        """One after the other, since each may take a minute. Raises ServingError."""
        for load, topology, owner, method, page in self._varied():
            typical = self._typical(load, method)
            placed = Placement.best(self.shape, topology, typical, self.rows, self.chunk, owner)
            room = (self.room or placed.tokens) // placed.groups
            size = page or 1
            policy = Policy(
                pages=room // size,
                page=size,
                rows=-(-placed.rows // placed.groups),
                groups=placed.groups,
                chunk=-(-placed.chunk // placed.groups),
                shares=self.shares,
                victim=self.victim,
                drafts=self.drafts if any(arrival.guessed for arrival in load.arrivals) else 0,
                steps=placed.steps(typical),
            )
            figures = METHODS[method](policy, load.arrivals, placed.seconds, self.longest)
            yield Run(
                load=load.name,
                rate=load.rate,
                mesh=str(topology),
                plan=placed.partitioning.label,
                owner=owner,
                groups=placed.groups,
                room=room * placed.groups,
                rows=placed.rows,
                chunk=placed.chunk,
                page=page,
                method=method,
                figures=figures,
            )


_COLUMNS = (
    *("mesh", "batching", ">page", "plan", ">groups", ">room", ">requests/s", ">new tokens/s"),
    *(">", ">batch", ">first token, s", ">ms per token", ">pages used", ">hits", ">preempted"),
    ">refused",
)


def tables(runs: Sequence[Run]) -> list[Table]:
    """One table for every load and rate. Times are those of 50, 90 and 99 % of the requests; room
    is in tokens."""
    tables_of_runs = []
    for (load, rate), group in itertools.groupby(runs, key=lambda run: (run.load, run.rate)):
        rows = list(group)
        first = rows[0].figures.new_per_s
        title = f"{load}, {_rate(rate)}"
        tables_of_runs.append(Table(title, _COLUMNS, tuple(_row(run, first) for run in rows)))
    return tables_of_runs


def _rate(rate: float) -> str:
    return "all at once" if rate == float("inf") else f"{rate:.3g} requests/s"


def _row(run: Run, first_per_s: float) -> tuple[str, ...]:
    figures = run.figures
    return (
        run.mesh,
        run.method,
        str(run.page or ""),
        run.plan,
        str(run.groups),
        str(run.room),
        f"{figures.requests / figures.seconds:.3g}" if figures.seconds else "",
        f"{figures.new_per_s:.0f}",
        f"{figures.new_per_s / first_per_s:.2f}x" if first_per_s else "",
        f"{figures.batch:.1f}",
        " ".join(f"{value:.3g}" for value in figures.first_token_s),
        " ".join(f"{value * 1e3:.3g}" for value in figures.per_token_s),
        percent(figures.used, 1),
        percent(figures.hit_rate, 1),
        str(figures.preemptions),
        str(figures.refused),
    )


def facts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The runs as data for JSON; `rate` is null where all come at once."""
    return [asdict(run) | {"rate": None if run.rate == float("inf") else run.rate} for run in runs]


def described(arrivals: Sequence[Arrival], name: str) -> str:
    """A load in words: `conv.csv: 4000 requests, on average 1056 tokens in and 178 out`."""
    prompt, new = means(arrivals)
    return f"{name}: {len(arrivals)} requests, on average {prompt:.0f} tokens in and {new:.0f} out"


def means(arrivals: Sequence[Arrival]) -> tuple[float, float]:
    """Tokens of a prompt and of an answer, on average."""
    count = len(arrivals)
    return sum(arrival.length for arrival in arrivals) / count, sum(
        arrival.new for arrival in arrivals
    ) / count
