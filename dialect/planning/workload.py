"""The demand of one decoder step on every chip: FLOPs, HBM traffic, collectives, memory.

Follows "Efficiently Scaling Transformer Inference" (arXiv:2211.05102), section 3 and appendix A,
and adds gates, grouped queries, serial blocks, norms, embedding and logits. The formulas hold for
any partitioning, and nothing here depends on the chip.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dialect.machine.mesh import MeshSpec
from dialect.naming.axes import HEADS
from dialect.planning.decoder_shape import DecoderShape
from dialect.planning.mesh_roles import MeshAxes, Partitioning, collective_matmul_axes, without


@dataclass(frozen=True)
class Collective:
    """A collective that a step runs `times`, and the part of the decoder that needs it.

    - bytes: per chip: the output of an all-gather, the input of a reduce-scatter (an all-reduce is
      one of each), the local data of an all-to-all (section 3.1 and appendix A.1 of the paper)
    - overlaps: whether it depends on no activation, so that it can overlap with compute
    - collective_matmul_bytes: the part of `bytes` that XLA may exchange in a collective matmul
    - array_axes: the number of array axes that it reshards; XLA reshards one at a time and copies
      the array in HBM in between
    """

    kind: str
    axes: MeshAxes
    bytes: float
    times: int
    part: str
    overlaps: bool = False
    collective_matmul_bytes: float = 0
    array_axes: int = 1

    @property
    def volume(self) -> float:
        """Bytes per chip and step as the paper counts them: without the factor (K - 1) / K."""
        return self.bytes * (2 if self.kind == "all-reduce" else 1) * self.times


class Workload:
    """What every chip holds, computes, reads and exchanges in one step of a partitioned decoder.

    Mesh axes:

    - batch, residual: of the residual stream's batch and d_model
    - d_model, experts, d_ff, heads, kv_heads: of the weights as the products read them
    - gathered: over which weights are all-gathered
    - scattered: over which partial sums of hidden values are scattered to rows
    - attention_batch: of the batch in attention

    tokens: per chip and step; q_width, kv_width: elements of queries, and of keys and values, per
    token.
    """

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
        self.uses_collective_matmul = is_wide and bool(collective_matmul_axes(partitioning))
        self.gathered_array_axes = bool(without(outer, used)) + bool(without(inner, used))
        self.heads = axes("used", *HEADS)
        self.kv_heads = axes("used", *self.kv_names)
        self.attention_batch = axes("attention", "batch")
        self.tokens = shape.tokens / mesh.ways(self.batch)
        self.q_width = shape.heads * shape.d_head
        self.kv_width = 2 * shape.kv_heads * shape.d_head

    @property
    def kv_names(self) -> tuple[str, ...]:
        """The logical axis of the KV heads: `heads` in multi-head attention."""
        return ("heads",) if self.shape.kv_heads == self.shape.heads else ("kv_heads",)

    @property
    def partial_key_axes(self) -> MeshAxes:
        """The mesh axes over which keys and values would be replicated, but attention shards the
        rows: every chip computes only the keys and values of its rows."""
        if not self.scattered or self.batch:
            return ()
        return without(self.attention_batch, (*self.scattered, *self.kv_heads))

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
        """One layer's weights; routers are replicated."""
        ffn = self.ffn_weights(group) + self.shape.router_weights
        return ffn + self.attention_weights(group)

    def used_weights(self, experts: float) -> float:
        """One layer's weights as the products read them, of so many experts."""
        others = self.ffn_weights("used") * (1 - experts / self.shape.experts)
        return self.layer_weights("used") - others

    def table(self) -> float:
        """The embedding, or the unembedding."""
        ways = self.mesh.ways(self.partitioning.axes("tables", "d_model", "vocab"))
        return self.shape.vocab * self.shape.d_model / ways

    # Arithmetic and HBM, per chip and step.

    def flops(self) -> float:
        """FLOPs of the layers' products with weights."""
        return 2 * self.tokens * self.used_weights(self.shape.experts_computed) * self.shape.layers

    def other_flops(self) -> float:
        """FLOPs of attention and of the logits."""
        attention = 4 * self.scores() * self.shape.d_head * self.shape.layers
        rows = self.shape.logits_rows / self.mesh.ways(self.partitioning.axes("tables", "batch"))
        return attention + 2 * rows * self.table()

    def scores(self) -> float:
        """One layer's attention scores, in elements per chip."""
        shape = self.shape
        ways = self.mesh.ways(self.partitioning.axes("attention", "batch", *HEADS))
        return shape.tokens * shape.heads * shape.context / ways

    def cache_bytes(self) -> float:
        """The KV cache of all layers."""
        ways = self.mesh.ways(self.partitioning.axes("cache", "batch", "heads", "kv_heads"))
        positions = self.shape.batch * self.shape.context * self.shape.layers
        return self.kv_width * positions * self.shape.cache_bytes_per_element / ways

    def hbm_bytes(self) -> float:
        """The weights and the cache, each read once."""
        shape = self.shape
        read = self.used_weights(shape.experts_read(self.tokens))
        weights = read * shape.layers * shape.weight_bytes_per_element
        head = self.table() * shape.embedding_bytes_per_element
        return weights + head + self.cache_bytes()

    def scores_bytes(self, on_chip_bytes: int) -> float:
        """The scores in f32, written and read, if those of a layer exceed `on_chip_bytes`."""
        layer = 4 * self.scores()
        return 2 * layer * self.shape.layers if layer > on_chip_bytes else 0.0

    # Collectives.

    def collectives(self) -> Iterator[Collective]:
        """All collectives of a step, without those of no bytes or over a single chip."""
        for collective in (*self.layer(), *self.attention(), *self.gathers(), *self.ends()):
            if collective.bytes and self.mesh.ways(collective.axes) > 1:
                yield collective

    def layer(self) -> Iterator[Collective]:
        """Collectives around the products of a layer; the halves of a parallel block share theirs.

        If the results of several experts are added after the last product, its partial sums over
        d_ff are reduced before, for every result.
        """
        per_token = self.shape.activation_bytes_per_element * self.tokens
        ways = self.mesh.ways
        keys = self.kv_width / ways((*self.kv_heads, *self.partial_key_axes))
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
        if self.shape.expert_results == 1:
            yield from self.block(*ffn, (*self.experts, *self.d_ff), "ffn", ffn[0])
            return
        yield from self.block(*ffn, self.experts, "ffn")
        apart = self.shape.expert_results / ways((*self.experts, *self.d_model))
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
        """Collectives of a norm and two products (appendix A.2).

        inner_in, inner_out: bytes per chip after the first and before the second product; partial:
        the mesh axes over which the second product leaves partial sums; hidden: the part of
        `inner_in` that is hidden values of the feed-forward layer.
        """
        if not inner_in:
            return
        layers = self.shape.layers
        outer = self.shape.d_model * self.shape.activation_bytes_per_element * self.tokens
        outer /= self.mesh.ways(self.d_model)
        replicated = without(self.residual, self.d_model)
        yield Collective("all-reduce", self.d_model, 4 * self.tokens, layers, "norm")
        yield Collective("all-gather", replicated, outer, layers, part)
        summed = without(self.d_model, self.scattered)
        yield Collective("all-reduce", summed, inner_in, layers, part)
        yield Collective(
            "reduce-scatter",
            self.scattered,
            inner_in,
            layers,
            part,
            collective_matmul_bytes=hidden,
        )
        yield Collective("all-gather", self.scattered, inner_out, layers, part)
        yield from self.summed(partial, outer, layers, part)

    def summed(self, partial: MeshAxes, size: float, times: int, part: str) -> Iterator[Collective]:
        """The reduction of a residual stream's partial sums: scattered along its mesh axes."""
        scattered = tuple(axis for axis in partial if axis in self.residual)
        remaining = size / self.mesh.ways(scattered)
        yield Collective("reduce-scatter", scattered, size, times, part)
        yield Collective("all-reduce", without(partial, scattered), remaining, times, part)

    def attention(self) -> Iterator[Collective]:
        """All-to-alls from heads to batch and back, if attention shards more of the batch (section
        3.3), and from scattered rows to heads, if it shards more of the heads."""
        axes, shape = self.partitioning.axes, self.shape
        owned = axes("attention", *HEADS)
        moved = without(self.attention_batch, (*self.batch, *self.scattered))
        turned = tuple(axis for axis in self.scattered if axis in owned)
        ways = self.mesh.ways(tuple(dict.fromkeys((*self.d_model, *self.heads))))
        per_token = shape.activation_bytes_per_element * self.tokens
        queries = self.q_width * per_token / ways
        keys = self.kv_width * per_token / ways if set(moved) & set(self.kv_heads) else 0
        yield Collective("all-to-all", moved, queries + keys, shape.layers, "attention")
        yield Collective("all-to-all", moved, queries, shape.layers, "attention")
        yield Collective("all-to-all", turned, queries, shape.layers, "attention")
        kept = (*self.attention_batch, *axes("attention", *self.kv_names))
        size = self.kv_width * per_token / self.mesh.ways(self.kv_heads)
        gathered_over = without(self.scattered, kept)
        yield Collective("all-gather", gathered_over, size, shape.layers, "attention")

    def gathers(self) -> Iterator[Collective]:
        """The all-gathers of weights over mesh axes that shard the batch too (section 3.2.3)."""
        size, layers = self.shape.weight_bytes_per_element, self.shape.layers
        ffn, attention = self.ffn_weights("used") * size, self.attention_weights("used") * size
        windowed = ffn if self.uses_collective_matmul else 0
        for part, weights, matmul_bytes in (("ffn", ffn, windowed), ("attention", attention, 0)):
            yield Collective(
                "all-gather",
                self.gathered,
                weights,
                layers,
                part,
                overlaps=True,
                collective_matmul_bytes=matmul_bytes,
                array_axes=self.gathered_array_axes,
            )

    def ends(self) -> Iterator[Collective]:
        """The collectives of embedding and logits, once per step."""
        shape, ways, axes = self.shape, self.mesh.ways, self.partitioning.axes
        d_model, vocab, batch = (axes("tables", axis) for axis in ("d_model", "vocab", "batch"))
        row = shape.d_model * shape.activation_bytes_per_element / ways(d_model) / ways(batch)
        moved, replicated = without(self.batch, batch), without(self.residual, d_model)
        logits = 4 * shape.vocab / ways(vocab) / ways(batch)  # in float32
        yield from self.summed(vocab, row * shape.tokens, 1, "embedding")
        yield Collective("all-to-all", moved, row * shape.tokens, 1, "embedding")
        yield Collective("all-to-all", moved, row * shape.logits_rows, 1, "logits")
        yield Collective("all-gather", replicated, row * shape.logits_rows, 1, "logits")
        yield Collective("reduce-scatter", d_model, logits * shape.logits_rows, 1, "logits")

    # Memory.

    def memory(self) -> dict[str, float]:
        """Live bytes per chip at the step's peak, by category.

        The feed-forward layer holds its hidden values and, if weights are gathered, two matrices:
        the current and the prefetched one. Attention holds scores in f32. The two are never live
        together. (If memory allows, the compilers for v5e and v5p keep a second copy of the scores
        to overlap an all-gather with the softmax.)
        """
        shape, ways, axes = self.shape, self.mesh.ways, self.partitioning.axes
        size = shape.activation_bytes_per_element
        matrix = self.ffn_weights("used") / shape.ffn_matrices * shape.weight_bytes_per_element
        gathered = 2 * matrix if self.gathered else 0
        inner = shape.d_ff * shape.experts_computed / ways((*self.experts, *self.d_ff))
        apart = (shape.expert_results - 1) * shape.d_model / ways((*self.experts, *self.d_model))
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
