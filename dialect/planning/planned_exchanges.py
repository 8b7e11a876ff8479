"""The collectives that a plan implies, as the TPU compiler emits them.

A collective matmul (windowed einsum) replaces a collective by one collective-permute per window:

    reduce-scatter of partial sums  over a closed ring, if compute hides reading the weights once
                                    per window (`dialect.normal.row_products`): n permutes where a
                                    reduce-scatter receives n - 1 shards
    all-gather of weights           bidirectional; over a long ring a loop, which permutes one
                                    window before it begins and one after it ends: n + 1 permutes
                                    where an all-gather receives n - 1 shards
"""

from __future__ import annotations

from collections.abc import Iterator

from dialect.machine.interconnect import Ring
from dialect.machine.mesh import MeshSpec, Topology
from dialect.normal.row_products import hides_reading
from dialect.planning.decoder_shape import DecoderShape
from dialect.planning.mesh_roles import MeshAxes, Partitioning
from dialect.planning.plan import Exchange
from dialect.planning.workload import Workload

_FEW = 2  # no collective matmul over a ring of so few chips
_SHORT = 4  # over a ring of so few chips the loop of a collective matmul is unrolled


def planned_exchanges(
    shape: DecoderShape, topology: Topology, mesh: MeshSpec, partitioning: Partitioning
) -> Iterator[Exchange]:
    """The collectives of a step; bytes and times as in `dialect.planning.plan.Exchange`."""
    work = Workload(shape, mesh, partitioning)
    tokens = shape.tokens / mesh.ways(work.batch)
    hides = hides_reading(tokens, shape.weight_bytes_per_element, topology.chip)
    for collective in work.collectives():
        axes, part = collective.axes, collective.part
        ways = mesh.ways(axes)
        if collective.overlaps:  # all-gather of weights
            is_windowed = topology.chip.has_collective_matmul and ways > _SHORT
            permutes = ways + 1
        else:
            is_windowed = hides and _is_closed(topology, mesh, axes)
            permutes = ways
        windowed = collective.collective_matmul_bytes if is_windowed else 0
        if windowed:
            window, times = (
                round(windowed / collective.matrices / ways),
                collective.times * collective.matrices * permutes,
            )
            yield Exchange("collective-permute", axes, window, times, part)
        if collective.bytes > windowed:
            rest = round(collective.bytes - windowed)
            yield Exchange(collective.kind, axes, rest, collective.times, part)


def _is_closed(topology: Topology, mesh: MeshSpec, axes: MeshAxes) -> bool:
    """Whether these mesh axes are closed rings of enough chips for a collective matmul."""
    rings = topology.rings(mesh)
    under = [link for axis in axes for link in rings[axis]]
    return mesh.ways(axes) > _FEW and all(isinstance(x, Ring) and x.closed for x in under)
