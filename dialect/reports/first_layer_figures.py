"""What looking up the first layer saves, and what it costs: the figures of Graef's tables."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True)
class Figures:
    """Graef 2024 (arXiv:2402.13388, section 2), all counted in values, none in bytes.

    - eliminated: weights of products that the step reads no more (W)
    - width: of a row of the embedding (d);  row: read for each token now (2 (d + e))
    - stored: of a row of the tables that are added to the embedding, or stand in its place
    - vocab: rows of each table;  tokens: in a step, over all sequences
    - dropped: of a row of the embedding, where nobody reads the embedding itself any more
    - parameters: of the whole model
    """

    eliminated: int
    width: int
    row: int
    stored: int
    vocab: int
    tokens: int
    dropped: int
    parameters: int

    @property
    def reads_before(self) -> int:
        return self.tokens * self.width + self.eliminated

    @property
    def reads_after(self) -> int:
        return self.tokens * self.row

    @property
    def break_even_tokens(self) -> int | None:
        """The tokens a step at which looking up reads as much as computing; None where never."""
        more = self.row - self.width
        return ceil(self.eliminated / more) if more > 0 else None

    @property
    def embedding_increase(self) -> int:
        return self.vocab * (self.stored - self.dropped)

    @property
    def memory_change(self) -> int:
        return self.embedding_increase - self.eliminated

    def lines(self) -> tuple[str, str]:
        """The figures as the pass tells them."""
        fewer = self.reads_before / max(1, self.reads_after)
        below = self.break_even_tokens
        share = self.memory_change / self.parameters
        return (
            f"{self.eliminated:,} weights eliminated; values read per step "
            f"{self.reads_before:,} -> {self.reads_after:,} ({fewer:,.0f} times fewer"
            + (f"; as many at {below:,} tokens)" if below else ")"),
            f"rows of {self.row:,} values instead of {self.width:,}: "
            f"{self.embedding_increase:+,} values in tables, {-self.eliminated:+,} weights, "
            f"together {self.memory_change:+,} ({share:+.1%} of the parameters)",
        )
