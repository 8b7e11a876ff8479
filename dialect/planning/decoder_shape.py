"""The sizes of a decoder that the cost of one step depends on: its blocks, and what all of them
share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from rewrite.errors import PlanError

ROUTINGS = {
    "dense": "every expert computes every token, and their results are added",
    "summed": "every expert computes every token, and the last product adds their results",
    "ragged": "ragged products; every chip holds all experts",
}


@dataclass(frozen=True)
class Projection:
    """A weight of an attention: its elements, whether it is over heads, and over d_model, and
    whether it expands what is cached."""

    elements: int
    over_heads: bool
    over_d_model: bool
    expands: bool


@dataclass(frozen=True)
class Attention:
    """The heads of one attention, and how many positions it reads at most.

    - window: 0 if it reads all positions of the context
    - key_reads: in blocks, how often a step reads keys and values: once for every block of queries,
      but for those that the mask leaves out; 0 if its scores are computed at once
    - computed: the part of its scores that is computed
    - read: the part of its keys and values that a step reads
    - positions_last: whether its cache has positions last, which need no padding to whole lanes, as
      the compiler lays what is read in blocks
    - in_pages: whether its cache is in pages, of which a block is read at a time
    - latent: the widths of what is cached of a position, where that is not keys and values of its
      heads, but what all heads share (DeepSeek-AI 2024, section 2.1)
    - d_value: then the width of a head's value; 0: that of its query
    - is_shared: then whether one array is its keys and its values
    - expanded: then the numbers of a position that products make of what is cached
    - relaid: then the numbers of a position that are written and read to make keys and values of
      those
    - projections: then its weights

    Raises PlanError if the KV heads do not divide the heads.
    """

    heads: int
    kv_heads: int
    d_head: int
    window: int = 0
    key_reads: float = 0
    computed: float = 1
    read: float = 1
    positions_last: bool = False
    in_pages: bool = False
    latent: tuple[int, ...] = ()
    d_value: int = 0
    is_shared: bool = False
    expanded: int = 0
    relaid: int = 0
    projections: tuple[Projection, ...] = ()

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise PlanError(f"{self.heads} heads do not divide over {self.kv_heads} KV heads")

    @property
    def q_width(self) -> int:
        """Elements of the queries of one token."""
        return self.heads * self.d_head

    @property
    def kv_width(self) -> int:
        """Elements of the keys and values of one token, or of the latents that they come from."""
        return sum(self.cached)

    @property
    def cached(self) -> tuple[int, ...]:
        """The widths of what is cached of one token."""
        return self.latent or (self.d_head,) * (2 * self.kv_heads)

    @property
    def multiplied(self) -> int:
        """The width of a query and a value together."""
        return self.d_head + (self.d_value or self.d_head)

    @property
    def attended(self) -> int:
        """Elements of the keys and values of a position, where they are expanded."""
        return self.kv_heads * self.multiplied if self.expanded else 0

    def context(self, longest: int) -> int:
        """The number of positions that it reads of a context."""
        return min(self.window, longest) if self.window else longest


@dataclass(frozen=True)
class Network:
    """A feed-forward network, or a mixture of `experts` of them, each d_ff wide.

    - into, out: matrices from d_model to d_ff (2 with a gate), and back
    - experts_per_token: experts that a token is routed to
    - routing: how a mixture of experts is computed (`ROUTINGS`); "" if there is one network
    - inside: numbers of a token that products over all of d_ff give, not led back: the B and C of a
      state space
    - is_gathered: whether its hidden values are read whole, since no product leads them back
    """

    d_ff: int
    into: int = 2
    out: int = 1
    experts: int = 1
    experts_per_token: int = 1
    routing: str = ""
    inside: int = 0
    is_gathered: bool = False

    @property
    def matrices(self) -> int:
        """Matrices of one expert."""
        return self.into + self.out

    @property
    def experts_computed(self) -> int:
        """Experts that compute a token, whether or not their result is used."""
        return self.experts_per_token if self.routing == "ragged" else self.experts

    @property
    def results(self) -> int:
        """Results per token of the last product."""
        return 1 if self.routing == "summed" else self.experts_computed

    def experts_read(self, tokens: float) -> float:
        """Expected number of experts whose weights a step reads for so many tokens; for ragged
        products with uniform routing."""
        if self.routing != "ragged":
            return self.experts
        return self.experts * (1 - (1 - self.experts_per_token / self.experts) ** tokens)


@dataclass(frozen=True)
class Block:
    """What reads the residual stream at one place and is added to it together.

    A serial layer is two blocks, attention and then its network; a parallel layer is one block with
    both.

    - times: how often a step runs such a block; stored: how many of them have weights of their own
    - time: new positions per sequence, where they are not those of the step: the decode steps of a
      loop over tokens have 1
    """

    attention: Attention | None = None
    networks: tuple[Network, ...] = ()
    times: int = 1
    stored: int = 1
    time: int | None = None

    @property
    def part(self) -> str:
        """The part of a decoder that it is: `attention`, `ffn`, or `block` for both in parallel."""
        if self.attention and self.networks:
            return "block"
        return "attention" if self.attention else "ffn"


@dataclass(frozen=True)
class DecoderShape:
    """The sizes that the cost of one step depends on.

    - batch: sequences; time: new positions per sequence (1 in decode)
    - context: positions that attention reads, including the new ones
    - logits_time: positions per sequence for which logits are computed
    - steps: how often logits are computed: once, and in every trip of a loop over tokens
    - tied_embedding: one table for the embedding and the logits
    - multiplies: the dtype of both factors of the layers' products: "int8" only if activations are
      quantised as well as weights; all other products multiply bf16
    - looped_in_f32: whether layers in a loop multiply f32 weights at the default precision
    - *_bytes_per_element: of weights, embedding tables, activations, the KV cache and logits
    - pooled: how many times the positions of all rows its pools of pages hold, where it brings any,
      which chips that own rows hold whole; 0: every row has a cache
    - cache_moves: how often a step reads or writes all of the KV cache beside its attention, where
      it writes it whole; cache_shifted: the part of it that is then held twice
    - other_bytes: parameters and state that no block and no table holds, as norms, biases, and a
      table of positions; split_bytes: those of them with an axis that any plan splits, over all
      chips, as the state and the projections of a layer that was not recognised
    - other_state_bytes, split_state_bytes: the state among these, which every step reads and writes
    - unknown: parts of the program that these sizes do not describe

    A part that is absent or was not recognised has size 0: it divides over any mesh and costs
    nothing. Where blocks differ in a size, the properties give the largest.
    """

    batch: int
    time: int
    context: int
    d_model: int
    vocab: int
    blocks: tuple[Block, ...]
    tied_embedding: bool = False
    logits_time: int = 1
    steps: int = 1
    multiplies: str = "bf16"
    looped_in_f32: bool = False
    weight_bytes_per_element: float = 2
    embedding_bytes_per_element: float = 2
    activation_bytes_per_element: float = 2
    cache_bytes_per_element: float = 2
    logits_bytes_per_element: float = 4
    pooled: float = 0
    cache_moves: float = 0
    cache_shifted: float = 0
    other_bytes: float = 0
    split_bytes: float = 0
    other_state_bytes: float = 0
    split_state_bytes: float = 0
    unknown: tuple[str, ...] = ()

    @property
    def attentions(self) -> Iterator[tuple[Attention, Block]]:
        """Every kind of attention, with its block."""
        return ((block.attention, block) for block in self.blocks if block.attention)

    @property
    def networks(self) -> Iterator[tuple[Network, Block]]:
        """Every kind of feed-forward network, with its block."""
        return ((network, block) for block in self.blocks for network in block.networks)

    @property
    def heads(self) -> int:
        """Query heads."""
        return max((attention.heads for attention, _ in self.attentions), default=0)

    @property
    def kv_heads(self) -> int:
        """KV heads; 1 without attention, and as many as heads if the largest do not divide."""
        largest = max((attention.kv_heads for attention, _ in self.attentions), default=1)
        return largest if self.heads % largest == 0 else self.heads

    @property
    def d_ff(self) -> int:
        """The width of a feed-forward network, or of an expert."""
        return max((network.d_ff for network, _ in self.networks), default=0)

    @property
    def experts(self) -> int:
        """Experts of a mixture; 1 without one."""
        return max((network.experts for network, _ in self.networks), default=1)

    @property
    def is_parallel(self) -> bool:
        """Whether a block is parallel.

        Its two partial sums are added before they are reduced, which the compiler does only where
        their mesh axes come in one order.
        """
        return any(block.part == "block" for block in self.blocks)

    @property
    def routing(self) -> str:
        """How mixtures of experts are computed: the first, if there are several."""
        return next((network.routing for network, _ in self.networks if network.routing), "")

    @property
    def layers(self) -> int:
        """The number of layers that a step runs: of attentions, or of blocks if there are none."""
        return sum(block.times for _, block in self.attentions) or max(
            (block.times for block in self.blocks), default=1
        )

    @property
    def absent(self) -> tuple[str, ...]:
        """The parts of a decoder that are absent or were not recognised."""
        parts = {"attention": self.heads, "feed-forward layer": self.d_ff}
        parts |= {"vocabulary": self.vocab, "residual stream": self.d_model}
        return tuple(name for name, size in parts.items() if not size)

    @property
    def is_costed(self) -> bool:
        """Whether the cost model covers the whole program; if not, only a plain layout is safe."""
        return not self.absent and not self.unknown

    @property
    def tokens(self) -> int:
        """New positions in the step, over all sequences."""
        return self.batch * self.time

    def tokens_of(self, block: Block) -> int:
        """New positions in a block, over all sequences."""
        return self.batch * (self.time if block.time is None else block.time)

    @property
    def logits_rows(self) -> int:
        """Positions in the step whose logits are computed."""
        return self.batch * self.logits_time

    @property
    def logits_row_bytes(self) -> float:
        """Bytes of the logits of a position."""
        return self.vocab * self.logits_bytes_per_element

    def resized(self, axis: str, size: int, old: int = 0) -> DecoderShape:
        """The decoder with another size of `heads`, `kv_heads`, `q_per_kv`, `d_ff` or a field; of
        several networks those are resized that are `old` wide, or else the widest."""
        if axis == "d_ff":
            return self._with_blocks(lambda block: _networks_resized(block, old or self.d_ff, size))
        if axis in ("heads", "kv_heads", "q_per_kv"):
            return self._with_blocks(lambda block: _heads_resized(block, axis, size))
        return replace(self, **{axis: size})

    def _with_blocks(self, change: Callable[[Block], Block]) -> DecoderShape:
        return replace(self, blocks=tuple(map(change, self.blocks)))

    def notes(self) -> list[str]:
        """The notes of a plan about its decoder: parts without a cost, and routing."""
        notes = [f"not found, so not costed: {', '.join(self.absent)}"] if self.absent else []
        notes += [f"not costed: {part}" for part in self.unknown]
        mixtures = {
            f"{network.experts} experts, {network.experts_per_token} per token:"
            f" {ROUTINGS[network.routing]}"
            for network, _ in self.networks
            if network.routing
        }
        return [*notes, *sorted(mixtures)]


def _networks_resized(block: Block, old: int, new: int) -> Block:
    networks = (
        replace(network, d_ff=new) if network.d_ff == old else network for network in block.networks
    )
    return replace(block, networks=tuple(networks))


def _heads_resized(block: Block, axis: str, size: int) -> Block:
    if block.attention is None:
        return block
    heads, kv_heads = block.attention.heads, block.attention.kv_heads
    if axis == "q_per_kv":
        heads = kv_heads * size
    elif axis == "kv_heads":
        heads, kv_heads = heads // kv_heads * size, size
    else:
        heads, kv_heads = size, size if kv_heads == heads else kv_heads
    return replace(block, attention=replace(block.attention, heads=heads, kv_heads=kv_heads))
