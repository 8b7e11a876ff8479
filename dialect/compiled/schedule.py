"""How long a compiled TPU program takes: its schedule walked, instruction by instruction.

    schedule(compiled, Topology.parse("v4:4x4x4"), mesh).time_s

An instruction takes as long as the slowest of its parts: matrix products, HBM traffic, bytes over
links. What comes in two halves (all-gather-start and -done, DMA by copy-start and slice-start,
collectives that run beside fusions) begins with the first, and the second waits for it. Loops
run as often as they say, of a conditional the dearest branch. What the compiler itself says of
times (estimated_cycles, optimal_seconds) is not used: it knows no links.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dialect.compiled import hlo
from dialect.compiled.clock import Clock, Spent, Work
from dialect.compiled.exchanges import Exchanged, Places, exchanged
from dialect.compiled.executable import Memory, read
from dialect.compiled.hlo import Instruction, Module
from dialect.compiled.products import Product, products
from dialect.compiled.traffic import async_part, traffic
from dialect.machine.chips import Chip
from dialect.machine.mesh import Topology


@dataclass(frozen=True)
class Delivered:
    """How much of its data sheet a chip delivers: all that is fitted rather than looked up.

    - compute, hbm, link: fractions of the matrix unit's peak, of HBM's, of a link's one way
    - torus: links of k axes together are worth k**torus of one axis
    - hop_s: a step of a collective from chip to chip, however few bytes it carries
    """

    compute: float
    hbm: float
    link: float
    torus: float
    hop_s: float


# hbm, link and torus were measured beforehand, on latencies of PaLM on v4 in arXiv:2211.05102;
# compute and hop_s are fitted to 47 of these, of PaLM 62B and 540B in Tables 2, 3 and D.2 and
# Figures 1, 6, 7 and 8, each against the schedule of our own program for that layout
# (benchmarks/schedule.py: median error 6 %), then rounded. A latency in proportion to the way fits
# better than one for each collective. The paper's programs ran part of their collectives beside
# their products, ours do not: hence the high fraction of compute. No such measurements are public
# for the other chips: they are assumed to deliver the same part of their data sheets.
DELIVERED = Delivered(compute=0.95, hbm=0.90, link=0.93, torus=0.4, hop_s=3e-6)


@dataclass(frozen=True)
class Event:
    """An instruction of the schedule, in all its `trips`; of two halves the first.

    - hbm_bytes, flops, time_s: of all trips together; time_s as though it ran alone
    - exposed_s: what it adds to the step, that is what nothing else hides
    - dtype: what its products multiply ("bf16", "int8"), empty where it has none
    - exchanges: the collectives of one trip
    """

    name: str
    opcode: str
    source: str
    trips: int
    hbm_bytes: int
    flops: int
    dtype: str
    time_s: float
    exposed_s: float
    exchanges: tuple[Exchanged, ...]


@dataclass(frozen=True)
class Schedule:
    """One run of an executable on one chip. time_s = compute_s + hbm_s + link_s.

    Each second counts once, as what the chip was waiting for: its matrix unit, its HBM, or links
    that nothing else hides. `collective_bytes`: what a chip receives.
    """

    compute_s: float
    hbm_s: float
    link_s: float
    hbm_bytes: int
    flops: int
    collective_bytes: int
    events: tuple[Event, ...]
    memory: Memory

    @property
    def time_s(self) -> float:
        return self.compute_s + self.hbm_s + self.link_s

    def table(self, count: int = 20) -> list[tuple[str, ...]]:
        """(exposed, share, trips, what, bytes a trip, source) of the dearest instructions."""
        dearest = sorted(self.events, key=lambda each: -each.exposed_s)[:count]
        return [
            (
                f"{each.exposed_s * 1e3:.3f} ms",
                f"{each.exposed_s / (self.time_s or 1):.1%}",
                f"{each.trips:,}",
                _what(each),
                _bytes(each),
                each.source,
            )
            for each in dearest
        ]


def _what(event: Event) -> str:
    kinds = [f"{each.kind} over {' '.join(each.axes)}" for each in event.exchanges]
    return ", ".join([f"{event.opcode} {event.name}", *kinds])


def _bytes(event: Event) -> str:
    received = sum(each.received_bytes for each in event.exchanges)
    hbm = f"{event.hbm_bytes / event.trips / 1e6:.2f} MB of HBM"
    return f"{received / 1e6:.2f} MB of links, {hbm}" if received else hbm


def schedule(
    compiled: Any, topology: Topology, mesh: Any = None, delivered: Delivered = DELIVERED
) -> Schedule:
    """Reads a `jax.stages.Compiled` for a TPU. Without its mesh, the topology's own is assumed.

    Raises ValueError where a loop's number of trips is not a constant of the program, or where
    the chips that take part in a collective cannot be read.
    """
    walk = _Walk(Module(compiled.as_text()), Places(topology, mesh), topology.chip, delivered)
    walk.computation(walk.module.entry, runs=1)
    spent = sum((each.spent for each in walk.met.values()), Spent())
    events = tuple(each.event() for each in walk.met.values())
    return Schedule(
        compute_s=spent.compute_s,
        hbm_s=spent.hbm_s,
        link_s=spent.link_s,
        hbm_bytes=sum(each.hbm_bytes for each in events),
        flops=sum(each.flops for each in events),
        collective_bytes=sum(
            each.trips * one.received_bytes for each in events for one in each.exchanges
        ),
        events=events,
        memory=read(compiled).memory,
    )


@dataclass(frozen=True)
class _Cost:
    """One trip of an instruction."""

    hbm_bytes: int
    products: tuple[Product, ...]
    exchanges: tuple[Exchanged, ...]
    work: Work


@dataclass
class _Met:
    """An instruction, and how often the walk has met it."""

    instruction: Instruction
    cost: _Cost
    trips: int = 0
    spent: Spent = field(default_factory=Spent)

    def event(self) -> Event:
        each, cost = self.instruction, self.cost
        largest = max(cost.products, key=lambda one: one.flops, default=None)
        return Event(
            name=each.name,
            opcode=each.opcode,
            source=each.source,
            trips=self.trips,
            hbm_bytes=self.trips * cost.hbm_bytes,
            flops=self.trips * sum(one.flops for one in cost.products),
            dtype=largest.dtype if largest else "",
            time_s=self.trips * cost.work.time_s,
            exposed_s=self.spent.time_s,
            exchanges=cost.exchanges,
        )


@dataclass
class _Walk:
    """In program order, over everything that runs as a schedule."""

    module: Module
    places: Places
    chip: Chip
    delivered: Delivered
    clock: Clock = field(default_factory=Clock)
    met: dict[tuple[str, str], _Met] = field(default_factory=dict)

    def computation(self, name: str, runs: int) -> None:
        """Walks a computation once, for `runs` of its runs."""
        started: dict[str, _Met] = {}
        body = self.module.computation(name)
        for each in body.values():
            if each.opcode == "while":
                self.loop(each, body, runs)
            elif each.opcode == "call":
                for callee in hlo.callees(each):
                    self.computation(callee, runs)
            elif each.opcode == "conditional":
                self.dearest(hlo.callees(each), runs)
            else:
                self.instruction(name, body, each, started, runs)
        for begun, met in started.items():  # what nothing here has waited for
            met.spent += self.clock.wait(begun).times(runs)

    def loop(self, each: Instruction, body: dict[str, Instruction], runs: int) -> None:
        """Its first trip may have something to wait for; the others are alike."""
        inner, trips = hlo.loop_of(self.module, each, body)
        if trips is None:
            raise ValueError(f"how often {each.name} runs is not known: {each.source}")
        if trips:
            self.computation(inner, runs)
        if trips > 1:
            before_s = self.clock.now_s
            self.computation(inner, runs * (trips - 1))
            self.clock.repeat(trips - 2, self.clock.now_s - before_s)

    def dearest(self, branches: list[str], runs: int) -> None:
        """Walks the branch of a conditional that takes longest."""
        ends = []
        for branch in branches:
            trial = _Walk(self.module, self.places, self.chip, self.delivered, self.clock.copy())
            trial.computation(branch, runs)
            ends.append((trial.clock.now_s, branch))
        if ends:
            self.computation(max(ends)[1], runs)

    def instruction(
        self,
        inside: str,
        body: dict[str, Instruction],
        each: Instruction,
        started: dict[str, _Met],
        runs: int,
    ) -> None:
        """Runs it, starts it, or waits for what it ends; `started` by the names of transfers."""
        part = async_part(self.module, each)
        if each.opcode.endswith("-done") or part == "AsyncCollectiveDone":
            begun = self.transfer(body, each)
            if begun in started:
                started[begun].spent += self.clock.wait(begun).times(runs)
            return
        cost = self.cost(inside, body, each, started)
        if cost is None:
            return
        met = self.met.setdefault((inside, each.name), _Met(each, cost))
        met.trips += runs
        if each.opcode.endswith("-start") or part == "AsyncCollectiveStart":
            begun = self.transfer(body, each)
            started[begun] = met
            self.clock.start(begun, cost.work)
        else:
            met.spent += self.clock.run(cost.work).times(runs)

    def transfer(self, body: dict[str, Instruction], each: Instruction) -> str:
        """What the two halves of a transfer have in common: a channel, or the first one's name."""
        if each.opcode == "fusion":
            (found, *_) = hlo.collectives_of(self.module, body, each)
            return f"channel {found.channel}"
        while each.opcode.endswith(("-done", "-update")) and each.operands[0] in body:
            each = body[each.operands[0]]
        return each.name

    def cost(
        self,
        inside: str,
        body: dict[str, Instruction],
        each: Instruction,
        started: dict[str, _Met],
    ) -> _Cost | None:
        """What one trip costs, nothing where it is free. A collective that was started before
        and runs beside this instruction is not one of its own."""
        if (inside, each.name) in self.met:
            return self.met[inside, each.name].cost
        moved = traffic(self.module, body, each).bytes
        multiplied = tuple(products(self.module, body, each))
        sent = tuple(
            exchanged(found, self.places)
            for found in hlo.collectives_of(self.module, body, each)
            if each.opcode != "fusion" or f"channel {found.channel}" not in started
        )
        if not (moved or multiplied or sent):
            return None
        return _Cost(moved, multiplied, sent, self.work(moved, multiplied, sent))

    def work(
        self, moved: int, multiplied: tuple[Product, ...], sent: tuple[Exchanged, ...]
    ) -> Work:
        chip, delivered = self.chip, self.delivered
        peaks = {"bf16": chip.bf16_flops_per_s, "int8": chip.int8_flops_per_s}
        return Work(
            compute_s=sum(
                each.passes * each.flops / (delivered.compute * peaks[each.dtype])
                for each in multiplied
            ),
            hbm_s=moved / (delivered.hbm * chip.hbm_bytes_per_s),
            link_s=sum(self.link_s(each) for each in sent),
            links=tuple({link for each in sent for link in each.links}),
        )

    def link_s(self, sent: Exchanged) -> float:
        """One collective by itself."""
        worth = self.delivered.link * sent.together**self.delivered.torus
        return sent.ideal_s / worth + sent.hops * self.delivered.hop_s
