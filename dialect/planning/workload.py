"""The demand of one decoder step on every chip: FLOPs, HBM traffic, collectives, memory.

Follows "Efficiently Scaling Transformer Inference" (arXiv:2211.05102), section 3 and appendix A,
and adds gates, grouped queries, serial blocks, norms, embedding and logits. The formulas hold for
any partitioning; of a chip they need its lanes, and the room on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dialect.compiled.compilers import (
    Compiler,
    compiler_for,
    passes_over_gathered,
    room_on_chip,
    scatters_rows,
)
from dialect.machine.chips import Chip
from dialect.machine.mesh_spec import MeshSpec
from dialect.machine.tiles import lanes_of
from dialect.planning.activations import SHARED, Activation, Step, activations, spilled
from dialect.planning.decoder_shape import Attention, Block, DecoderShape, Network
from dialect.planning.mesh_roles import MeshAxes, Partitioning, without
from dialect.planning.shards import Shards


@dataclass(frozen=True)
class Collective:
    """A collective that a step runs `times`, and the part of the decoder that needs it.

    - bytes: per chip: the output of an all-gather, the input of a reduce-scatter (an all-reduce is
      one of each), the local data of an all-to-all (section 3.1 and appendix A.1 of the paper)
    - overlaps: whether it depends on no activation, so that it can overlap with compute
    - windowed_bytes: the part of `bytes` that may be exchanged window by window of its products
    - matrices: how many products that part belongs to
    - array_axes: the number of array axes that it reshards
    """

    kind: str
    axes: MeshAxes
    bytes: float
    times: int
    part: str
    overlaps: bool = False
    windowed_bytes: float = 0
    matrices: int = 0
    array_axes: int = 1

    @property
    def volume(self) -> float:
        """Bytes per chip and step as the paper counts them: without the factor (K - 1) / K."""
        return self.bytes * (2 if self.kind == "all-reduce" else 1) * self.times


class Workload(Shards):
    """What every chip computes, reads and exchanges in one step of a partitioned decoder."""

    @classmethod
    def on(
        cls,
        chip: Chip,
        shape: DecoderShape,
        mesh: MeshSpec,
        partitioning: Partitioning,
        compiler: Compiler | None = None,
    ) -> Workload:
        """The work on chips of this kind, under the current compiler if no other is named."""
        lanes, compiler = lanes_of(chip), compiler or compiler_for(chip)
        rows, moves = compiler.rows if lanes > 1 else 1, 3 if compiler.copies_pages else 1
        return cls(shape, mesh, partitioning, lanes, room_on_chip(chip), rows, moves)

    # Arithmetic and HBM, per chip and step.

    def flops(self) -> float:
        """FLOPs of the blocks' products with weights."""
        return sum(
            2 * self.tokens(block) * self.weights_multiplied(block) * block.times
            for block in self.shape.blocks
        )

    def other_flops(self) -> float:
        """FLOPs of attention and of the logits."""
        attentions = sum(
            self.attention_flops(attention, block) * block.times
            for attention, block in self.shape.attentions
        )
        rows = self.shape.logits_rows + self.shape.batch * (self.shape.steps - 1)
        ways = self.mesh.ways(self.partitioning.axes("tables", "batch"))
        return attentions + 2 * rows / ways * self.table()

    def attention_flops(self, attention: Attention, block: Block) -> float:
        """FLOPs of an attention besides those of its projections."""
        return 2 * self.computed_scores(attention, block) * attention.multiplied

    def reread_flops(self, room: float) -> float:
        """FLOPs of the products with values that are on a chip already, as its keys: nothing is
        read meanwhile. They are among the `other_flops`."""
        return sum(
            2 * self.computed_scores(attention, block) * attention.d_value * block.times
            for attention, block in self.shape.attentions
            if attention.is_shared
            and SHARED not in {array.name for array in self.spilled(block, room)}
        )

    def expansions(self) -> Iterator[tuple[float, float, int]]:
        """(FLOPs, bytes written, times) of the products that expand keys and values."""
        for attention, block in self.shape.attentions:
            written = self.expanded_bytes(attention, attention.expanded)
            yield self.expansion_flops(attention), written, block.times

    def cache_traffic(self, attention: Attention) -> float:
        """The cache, as often as it is read; or what is expanded from it, beside what is written
        and read to make keys and values of that."""
        reads = (attention.key_reads or 1) * attention.read
        reads *= self.page_moves if attention.in_pages else 1
        cached = self.layer_cache_bytes(attention)
        if not attention.expanded:
            return cached * reads
        elements = attention.relaid + reads * attention.attended
        return cached + self.expanded_bytes(attention, elements)

    def hbm_bytes(self) -> float:
        """The weights and the cache, as often as they are read, and the cache where it is written
        whole; other state, read and written."""
        shape = self.shape
        read = sum(self.weights_read(block) * block.times for block in shape.blocks)
        turned = self.turned_table()
        tables = self.table() * (shape.steps + bool(turned)) + turned
        head = tables * shape.embedding_bytes_per_element
        caches = sum(
            self.cache_traffic(attention) * block.times for attention, block in shape.attentions
        )
        caches += shape.cache_moves * self.cache_bytes()
        state = shape.other_state_bytes + shape.split_state_bytes / self.mesh.size
        weights = read * shape.weight_bytes_per_element + self.gathered_bytes()
        return weights + head + caches + 2 * state * shape.steps

    def spilled_bytes(self, room: float) -> tuple[float, float]:
        """(logits of attention, other activations), written to HBM and read where they do not fit
        into so many bytes on the chip."""
        moved = {True: 0.0, False: 0.0}
        for block in self.shape.blocks:
            for array in self.spilled(block, room):
                moved[array.name == "logits"] += array.moved * block.times
        return moved[True], moved[False]

    def spilled(self, block: Block, room: float) -> list[Activation]:
        """The arrays of a block that find no room among so many bytes on the chip."""
        return list(spilled((*activations(self, block), *self.exchanged(block)), room))

    def exchanged(self, block: Block) -> Iterator[Activation]:
        """What is written for a collective of a block and read by it; of partial sums of the stream
        also the sum, which is written and read again."""
        attention = block.attention
        for exchange in (*self.block(block), *(self.moves(attention, block) if attention else ())):
            if self.mesh.ways(exchange.axes) > 1:
                is_sum = exchange.kind == "all-reduce" and exchange.bytes == self.stream_bytes(
                    block
                )
                yield Activation(
                    "exchanged", exchange.bytes, 4 if is_sum else 2, Step.OUT, Step.OUT
                )

    def gathered_bytes(self) -> float:
        """Weights that are gathered: written as they come, and moved where they come apart."""
        passes = passes_over_gathered(self.gathered_array_axes)
        return sum(passes * gather.volume for gather in self.gathers()) if self.gathered else 0

    # Collectives.

    def collectives(self) -> Iterator[Collective]:
        """All collectives of a step, without those of no bytes or over a single chip."""
        blocks, attentions = self.shape.blocks, list(self.shape.attentions)
        for collective in (
            *(collective for block in blocks for collective in self.block(block)),
            *(move for attention, block in attentions for move in self.moves(attention, block)),
            *self.gathers(),
            *self.ends(),
        ):
            if collective.bytes and self.mesh.ways(collective.axes) > 1:
                yield collective

    def block(self, block: Block) -> Iterator[Collective]:
        """Collectives around the products of a block, which share them (appendix A.2)."""
        per_token = self.activation_bytes(block)
        ways, part, times = self.mesh.ways, block.part, block.times
        inner_in = inner_out = hidden = 0.0
        partial: list[str] = []
        if block.attention:
            over = (*self.key_axes(block.attention), *self.row_axes(block.attention))
            heads = self.query_axes(block.attention)
            keys, queries = (
                block.attention.kv_width / ways(over),
                block.attention.q_width / ways(heads),
            )
            inner_in, inner_out = (queries + keys) * per_token, queries * per_token
            partial += heads
        for network in block.networks:
            over = self.network_axes(network)
            width = network.d_ff * network.experts_computed / ways(over) * per_token
            hidden += network.into * width
            if network.is_gathered:
                whole = network.into * network.d_ff * per_token
                yield Collective("all-gather", over, whole, times, part)
            inner_out += network.out * width
            partial += over if network.results == 1 else self.expert_axes(network)
            if network.inside:
                yield Collective("all-reduce", over, network.inside * per_token, times, part)
            yield from self.router(network, block)
        yield from self.into(inner_in + hidden, hidden, block)
        yield Collective("all-gather", self.scattered, inner_out, times, part)
        outer = self.stream_bytes(block)
        yield from self.summed(tuple(dict.fromkeys(partial)), outer, times, part)
        yield from self.results(block)

    def into(self, inner: float, hidden: float, block: Block) -> Iterator[Collective]:
        """Collectives of a norm and the products that read it.

        inner: bytes per chip of these products' results; hidden: the part of them that is hidden
        values of a feed-forward network.
        """
        times, part = block.times, block.part
        if not inner:
            return
        yield Collective("all-reduce", self.d_model, 4 * self.tokens(block), times, "norm")
        replicated = without(self.residual, self.d_model)
        yield Collective("all-gather", replicated, self.stream_bytes(block), times, part)
        summed = without(self.d_model, self.scattered)
        yield Collective("all-reduce", summed, inner, times, part)
        rows = self.tokens(block) / self.mesh.ways(self.scattered)
        yield Collective(
            "all-reduce" if rows % self.rows else "reduce-scatter",
            self.scattered,
            inner,
            times,
            part,
            windowed_bytes=hidden,
            matrices=sum(network.into for network in block.networks),
        )

    def router(self, network: Network, block: Block) -> Iterator[Collective]:
        """The reduction of a router's scores."""
        scores = network.experts * self.activation_bytes(block)
        if network.routing:
            yield Collective("all-reduce", self.d_model, scores, block.times, "router")

    def results(self, block: Block) -> Iterator[Collective]:
        """The reduction of each expert's result, where the results of several are added after the
        last product."""
        stream = self.shape.d_model * self.activation_bytes(block)
        for network in block.networks:
            if network.results > 1:
                over = (*self.expert_axes(network), *self.d_model)
                apart = network.results / self.mesh.ways(over) * stream
                yield Collective(
                    "all-reduce", self.width_axes(network), apart, block.times, block.part
                )

    def summed(self, partial: MeshAxes, size: float, times: int, part: str) -> Iterator[Collective]:
        """The reduction of a residual stream's partial sums: scattered along its mesh axes."""
        scattered = tuple(axis for axis in partial if axis in self.residual)
        remaining = size / self.mesh.ways(scattered)
        yield Collective("reduce-scatter", scattered, size, times, part)
        yield Collective("all-reduce", without(partial, scattered), remaining, times, part)

    def moves(self, attention: Attention, block: Block) -> Iterator[Collective]:
        """All-to-alls from heads to batch and back, if attention shards more of the batch (section
        3.3), and from scattered rows to heads, if it shards more of the heads. Over mesh axes that
        do not divide the heads every chip takes its rows, which are gathered behind."""
        times, kv_axes = block.times, self.key_axes(attention)
        owned = self.query_axes(attention, "attention")
        moved = without(self.attention_batch, (*self.batch, *self.scattered))
        turned = tuple(axis for axis in self.scattered if axis in owned)
        products = tuple(dict.fromkeys((*self.d_model, *self.query_axes(attention))))
        copies, moved = without(moved, products), tuple(x for x in moved if x in products)
        ways = self.mesh.ways(products)
        per_token = self.activation_bytes(block)
        queries = attention.q_width * per_token / ways
        keys = attention.kv_width * per_token / ways if set(moved) & set(kv_axes) else 0
        yield Collective("all-to-all", moved, queries + keys, times, "attention")
        yield Collective("all-to-all", moved, queries, times, "attention")
        yield Collective("all-gather", copies, queries, times, "attention")
        yield Collective("all-to-all", turned, queries, times, "attention")
        kept = (*self.attention_batch, *self.key_axes(attention, "attention"))
        size = attention.kv_width * per_token / self.mesh.ways(kv_axes)
        yield Collective("all-gather", without(self.scattered, kept), size, times, "attention")

    def gathers(self) -> Iterator[Collective]:
        """The all-gathers of weights over mesh axes that shard the batch too (section 3.2.3)."""
        for network, block in self.shape.networks:
            elements = self.network_weights(network, "used")
            yield self.gather(elements, block, "ffn", network.matrices)
        for attention, block in self.shape.attentions:
            yield self.gather(self.attention_weights(attention, "used"), block, "attention", 0)

    def gather(self, elements: float, block: Block, part: str, matrices: int) -> Collective:
        """The all-gather of these weights; of so many matrices window by window."""
        count = elements * self.shape.weight_bytes_per_element
        windowed = count if matrices and self.gathers_in_windows else 0
        return Collective(
            "all-gather",
            self.gathered,
            count,
            block.times,
            part,
            overlaps=True,
            windowed_bytes=windowed,
            matrices=matrices,
            array_axes=self.gathered_array_axes,
        )

    def ends(self) -> Iterator[Collective]:
        """The collectives of embedding and logits: of the step, and of a loop over tokens in it."""
        shape = self.shape
        yield from self.ends_of(shape.tokens, shape.logits_rows, 1)
        if shape.steps > 1:
            yield from self.ends_of(shape.batch, shape.batch, shape.steps - 1)

    def ends_of(self, tokens: int, rows: int, times: int) -> Iterator[Collective]:
        """The collectives of so many tokens that are looked up, and of so many rows of logits."""
        shape, ways, axes = self.shape, self.mesh.ways, self.partitioning.axes
        d_model, vocab, batch = (axes("tables", axis) for axis in ("d_model", "vocab", "batch"))
        row = shape.d_model * shape.activation_bytes_per_element / ways(d_model) / ways(batch)
        moved, replicated = without(self.batch, batch), without(self.residual, d_model)
        logits = shape.logits_row_bytes * rows / ways(vocab) / ways(batch)
        yield from self.summed(vocab, row * tokens, times, "embedding")
        yield Collective("all-to-all", moved, row * tokens, times, "embedding")
        yield Collective("all-to-all", moved, row * rows, times, "logits")
        yield Collective("all-gather", replicated, row * rows, times, "logits")
        yield Collective(self.logits_kind(rows), d_model, logits, times, "logits")

    def logits_kind(self, rows: int) -> str:
        """The collective that reduces the partial sums of so many rows of logits."""
        axes, mesh = self.partitioning.axes, self.mesh
        of_chip = rows / mesh.ways(axes("logits", "batch"))
        columns = self.shape.vocab / mesh.ways(axes("logits", "vocab"))
        ways = [mesh.ways((axis,)) for axis in axes("tables", "d_model")]
        is_tiled = self.lanes > 1
        scatters = not is_tiled or scatters_rows(of_chip, columns, ways)
        return "reduce-scatter" if scatters else "all-reduce"

    # Memory.

    def memory(self) -> dict[str, float]:
        """Live bytes per chip at the step's peak, by category.

        A feed-forward network holds its hidden values and, if weights are gathered, two matrices:
        the current and the prefetched one. Attention holds scores in f32. The two are never live
        together. The residual stream is there as it is kept and as products read it, and in a
        serial layer as it is between its blocks.
        """
        shape, ways, axes = self.shape, self.mesh.ways, self.partitioning.axes
        tokens = shape.tokens / ways(self.batch)
        stream = shape.d_model * tokens * shape.activation_bytes_per_element
        read = 1 if shape.is_parallel else 2
        over = axes("logits", "batch", "vocab")
        logits = shape.logits_row_bytes * shape.logits_rows / ways(over)
        networks = (self.network_bytes(network, block) for network, block in shape.networks)
        relaid = sum(
            self.relaid_weights(network)[1] * block.stored for network, block in shape.networks
        )
        scores = (
            self.scores_in_memory(attention, block)
            + self.expanded_bytes(attention, attention.attended)
            for attention, block in shape.attentions
        )
        return {
            "weights": self.stored_weights() * shape.weight_bytes_per_element,
            "embedding": self.tables() * shape.embedding_bytes_per_element,
            "other": shape.other_bytes + shape.split_bytes / self.mesh.size,
            "cache": self.cache_bytes(),
            "residual": stream / ways(self.residual) + read * stream / ways(self.d_model),
            "working set": max(*networks, *scores, logits, 0.0)
            + shape.cache_shifted * self.cache_bytes()
            + (relaid + self.rounded_weights()) * shape.weight_bytes_per_element
            + self.turned_table() * shape.embedding_bytes_per_element,
        }

    def network_bytes(self, network: Network, block: Block) -> float:
        """Bytes that a feed-forward network holds while it is computed."""
        shape, ways = self.shape, self.mesh.ways
        matrix = self.network_weights(network, "used") / network.matrices
        gathered = 2 * matrix * shape.weight_bytes_per_element if self.gathered else 0
        inner = network.d_ff * network.experts_computed / ways(self.network_axes(network))
        over = (*self.expert_axes(network), *self.d_model)
        apart = (network.results - 1) * shape.d_model / ways(over)
        hidden = max(network.into * inner, network.out * inner + apart)
        return gathered + hidden * self.activation_bytes(block)
