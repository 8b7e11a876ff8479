"""Drafts: tokens that may come next, guessed from those that a request has, and how many to verify.

A step verifies drafts for little more than one token costs (Leviathan et al. 2023). Whether that
pays depends on all requests of the step: it runs in one of a few sizes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate, chain, repeat, takewhile, zip_longest
from operator import mul
from typing import NamedTuple

_AT_FIRST = 0.5  # the chance of a guess, before any was seen to be right or wrong
_WEIGHT = 1 / 8  # of the last guess, in the running mean
_LEAST = 0.05  # the chance of a draft that is worth a row
_LONGEST = 3  # tokens before a guess that are known to be there too; more say nothing more
_BITS = 32  # of a token
WAITS_S = 0.7e-3  # that a machine waits for a step with drafts: the one before is read first

Prices = Sequence[tuple[int, float]]  # (tokens, seconds) of the steps that there are, ascending


class PromptLookup:
    """Guesses that the text goes on as it did where its last tokens were before.

    The last two tokens, or else the last one, are looked up where a guess was wrong; where it was
    right, what is behind it is the next guess (prompt lookup decoding, Saxena 2023; LLMA, Yang et
    al. 2023, section 3.1). A token and a guess take constant time, however long the text is. A text
    that repeats itself is guessed to repeat itself again. Every token tells whether the guess of it
    was right, verified or not.

    chance: the probability that the next token is the one that is guessed; 0 where none is
    """

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self.text = [-1, -1]  # in front of its tokens: so that a pair is there to be looked up
        self.after: dict[int, int] = {}  # a token, or a pair -> the place behind it
        self.chances = [0.0] + [_AT_FIRST] * _LONGEST  # by how many were found
        self.found, self.place = 0, 0  # how many of the last are there too, and the place behind
        self.chance = 0.0
        self.extend(tokens)

    @property
    def tokens(self) -> list[int]:
        """The text."""
        return self.text[2:]

    def extend(self, tokens: Iterable[int], verified: int = 0) -> None:
        """Adds tokens that the text now has."""
        text, chances, found = self.text, self.chances, self.found
        for token in tokens:
            if found and text[self.place] == token:
                chances[found] += _WEIGHT * (1 - chances[found])
                text.append(token)
                self.place += 1
                found = min(found + 1, _LONGEST)
            else:
                chances[found] -= _WEIGHT * chances[found]
                found = self._looked_up(token)
        self.found, self.chance = found, chances[found]

    def _looked_up(self, token: int) -> int:
        """Adds a token that was not guessed; how many of the last ones were there before."""
        text, after = self.text, self.after
        last = text[-1]
        after[last] = after[_pair(text[-2], last)] = len(text)
        text.append(token)
        if token not in after:
            return 0
        pair = after.get(_pair(last, token), 0)
        self.place = pair or after[token]
        return 2 if pair else 1

    def draft(self, count: int) -> list[int]:
        """At most so many tokens that may come next."""
        if not self.found:
            return []
        repeated = self.text[self.place : self.place + count]
        return (repeated * count)[:count] if len(repeated) < count else repeated


def _pair(token: int, then: int) -> int:
    """Two tokens as one number, which is no token: the garbage collector looks at tuples."""
    return token + 2 << _BITS | then


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


def paying(
    sure: int, offers: Sequence[Offer], room: int, prices: Prices, draft_s: float = 0.0
) -> dict[int, int]:
    """How many drafts of every offer to verify in a step, by its place: those that let the most
    tokens be computed in a second. Those that are worth none are left out.

    sure: tokens of the step without drafts; room: for drafts; prices: without them all drafts pay;
    draft_s: seconds to draft one more for everybody
    """
    most = min(room, prices[-1][0] - sure) if prices else room
    if most <= 0:
        return {}
    chances = [_accepted(round(chance, 2), count, guessed) for count, chance, guessed in offers]
    likely = sorted(chain.from_iterable(chances))[-most:]
    rounds = list(map(max, zip_longest(*chances, fillvalue=0.0))) if draft_s else []
    count = _best(sure, likely, rounds, prices, draft_s) if prices else len(likely)
    return _at_least(likely[-count], count, chances) if count else {}


@lru_cache(maxsize=1 << 14)
def _accepted(chance: float, count: int, guessed: int) -> tuple[float, ...]:
    """Of every draft that is worth a thought, the probability that it is accepted (Leviathan et
    al. 2023, section 3.1: as if they were independent)."""
    chances = accumulate(repeat(chance, count), mul, initial=chance**guessed)
    return tuple(takewhile(lambda each: each >= _LEAST, chances))[1:]


def _best(
    sure: int, likely: Sequence[float], rounds: Sequence[float], prices: Prices, draft_s: float
) -> int:
    """How many of the most likely drafts let the most tokens be computed in a second.

    It is worth going on up to the end of a step, and up to the next of the rounds in which all
    draft; `rounds` has the most likely draft of each.
    """

    def tokens_per_s(count: int) -> float:
        step_s = next(seconds for size, seconds in prices if size >= min(sure + count, largest))
        if count:
            step_s += WAITS_S + draft_s * sum(first >= likely[-count] for first in rounds)
        return (sure + sum(likely[len(likely) - count :])) / step_s

    largest, most = prices[-1][0], len(likely)
    ends = {0, most, *(most - bisect_right(likely, first) for first in rounds)}
    ends |= {size - sure for size, _ in prices if 0 < size - sure < most}
    return max(sorted(ends), key=tokens_per_s)


def _at_least(least: float, count: int, chances: Sequence[Sequence[float]]) -> dict[int, int]:
    """So many drafts whose chance is at least that, by their place; of equal ones the first."""
    more = {
        place: sum(each > least for each in row)
        for place, row in enumerate(chances)
        if row and row[0] >= least
    }
    left = count - sum(more.values())
    for place in more:
        equal = min(left, chances[place].count(least))
        more[place] += equal
        left -= equal
    return {place: length for place, length in more.items() if length}
