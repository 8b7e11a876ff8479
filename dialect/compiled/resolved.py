"""The mesh that a program is compiled for, from what the user said of the machine."""

from __future__ import annotations

from typing import Any

from jax.sharding import AxisType, Mesh

from dialect.machine import mesh as machine
from dialect.machine.caller import callers_mesh
from dialect.machine.mesh import TargetError
from rewrite.pipeline import Pipeline
from rewrite.target import Target


def resolve(mesh: Any, target: str | None, pipeline: Pipeline) -> tuple[Any, Target]:
    """(jax Mesh, Target) from what the user said of the machine, in the call or in the pipeline.

    The pipeline's mesh holds where it says nothing else, and for any machine of as many chips.
    """
    asked = pipeline.target()
    if mesh is None:
        mesh = target or asked.topology or callers_mesh() or machine.here()
    try:
        return _laid(mesh, target, asked)
    except TargetError as error:
        if pipeline.where and asked.topology and mesh == asked.topology:
            raise TargetError(error.message, where=pipeline.where, hint=error.hint) from None
        raise


def _laid(mesh: Any, target: str | None, asked: Target) -> tuple[Any, Target]:
    if not isinstance(mesh, str):
        topology, spec = machine.describe(mesh, target)
        laid = _automatic(mesh) if isinstance(mesh, Mesh) else machine.jax_mesh(topology, spec)
        return laid, Target(str(topology), spec.axes)
    topology = machine.Topology.parse(mesh)
    spec = topology.mesh_axes()
    if asked.mesh:
        wanted = machine.MeshSpec(asked.mesh)
        same = asked.topology and machine.Topology.parse(asked.topology) == topology
        spec = wanted if same or wanted.size == topology.devices else spec
    return machine.jax_mesh(topology, spec), Target(str(topology), spec.axes)


def _automatic(mesh: Mesh) -> Mesh:
    """The mesh with Auto axes: sharding constraints mean nothing on Explicit ones."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)
