"""The collectives that a plan implies, as the compiler emits them: in windows where it does."""

from __future__ import annotations

from collections.abc import Iterator

from dialect.compiled.compilers import compiler_for, hides_reading, permutes_of_scatter
from dialect.machine.mesh import MeshSpec, Topology
from dialect.planning.decoder_shape import DecoderShape
from dialect.planning.mesh_roles import Partitioning
from dialect.planning.plan import Exchange
from dialect.planning.workload import Workload


def planned_exchanges(
    shape: DecoderShape, topology: Topology, mesh: MeshSpec, partitioning: Partitioning
) -> Iterator[Exchange]:
    """The collectives of a step; bytes and times as in `dialect.planning.plan.Exchange`."""
    work = Workload.on(topology.chip, shape, mesh, partitioning)
    rings = topology.rings(mesh)
    compiler = compiler_for(topology.chip)
    tokens = shape.tokens / mesh.ways(work.batch)
    hides = hides_reading(tokens, shape.weight_bytes_per_element, topology.chip)
    for collective in work.collectives():
        axes, part, ways = collective.axes, collective.part, mesh.ways(collective.axes)
        under = [link for axis in axes for link in rings[axis]]
        scatters = permutes_of_scatter(under, ways) if hides else 0
        permutes = compiler.permutes_of_gather(ways) if collective.overlaps else scatters
        windowed = collective.windowed_bytes if permutes else 0
        if windowed:
            window = round(windowed / collective.matrices / ways)
            times = collective.times * collective.matrices * permutes
            yield Exchange("collective-permute", axes, window, times, part)
        if collective.bytes > windowed:
            rest = round(collective.bytes - windowed)
            yield Exchange(collective.kind, axes, rest, collective.times, part)
