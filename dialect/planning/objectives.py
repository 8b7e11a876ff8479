"""What a plan is to be best at: the latency of a step, or the price of a token at full memory."""

from __future__ import annotations

from dataclasses import replace

from dialect.machine.mesh import MeshSpec, Topology
from dialect.planning.decoder_shape import DecoderShape
from dialect.planning.search import searched

OBJECTIVES = ("latency", "throughput", "cost")
MOST_SEQUENCES = 1 << 14


def shape_to_plan(
    objective: str, shape: DecoderShape, topology: Topology, mesh: MeshSpec
) -> DecoderShape:
    """The decoder at the batch to plan for.

    latency: its own. throughput (tokens per second) and cost (chip-seconds per token), which on
    given chips are best together: the batch, doubled as often as memory allows, at which a token
    takes the least time.
    """
    if objective == "latency" or not shape.is_costed:
        return shape
    best, least_s = shape, float("inf")
    while shape.batch <= MOST_SEQUENCES:
        found = searched(shape, topology, mesh).candidates
        if not found:
            break
        seconds = found[0].predicted.time_s / shape.tokens
        if seconds < least_s:
            best, least_s = shape, seconds
        shape = replace(shape, batch=2 * shape.batch)
    return best
