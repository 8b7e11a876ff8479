"""Compares the collectives and memory of a compiled program with its plan.

The unit is bytes that a chip receives per step as their destination. On n chips that is (n - 1) / n
of an all-gather's output, a reduce-scatter's input or an all-to-all's data, twice that of an
all-reduce's input, and the message of a permute.

A compiler may implement a plan in other ways: an all-reduce for a reduce-scatter and an all-gather,
a collective matmul for either, one collective for several, one axis at a time. So an exchange of
the plan is a budget of bytes over its axes, and compiled collectives are matched with the budgets
in four rounds:

1. the same kind, axes and size;
2. the same kind and axes;
3. the same axes, and a kind that may replace it;
4. such a kind, over a superset or a subset of the axes.

A byte is matched once. Bytes without a budget are unplanned: a surprise.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from dialect.arrays.source_lines import line_of
from dialect.compiled import hlo
from dialect.compiled.compiling import Compilable, compiled
from dialect.compiled.exchanges import Places, exchanged
from dialect.compiled.executable import read
from dialect.machine.collectives import ROUNDS, own_bytes
from dialect.machine.mesh import MeshSpec, Topology, jax_mesh
from dialect.planning.plan import Exchange, Plan
from rewrite.program import Program
from rewrite.target import Target

# Kinds of collectives that may replace each other.
_CLASSES = (frozenset(ROUNDS) | {"collective-permute"}, {"all-to-all", "collective-permute"})
SAME_SIZE = 0.01  # relative tolerance of equal sizes


@dataclass(frozen=True)
class Ran:
    """A collective of an executable that runs `times` per step.

    `bytes` as in a plan's `Exchange`; the message of a permute. `received_bytes` over all `times`.
    `source` is XLA's name of the JAX operation, with the user's line; "" if XLA does not record it.
    `trips_known`: False if the trip count of a loop is unknown and counts as 1.
    """

    kind: str
    axes: tuple[str, ...]
    bytes: int
    received_bytes: int
    times: int
    source: str = ""
    trips_known: bool = True

    @property
    def operation(self) -> str:
        """The JAX operation: `dot_general`."""
        return self.source.rpartition("/")[2]

    @property
    def line(self) -> str:
        """The user's source line: `llama.py:75`."""
        return line_of(self.source)


@dataclass(frozen=True)
class Surprise:
    """Unplanned `bytes` of a collective."""

    ran: Ran
    bytes: float


@dataclass(frozen=True)
class Audit:
    """Planned and compiled bytes per chip: received per step, and memory.

    - surprises: unplanned collectives, largest first
    - left: planned exchanges that were not compiled, as (exchange, bytes), largest first
    - said: the compiler's messages
    """

    planned_bytes: float
    compiled_bytes: float
    planned_memory_bytes: int
    compiled_memory_bytes: int
    surprises: tuple[Surprise, ...]
    left: tuple[tuple[Exchange, float], ...]
    said: tuple[str, ...] = ()

    def larger(self, tolerance: float) -> tuple[Surprise, ...]:
        """The surprises above this fraction of the plan's bytes."""
        return tuple(
            surprise
            for surprise in self.surprises
            if surprise.bytes > tolerance * self.planned_bytes
        )


def audit(program: Program, target: Target) -> Audit:
    """Compiles a lowered program that has a plan with a prediction, and compares the two.

    Raises TargetError if the target cannot be compiled for, DoesNotFit if memory is too small.
    """
    topology = Topology.parse(target.topology)
    mesh = jax_mesh(topology, MeshSpec(target.mesh))
    executable, notes = compiled(Compilable(program, mesh))
    memory_bytes = read(executable).memory.total_bytes
    return compared(program.plan, ran(executable, topology, mesh), memory_bytes, notes)


