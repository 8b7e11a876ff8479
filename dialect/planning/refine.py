"""The best of several plans by what the compiler makes of them.

The model prices what a plan asks for, the compiler decides what is done. So the plans that look
best are compiled, and the schedules walked (`dialect.compiled.schedule`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from dialect.compiled.compiling import Compilable, compiled
from dialect.compiled.executable import DoesNotFit
from dialect.compiled.schedule import schedule
from dialect.display.progress import tracked
from dialect.machine.mesh import MeshSpec, Topology, jax_mesh
from dialect.planning.plan import Plan
from rewrite.errors import PlanError
from rewrite.program import Program


@dataclass(frozen=True)
class Compiled:
    """A plan, compiled: seconds of a step by the walk, None where it does not fit."""

    plan: Plan
    time_s: float | None

    def __str__(self) -> str:
        predicted = self.plan.predicted.time_s * 1e3 if self.plan.predicted else 0.0
        found = f"{(self.time_s or 0.0) * 1e3:.4g} ms by its schedule"
        if self.time_s is None:
            found = "does not fit"
        return f"compiled {self.plan.label}: {found}, predicted {predicted:.4g} ms"


def refined(
    program: Program,
    plans: Iterable[Plan],
    topology: Topology,
    mesh: MeshSpec,
    lowered: Callable[[Program], Program],
) -> Iterator[Compiled]:
    """Each plan compiled for the machine; `lowered` makes of a planned program what is compiled.

    Raises PlanError for a machine whose schedules cannot be read.
    """
    if topology.chip.name == "cpu":
        raise PlanError("plans are refined by TPU schedules, and a CPU has none")
    devices = jax_mesh(topology, mesh)
    for plan in tracked(list(plans), "compiling plans"):
        try:
            made, _ = compiled(Compilable(lowered(replace(program, plan=plan)), devices))
        except DoesNotFit:
            yield Compiled(plan, None)
            continue
        yield Compiled(plan, schedule(made, topology, devices).time_s)


def fastest(found: list[Compiled]) -> Plan:
    """The plan whose program is fastest. Raises PlanError where none fits."""
    fitting = [each for each in found if each.time_s is not None]
    if not fitting:
        shown = "".join(f"\n  {each}" for each in found)
        raise PlanError(f"none of the best plans fits when compiled:{shown}", hint="use more chips")
    return min(fitting, key=lambda each: each.time_s or 0.0).plan
