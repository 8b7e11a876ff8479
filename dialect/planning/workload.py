"""What one step of a decoder asks of each chip: arithmetic, HBM traffic, collectives, memory.

Follows "Efficiently Scaling Transformer Inference" (arXiv:2211.05102), section 3 and appendix A,
with what these leave out: gates, grouped queries, serial blocks, norms, embedding and logits.
Everything is read off the layouts of a partitioning; no formula belongs to a single one. Nothing
here depends on the chip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from dialect.machine.mesh import MeshSpec, Ring
from dialect.naming.axes import HEADS
from dialect.planning.decoder_shape import DecoderShape
from dialect.planning.uses import MeshAxes, Partitioning, gathered_in_pieces, without


@dataclass(frozen=True)
class Collective:
    """One collective, as often as a step runs it, and the part of the decoder that needs it.

    `bytes` per chip: the output of an all-gather, the input of a reduce-scatter (an all-reduce is
    one of each), the local data of an all-to-all (section 3.1 and appendix A.1 of the paper).
    `overlaps`: it waits for no activation, so that it runs beside the arithmetic. `in_pieces`: the
    part of the bytes that products make or read which a compiler may cut in pieces, to send one
    while it computes the next. `along`: how many axes of the array it changes; a compiler changes
    one after the other, and moves all of it in HBM in between.
    """

    kind: str
    axes: MeshAxes
    bytes: float
    times: int
    part: str
    overlaps: bool = False
    in_pieces: float = 0
    along: int = 1

    @property
    def rounds(self) -> int:
        return 2 if self.kind == "all-reduce" else 1

    @property
    def volume(self) -> float:
        """Bytes per chip and step as the paper counts them: without the factor (K - 1) / K."""
        return self.bytes * self.rounds * self.times

    def received(self, rings: tuple[Ring, ...]) -> float:
        """Bytes that a chip receives per step over these physical rings."""
        if self.kind == "all-to-all":
            return self.volume * sum(ring.size for ring in rings) / 4  # mean way of a message
        chips = math.prod(ring.size for ring in rings)
        return self.volume * (chips - 1) / chips

    def hops(self, rings: tuple[Ring, ...]) -> int:
        return self.rounds * self.times * sum(ring.size - 1 for ring in rings)


class Workload:
    """A decoder in a partitioning: what each chip holds, computes, reads and exchanges."""

    def __init__(self, shape: DecoderShape, mesh: MeshSpec, partitioning: Partitioning) -> None:
        self.shape, self.mesh, self.partitioning = shape, mesh, partitioning
        axes = partitioning.axes
        self.batch = axes("residual", "batch")
        self.residual = axes("residual", "d_model")
        self.d_model = axes("used", "d_model")
        self.experts = axes("used", "experts")
        self.d_ff = axes("used", "d_ff")
        rows = axes("hidden", "batch", "time")
        self.scattered = tuple(axis for axis in self.d_model if axis in rows)
        used = (*self.d_model, *self.experts, *self.d_ff)
        outer, inner = axes("weights", "d_model"), axes("weights", "experts", "d_ff")
        self.gathered = without((*outer, *inner), used)
        is_wide = shape.weight_bytes_per_element >= shape.activation_bytes_per_element
        self.gathers_in_pieces = is_wide and bool(gathered_in_pieces(partitioning))
        self.gathered_along = bool(without(outer, used)) + bool(without(inner, used))
        self.heads = axes("used", *HEADS)
        self.kv_heads = axes("used", *self.kv_names)
        self.owned_batch = axes("attention", "batch")
        self.tokens = shape.tokens / mesh.ways(self.batch)
        self.q_width = shape.heads * shape.d_head
        self.kv_width = 2 * shape.kv_heads * shape.d_head

    @property
    def kv_names(self) -> tuple[str, ...]:
        """The logical axes of the KV heads: as many heads as queries are simply heads."""
        return ("heads",) if self.shape.kv_heads == self.shape.heads else ("kv_heads",)

    @property
    def key_copies(self) -> MeshAxes:
        """The axes over which keys and values would be made alike, and are cut instead: where
        attention splits the rows over them, each chip makes its own."""
        if not self.scattered or self.batch:
            return ()
        return without(self.owned_batch, (*self.scattered, *self.kv_heads))

    # Weights, in elements per chip.

    def ffn_weights(self, group: str) -> float:
        """One layer's feed-forward weights."""
        ways = self.mesh.ways(self.partitioning.axes(group, "d_model", "experts", "d_ff"))
        return self.shape.ffn_weights / ways

    def attention_weights(self, group: str) -> float:
        """One layer's projections to queries, keys and values, and back."""
        axes, ways = self.partitioning.axes, self.mesh.ways
        queries = ways(axes(group, "d_model", *HEADS))
        keys = ways(axes(group, "d_model", *self.kv_names))
        return self.shape.d_model * (2 * self.q_width / queries + self.kv_width / keys)

    def layer_weights(self, group: str) -> float:
        ffn = self.ffn_weights(group) + self.shape.router_weights  # a router is on every chip
        return ffn + self.attention_weights(group)

    def met(self, experts: float) -> float:
        """One layer's weights as the products read them, of so many experts."""
        others = self.ffn_weights("used") * (1 - experts / self.shape.experts)
        return self.layer_weights("used") - others

    def table(self) -> float:
        """The embedding, or the weights of the logits."""
        ways = self.mesh.ways(self.partitioning.axes("tables", "d_model", "vocab"))
        return self.shape.vocab * self.shape.d_model / ways

    # Arithmetic and HBM, per chip and step.

    def flops(self) -> float:
        """Of the layers' products with their weights."""
        return 2 * self.tokens * self.met(self.shape.experts_computed) * self.shape.layers

    def other_flops(self) -> float:
        """Of attention, and of the logits."""
        attention = 4 * self.scores() * self.shape.d_head * self.shape.layers
        rows = self.shape.logits_rows / self.mesh.ways(self.partitioning.axes("tables", "batch"))
        return attention + 2 * rows * self.table()

    def scores(self) -> float:
        """One layer's attention scores, in elements per chip: a query's beside each position."""
        shape = self.shape
        ways = self.mesh.ways(self.partitioning.axes("attention", "batch", *HEADS))
        return shape.tokens * shape.heads * shape.context / ways

    def cache_bytes(self) -> float:
        ways = self.mesh.ways(self.partitioning.axes("cache", "batch", "heads", "kv_heads"))
        positions = self.shape.batch * self.shape.context * self.shape.layers
        return self.kv_width * positions * self.shape.cache_bytes_per_element / ways

    def hbm_bytes(self) -> float:
        """The weights and the cache, read once, beside the arithmetic."""
        shape = self.shape
        read = self.met(shape.experts_read(self.tokens))
        weights = read * shape.layers * shape.weight_bytes_per_element
        head = self.table() * shape.embedding_bytes_per_element
        return weights + head + self.cache_bytes()

    def scores_bytes(self, on_chip_bytes: int) -> float:
        """The scores in f32, written and read, where those of a layer do not stay on the chip."""
        layer = 4 * self.scores()
        return 2 * layer * self.shape.layers if layer > on_chip_bytes else 0.0

    # Collectives.

    def collectives(self) -> Iterator[Collective]:
        """All that a step runs; those of nothing, or over a single chip, are left out."""
        for each in (*self.layer(), *self.attention(), *self.gathers(), *self.ends()):
            if each.bytes and self.mesh.ways(each.axes) > 1:
                yield each

    def layer(self) -> Iterator[Collective]:
        """Around the products. A parallel block shares those of its two halves.

        Where the results of several experts are added up behind the last product, its partial
        sums over d_ff are added up first, in each result.
        """
        per_token = self.shape.activation_bytes_per_element * self.tokens
        ways = self.mesh.ways
        keys = self.kv_width / ways((*self.kv_heads, *self.key_copies))
        queries = self.q_width / ways(self.heads)
        d_ff = self.shape.d_ff * self.shape.experts_computed / ways((*self.experts, *self.d_ff))
        ffn = ((self.shape.ffn_matrices - 1) * d_ff * per_token, d_ff * per_token)
        attention = ((queries + keys) * per_token, queries * per_token)
        if self.shape.parallel:
            both = (ffn[0] + attention[0], ffn[1] + attention[1])
            yield from self.block(*both, self.d_ff, "block", ffn[0])
            return
        yield from self.block(*attention, self.heads, "attention")
        scores = self.shape.experts * per_token if self.shape.routing else 0
        yield Collective("all-reduce", self.d_model, scores, self.shape.layers, "router")
        if self.shape.experts_apart == 1:
            yield from self.block(*ffn, (*self.experts, *self.d_ff), "ffn", ffn[0])
            return
        yield from self.block(*ffn, self.experts, "ffn")
        apart = self.shape.experts_apart / ways((*self.experts, *self.d_model))
        yield Collective(
            "all-reduce",
            self.d_ff,
            apart * self.shape.d_model * per_token,
            self.shape.layers,
            "ffn",
        )

    def block(
        self,
        inner_in: float,
        inner_out: float,
        partial: MeshAxes,
        part: str,
        hidden: float = 0,
    ) -> Iterator[Collective]:
        """Two products with something between them (appendix A.2), and the norm before them.

        inner_in, inner_out: bytes per chip behind the first and before the second product;
        partial: the axes over which the second product leaves partial sums; hidden: how many of
        the bytes behind the first product are hidden values of the feed-forward layer.
        """
        if not inner_in:
            return
        layers = self.shape.layers
        outer = self.shape.d_model * self.shape.activation_bytes_per_element * self.tokens
        outer /= self.mesh.ways(self.d_model)
        whole = without(self.residual, self.d_model)
        yield Collective("all-reduce", self.d_model, 4 * self.tokens, layers, "norm")
        yield Collective("all-gather", whole, outer, layers, part)
        summed = without(self.d_model, self.scattered)
        yield Collective("all-reduce", summed, inner_in, layers, part)
        yield Collective("reduce-scatter", self.scattered, inner_in, layers, part, in_pieces=hidden)
        yield Collective("all-gather", self.scattered, inner_out, layers, part)
        yield from self.summed(partial, outer, layers, part)

    def summed(self, partial: MeshAxes, size: float, times: int, part: str) -> Iterator[Collective]:
        """Partial sums of a residual stream, added up: scattered along the axes that split it."""
        scattered = tuple(axis for axis in partial if axis in self.residual)
        left = size / self.mesh.ways(scattered)
        yield Collective("reduce-scatter", scattered, size, times, part)
        yield Collective("all-reduce", without(partial, scattered), left, times, part)

    def attention(self) -> Iterator[Collective]:
        """From heads to batch and back, where attention splits more of the batch (section 3.3);
        from scattered rows to heads, where it splits more of these."""
        axes, shape = self.partitioning.axes, self.shape
        owned = axes("attention", *HEADS)
        moved = without(self.owned_batch, (*self.batch, *self.scattered))
        turned = tuple(axis for axis in self.scattered if axis in owned)
        ways = self.mesh.ways(tuple(dict.fromkeys((*self.d_model, *self.heads))))
        per_token = shape.activation_bytes_per_element * self.tokens
        queries = self.q_width * per_token / ways
        keys = self.kv_width * per_token / ways if set(moved) & set(self.kv_heads) else 0
        yield Collective("all-to-all", moved, queries + keys, shape.layers, "attention")
        yield Collective("all-to-all", moved, queries, shape.layers, "attention")
        yield Collective("all-to-all", turned, queries, shape.layers, "attention")
        kept = (*self.owned_batch, *axes("attention", *self.kv_names))
        whole = self.kv_width * per_token / self.mesh.ways(self.kv_heads)
        whole_over = without(self.scattered, kept)
        yield Collective("all-gather", whole_over, whole, shape.layers, "attention")

    def gathers(self) -> Iterator[Collective]:
        """The weights, gathered over axes that split the batch too (section 3.2.3)."""
        size, layers = self.shape.weight_bytes_per_element, self.shape.layers
        ffn, attention = self.ffn_weights("used") * size, self.attention_weights("used") * size
        in_pieces = ffn if self.gathers_in_pieces else 0
        for part, weights, pieces in (("ffn", ffn, in_pieces), ("attention", attention, 0)):
            yield Collective(
                "all-gather",
                self.gathered,
                weights,
                layers,
                part,
                overlaps=True,
                in_pieces=pieces,
                along=self.gathered_along,
            )

    def ends(self) -> Iterator[Collective]:
        """The embedding and the logits, once per step; see the layout of the tables."""
        shape, ways, axes = self.shape, self.mesh.ways, self.partitioning.axes
        d_model, vocab, batch = (axes("tables", axis) for axis in ("d_model", "vocab", "batch"))
        row = shape.d_model * shape.activation_bytes_per_element / ways(d_model) / ways(batch)
        moved, whole = without(self.batch, batch), without(self.residual, d_model)
        logits = 4 * shape.vocab / ways(vocab) / ways(batch)  # in float32
        yield from self.summed(vocab, row * shape.tokens, 1, "embedding")
        yield Collective("all-to-all", moved, row * shape.tokens, 1, "embedding")
        yield Collective("all-to-all", moved, row * shape.logits_rows, 1, "logits")
        yield Collective("all-gather", whole, row * shape.logits_rows, 1, "logits")
        yield Collective("reduce-scatter", d_model, logits * shape.logits_rows, 1, "logits")

    # Memory.

    def memory(self) -> dict[str, float]:
        """Bytes per chip that are alive at the step's peak, by what they are.

        The feed-forward layer holds its hidden values and, where weights are gathered, its own
        matrix and the next; attention holds scores in float32; never both at once. (Where there
        is room the compilers for v5e and v5p hold the scores twice, to gather beside the softmax.)
        """
        shape, ways, axes = self.shape, self.mesh.ways, self.partitioning.axes
        size = shape.activation_bytes_per_element
        matrix = self.ffn_weights("used") / shape.ffn_matrices * shape.weight_bytes_per_element
        gathered = 2 * matrix if self.gathered else 0
        inner = shape.d_ff * shape.experts_computed / ways((*self.experts, *self.d_ff))
        apart = (shape.experts_apart - 1) * shape.d_model / ways((*self.experts, *self.d_model))
        hidden = max((shape.ffn_matrices - 1) * inner, inner + apart) * self.tokens * size
        scores = 4 * self.scores()
        stream = shape.d_model * self.tokens * size
        logits = 4 * shape.vocab * shape.logits_rows / ways(axes("logits", "batch", "vocab"))
        stored = self.layer_weights("weights") * shape.weight_bytes_per_element
        tables = 1 if shape.tied_embedding else 2
        return {
            "weights": stored * shape.layers,
            "embedding": tables * self.table() * shape.embedding_bytes_per_element,
            "cache": self.cache_bytes(),
            "residual": stream / ways(self.residual) + stream / ways(self.d_model),
            "working set": max(gathered + hidden, scores, logits),
        }
