"""The sizes of a decoder that the cost of one step depends on."""

from __future__ import annotations

from dataclasses import dataclass

from rewrite.errors import PlanError

ROUTINGS = {
    "dense": "all of them compute every token, and their results are added up behind",
    "summed": "all of them compute every token, and the last product adds up their results",
    "ragged": "only these compute it, whole experts on every chip",
}


@dataclass(frozen=True)
class DecoderShape:
    """What the cost of one step of a decoder depends on.

    - batch: sequences; time: new positions of each in the step (1 in decode)
    - context: positions that attention reads, the new ones included
    - ffn_matrices: 2, or 3 with a gate; of one expert
    - experts: feed-forward networks in a layer, each d_ff wide
    - experts_per_token: how many of them a token is routed to
    - routing: how a mixture of experts is computed (`ROUTINGS`); "" where a layer has one network
    - parallel: attention and feed-forward layer read the same norm and share one addition
    - logits_time: positions of each sequence whose logits are computed
    - tied_embedding: one table for the embedding and the logits
    - multiplies: the dtype that the layers' products multiply ("int8" only where values are rounded
      to it as weights are); all others multiply bf16
    - *_bytes_per_element: of weights, embedding tables, activations and the KV cache
    - unknown: what was found and is not described by these numbers

    What a program has not, or what was not recognised in it, has size 0: it divides over any mesh
    and costs nothing.
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
        """What of a decoder is not there, or was not recognised."""
        parts = {"attention": self.heads, "feed-forward layer": self.d_ff}
        parts |= {"vocabulary": self.vocab, "residual stream": self.d_model}
        return tuple(name for name, size in parts.items() if not size)

    @property
    def is_costed(self) -> bool:
        """Whether the model knows all that there is: of what it does not, only the plainest
        layout is sure to be harmless."""
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
        """Elements of one layer's feed-forward weights, of all experts."""
        return self.experts * self.ffn_matrices * self.d_model * self.d_ff

    @property
    def router_weights(self) -> int:
        """Elements of what chooses among one layer's experts."""
        return self.experts * self.d_model if self.routing else 0

    @property
    def experts_computed(self) -> int:
        """Experts that compute each token."""
        return self.experts_per_token if self.routing == "ragged" else self.experts

    @property
    def experts_apart(self) -> int:
        """Results of each token that the feed-forward layer's last product gives."""
        return 1 if self.routing == "summed" else self.experts_computed

    def experts_read(self, tokens: float) -> float:
        """Experts whose weights are read for so many tokens: of a ragged product those that a
        token is routed to, if all are as likely."""
        if self.routing != "ragged":
            return self.experts
        return self.experts * (1 - (1 - self.experts_per_token / self.experts) ** tokens)

    def notes(self) -> list[str]:
        """What a plan should tell of the decoder that it is made for."""
        told = [f"not found, so not costed: {', '.join(self.absent)}"] if self.absent else []
        told += [f"not costed: {each}" for each in self.unknown]
        if self.routing:
            count = f"{self.experts} experts, {self.experts_per_token} of them for each token"
            told.append(f"{count}: {ROUTINGS[self.routing]}")
        return told
