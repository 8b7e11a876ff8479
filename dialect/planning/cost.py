"""The cost model: predicted seconds and bytes of one step of a decoder in a partitioning.

    time = max(compute, HBM, all-gather of weights) + alone + scores + other communication + latency

Of the products some are alone, since whatever is read or written waits for them: those that expand
keys and values from latents, and the second of two that read one array of latents.
Only the all-gather of weights depends on no activation, so only it overlaps with compute, and only
where the compiler schedules it so (`Compiler.overlaps`).
Attention scores that do not fit on the chip are written to HBM and read again in f32; nothing
overlaps with that. Compute, HBM and communication are the demand (workload.py) divided by what a
chip delivers (chips.py and `Constants`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dialect.compiled.compilers import Compiler, fitted_compiler, room_on_chip
from dialect.display.quantities import size
from dialect.machine import collectives
from dialect.machine.interconnect import Links, Ring
from dialect.machine.mesh import MeshSpec, Topology
from dialect.planning.decoder_shape import DecoderShape
from dialect.planning.mesh_roles import Partitioning
from dialect.planning.partitionings import Unavailable
from dialect.planning.plan import Prediction
from dialect.planning.workload import Workload


@dataclass(frozen=True)
class Constants:
    """The fitted constants: the fraction of its data sheet that a chip delivers.

    - compute, hbm: fractions of peak
    - link: bandwidth of a closed ring, as a multiple of one link in one direction (an ideal ring,
      which uses both directions, would be 2)
    - torus: k physical axes together have the bandwidth of k**torus rings
    - hop_s: seconds of one step of a ring, independent of bytes

    All-gathers that overlap with compute use one direction of one axis at a time.
    """

    compute: float
    hbm: float
    link: float
    torus: float
    hop_s: float

    def worth(self, under: Sequence[Links], overlaps: bool) -> float:
        """Bandwidth of a collective over these links, as a multiple of one link in one
        direction."""
        if overlaps:
            return self.link / 2
        rings = sum(isinstance(ring, Ring) and ring.size > 1 for ring in under)
        return self.link * max(1, rings) ** self.torus


# Fitted on v4, to the latencies of PaLM 62B and 540B in Tables 2, 3, D.2 and Figures 1, 6, 7, 8
# of arXiv:2211.05102 (69 points; median error 4 %, largest 14 %), then rounded. No such
# measurements are public for other chips: they are assumed to deliver the same fractions of their
# data sheets.
CONSTANTS = Constants(compute=0.82, hbm=0.85, link=1.89, torus=0.15, hop_s=3.6e-6)


def estimate(
    shape: DecoderShape,
    topology: Topology,
    mesh: MeshSpec,
    partitioning: Partitioning,
    constants: Constants = CONSTANTS,
    compiler: Compiler | None = None,
) -> Prediction:
    """The predicted cost of a step on each chip, in seconds (four digits) and bytes; by default
    under the compiler that the model is fitted to."""
    chip = topology.chip
    compiler = compiler or fitted_compiler(chip)
    room, flops_per_s = room_on_chip(chip), constants.compute * chip.bf16_flops_per_s
    work = Workload.on(chip, shape, mesh, partitioning, compiler)
    products_s = work.flops() / chip.flops_per_s(shape.multiplies)
    reread = work.reread_flops(room)
    compute_s = products_s / constants.compute + (work.other_flops() - reread) / flops_per_s
    scores_bytes, spilled_bytes = work.spilled_bytes(room)
    hbm_bytes = work.hbm_bytes() + spilled_bytes
    bytes_per_s = constants.hbm * chip.hbm_bytes_per_s
    alone_s = reread / flops_per_s
    for flops, written, times in work.expansions():
        alone_s += times * max(flops / flops_per_s, written / bytes_per_s)
    hbm_s, scores_s = hbm_bytes / bytes_per_s, scores_bytes / bytes_per_s
    links = topology.rings(mesh)
    gather_s, exchange_s, latency_s, received = _exchanges(work, links, constants, compiler)
    return Prediction(
        time_s=_digits(
            max(compute_s, hbm_s, gather_s) + alone_s + scores_s + exchange_s + latency_s
        ),
        compute_s=_digits(compute_s + alone_s),
        hbm_s=_digits(hbm_s + scores_s),
        communication_s=_digits(gather_s + exchange_s),
        latency_s=_digits(latency_s),
        hbm_bytes=round(hbm_bytes + scores_bytes),
        communication_bytes=round(received),
        memory_bytes=round(sum(work.memory().values())),
    )


def _exchanges(
    work: Workload,
    links: dict[str, tuple[Links, ...]],
    constants: Constants,
    compiler: Compiler,
) -> tuple[float, float, float, float]:
    """Seconds of transfers that overlap with computing and of those that do not, of latency, and
    the bytes that a chip receives."""
    transfer_s, latency_s, received = {True: 0.0, False: 0.0}, 0.0, 0.0  # by overlap
    for collective in work.collectives():
        under = tuple(link for axis in collective.axes for link in links[axis])
        kind, count = collective.kind, collective.bytes
        overlaps = collective.overlaps and compiler.overlaps(collective.windowed_bytes > 0)
        worth = constants.worth(under, overlaps)
        once_s = collectives.transfer_s(kind, count, under, worth)
        transfer_s[overlaps] += collective.times * once_s
        latency_s += collective.times * collectives.latency_s(kind, under, constants.hop_s)
        received += collective.times * collectives.received_bytes(kind, count, under)
    return transfer_s[True], transfer_s[False], latency_s, received


def must_fit(
    shape: DecoderShape, topology: Topology, mesh: MeshSpec, partitioning: Partitioning
) -> None:
    """Raises Unavailable if a step does not fit into the memory of a chip (the message lists the
    largest parts), or if a ragged product would need a sharded batch."""
    if shape.routing == "ragged" and partitioning.axes("residual", "batch"):
        raise Unavailable(
            "ragged products sort the tokens of all sequences, so the batch cannot be sharded"
        )
    parts = Workload.on(topology.chip, shape, mesh, partitioning).memory()
    needed, usable = sum(parts.values()), topology.chip.usable_hbm_bytes
    if needed <= usable:
        return
    largest = sorted(parts.items(), key=lambda part: -part[1])[:3]
    shown = ", ".join(f"{name} {size(count)}" for name, count in largest)
    raise Unavailable(
        f"needs {size(needed)} per chip, {size(needed - usable)} more than"
        f" {topology.chip.name} has: {shown}",
        hint="use more chips, a smaller batch or context, or int8 weights",
    )


def _digits(value: float) -> float:
    """Four significant digits: more than the model's accuracy, and short in a plan's text."""
    return float(f"{value:.4g}")
