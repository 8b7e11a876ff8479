"""Savings and costs of precomputing the first layer, as in Graef's tables."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True)
class Figures:
    """The figures of Graef 2024 (arXiv:2402.13388, section 2), in numbers of values, not bytes.

    - eliminated: weights that the step does not read any more (W)
    - width: of an embedding row (d);  row: values read per token after precomputing (2 (d + e))
    - stored: values per row of the new tables, which extend or replace the embedding
    - vocab: rows of a table;  tokens: per step, over all sequences
    - dropped: values per embedding row that is not read any more
    - parameters: of the model
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
        """Values read per step without precomputing."""
        return self.tokens * self.width + self.eliminated

    @property
    def reads_after(self) -> int:
        """Values read per step with precomputing."""
        return self.tokens * self.row

    @property
    def break_even_tokens(self) -> int | None:
        """The tokens per step at which both read the same number of values; None if never."""
        more = self.row - self.width
        return ceil(self.eliminated / more) if more > 0 else None

    @property
    def embedding_increase(self) -> int:
        """Values added to the tables."""
        return self.vocab * (self.stored - self.dropped)

    @property
    def memory_change(self) -> int:
        """Values added to the model; negative if it shrinks."""
        return self.embedding_increase - self.eliminated

    def lines(self) -> tuple[str, str]:
        """The notes of the pass."""
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
