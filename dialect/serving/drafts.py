"""Drafts: tokens that may come next, guessed from those that a request has, and how many to guess.

A step verifies drafts for little more than one token costs (Leviathan et al. 2023).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class PromptLookup:
    """Guesses that the text goes on as it did where its last tokens were before.

    Of the last `longest` tokens down to the last `shortest`, the first that occurred already
    (prompt lookup decoding, Saxena 2023; LLMA, Yang et al. 2023, section 3.1). A token and a guess
    take constant time, however long the text is.
    """

    def __init__(self, tokens: Iterable[int] = (), longest: int = 3, shortest: int = 1) -> None:
        self.tokens: list[int] = []
        self.after: dict[tuple[int, ...], int] = {}  # last tokens -> the place behind them
        self.sizes = range(longest, shortest - 1, -1)
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Adds tokens that the text now has."""
        for token in tokens:
            for last in self._last():
                self.after[last] = len(self.tokens)
            self.tokens.append(token)

    def draft(self, count: int) -> list[int]:
        """At most so many tokens that may come next."""
        places = (self.after[last] for last in self._last() if last in self.after)
        place = next(places, len(self.tokens))
        return self.tokens[place : place + count]

    def _last(self) -> Iterable[tuple[int, ...]]:
        """The last tokens, the longest text first."""
        known = len(self.tokens)
        return (tuple(self.tokens[known - size :]) for size in self.sizes if 0 < size <= known)


def best_length(acceptance: float, prices: Sequence[float]) -> int:
    """How many drafts to verify in a step, 0 if none pays.

    acceptance: the probability that a draft is accepted, as independent of others as in Leviathan
    et al. 2023, equation 1; prices[n]: seconds of a step that verifies n drafts, those to draft
    them included.
    """
    tokens, chance, rates = 0.0, 1.0, []
    for price in prices:
        tokens += chance  # the token behind so many drafts, where all of them are accepted
        chance *= acceptance
        rates.append(tokens / price)
    return rates.index(max(rates))
