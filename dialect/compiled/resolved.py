"""The machine and the mesh that a program is for, from what the user said of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jax.sharding import AxisType, Mesh

from dialect.machine import mesh as machine
from dialect.machine.caller import callers_mesh
from dialect.machine.mesh import MeshSpec, TargetError, Topology
from rewrite.pipeline import Pipeline
from rewrite.target import Target


def resolve(mesh: Any, target: str | None, pipeline: Pipeline) -> tuple[Mesh, Target]:
    """(jax Mesh, Target) from what the user said of the machine, in the call or in the pipeline.

    The pipeline's mesh holds where it says nothing else, and for any machine of as many chips.
    """
    given, resolved = planned(mesh, target, pipeline)
    if given is not None:
        return given, resolved
    with _told_where(mesh or target, pipeline):
        return mesh_of(resolved), resolved


def planned(mesh: Any, target: str | None, pipeline: Pipeline) -> tuple[Mesh | None, Target]:
    """The same, before anything is compiled: no mesh where the machine is one that need not be
    here to be planned for."""
    asked = pipeline.target()
    if mesh is None and not target and not asked.topology:
        mesh = callers_mesh()
    if mesh is None or isinstance(mesh, str):
        named = mesh or target
        resolved = target_of(named, pipeline)
        with _told_where(named, pipeline):
            return _of_cpus(resolved), resolved
    topology, spec = machine.describe(mesh, target)
    resolved = Target(str(topology), spec.axes)
    return _automatic(mesh) if isinstance(mesh, Mesh) else _of_cpus(resolved), resolved


def _of_cpus(target: Target) -> Mesh | None:
    """The mesh of CPU devices, which are here or said not to be; None for other chips."""
    return mesh_of(target) if Topology.parse(target.topology).chip.platform == "cpu" else None


def target_of(named: str | None, pipeline: Pipeline) -> Target:
    """A machine by its name, else the pipeline's, else all devices there are. It need not be here:
    this is enough for all passes."""
    asked = pipeline.target()
    with _told_where(named, pipeline):
        topology = Topology.parse(
            machine.by_devices_here(named or asked.topology) or machine.here()
        )
        spec = topology.mesh_axes()
        if asked.mesh:
            wanted = MeshSpec(asked.mesh)
            same = asked.topology and Topology.parse(asked.topology) == topology
            spec = wanted if same or wanted.size == topology.devices else spec
        machine.must_fit(spec, topology)
    return Target(str(topology), spec.axes)


def mesh_of(target: Target) -> Mesh:
    """The jax Mesh of a machine, to compile for. Raises TargetError where it cannot be had."""
    return machine.jax_mesh(Topology.parse(target.topology), MeshSpec(target.mesh))


@contextmanager
def _told_where(named: str | None, pipeline: Pipeline) -> Iterator[None]:
    """Names the pipeline's line in an error about the machine that it asks for."""
    try:
        yield
    except TargetError as error:
        if not named and pipeline.target().topology:
            error.where = pipeline.where
        raise


def _automatic(mesh: Mesh) -> Mesh:
    """The mesh with Auto axes: sharding constraints mean nothing on Explicit ones."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)
