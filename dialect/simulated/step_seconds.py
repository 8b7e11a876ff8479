"""How long a step of an engine takes by the cost model of its plan, before anything is compiled."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Protocol

from dialect.machine.mesh import MeshSpec, Topology
from dialect.planning.decoder import decoder_shape
from dialect.planning.fallback_plans import planned_axes
from dialect.planning.search import searched
from dialect.serving.shapes import Shape, rows_alone, rows_of
from dialect.simulated.demand import Demand
from dialect.simulated.placement import Placement
from rewrite.program import Program
from rewrite.target import Target


class Seconds(Protocol):
    """What a step takes, under the plan that is best for so many rows that are alone: these, or a
    step of another shape. Infinite where no plan fits."""

    def __call__(self, rows: int, step: Shape | None = None) -> float: ...


def step_seconds(program: Callable[[], Program], target: Target, context: int) -> Seconds | None:
    """What steps take whose rows are full, as every request reads half of the context. None for a
    decoder without costs, and on a CPU, whose figures are nominal.

    program: as the pass `plan` gets it; made where it is needed
    """
    mesh, topology = MeshSpec(target.mesh), Topology.parse(target.topology)
    if topology.chip.platform == "cpu":
        return None
    planned = program()
    shape = decoder_shape(planned, planned_axes(planned, target.mesh))
    if not shape.is_costed:
        return None
    read = max(1, context // 2)

    @cache
    def placed(rows: int) -> Placement | None:
        plans = searched(replace(shape, batch=rows, context=read), topology, mesh).candidates
        best = plans[0].partitioning if plans else None
        return Placement(shape, topology, mesh, best, rows, rows) if best else None

    @cache
    def seconds(rows: int, step: Shape | None = None) -> float:
        if (placement := placed(rows)) is None:
            return math.inf
        step = step or rows_alone(rows)
        requests, tokens = sum(groups for groups, _ in step), rows_of(step)
        return placement.seconds(Demand(requests, tokens, tokens, requests * read, tokens * read))

    return seconds
