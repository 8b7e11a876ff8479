"""The activations of a block that find no room on the chip: written to HBM and read again.

An array stays on the chip from where it is made to where it is last read, if there is room beside
all else that stays. Small arrays find room first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum

from dialect.compiled.compilers import passes_over_logits
from dialect.planning.decoder_shape import Block
from dialect.planning.shards import Shards

SHARED = "latents"  # the array that is both keys and values


class Step(IntEnum):
    """The products of a block, in their order; rotary positions come between two."""

    HEADS = 0
    ROTATED = 1
    LOGITS = 2
    VALUES = 3
    OUT_OF_HEADS = 4
    HIDDEN = 5
    OUT = 6


@dataclass(frozen=True)
class Activation:
    """An array of a block.

    - name: `logits`, `SHARED`, or what else it is
    - bytes: on a chip
    - passes: how often all of it is written or read
    - first, last: the step that makes it and the last that reads it
    """

    name: str
    bytes: float
    passes: int
    first: Step
    last: Step

    @property
    def moved(self) -> float:
        """Bytes written to HBM and read from it, if it finds no room on the chip."""
        return self.bytes * self.passes


def spilled(arrays: Iterable[Activation], room: float) -> Iterator[Activation]:
    """The arrays that find no room among so many bytes on the chip."""
    taken = Counter[int]()
    for array in sorted(arrays, key=lambda array: array.bytes):
        steps = range(array.first, array.last + 1)
        if max(taken[step] for step in steps) + array.bytes > room:
            yield array
        else:
            taken.update(dict.fromkeys(steps, array.bytes))


def activations(shards: Shards, block: Block) -> Iterator[Activation]:
    """The arrays of one run of a block."""
    readers = 1 + sum(network.into for network in block.networks)  # and the residual sum
    if block.attention:
        readers += 4  # queries, keys, values, and the norm in front of them
        yield from _of_attention(shards, block)
    yield Activation("stream", shards.stream_bytes(block), 1 + readers, Step.HEADS, Step.OUT)
    for network in block.networks:
        ways = shards.mesh.ways(shards.network_axes(network))
        hidden = network.d_ff * network.experts_computed / ways * shards.activation_bytes(block)
        for _ in range(network.into):
            yield Activation("hidden", hidden, 2, Step.HIDDEN, Step.OUT)


def _of_attention(shards: Shards, block: Block) -> Iterator[Activation]:
    """Queries, in f32 until they are rotated, and their weights in the order that the product reads
    them in; logits in f32; and what is read of the values."""
    attention = block.attention
    count = attention.q_width * shards.tokens_in_attention(attention, block)
    bytes_ = shards.shape.activation_bytes_per_element * count
    passes = passes_over_logits(*shards.batch_in_attention(attention))
    weights = shards.query_weights(attention) * shards.shape.weight_bytes_per_element
    yield Activation("weights", weights, 2, Step.HEADS, Step.HEADS)
    yield Activation("queries", 4 * count, 2, Step.HEADS, Step.ROTATED)
    yield Activation("rotated", bytes_, 4, Step.ROTATED, Step.LOGITS)  # in halves, and joined
    logits = shards.scores_in_memory(attention, block)
    yield Activation("logits", logits, passes, Step.LOGITS, Step.VALUES)
    if attention.is_shared:  # the product with values finds them on the chip, or reads them again
        yield Activation("shares", logits / 2, 0, Step.LOGITS, Step.VALUES)
        latents = shards.layer_cache_bytes(replace(attention, latent=attention.latent[:1]))
        yield Activation(SHARED, latents, 1, Step.LOGITS, Step.VALUES)
    yield Activation("mixed", bytes_, 2, Step.VALUES, Step.OUT_OF_HEADS)
