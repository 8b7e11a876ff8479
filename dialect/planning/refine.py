"""The best of several plans by their compiled programs.

The cost model predicts what a plan implies; the compiler decides what runs. So the best plans of
the model are compiled, and the time of their schedules is compared (`dialect.compiled.schedule`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from dialect.compiled.compiling import Compilable, compiled
from dialect.compiled.executable import DoesNotFit
from dialect.compiled.schedule import schedule
from dialect.display.progress import tracked
from dialect.display.quantities import milliseconds
from dialect.machine.mesh import MeshSpec, Topology, jax_mesh
from dialect.planning.plan import Plan
from rewrite.errors import PlanError
from rewrite.program import Program


@dataclass(frozen=True)
class Compiled:
    """A compiled plan: seconds of a step by its schedule; None if it does not fit into memory."""

    plan: Plan
    time_s: float | None

    def __str__(self) -> str:
        predicted = milliseconds(self.plan.predicted.time_s if self.plan.predicted else 0.0)
        result = "does not fit"
        if self.time_s is not None:
            result = f"{milliseconds(self.time_s)} by its schedule"
        return f"compiled {self.plan.label}: {result}, predicted {predicted}"


def refined(
    program: Program,
    plans: Iterable[Plan],
    topology: Topology,
    mesh: MeshSpec,
    lowered: Callable[[Program], Program],
) -> Iterator[Compiled]:
    """Compiles every plan for the topology; `lowered` turns a planned program into the one that is
    compiled.

    Raises PlanError for a CPU, which has no schedule.
    """
    if topology.chip.name == "cpu":
        raise PlanError("plans are compared by their TPU schedules, and a CPU has none")
    devices = jax_mesh(topology, mesh)
    for plan in tracked(list(plans), "compiling plans"):
        try:
            executable, _ = compiled(Compilable(lowered(replace(program, plan=plan)), devices))
        except DoesNotFit:
            yield Compiled(plan, None)
            continue
        yield Compiled(plan, schedule(executable, topology, devices).time_s)


def fastest(results: list[Compiled]) -> Plan:
    """The plan whose program is fastest. Raises PlanError if none fits into memory."""
    fitting = [result for result in results if result.time_s is not None]
    if not fitting:
        shown = "".join(f"\n  {result}" for result in results)
        raise PlanError(f"none of the best plans fits when compiled:{shown}", hint="use more chips")
    return min(fitting, key=lambda result: result.time_s or 0.0).plan
