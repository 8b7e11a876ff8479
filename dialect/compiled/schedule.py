"""A performance simulator: the time of a compiled TPU program, from its instruction schedule.

    schedule(compiled, Topology.parse("v4:4x4x4"), mesh).time_s

An instruction takes as long as its slowest part: matrix products, HBM traffic, bytes over links.
Asynchronous pairs (all-gather-start and -done, DMA by copy-start and slice-start, collectives split
over fusions) overlap with the instructions between them. Loops run for their trip count, or as
often as their name expects (`dialect.arrays.expected_trips`), and of a conditional the slowest
branch counts. XLA's own estimates (estimated_cycles, optimal_seconds) are not used, since they do
not model links.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dialect.compiled import hlo
from dialect.compiled.clock import Busy, Clock, Spent, Work
from dialect.compiled.exchanges import Exchanged, Places, exchanged
from dialect.compiled.executable import Memory, read
from dialect.compiled.hlo import Instruction, Module, module_of
from dialect.compiled.products import Product, products
from dialect.compiled.traffic import async_part, traffic
from dialect.machine.chips import Chip
from dialect.machine.mesh import Topology


@dataclass(frozen=True)
class Delivered:
    """The fitted constants: the fraction of its data sheet that a chip delivers.

    - compute, hbm, link: fractions of the peak of the matrix unit, of HBM, of a link one way
    - torus: the links of k axes together have the bandwidth of k**torus axes
    - hop_s: seconds of one step of a collective, independent of bytes
    """

    compute: float
    hbm: float
    link: float
    torus: float
    hop_s: float


# Fitted to latencies of PaLM 62B and 540B on v4 in arXiv:2211.05102: hbm, link and torus first;
# compute and hop_s to 47 points of Tables 2, 3 and D.2 and Figures 1, 6, 7 and 8, comparing each
# with the schedule of our program for the same layout (benchmarks/schedule.py: median error 6 %),
# then rounded. A latency per hop fits better than one per collective. The paper's programs overlap
# some collectives with products and ours do not: hence the high fraction of compute. No such
# measurements are public for other chips: they are assumed to deliver the same fractions.
DELIVERED = Delivered(compute=0.95, hbm=0.90, link=0.93, torus=0.4, hop_s=3e-6)


@dataclass(frozen=True)
class Event:
    """A scheduled instruction over all its `trips`; an asynchronous pair is its start.

    - hbm_bytes, flops, time_s: over all trips; time_s without overlap
    - exposed_s: the seconds that it adds to the step, after overlap
    - dtype: the dtype that its products multiply ("bf16", "int8"); "" without products
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

    Every second counts once, for its bottleneck: matrix unit, HBM, or exposed links.
    `collective_bytes`: bytes that a chip receives. `layer`: what the units do in one trip of the
    loop that takes longest, or in a program without loops, from its beginning; each is `of` an
    Event, or of further trips of an inner loop, as text.
    """

    compute_s: float
    hbm_s: float
    link_s: float
    hbm_bytes: int
    flops: int
    collective_bytes: int
    events: tuple[Event, ...]
    memory: Memory
    layer: tuple[Busy, ...] = ()

    @property
    def time_s(self) -> float:
        """Seconds of one run."""
        return self.compute_s + self.hbm_s + self.link_s

    def table(self, count: int = 20) -> list[tuple[str, ...]]:
        """(exposed, share, trips, instruction, bytes per trip, source) of the slowest ones."""
        dearest = sorted(self.events, key=lambda event: -event.exposed_s)[:count]
        return [
            (
                f"{event.exposed_s * 1e3:.3f} ms",
                f"{event.exposed_s / (self.time_s or 1):.1%}",
                f"{event.trips:,}",
                _what(event),
                _bytes(event),
                event.source,
            )
            for event in dearest
        ]


def _what(event: Event) -> str:
    kinds = [f"{exchange.kind} over {' '.join(exchange.axes)}" for exchange in event.exchanges]
    return ", ".join([f"{event.opcode} {event.name}", *kinds])


def _bytes(event: Event) -> str:
    received = sum(exchange.received_bytes for exchange in event.exchanges)
    hbm = f"{event.hbm_bytes / event.trips / 1e6:.2f} MB of HBM"
    return f"{received / 1e6:.2f} MB of links, {hbm}" if received else hbm


def schedule(
    compiled: Any, topology: Topology, mesh: Any = None, delivered: Delivered = DELIVERED
) -> Schedule:
    """The schedule of a `jax.stages.Compiled` for a TPU, on `mesh` or the topology's default mesh.

    Raises ValueError if the trip count of a loop is not a constant, or if the replica groups of a
    collective cannot be read.
    """
    walk = _Walk(module_of(compiled), Places(topology, mesh), topology.chip, delivered)
    walk.computation(walk.module.entry, runs=1)
    spent = sum((visit.spent for visit in walk.visited.values()), Spent())
    by_key = {key: visit.event() for key, visit in walk.visited.items()}
    events = tuple(by_key.values())
    return Schedule(
        compute_s=spent.compute_s,
        hbm_s=spent.hbm_s,
        link_s=spent.link_s,
        hbm_bytes=sum(event.hbm_bytes for event in events),
        flops=sum(event.flops for event in events),
        collective_bytes=sum(
            event.trips * exchange.received_bytes
            for event in events
            for exchange in event.exchanges
        ),
        events=events,
        memory=read(compiled).memory,
        layer=tuple(
            replace(busy, of=by_key.get(walk.transfers.get(busy.of, busy.of), busy.of))
            for busy in walk.longest()
        ),
    )


@dataclass(frozen=True)
class _Cost:
    """One trip of an instruction."""

    hbm_bytes: int
    products: tuple[Product, ...]
    exchanges: tuple[Exchanged, ...]
    work: Work


@dataclass
class _Visited:
    """An instruction with the runs and seconds that the walk has counted so far."""

    instruction: Instruction
    cost: _Cost
    trips: float = 0
    spent: Spent = field(default_factory=Spent)

    def event(self) -> Event:
        op, cost = self.instruction, self.cost
        largest = max(cost.products, key=lambda product: product.flops, default=None)
        return Event(
            name=op.name,
            opcode=op.opcode,
            source=op.source,
            trips=max(1, round(self.trips)),
            hbm_bytes=round(self.trips * cost.hbm_bytes),
            flops=round(self.trips * sum(product.flops for product in cost.products)),
            dtype=largest.dtype if largest else "",
            time_s=self.trips * cost.work.time_s,
            exposed_s=self.spent.time_s,
            exchanges=cost.exchanges,
        )


@dataclass
class _Walk:
    """The simulation, in program order."""

    module: Module
    places: Places
    chip: Chip
    delivered: Delivered
    clock: Clock = field(default_factory=Clock)
    visited: dict[tuple[str, str], _Visited] = field(default_factory=dict)
    transfers: dict[Any, tuple[str, str]] = field(default_factory=dict)  # by name: what began it
    walks: dict[str, Sequence[Busy]] = field(default_factory=dict)  # the last one of each
    bodies: set[str] = field(default_factory=set)  # of loops

    def longest(self) -> list[Busy]:
        """The last walk of the body whose own instructions take longest, from 0 s on."""
        spent = dict.fromkeys(self.bodies or {self.module.entry}, 0.0)
        for (inside, _), visit in self.visited.items():
            if inside in spent:
                spent[inside] += visit.spent.time_s
        walk = self.walks[max(sorted(spent), key=lambda name: spent[name])]
        began_s = min((busy.start_s for busy in walk), default=0.0)
        return [replace(busy, start_s=busy.start_s - began_s) for busy in walk]

    def computation(self, name: str, runs: float) -> None:
        """Walks a computation once, for `runs` of its runs."""
        started: dict[str, _Visited] = {}
        already = len(self.clock.log)
        body = self.module.computation(name)
        for op in body.values():
            if op.opcode == "while":
                self.loop(op, body, runs)
            elif op.opcode == "call":
                for callee in hlo.callees(op):
                    self.computation(callee, runs)
            elif op.opcode == "conditional":
                self.dearest(hlo.callees(op), runs)
            else:
                self.instruction(name, body, op, started, runs)
        for begun, visit in started.items():  # what nothing here has waited for
            visit.spent += self.clock.wait(begun).times(runs)
        self.walks[name] = self.clock.log[already:]

    def loop(self, op: Instruction, body: dict[str, Instruction], runs: float) -> None:
        """Walks a loop: its first trip, which may wait for transfers, and one more for the rest."""
        inner, trips = hlo.loop_of(self.module, op, body)
        if trips is None:
            raise ValueError(f"how often {op.name} runs is not known: {op.source}")
        if trips:
            self.bodies.add(inner)
            self.computation(inner, runs * min(trips, 1))
        if trips > 1:
            before_s = self.clock.now_s
            self.computation(inner, runs * (trips - 1))
            self.again(op, self.walks[inner], trips - 2)
            self.clock.repeat(trips - 2, self.clock.now_s - before_s)

    def again(self, op: Instruction, trip: Sequence[Busy], count: float) -> None:
        """Notes what the units do in `count` more trips of a loop, which are not walked."""
        for unit in dict.fromkeys(busy.unit for busy in trip) if count > 0 else ():
            seconds = count * sum(busy.seconds for busy in trip if busy.unit == unit)
            text = f"{op.name}, {count:g} more times"
            self.clock.log.append(Busy(text, unit, self.clock.now_s, seconds))

    def dearest(self, branches: list[str], runs: float) -> None:
        """Walks the slowest branch of a conditional."""
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
        op: Instruction,
        started: dict[str, _Visited],
        runs: float,
    ) -> None:
        """Runs or starts an instruction, or waits for its transfer; `started`: by transfer."""
        part = async_part(self.module, op)
        if op.opcode.endswith("-done") or part == "AsyncCollectiveDone":
            begun = self.transfer(body, op)
            if begun in started:
                started[begun].spent += self.clock.wait(begun).times(runs)
            return
        cost = self.cost(inside, body, op, started)
        if cost is None:
            return
        visit = self.visited.setdefault((inside, op.name), _Visited(op, cost))
        visit.trips += runs
        if op.opcode.endswith("-start") or part == "AsyncCollectiveStart":
            begun = self.transfer(body, op)
            started[begun], self.transfers[begun] = visit, (inside, op.name)
            self.clock.start(begun, cost.work)
        else:
            visit.spent += self.clock.run(cost.work, (inside, op.name)).times(runs)

    def transfer(self, body: dict[str, Instruction], op: Instruction) -> str:
        """The identity of an asynchronous pair: its channel, or the name of its start."""
        if op.opcode == "fusion":
            (collective, *_) = hlo.collectives_of(self.module, body, op)
            return f"channel {collective.channel}"
        while op.opcode.endswith(("-done", "-update")) and op.operands[0] in body:
            op = body[op.operands[0]]
        return op.name

    def cost(
        self,
        inside: str,
        body: dict[str, Instruction],
        op: Instruction,
        started: dict[str, _Visited],
    ) -> _Cost | None:
        """The cost of one trip, or None if it is free. A collective that was started before this
        fusion does not belong to it."""
        if (inside, op.name) in self.visited:
            return self.visited[inside, op.name].cost
        moved = traffic(self.module, body, op).bytes
        multiplied = tuple(products(self.module, body, op))
        sent = tuple(
            exchanged(collective, self.places)
            for collective in hlo.collectives_of(self.module, body, op)
            if op.opcode != "fusion" or f"channel {collective.channel}" not in started
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
                product.passes * product.flops / (delivered.compute * peaks[product.dtype])
                for product in multiplied
            ),
            hbm_s=moved / (delivered.hbm * chip.hbm_bytes_per_s),
            link_s=sum(self.link_s(exchange) for exchange in sent),
            links=tuple({link for exchange in sent for link in exchange.links}),
        )

    def link_s(self, sent: Exchanged) -> float:
        """Seconds of one collective without overlap."""
        worth = self.delivered.link * sent.together**self.delivered.torus
        return sent.ideal_s / worth + sent.hops * self.delivered.hop_s
