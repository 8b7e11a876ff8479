"""How long one step of a decoder takes in a partitioning.

    time = max(compute, hbm, gathering of weights) + scores + other communication + latency

since only the gathering of weights waits for no activation; where the compiler makes the
arithmetic wait for it (`Chip.gathers_beside`, `Chip.gathers_in_pieces`), it is communication as any
other. Scores of attention that are too large for a chip are written to HBM by one product and read
by the next, in f32, and neither weights nor arithmetic are beside that. Compute, HBM and
communication are what a chip is asked for (workload.py) over what it delivers (chips.py, and
`Constants`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dialect.machine import collectives
from dialect.machine.chips import GIB
from dialect.machine.interconnect import Links, Ring
from dialect.machine.mesh import MeshSpec, Topology
from dialect.planning.decoder_shape import DecoderShape
from dialect.planning.partitionings import Unavailable
from dialect.planning.plan import Prediction
from dialect.planning.uses import Partitioning
from dialect.planning.workload import Workload


@dataclass(frozen=True)
class Constants:
    """How much of its data sheet a chip delivers: all that is fitted rather than looked up.

    - compute, hbm: fractions of peak
    - link: what a chip receives from a closed ring, as a multiple of one link one way (an ideal
      ring, which uses both directions, would be 2)
    - torus: the rings of k physical axes together are worth k**torus of one
    - hop_s: one step of a ring, however few bytes it carries

    Weights that are gathered beside the arithmetic come from one direction, axis after axis.
    """

    compute: float
    hbm: float
    link: float
    torus: float
    hop_s: float

    def worth(self, under: Sequence[Links], overlaps: bool) -> float:
        """What the links under a collective deliver, as a multiple of one link one way."""
        if overlaps:
            return self.link / 2
        rings = sum(isinstance(each, Ring) and each.size > 1 for each in under)
        return self.link * max(1, rings) ** self.torus


# Fitted on v4, to the latencies of PaLM 62B and 540B in Tables 2, 3, D.2 and Figures 1, 6, 7, 8
# of arXiv:2211.05102 (69 points; median error 4 %, largest 14 %), then rounded. No
# such measurements are public for the other chips: they are assumed to deliver the same part of
# their data sheets.
CONSTANTS = Constants(compute=0.82, hbm=0.85, link=1.89, torus=0.15, hop_s=3.6e-6)


def estimate(
    shape: DecoderShape,
    topology: Topology,
    mesh: MeshSpec,
    partitioning: Partitioning,
    constants: Constants = CONSTANTS,
) -> Prediction:
    """What a step costs on each chip, in seconds and bytes; four digits are kept of each time."""
    work, chip, links = Workload(shape, mesh, partitioning), topology.chip, topology.rings(mesh)
    products_s = work.flops() / chip.flops_per_s(shape.multiplies)
    compute_s = (products_s + work.other_flops() / chip.bf16_flops_per_s) / constants.compute
    hbm_bytes, scores_bytes = work.hbm_bytes(), work.scores_bytes(chip.on_chip_bytes)
    hbm_s, scores_s = (
        size / (constants.hbm * chip.hbm_bytes_per_s) for size in (hbm_bytes, scores_bytes)
    )
    gather_s = exchange_s = latency_s = received = 0.0
    for collective in work.collectives():
        under = tuple(link for axis in collective.axes for link in links[axis])
        kind, size = collective.kind, collective.bytes
        beside = chip.gathers_beside or (chip.gathers_in_pieces and collective.in_pieces)
        overlaps = collective.overlaps and bool(beside)
        fraction = constants.worth(under, overlaps)
        seconds = collective.times * collectives.transfer_s(kind, size, under, fraction)
        if overlaps:
            gather_s += seconds
        else:
            exchange_s += seconds
        latency_s += collective.times * collectives.latency_s(kind, under, constants.hop_s)
        received += collective.times * collectives.received_bytes(kind, size, under)
    return Prediction(
        time_s=_digits(max(compute_s, hbm_s, gather_s) + scores_s + exchange_s + latency_s),
        compute_s=_digits(compute_s),
        hbm_s=_digits(hbm_s + scores_s),
        communication_s=_digits(gather_s + exchange_s),
        latency_s=_digits(latency_s),
        hbm_bytes=round(hbm_bytes + scores_bytes),
        communication_bytes=round(received),
        memory_bytes=round(sum(work.memory().values())),
    )


def ffn_communication_bytes(
    shape: DecoderShape, mesh: MeshSpec, partitioning: Partitioning
) -> float:
    """Bytes per chip that one serial feed-forward layer exchanges, as appendix A.2 counts them.

    Without the factor (K - 1) / K, and without attention: with two matrices and bf16 exactly
    Figure 3 of the paper.
    """
    work = Workload(replace(shape, parallel=False), mesh, partitioning)
    return sum(each.volume for each in work.collectives() if each.part == "ffn") / shape.layers


def must_fit(
    shape: DecoderShape, topology: Topology, mesh: MeshSpec, partitioning: Partitioning
) -> None:
    """Raises Unavailable where a chip has not enough memory, with the largest occupants, and where
    ragged products would find their rows on several chips."""
    if shape.routing == "ragged" and partitioning.axes("residual", "batch"):
        raise Unavailable(
            "ragged products take the rows of all sequences in one order, so their batch is whole"
        )
    parts = Workload(shape, mesh, partitioning).memory()
    needed, usable = sum(parts.values()), topology.chip.usable_hbm_bytes
    if needed <= usable:
        return
    largest = sorted(parts.items(), key=lambda part: -part[1])[:3]
    shown = ", ".join(f"{name} {size / GIB:.2f}" for name, size in largest)
    raise Unavailable(
        f"needs {needed / GIB:.2f} GiB per chip, {(needed - usable) / GIB:.2f} more than"
        f" {topology.chip.name} has: {shown}",
        hint="use more chips, a smaller batch or context, or int8 weights",
    )


def _digits(value: float) -> float:
    """Four digits: more than the model is worth, and short in a plan's text."""
    return float(f"{value:.4g}")