def ran(executable: Any, topology: Topology, mesh: Any) -> list[Ran]:
    """The distinct collectives of a `jax.stages.Compiled` that receive any bytes.

    Raises ValueError if the replica groups of one cannot be read.
    """
    module, places = hlo.Module(executable.as_text()), Places(topology, mesh)
    counts: Counter[Ran] = Counter()
    for collective in hlo.collectives(module):
        exchange, known = exchanged(collective, places), collective.trips is not None
        if exchange.received_bytes:
            fields_ = (exchange.kind, exchange.axes, exchange.bytes, exchange.received_bytes)
            counts[Ran(*fields_, collective.trips if known else 1, collective.source, known)] += 1
    return [
        Ran(
            *(collective.kind, collective.axes, collective.bytes),
            received_bytes=collective.received_bytes * collective.times * count,
            times=collective.times * count,
            source=collective.source,
            trips_known=collective.trips_known,
        )
        for collective, count in counts.items()
    ]


def compared(
    plan: Plan, collectives: Iterable[Ran], memory_bytes: int, notes: tuple[str, ...] = ()
) -> Audit:
    """Matches compiled collectives with the exchanges of a plan that has a prediction."""
    collectives = sorted(collectives, key=lambda collective: -collective.received_bytes)
    planned = [planned_bytes(exchange, dict(plan.mesh)) for exchange in plan.exchanges]
    surprises, left = _matched(collectives, plan.exchanges, planned)
    return Audit(
        planned_bytes=sum(planned),
        compiled_bytes=sum(collective.received_bytes for collective in collectives),
        planned_memory_bytes=plan.predicted.memory_bytes,
        compiled_memory_bytes=memory_bytes,
        surprises=tuple(sorted(surprises, key=lambda surprise: -surprise.bytes)),
        left=tuple(sorted(left, key=lambda pair: -pair[1])),
        said=notes,
    )


def planned_bytes(exchange: Exchange, mesh: dict[str, int]) -> float:
    """Bytes that a chip receives over all `times` of an exchange; mesh: {axis: size}."""
    chips = math.prod(mesh[axis] for axis in exchange.axes)
    return own_bytes(exchange.kind, exchange.bytes * exchange.times, chips)


def _matched(
    collectives: list[Ran], exchanges: tuple[Exchange, ...], planned: list[float]
) -> tuple[list[Surprise], list[tuple[Exchange, float]]]:
    """(unplanned bytes per collective, bytes left of the budgets)."""
    budgets = list(planned)
    unmatched = [float(collective.received_bytes) for collective in collectives]
    for matches in _ROUNDS:
        for i, collective in enumerate(collectives):
            for j, exchange in enumerate(exchanges):
                if unmatched[i] and budgets[j] and matches(collective, exchange):
                    count = min(unmatched[i], budgets[j])
                    unmatched[i], budgets[j] = unmatched[i] - count, budgets[j] - count
    surprises = [Surprise(*pair) for pair in zip(collectives, unmatched) if pair[1] >= 1]
    return surprises, [pair for pair in zip(exchanges, budgets) if pair[1] >= 1]


def _same_size(ran: Ran, exchange: Exchange) -> bool:
    return _same_kind(ran, exchange) and math.isclose(ran.bytes, exchange.bytes, rel_tol=SAME_SIZE)


def _same_kind(ran: Ran, exchange: Exchange) -> bool:
    return ran.kind == exchange.kind and _same_axes(ran, exchange)


def _replaces(ran: Ran, exchange: Exchange) -> bool:
    return _same_axes(ran, exchange) and _same_class(ran, exchange)


def _nested(ran: Ran, exchange: Exchange) -> bool:
    first, second = set(ran.axes), set(exchange.axes)
    return (first <= second or second <= first) and _same_class(ran, exchange)


def _same_axes(ran: Ran, exchange: Exchange) -> bool:
    return set(ran.axes) == set(exchange.axes)


def _same_class(ran: Ran, exchange: Exchange) -> bool:
    return any(ran.kind in kinds and exchange.kind in kinds for kinds in _CLASSES)


_ROUNDS: tuple[Callable[[Ran, Exchange], bool], ...] = (
    *(_same_size, _same_kind, _replaces, _nested),
)
