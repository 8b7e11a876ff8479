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
from dataclasses import dataclass, replace
from typing import Any

from dialect.arrays.source_lines import line_of
from dialect.compiled import hlo
from dialect.compiled.compiling import Compilable, compiled
from dialect.compiled.exchanges import Places, exchanged
from dialect.compiled.executable import read
from dialect.machine.collectives import ROUNDS, destination_bytes
from dialect.machine.mesh import MeshSpec, Topology, jax_mesh
from dialect.planning.plan import Exchange, Plan
from rewrite.program import Program
from rewrite.target import Target

# Kinds of collectives that may replace each other.
_CLASSES = (frozenset(ROUNDS) | {"collective-permute"}, {"all-to-all", "collective-permute"})
SAME_SIZE = 0.01  # relative tolerance of equal sizes


@dataclass(frozen=True)
class CompiledCollective:
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
class Unplanned:
    """A collective of which `bytes` were not planned."""

    collective: CompiledCollective
    bytes: float


@dataclass(frozen=True)
class Audit:
    """Planned and compiled bytes per chip: received per step, and memory.

    - unplanned: collectives without a budget, largest first
    - missing: planned exchanges that were not compiled, as (exchange, bytes), largest first
    - notes: the compiler's messages
    """

    planned_bytes: float
    compiled_bytes: float
    planned_memory_bytes: int
    compiled_memory_bytes: int
    unplanned: tuple[Unplanned, ...]
    missing: tuple[tuple[Exchange, float], ...]
    notes: tuple[str, ...] = ()

    def unplanned_above(self, tolerance: float) -> tuple[Unplanned, ...]:
        """The unplanned collectives above this fraction of the plan's bytes."""
        least = tolerance * self.planned_bytes
        return tuple(collective for collective in self.unplanned if collective.bytes > least)


def audit(program: Program, target: Target) -> Audit:
    """Compiles a lowered program that has a plan with a prediction, and compares the two.

    Raises TargetError if the target cannot be compiled for, DoesNotFit if memory is too small.
    """
    topology = Topology.parse(target.topology)
    mesh = jax_mesh(topology, MeshSpec(target.mesh))
    executable, notes = compiled(Compilable(program, mesh))
    collectives = compiled_collectives(executable, topology, mesh)
    return compared(program.plan, collectives, read(executable).memory.total_bytes, notes)


def compiled_collectives(
    executable: Any, topology: Topology, mesh: Any
) -> list[CompiledCollective]:
    """The distinct collectives of a `jax.stages.Compiled` that receive any bytes.

    Raises ValueError if the replica groups of one cannot be read.
    """
    module, places = hlo.module_of(executable), Places(topology, mesh)
    counts: Counter[CompiledCollective] = Counter()
    for collective in hlo.collectives(module):
        exchange, trips = exchanged(collective, places), collective.trips
        if exchange.received_bytes:
            once = CompiledCollective(
                *(exchange.kind, exchange.axes, exchange.bytes, exchange.received_bytes),
                times=1 if trips is None else trips,
                source=collective.source,
                trips_known=trips is not None,
            )
            counts[once] += 1
    return [
        replace(
            once,
            received_bytes=once.received_bytes * once.times * count,
            times=once.times * count,
        )
        for once, count in counts.items()
    ]


def compared(
    plan: Plan,
    collectives: Iterable[CompiledCollective],
    memory_bytes: int,
    notes: tuple[str, ...] = (),
) -> Audit:
    """Matches compiled collectives with the exchanges of a plan that has a prediction."""
    collectives = sorted(collectives, key=lambda collective: -collective.received_bytes)
    planned = [planned_bytes(exchange, dict(plan.mesh)) for exchange in plan.exchanges]
    unplanned, missing = _matched(collectives, plan.exchanges, planned)
    return Audit(
        planned_bytes=sum(planned),
        compiled_bytes=sum(collective.received_bytes for collective in collectives),
        planned_memory_bytes=plan.predicted.memory_bytes,
        compiled_memory_bytes=memory_bytes,
        unplanned=tuple(sorted(unplanned, key=lambda collective: -collective.bytes)),
        missing=tuple(sorted(missing, key=lambda pair: -pair[1])),
        notes=notes,
    )


def planned_bytes(exchange: Exchange, mesh: dict[str, int]) -> float:
    """Bytes that a chip receives over all `times` of an exchange; mesh: {axis: size}."""
    chips = math.prod(mesh[axis] for axis in exchange.axes)
    return destination_bytes(exchange.kind, exchange.bytes * exchange.times, chips)


def _matched(
    collectives: list[CompiledCollective], exchanges: tuple[Exchange, ...], planned: list[float]
) -> tuple[list[Unplanned], list[tuple[Exchange, float]]]:
    """(unplanned bytes per collective, remaining bytes per exchange)."""
    budgets = list(planned)
    unmatched = [float(collective.received_bytes) for collective in collectives]
    for matches in _ROUNDS:
        for i, collective in enumerate(collectives):
            for j, exchange in enumerate(exchanges):
                if unmatched[i] and budgets[j] and matches(collective, exchange):
                    count = min(unmatched[i], budgets[j])
                    unmatched[i], budgets[j] = unmatched[i] - count, budgets[j] - count
    unplanned = [Unplanned(*pair) for pair in zip(collectives, unmatched) if pair[1] >= 1]
    return unplanned, [pair for pair in zip(exchanges, budgets) if pair[1] >= 1]


def _same_size(collective: CompiledCollective, exchange: Exchange) -> bool:
    is_close = math.isclose(collective.bytes, exchange.bytes, rel_tol=SAME_SIZE)
    return is_close and _same_kind(collective, exchange)


def _same_kind(collective: CompiledCollective, exchange: Exchange) -> bool:
    return collective.kind == exchange.kind and _same_axes(collective, exchange)


def _replaces(collective: CompiledCollective, exchange: Exchange) -> bool:
    return _same_axes(collective, exchange) and _same_class(collective, exchange)


def _nested(collective: CompiledCollective, exchange: Exchange) -> bool:
    first, second = set(collective.axes), set(exchange.axes)
    return (first <= second or second <= first) and _same_class(collective, exchange)


def _same_axes(collective: CompiledCollective, exchange: Exchange) -> bool:
    return set(collective.axes) == set(exchange.axes)


def _same_class(collective: CompiledCollective, exchange: Exchange) -> bool:
    return any(collective.kind in kinds and exchange.kind in kinds for kinds in _CLASSES)


_ROUNDS: tuple[Callable[[CompiledCollective, Exchange], bool], ...] = (
    *(_same_size, _same_kind, _replaces, _nested),
)
