"""plan: over which mesh axes each kind of tensor is split, chosen by the cost model.

The partitionings of Pope et al. 2022 (arXiv:2211.05102) are costed for this decoder on this
machine; the fastest that fits is the plan. `plan{ffn=ws2d, attention=batch}` asks for one,
`plan{load="my.plan"}` reads one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from dialect import cost
from dialect.axes import infer_axes
from dialect.decoder import decoder_shape
from dialect.mesh import MeshSpec, Topology
from rewrite.errors import PlanError
from rewrite.passbase import Pass
from rewrite.plan import Plan as Chosen
from rewrite.program import Program
from rewrite.target import Target


@dataclass(frozen=True)
class Plan(Pass):
    """Chooses the layout of weights, activations and caches."""

    ffn: Literal["auto", "ws1d", "ws2d", "wg_x", "wg_xy", "wg_xyz"] = "auto"
    attention: Literal["auto", "heads", "batch"] = "auto"
    objective: Literal["latency", "throughput"] = "latency"
    load: str = ""

    keeps: ClassVar[str] = "bits"

    def run(self, program: Program, target: Target) -> Program:
        if not target.mesh:
            raise PlanError(
                "there is no mesh to plan for", hint="say `target v5e:2x4`, or give a mesh"
            )
        chosen = self.loaded(target) if self.load else self.chosen(program, target)
        return self.said(replace(program, plan=chosen), f"{chosen.label} on {chosen.target}")

    def loaded(self, target: Target) -> Chosen:
        plan = Chosen.load(Path(self.load))
        if plan.mesh != target.mesh:
            shown = (" ".join(f"{a}={n}" for a, n in mesh) for mesh in (plan.mesh, target.mesh))
            raise PlanError(f"{self.load} plans for the mesh {next(shown)}, not {next(shown)}")
        return plan

    def chosen(self, program: Program, target: Target) -> Chosen:
        shape = decoder_shape(program, infer_axes(program))
        topology = Topology.parse(target.topology)
        asked = [None if each == "auto" else each for each in (self.ffn, self.attention)]
        return cost.choose(shape, topology, MeshSpec(target.mesh), self.objective, *asked)
