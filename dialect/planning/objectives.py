"""The objective of a plan: the latency of a step, or the throughput of the largest batch."""

from __future__ import annotations

from dataclasses import replace

from dialect.machine.mesh import MeshSpec, Topology
from dialect.planning.decoder_shape import DecoderShape
from dialect.planning.search import searched

MOST_SEQUENCES = 1 << 14


def shape_to_plan(
    objective: str, shape: DecoderShape, topology: Topology, mesh: MeshSpec
) -> DecoderShape:
    """The decoder with the batch to plan for.

    `latency`: the program's batch. `throughput` (tokens per second) and `cost` (chip-seconds per
    token), which have the same optimum on given chips: the batch with the least time per token,
    among doublings of the program's batch that fit into memory.
    """
    if objective == "latency" or not shape.is_costed:
        return shape
    best, least_s = shape, float("inf")
    while shape.batch <= MOST_SEQUENCES:
        candidates = searched(shape, topology, mesh).candidates
        if not candidates:
            break
        seconds = candidates[0].predicted.time_s / shape.tokens
        if seconds < least_s:
            best, least_s = shape, seconds
        shape = replace(shape, batch=2 * shape.batch)
    return best
