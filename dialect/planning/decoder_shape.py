"""The sizes of a decoder that the cost of one step depends on."""

from __future__ import annotations

from dataclasses import dataclass

from rewrite.errors import PlanError

ROUTINGS = {
    "dense": "every expert computes every token, and their results are added",
    "summed": "every expert computes every token, and the last product adds their results",
    "ragged": "ragged products; every chip holds all experts",
}


@dataclass(frozen=True)
class DecoderShape:
    """The sizes that the cost of one step depends on.

    - batch: sequences; time: new positions per sequence (1 in decode)
    - context: positions that attention reads, including the new ones
    - ffn_matrices: matrices of one feed-forward network: 2, or 3 with a gate
    - experts: feed-forward networks per layer, each d_ff wide
    - experts_per_token: experts that a token is routed to
    - routing: how a mixture of experts is computed (`ROUTINGS`); "" if there is none
    - parallel: attention and feed-forward layer run in parallel from one norm (parallel block)
    - logits_time: positions per sequence for which logits are computed
    - tied_embedding: one table for the embedding and the logits
    - multiplies: the dtype of both factors of the layers' products: "int8" only if activations are
      quantised as well as weights; all other products multiply bf16
    - *_bytes_per_element: of weights, embedding tables, activations and the KV cache
    - unknown: parts of the program that these sizes do not describe

    A part that is absent or was not recognised has size 0: it divides over any mesh and costs
    nothing. Raises PlanError if the KV heads do not divide the heads.
    """

    batch: int
    time: int
    context: int
    layers: int
    d_model: int
    d_ff: int
    heads: int
    kv_heads: int
    d_head: int
    vocab: int
    ffn_matrices: int = 3
    experts: int = 1
    experts_per_token: int = 1
    routing: str = ""
    parallel: bool = False
    tied_embedding: bool = False
    logits_time: int = 1
    multiplies: str = "bf16"
    weight_bytes_per_element: float = 2
    embedding_bytes_per_element: float = 2
    activation_bytes_per_element: float = 2
    cache_bytes_per_element: float = 2
    unknown: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise PlanError(f"{self.heads} heads do not divide over {self.kv_heads} KV heads")

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

    @property
    def logits_rows(self) -> int:
        """Positions in the step whose logits are computed."""
        return self.batch * self.logits_time

    @property
    def ffn_weights(self) -> int:
        """Elements of one layer's feed-forward weights, over all experts."""
        return self.experts * self.ffn_matrices * self.d_model * self.d_ff

    @property
    def router_weights(self) -> int:
        """Elements of one layer's router."""
        return self.experts * self.d_model if self.routing else 0

    @property
    def experts_computed(self) -> int:
        """Experts that compute a token, whether or not their result is used."""
        return self.experts_per_token if self.routing == "ragged" else self.experts

    @property
    def expert_results(self) -> int:
        """Results per token of the feed-forward layer's last product."""
        return 1 if self.routing == "summed" else self.experts_computed

    def experts_read(self, tokens: float) -> float:
        """Expected number of experts whose weights a step reads for so many tokens; for ragged
        products with uniform routing."""
        if self.routing != "ragged":
            return self.experts
        return self.experts * (1 - (1 - self.experts_per_token / self.experts) ** tokens)

    def notes(self) -> list[str]:
        """The notes of a plan about its decoder: parts without a cost, and routing."""
        notes = [f"not found, so not costed: {', '.join(self.absent)}"] if self.absent else []
        notes += [f"not costed: {part}" for part in self.unknown]
        if self.routing:
            count = f"{self.experts} experts, {self.experts_per_token} per token"
            notes.append(f"{count}: {ROUTINGS[self.routing]}")
        return notes
