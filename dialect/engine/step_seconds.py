"""How long a step of an engine takes by the cost model of its plan, before anything is compiled."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

from dialect.machine.mesh import MeshSpec, Topology
from dialect.planning.decoder import decoder_shape
from dialect.planning.fallback_plans import planned_axes
from dialect.planning.search import searched
from rewrite.program import Program
from rewrite.target import Target

Seconds = Callable[[int], float]


def step_seconds(program: Program, target: Target, context: int) -> Seconds | None:
    """Seconds of a step by its token rows, as each reads half of the context; infinite where no
    plan fits. None for a decoder without costs, and on a CPU, whose figures are nominal.

    program: as the pass `plan` gets it
    """
    mesh, axes = MeshSpec(target.mesh), planned_axes(program, target.mesh)
    shape, topology = decoder_shape(program, axes), Topology.parse(target.topology)
    if not shape.is_costed or topology.chip.platform == "cpu":
        return None

    @cache
    def seconds(rows: int) -> float:
        step = replace(shape, batch=rows, context=max(1, context // 2))
        plans = searched(step, topology, mesh).candidates
        return plans[0].predicted.time_s if plans else math.inf

    return seconds
