"""What a compiler made of a plan: its collectives and its memory, beside those of the plan.

All in one unit: the bytes that a chip receives in a step and that are meant for it. Of n chips
that is (n - 1) / n of an all-gather's output, of a reduce-scatter's input, of what an all-to-all
exchanges, and twice that of an all-reduce's input; of a permute it is the message.

A compiler may rightly do other than a plan says literally: an all-reduce for a reduce-scatter and
an all-gather, a sequence of permutes beside the arithmetic for either, one collective for several,
axis by axis for all axes at once. So an exchange of the plan is a budget of bytes over its axes.
The collectives that ran draw on the budgets in four rounds, each less alike than the one before:

1. the same kind over the same axes, as large;
2. the same kind over the same axes;
3. over the same axes a kind that may stand in for it;
4. such a kind over axes that hold the budget's axes, or that these hold.

No byte is paid for twice, and what no budget pays for is a surprise.
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

# Which kinds of collectives may do the work of each other.
_SUMS = frozenset(ROUNDS)
_CLASSES = (_SUMS | {"collective-permute"}, {"all-to-all", "collective-permute"})
AS_LARGE = 0.01  # as a fraction: what differs by less is as large


@dataclass(frozen=True)
class Ran:
    """A collective of an executable, `times` in a step.

    `bytes` as in `Exchange` (a plan's); of a permute the message. `received_bytes` are those of
    all `times`. `source` is XLA's name of the operation that it was made for, with the user's
    line in it; empty where XLA does not say. `trips_known`: else a loop's runs count as one.
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
        """The user's line: `llama.py:75`."""
        return line_of(self.source)


@dataclass(frozen=True)
class Surprise:
    """`bytes` of what a collective received are in no budget."""

    ran: Ran
    bytes: float


@dataclass(frozen=True)
class Audit:
    """Planned and compiled. All bytes are per chip: received in a step, and occupied.

    - surprises: what ran and was not planned, the largest first
    - left: what was planned and did not run, as (exchange, bytes), the largest first
    - said: what the compiler had to say
    """

    planned_bytes: float
    compiled_bytes: float
    planned_memory_bytes: int
    compiled_memory_bytes: int
    surprises: tuple[Surprise, ...]
    left: tuple[tuple[Exchange, float], ...]
    said: tuple[str, ...] = ()

    def larger(self, tolerance: float) -> tuple[Surprise, ...]:
        """The surprises above a fraction of the plan's bytes."""
        return tuple(each for each in self.surprises if each.bytes > tolerance * self.planned_bytes)


def audit(program: Program, target: Target) -> Audit:
    """Compiles a lowered program that has a plan with a prediction, and compares.

    Raises TargetError where the target cannot be compiled for, DoesNotFit where memory is short.
    """
    topology = Topology.parse(target.topology)
    mesh = jax_mesh(topology, MeshSpec(target.mesh))
    executable, said = compiled(Compilable(program, mesh))
    memory_bytes = read(executable).memory.total_bytes
    return compared(program.plan, ran(executable, topology, mesh), memory_bytes, said)


def ran(executable: Any, topology: Topology, mesh: Any) -> list[Ran]:
    """The collectives of a `jax.stages.Compiled` that move something; those alike are one.

    Raises ValueError where it is not known which chips take part in one.
    """
    module, places = hlo.Module(executable.as_text()), Places(topology, mesh)
    counts: Counter[Ran] = Counter()
    for found in hlo.collectives(module):
        each, known = exchanged(found, places), found.trips is not None
        if each.received_bytes:
            one = (each.kind, each.axes, each.bytes, each.received_bytes)
            counts[Ran(*one, found.trips if known else 1, found.source, known)] += 1
    return [
        Ran(
            *(each.kind, each.axes, each.bytes),
            received_bytes=each.received_bytes * each.times * count,
            times=each.times * count,
            source=each.source,
            trips_known=each.trips_known,
        )
        for each, count in counts.items()
    ]


def compared(
    plan: Plan, collectives: Iterable[Ran], memory_bytes: int, said: tuple[str, ...] = ()
) -> Audit:
    """What ran beside what a plan with a prediction asks for."""
    collectives = sorted(collectives, key=lambda each: -each.received_bytes)
    planned = [planned_bytes(each, dict(plan.mesh)) for each in plan.exchanges]
    surprises, left = _drawn(collectives, plan.exchanges, planned)
    return Audit(
        planned_bytes=sum(planned),
        compiled_bytes=sum(each.received_bytes for each in collectives),
        planned_memory_bytes=plan.predicted.memory_bytes,
        compiled_memory_bytes=memory_bytes,
        surprises=tuple(sorted(surprises, key=lambda each: -each.bytes)),
        left=tuple(sorted(left, key=lambda each: -each[1])),
        said=said,
    )


def planned_bytes(exchange: Exchange, mesh: dict[str, int]) -> float:
    """What a chip receives of all `times` of an exchange, over a mesh of these axes and sizes."""
    chips = math.prod(mesh[axis] for axis in exchange.axes)
    return own_bytes(exchange.kind, exchange.bytes * exchange.times, chips)


def _drawn(
    collectives: list[Ran], exchanges: tuple[Exchange, ...], planned: list[float]
) -> tuple[list[Surprise], list[tuple[Exchange, float]]]:
    """(what no budget pays for, what is left of the budgets)."""
    budgets = list(planned)
    owed = [float(each.received_bytes) for each in collectives]
    for alike in _ROUNDS_OF_LIKENESS:
        for i, each in enumerate(collectives):
            for j, exchange in enumerate(exchanges):
                if owed[i] and budgets[j] and alike(each, exchange):
                    paid = min(owed[i], budgets[j])
                    owed[i], budgets[j] = owed[i] - paid, budgets[j] - paid
    surprises = [Surprise(*pair) for pair in zip(collectives, owed) if pair[1] >= 1]
    return surprises, [pair for pair in zip(exchanges, budgets) if pair[1] >= 1]


def _as_large(ran: Ran, exchange: Exchange) -> bool:
    return _same_kind(ran, exchange) and math.isclose(ran.bytes, exchange.bytes, rel_tol=AS_LARGE)


def _same_kind(ran: Ran, exchange: Exchange) -> bool:
    return ran.kind == exchange.kind and _same_axes(ran, exchange)


def _stands_in(ran: Ran, exchange: Exchange) -> bool:
    return _same_axes(ran, exchange) and _same_class(ran, exchange)


def _nested(ran: Ran, exchange: Exchange) -> bool:
    one, other = set(ran.axes), set(exchange.axes)
    return (one <= other or other <= one) and _same_class(ran, exchange)


def _same_axes(ran: Ran, exchange: Exchange) -> bool:
    return set(ran.axes) == set(exchange.axes)


def _same_class(ran: Ran, exchange: Exchange) -> bool:
    return any(ran.kind in kinds and exchange.kind in kinds for kinds in _CLASSES)


_ROUNDS_OF_LIKENESS: tuple[Callable[[Ran, Exchange], bool], ...] = (
    *(_as_large, _same_kind, _stands_in, _nested),
)
