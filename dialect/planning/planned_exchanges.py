"""What a plan says is exchanged: the collectives of its workload, as the compiler makes them.

Where partial sums are scattered around a closed ring, and computing hides that weights are read
again, the TPU compiler cuts the product in as many pieces as the ring has chips, and passes each
sum on while it computes the next (`dialect.normal.row_products`). Each of n pieces is passed on,
where a reduce-scatter receives n - 1. Weights that it gathers in pieces go around in both
directions; over a long ring that is a loop, which turns one piece before it begins, and passes the
last on though nobody waits for it: n + 1 pieces, where an all-gather receives n - 1.
"""

from __future__ import annotations

from collections.abc import Iterator

from dialect.machine.interconnect import Ring
from dialect.machine.mesh import MeshSpec, Topology
from dialect.normal.row_products import hides_reading
from dialect.planning.decoder_shape import DecoderShape
from dialect.planning.plan import Exchange
from dialect.planning.uses import MeshAxes, Partitioning
from dialect.planning.workload import Workload

_FEW = 2  # a ring of so many chips is not worth the cutting
_SHORT = 4  # a ring of so many chips is no loop: each step is written out


def planned_exchanges(
    shape: DecoderShape, topology: Topology, mesh: MeshSpec, partitioning: Partitioning
) -> Iterator[Exchange]:
    """All that a step exchanges; bytes and times as in `dialect.planning.plan.Exchange`."""
    work = Workload(shape, mesh, partitioning)
    hides = hides_reading(work.tokens, shape.weight_bytes_per_element, topology.chip)
    for each in work.collectives():
        ways = mesh.ways(each.axes)
        if each.overlaps:  # weights
            matrices, pieces = shape.ffn_matrices, ways + 1
            cut = each.in_pieces if topology.chip.gathers_in_pieces and ways > _SHORT else 0
        else:
            matrices, pieces = shape.ffn_matrices - 1, ways
            cut = each.in_pieces if hides and _is_closed(topology, mesh, each.axes) else 0
        if cut:
            size, times = round(cut / matrices / ways), each.times * matrices * pieces
            yield Exchange("collective-permute", each.axes, size, times, each.part)
        if each.bytes > cut:
            yield Exchange(each.kind, each.axes, round(each.bytes - cut), each.times, each.part)


def _is_closed(topology: Topology, mesh: MeshSpec, axes: MeshAxes) -> bool:
    rings = topology.rings(mesh)
    under = [link for axis in axes for link in rings[axis]]
    return mesh.ways(axes) > _FEW and all(isinstance(x, Ring) and x.closed for x in under)
