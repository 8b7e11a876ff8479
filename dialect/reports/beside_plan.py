"""The plan beside the program that was compiled: memory, HBM traffic, collectives.

What the plan says is a model of the compiler. Where the two are more than `TOLERANCE` apart, a
difference names what in the compiled program it comes from. Differences below `NOTABLE_BYTES` are
not told: a small program is all padding and code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dialect.compiled.compiling import bytes_per_chip
from dialect.compiled.executable import read
from dialect.compiled.hlo import module_of, scheduled
from dialect.compiled.schedule import Event, schedule
from dialect.compiled.traffic import made_bytes
from dialect.display.quantities import size
from dialect.display.tables import Table
from dialect.machine.mesh import Topology
from dialect.planning.plan import Plan
from dialect.reports.audit import compared, compiled_collectives
from dialect.reports.collective_text import shown, user_lines
from rewrite.program import Program

TOLERANCE = 0.1
NOTABLE_BYTES = 1 << 20
_NO_ARRAY = frozenset("parameter get-tuple-element bitcast tuple while constant".split())


@dataclass(frozen=True)
class Beside:
    """Planned and compiled bytes of a chip: of memory, or per step. cause: what makes the compiled
    program differ, "" if nothing is known of it."""

    what: str
    planned: float
    compiled: float
    cause: str = ""

    @property
    def differs(self) -> bool:
        """Whether they are so far apart that it is told."""
        apart = abs(self.compiled - self.planned)
        return apart > max(TOLERANCE * self.compiled, NOTABLE_BYTES)

    def __str__(self) -> str:
        times = f" ({self.compiled / self.planned:.2f} times)" if self.planned else ""
        text = f"{self.what}: compiled {size(self.compiled)}, planned {size(self.planned)}{times}"
        return f"{text}: {self.cause}" if self.cause else text


def beside_plan(program: Program, executable: Any, mesh: Any) -> list[Beside]:
    """A lowered program's plan and its `jax.stages.Compiled`; [] without a plan that predicts."""
    plan = program.plan
    if plan is None or plan.predicted is None or not plan.target:
        return []
    topology = Topology.parse(plan.target)
    rows = [_memory(program, plan, executable), _received(program, plan, executable, mesh)]
    if topology.chip.platform == "tpu":
        rows += _traffic(plan, executable, topology, mesh)
    return rows


def differences(rows: list[Beside]) -> list[str]:
    """What is told first: the figures that are far apart."""
    return [f"not as planned: {row}" for row in rows if row.differs]


def plan_table(rows: list[Beside]) -> Table:
    """All figures, planned and compiled."""
    columns = ("per chip", ">planned", ">compiled", ">compiled / planned")
    cells = (
        (
            row.what,
            size(row.planned),
            size(row.compiled),
            f"{row.compiled / row.planned:.2f}" if row.planned else "-",
        )
        for row in rows
    )
    return Table("the plan beside the compiled program", columns, tuple(cells))


def _memory(program: Program, plan: Plan, executable: Any) -> Beside:
    memory = read(executable).memory
    total = memory.total_bytes - memory.code_bytes
    inputs = sum(bytes_per_chip(input_, dict(plan.mesh)) for input_ in program.step_inputs)
    padding = memory.argument_bytes - inputs
    cause = f"the largest temporary is {_largest_temporary(executable)}"
    if padding > memory.temp_bytes:
        cause = f"{size(padding)} of it are padding of inputs to tiles"
    elif total < plan.predicted.memory_bytes:
        cause = f"{size(inputs)} of it are inputs"
    return Beside("memory", plan.predicted.memory_bytes, total, cause)


def _largest_temporary(executable: Any) -> str:
    """The largest array that an instruction makes, with what it is made for."""
    module = module_of(executable)
    temporaries = [
        (made_bytes(op), op.opcode, op.source)
        for name, _ in scheduled(module)
        for op in module.computation(name).values()
        if op.opcode not in _NO_ARRAY
    ]
    count, opcode, source = max(temporaries, default=(0, "nothing", ""))
    return f"a {opcode} of {size(count)}" + (f" for {source}" if source else "")


def _received(program: Program, plan: Plan, executable: Any, mesh: Any) -> Beside:
    collectives = compiled_collectives(executable, Topology.parse(plan.target), mesh)
    exchanged = compared(plan, collectives, 0)
    cause = ""
    if exchanged.compiled_bytes > exchanged.planned_bytes and exchanged.unplanned:
        largest = exchanged.unplanned[0]
        cause = f"not planned: {shown(largest.collective, user_lines(program.graph))}"
    elif exchanged.missing:
        exchange, _ = exchanged.missing[0]
        cause = f"not compiled: {exchange.kind} over {' '.join(exchange.axes)} for {exchange.part}"
    return Beside("received in a step", exchanged.planned_bytes, exchanged.compiled_bytes, cause)


def _traffic(plan: Plan, executable: Any, topology: Topology, mesh: Any) -> Iterator[Beside]:
    """HBM bytes of a step; none if how often a loop runs is not known."""
    try:
        events = schedule(executable, topology, mesh).events
    except ValueError:
        return
    total = sum(event.hbm_bytes for event in events)
    yield Beside("HBM traffic in a step", plan.predicted.hbm_bytes, total, _dearest(events))


def _dearest(events: Sequence[Event]) -> str:
    event = max(events, key=lambda event: event.hbm_bytes)
    made_for = f" for {event.source}" if event.source else ""
    return f"most by {event.name}{made_for}, {size(event.hbm_bytes)}"
