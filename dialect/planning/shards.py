"""The mesh axes that shard the parts of every block under a partitioning, and what a chip holds.

An axis that its mesh axes do not divide is not sharded (`dialect.planning.layouts`), so that blocks
of other sizes may be sharded over fewer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from dialect.compiled.compilers import windowed_axes
from dialect.machine.mesh import MeshSpec
from dialect.planning.decoder_shape import Attention, Block, DecoderShape, Network
from dialect.planning.mesh_roles import MeshAxes, Partitioning, without


class Shards:
    """What a chip holds of a partitioned decoder.

    Mesh axes:

    - batch, residual: of the residual stream's batch and d_model
    - d_model: of the weights as the products read them
    - gathered: over which weights are all-gathered
    - scattered: over which partial sums of hidden values are scattered to rows
    - attention_batch: of the batch in attention

    rounded: the part of the weights of a loop of which a step makes a copy in bf16, for its
    products to read, that has no `room`, in bytes, on the chip.

    lanes: elements to which the last axis of a stored cache is padded (`dialect.machine.tiles`).

    rows: of a chip, to multiples of which partial sums are reduce-scattered (`Compiler.rows`).

    page_moves: how often pages are written and read when attention reads them once.
    """

    def __init__(
        self,
        shape: DecoderShape,
        mesh: MeshSpec,
        partitioning: Partitioning,
        lanes: int = 1,
        room: float = 0,
        rows: int = 1,
        page_moves: int = 1,
    ) -> None:
        self.shape, self.mesh, self.partitioning = shape, mesh, partitioning
        self.lanes, self.rows, self.page_moves = lanes, rows, page_moves
        axes = partitioning.axes
        self.batch = axes("residual", "batch")
        self.residual = axes("residual", "d_model")
        self.d_model = axes("used", "d_model")
        rows = axes("hidden", "batch", "time")
        self.scattered = tuple(axis for axis in self.d_model if axis in rows)
        used = axes("used", "d_model", "experts", "d_ff")
        outer, inner = axes("weights", "d_model"), axes("weights", "experts", "d_ff")
        self.gathered = without((*outer, *inner), used)
        is_wide = shape.weight_bytes_per_element >= shape.activation_bytes_per_element
        self.gathers_in_windows = is_wide and bool(windowed_axes(partitioning.split))
        self.gathered_array_axes = bool(without(outer, used)) + bool(without(inner, used))
        self.attention_batch = axes("attention", "batch")
        self._dividing: dict[tuple, MeshAxes] = {}
        is_f32 = shape.looped_in_f32 and shape.weight_bytes_per_element == 4
        copied = 2 * self.looped_weights() if is_f32 and lanes > 1 else 0
        self.rounded = max(0, 1 - room / copied) if copied else 0

    def tokens(self, block: Block) -> float:
        """New positions that a chip computes in a block."""
        return self.shape.tokens_of(block) / self.mesh.ways(self.batch)

    def dividing(self, group: str, **sizes: int) -> MeshAxes:
        """The mesh axes of a group over which axes of these sizes are sharded: those that divide
        them."""
        asked = (group, *sizes.items())  # the same few, thousands of times
        if asked not in self._dividing:
            over = self.partitioning.axes
            taken = [(over(group, name), size) for name, size in sizes.items() if size]
            self._dividing[asked] = tuple(
                axis for axes, size in taken if size % self.mesh.ways(axes) == 0 for axis in axes
            )
        return self._dividing[asked]

    def query_axes(self, attention: Attention, group: str = "used") -> MeshAxes:
        """The mesh axes of the query heads."""
        kv_heads = attention.kv_heads
        grouped = {"kv_heads": kv_heads, "q_per_kv": attention.heads // kv_heads}
        return self.dividing(group, heads=attention.heads, **grouped)

    def key_axes(self, attention: Attention, group: str = "used") -> MeshAxes:
        """The mesh axes of the KV heads, which in multi-head attention are the heads; of latents
        none."""
        if attention.latent:
            return ()
        is_multi_head = self.shape.kv_heads == self.shape.heads
        return self.dividing(
            group, **{"heads" if is_multi_head else "kv_heads": attention.kv_heads}
        )

    def row_axes(self, attention: Attention) -> MeshAxes:
        """The mesh axes over which keys and values would be replicated, but attention shards the
        rows: every chip computes only the keys and values of its rows."""
        if not self.scattered or self.batch:
            return ()
        return without(self.attention_batch, (*self.scattered, *self.key_axes(attention)))

    def expert_axes(self, network: Network, group: str = "used") -> MeshAxes:
        """The mesh axes of the experts of a network; none if it has no experts."""
        return self.dividing(group, experts=network.experts if network.routing else 0)

    def width_axes(self, network: Network, group: str = "used") -> MeshAxes:
        """The mesh axes of the d_ff of a network: those that shard no experts of it."""
        over = self.dividing(group, d_ff=network.d_ff)
        return without(over, self.expert_axes(network, group))

    def network_axes(self, network: Network, group: str = "used") -> MeshAxes:
        """The mesh axes of the experts of a network, and of their d_ff."""
        return (*self.expert_axes(network, group), *self.width_axes(network, group))

    # Activations.

    def activation_bytes(self, block: Block) -> float:
        """One element of an activation for all tokens of a chip."""
        return self.shape.activation_bytes_per_element * self.tokens(block)

    def stream_bytes(self, block: Block) -> float:
        """The residual stream of a chip, as the products read it."""
        return self.shape.d_model * self.activation_bytes(block) / self.mesh.ways(self.d_model)

    def batch_in_attention(self, attention: Attention) -> Iterator[float]:
        """Sequences of a chip in attention, and its KV heads where there are several."""
        ways = self.mesh.ways
        yield self.shape.batch / ways(self.attention_batch)
        if attention.kv_heads > 1:
            yield attention.kv_heads / ways(self.key_axes(attention, "attention"))

    def tokens_in_attention(self, attention: Attention, block: Block) -> float:
        """New positions of a chip in attention, of all its heads: the share of each head."""
        over = (*self.attention_batch, *self.query_axes(attention, "attention"))
        return self.shape.tokens_of(block) / self.mesh.ways(over)

    def scores(self, attention: Attention, block: Block) -> float:
        """The scores of one attention, in elements."""
        context = attention.context(self.shape.context)
        return self.tokens_in_attention(attention, block) * attention.heads * context

    def computed_scores(self, attention: Attention, block: Block) -> float:
        """The scores that are not left out by the mask, in elements per chip."""
        return attention.computed * self.scores(attention, block)

    def expanded_bytes(self, attention: Attention, elements: int) -> float:
        """So many elements of every position of keys and values that are expanded from latents."""
        positions = self.expanded_positions(attention)
        return elements * positions * self.shape.activation_bytes_per_element

    def expansion_flops(self, attention: Attention) -> float:
        """FLOPs to expand keys and values from latents."""
        weights = sum(each.elements for each in attention.projections if each.expands)
        return 2 * weights * self.expanded_positions(attention)

    def expanded_positions(self, attention: Attention) -> float:
        """Positions of the context of all sequences and heads of a chip: the share of each."""
        over = (*self.attention_batch, *self.query_axes(attention, "attention"))
        positions = self.shape.batch * attention.context(self.shape.context)
        return positions / self.mesh.ways(over)

    def scores_in_memory(self, attention: Attention, block: Block) -> float:
        """Bytes in f32 of the scores that exist at a time: of blocks none outside of the chip."""
        return 0 if attention.key_reads else 4 * self.scores(attention, block)

    # Weights, in elements per chip.

    def network_weights(self, network: Network, group: str) -> float:
        """The matrices of a feed-forward network."""
        over = (*self.partitioning.axes(group, "d_model"), *self.network_axes(network, group))
        elements = network.experts * network.matrices * self.shape.d_model * network.d_ff
        return elements / self.mesh.ways(over)

    def relaid_weights(self, network: Network) -> tuple[float, float]:
        """The matrices of ragged experts that are copied before their products, as they are stored
        and as they become: see `unfilled`."""
        matrix = self.network_weights(network, "used") / network.matrices
        stored = copied = 0.0
        for _, count, width in self.unfilled(network):
            stored += count * matrix
            copied += count * matrix * -(-width // self.lanes) * self.lanes / width
        return stored, copied

    def unfilled(self, network: Network) -> Iterator[tuple[str, int, float]]:
        """(axis, matrices that have it last, its width on a chip) of ragged experts: a kernel takes
        [experts, summed, not summed] in this order and in whole lanes, and where a chip's part
        fills none it is stored in another."""
        if network.routing != "ragged":
            return
        d_ff = network.d_ff / self.mesh.ways(self.network_axes(network))
        d_model = self.shape.d_model / self.mesh.ways(self.partitioning.axes("used", "d_model"))
        for axis, count, width in (("d_ff", network.into, d_ff), ("d_model", network.out, d_model)):
            if width % self.lanes:
                yield axis, count, width

    def attention_weights(self, attention: Attention, group: str) -> float:
        """The projections to queries, keys and values, and back."""
        over, ways = self.partitioning.axes(group, "d_model"), self.mesh.ways
        heads = self.query_axes(attention, group)
        if attention.projections:
            return sum(
                projection.elements
                / ways((*over * projection.over_d_model, *heads * projection.over_heads))
                for projection in attention.projections
            )
        queries = ways((*over, *heads))
        keys = ways((*over, *self.key_axes(attention, group)))
        return self.shape.d_model * (2 * attention.q_width / queries + attention.kv_width / keys)

    def query_weights(self, attention: Attention) -> float:
        """The projection to queries, as its product reads it."""
        ways = self.mesh.ways((*self.d_model, *self.query_axes(attention)))
        of_heads = [
            projection.elements for projection in attention.projections if projection.over_heads
        ]
        return max(of_heads, default=self.shape.d_model * attention.q_width) / ways

    def router_weights(self, network: Network) -> int:
        """The router of a mixture, which is replicated."""
        return network.experts * self.shape.d_model if network.routing else 0

    def block_weights(self, block: Block, group: str) -> float:
        """All weights of one block."""
        networks = sum(
            self.network_weights(network, group) + self.router_weights(network)
            for network in block.networks
        )
        of_attention = self.attention_weights(block.attention, group) if block.attention else 0
        return networks + of_attention

    def used_weights(self, block: Block, experts: Callable[[Network], float]) -> float:
        """The weights of a block that its products read, `experts(network)` of every mixture."""
        others = sum(
            self.network_weights(network, "used") * (1 - experts(network) / network.experts)
            for network in block.networks
        )
        return self.block_weights(block, "used") - others

    def weights_multiplied(self, block: Block) -> float:
        """The weights of a block with which a token is multiplied; others expand what is cached."""
        used = self.used_weights(block, lambda network: network.experts_computed)
        if not block.attention:
            return used
        expands = sum(each.elements for each in block.attention.projections if each.expands)
        return used - expands / self.mesh.ways(self.query_axes(block.attention))

    def weights_read(self, block: Block) -> float:
        """The weights of a block that all tokens read together; those that are copied first are
        read and written besides, and then read in whole lanes, or in bf16."""
        tokens = self.tokens(block)
        read = self.used_weights(block, lambda network: network.experts_read(tokens))
        rounded = self.rounded * self.roundable_weights(block)
        read += rounded * (3 * block.stored / block.times - 1) / 2
        for network in block.networks:
            stored, copied = self.relaid_weights(network)
            share = network.experts_read(tokens) / network.experts
            read += stored + copied + share * (copied - stored)
        return read

    def roundable_weights(self, block: Block) -> float:
        """The weights of a block, but for those of ragged experts, which a kernel reads as they
        are."""
        ragged = (network for network in block.networks if network.routing == "ragged")
        as_they_are = sum(self.network_weights(network, "used") for network in ragged)
        return self.block_weights(block, "used") - as_they_are

    def looped_weights(self) -> float:
        """The weights of all blocks that may be rounded."""
        blocks = self.shape.blocks
        return sum(self.roundable_weights(block) * block.stored for block in blocks)

    def rounded_weights(self) -> float:
        """The weights that a step has in bf16 beside those that are stored in f32, in elements of
        these."""
        return self.rounded * self.looped_weights() / 2

    def table(self) -> float:
        """The embedding, or the unembedding."""
        ways = self.mesh.ways(self.partitioning.axes("tables", "d_model", "vocab"))
        return self.shape.vocab * self.shape.d_model / ways

    def turned_table(self) -> float:
        """The embedding once more, in whole lanes and in elements, where its rows fill none: the
        chip then stores it by columns, and a step turns it to look rows up."""
        axes = self.partitioning.axes("tables", "d_model")
        width = self.shape.d_model / self.mesh.ways(axes)
        if width % self.lanes == 0:
            return 0
        return self.table() / width * math.ceil(width / self.lanes) * self.lanes

    # State, in bytes per chip.

    def layer_cache_bytes(self, attention: Attention) -> float:
        """The KV cache of one attention, its heads padded to whole lanes where they are its last
        axis. (If these were less than half full, the compiler would put another axis there.)"""
        batch = self.partitioning.axes("cache", "batch")
        ways = self.mesh.ways((*batch, *self.key_axes(attention, "cache")))
        positions = self.shape.batch * attention.context(self.shape.context)
        padded = map(self.padded, attention.cached)
        width = attention.kv_width if attention.positions_last else sum(padded)
        return width * positions * self.shape.cache_bytes_per_element / ways

    def padded(self, width: int) -> int:
        """The width of a cached array, in whole lanes where it fills half of one."""
        return -(-width // self.lanes) * self.lanes if 2 * width >= self.lanes else width

    def cache_bytes(self) -> float:
        """The KV cache of all layers, as it is stored."""
        attentions, pooled = self.shape.attentions, self.shape.pooled
        of_rows = self.mesh.ways(self.partitioning.axes("cache", "batch"))
        times = pooled * of_rows if pooled else 1
        return times * sum(
            self.layer_cache_bytes(attention) * block.stored for attention, block in attentions
        )

    def stored_weights(self) -> float:
        """The weights of all blocks as they are stored, in elements."""
        blocks = self.shape.blocks
        return sum(self.block_weights(block, "weights") * block.stored for block in blocks)

    def tables(self) -> float:
        """The embedding and the unembedding, which may be one table, in elements."""
        return (1 if self.shape.tied_embedding else 2) * self.table()
