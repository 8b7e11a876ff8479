"""The sizes of a decoder that the cost of one step depends on."""

from __future__ import annotations

from dataclasses import dataclass

from rewrite.errors import PlanError


@dataclass(frozen=True)
class DecoderShape:
    """What the cost of one step of a decoder depends on.

    - batch: sequences; time: new positions of each in the step (1 in decode)
    - context: positions that attention reads, the new ones included
    - ffn_matrices: 2, or 3 with a gate; of all experts together
    - experts: how many feed-forward layers there are to choose from; 0 where there is no choice
    - parallel: attention and feed-forward layer read the same norm and share one addition
    - logits_time: positions of each sequence whose logits are computed
    - tied_embedding: one table for the embedding and the logits
    - *_bytes_per_element: of weights, embedding tables, activations and the KV cache

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
    experts: int = 0
    parallel: bool = False
    tied_embedding: bool = False
    logits_time: int = 1
    weight_bytes_per_element: float = 2
    embedding_bytes_per_element: float = 2
    activation_bytes_per_element: float = 2
    cache_bytes_per_element: float = 2

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
        return not self.absent and not self.experts

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
        """Elements of one layer's feed-forward weights."""
        return self.ffn_matrices * self.d_model * self.d_ff
