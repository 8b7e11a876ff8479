"""Drafts: tokens that may come next, guessed from those that a request has, and how many to verify.

A step verifies drafts for little more than one token costs (Leviathan et al. 2023). Whether that
pays depends on all requests of the step: it runs in one of a few sizes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_AT_FIRST = 0.5  # the chance of a guess, before any was seen to be right or wrong
_WEIGHT = 1 / 8  # of the last guess, in the running mean
_LEAST = 0.05  # the chance of a draft that is worth a row
_WAITS_S = 0.7e-3  # that a machine waits for a step with drafts: the one before is read first

Prices = Sequence[tuple[int, float]]  # (tokens, seconds) of the steps that there are, ascending


class PromptLookup:
    """Guesses that the text goes on as it did where its last tokens were before.

    Of the last `longest` tokens down to the last `shortest`, the first that occurred already
    (prompt lookup decoding, Saxena 2023; LLMA, Yang et al. 2023, section 3.1). A token and a guess
    take constant time, however long the text is. A text that repeats itself is guessed to repeat
    itself again. Every token tells whether the guess of it was right, verified or not.
    """

    def __init__(self, tokens: Iterable[int] = (), longest: int = 3, shortest: int = 1) -> None:
        self.tokens: list[int] = []
        self.after: dict[tuple[int, ...], int] = {}  # last tokens -> the place behind them
        self.sizes = range(longest, shortest - 1, -1)
        self.chances = {0: 0.0} | dict.fromkeys(self.sizes, _AT_FIRST)  # by how many were found
        self.last: list[tuple[int, ...]] = []  # the last tokens, the longest text first
        self.found, self.place = 0, 0  # how many of them occurred before, and the place behind
        self.extend(tokens)

    def extend(self, tokens: Iterable[int], verified: int = 0) -> None:
        """Adds tokens that the text now has."""
        text, after, chances = self.tokens, self.after, self.chances
        for token in tokens:
            if self.found:
                is_right = text[self.place] == token
                chances[self.found] += _WEIGHT * (is_right - chances[self.found])
            for run in self.last:
                after[run] = len(text)
            text.append(token)
            self.last = [tuple(text[-size:]) for size in self.sizes if size <= len(text)]
            self.found, self.place = 0, len(text)
            for run in self.last:
                if run in after:
                    self.found, self.place = len(run), after[run]
                    break

    def draft(self, count: int) -> list[int]:
        """At most so many tokens that may come next."""
        period = len(self.tokens) - self.place
        return [self.tokens[self.place + at % period] for at in range(count if period else 0)]

    @property
    def chance(self) -> float:
        """The probability that the next token is the one that is guessed; 0 where none is."""
        return self.chances[self.found]


class Ahead:
    """Drafts of a decoder of their own, which fills them in when a step is known; what was verified
    tells how often they are right."""

    def __init__(self) -> None:
        self.chance = _AT_FIRST

    def draft(self, count: int) -> list[int]:
        """So many tokens, to be filled in."""
        return [0] * count

    def extend(self, tokens: Sequence[int], verified: int) -> None:
        """Takes the answer to a step that verified so many drafts."""
        for at in range(min(verified, len(tokens))):
            self.chance += _WEIGHT * ((at + 1 < len(tokens)) - self.chance)


Drafts = PromptLookup | Ahead


class Offer(NamedTuple):
    """`count` drafts behind `guessed` other guesses; `chance` is the probability that any of these
    is right if those before it are."""

    count: int = 0
    chance: float = 0.0
    guessed: int = 0

    def chances(self) -> list[float]:
        """Of every draft that is worth a thought, the probability that it is accepted (Leviathan et
        al. 2023, section 3.1: as if they were independent)."""
        chance, chances = self.chance**self.guessed, []
        for _ in range(self.count):
            chance *= self.chance
            if chance < _LEAST:
                break
            chances.append(chance)
        return chances


def paying(
    sure: int, offers: Sequence[Offer], room: int, prices: Prices, draft_s: float = 0.0
) -> Counter[int]:
    """How many drafts of every offer to verify in a step, by its place: those that let the most
    tokens be computed in a second.

    sure: tokens of the step without drafts; room: for drafts; prices: without them all drafts pay;
    draft_s: seconds to draft one more for everybody
    """
    chances = sorted(
        ((chance, -place) for place, offer in enumerate(offers) for chance in offer.chances()),
        reverse=True,
    )[:room]
    if not prices:
        return Counter(-place for _, place in chances)
    larger = (price for price in prices if price[0] >= sure)
    size, step_s = next(larger, prices[-1])
    verified, best, longest = Counter[int](), 0, 0
    tokens, most = float(sure), sure / step_s
    for count, (chance, place) in enumerate(chances[: max(0, prices[-1][0] - sure)], 1):
        if sure + count > size:
            size, step_s = next(larger)
        verified[place] += 1
        longest = max(longest, verified[place])
        tokens += chance
        rate = tokens / (step_s + _WAITS_S + draft_s * longest)
        if rate > most:
            best, most = count, rate
    return Counter(-place for _, place in chances[:best])
