"""Drafts: tokens that may come next, guessed from those that a request has, and how many to verify.

A step verifies drafts for little more than one token costs (Leviathan et al. 2023). Whether that
pays depends on all requests of the step: it has one of a few shapes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate, chain, repeat, takewhile
from operator import mul
from typing import NamedTuple

from dialect.serving.shapes import Priced, Room, Shape

_AT_FIRST = 0.5  # the chance of a guess, before any was seen to be right or wrong
_WEIGHT = 1 / 8  # of the last guess, in the running mean of a request
_HOPED = 0.9  # the chance of the drafts of a decoder, before any was verified: so that some are
_USUAL_WEIGHT = 1 / 64  # of the last of these, in the running mean over all requests
_LEAST = 0.05  # the chance of a draft that is worth a row
_LONGEST = 3  # tokens before a guess that are known to be there too; more say nothing more
_BITS = 32  # of a token
WAITS_S = 0.7e-3  # that a machine waits for a step with drafts: the one before is read first


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
        """Adds a token that was not guessed; how many of the last ones were there before. A pair is
        one number, which is no token: the garbage collector looks at tuples."""
        text, after = self.text, self.after
        last = text[-1]
        after[last] = after[text[-2] + 2 << _BITS | last] = len(text)
        text.append(token)
        if (single := after.get(token)) is None:
            return 0
        pair = after.get(last + 2 << _BITS | token)
        self.place = pair or single
        return 2 if pair else 1

    def draft(self, count: int) -> list[int]:
        """At most so many tokens that may come next."""
        if not self.found:
            return []
        repeated = self.text[self.place : self.place + count]
        return (repeated * count)[:count] if len(repeated) < count else repeated


class Usual:
    """How often the drafts of a decoder were right, over all requests. It begins too high, so they
    are declined because of what was verified, not because of a guess."""

    def __init__(self) -> None:
        self.chance = _HOPED


class Ahead:
    """Drafts of a decoder of their own, which fills them in when a step is known; what was verified
    tells how often they are right: of this request, and before of all others."""

    def __init__(self, usual: Usual) -> None:
        self.usual = usual
        self.seen: float | None = None  # the chance by what was verified here

    @property
    def chance(self) -> float:
        """The probability that a draft is right."""
        return self.usual.chance if self.seen is None else self.seen

    def draft(self, count: int) -> list[int]:
        """So many tokens, to be filled in."""
        return [0] * count

    def extend(self, tokens: Sequence[int], verified: int) -> None:
        """Takes the answer to a step that verified so many drafts."""
        for at in range(min(verified, len(tokens))):
            right, chance = at + 1 < len(tokens), self.chance
            self.usual.chance += _USUAL_WEIGHT * (right - self.usual.chance)
            self.seen = chance + _WEIGHT * (right - chance)


Drafts = PromptLookup | Ahead


class Offer(NamedTuple):
    """At most `count` drafts behind `guessed` other guesses; `chance` is the probability that any
    of these is right if those before it are."""

    count: int = 0
    chance: float = 0.0
    guessed: int = 0


class _Worth(NamedTuple):
    """Of the drafts of an offer that are worth a thought: the probability that each is refused, and
    how many are accepted of the first 0, 1, .. on average (Leviathan et al. 2023, section 3.1: as
    if they were independent)."""

    refused: tuple[float, ...]
    accepted: tuple[float, ...]


@lru_cache(maxsize=1 << 14)
def _worth(chance: float, count: int, guessed: int) -> _Worth:
    stand = accumulate(repeat(chance, count), mul, initial=chance**guessed)
    stand = tuple(takewhile(lambda each: each >= _LEAST, stand))[1:]
    return _Worth(tuple(1 - each for each in stand), tuple(accumulate(stand, initial=0.0)))


def paying(
    decoding: int,
    prompts: Sequence[int],
    offers: Sequence[Offer | tuple[int, float, int]],
    steps: Priced,
    draft_s: float = 0.0,
) -> dict[int, int]:
    """How many drafts of every offer to verify in a step, by its place: those that let the most
    tokens be computed in a second. Those that are worth none are left out.

    decoding: requests that compute a token, with an offer or without; prompts: tokens of others;
    steps: where their seconds are not known, all drafts pay that have room; draft_s: seconds to
    draft one more for everybody
    """
    worth = [_worth(round(chance, 2), count, guessed) for count, chance, guessed in offers]
    longest = max([len(each.refused) for each in worth], default=0)
    all_of = [each.accepted[-1] for each in worth]
    order = sorted(range(len(worth)), key=all_of.__getitem__, reverse=True)
    worth = [worth[at] for at in order]
    timed, sure = any(seconds for _, seconds in steps), decoding + sum(prompts)
    most_sure = sure + sum(all_of)  # if all drafts had room
    best, lengths = 0.0, list[int]()
    for shape, seconds in steps if longest else ():
        shape_s = seconds if timed else 1.0
        if most_sure <= best * shape_s:
            continue
        if (seats := _seats(shape, decoding, prompts, len(offers))) is None:
            continue
        if sure > best * shape_s:
            best, lengths = sure / shape_s, []
        for most in range(1, longest + 1) if timed and draft_s else (longest,):
            ways = _lengths(worth, *seats, most)
            if not any(ways):
                continue
            waits_s = (WAITS_S + draft_s * max(ways)) * timed
            tokens = sure + sum(each.accepted[count] for each, count in zip(worth, ways))
            if tokens > best * (step_s := waits_s + shape_s):
                best, lengths = tokens / step_s, ways
    return {at: count for at, count in zip(order, lengths) if count}


def _seats(
    shape: Shape, decoding: int, prompts: Sequence[int], offers: int
) -> tuple[list[int], int] | None:
    """Where prompts and requests that decode have rows: the drafts that have room beside the token
    of those in groups, largest first, and how many rows are left for the drafts of others. None
    where there are too few."""
    room = Room(shape)
    if any(room.take(tokens)[1] < tokens for tokens in prompts):
        return None
    free = sorted(zip((size for _, size in shape), room.free), reverse=True)
    beside = [size - 1 for size, groups in free for _ in range(groups) if size > 1]
    single = sum(groups for size, groups in free if size == 1)
    if len(beside) + single < decoding:
        return None
    beside = beside[:offers]
    return beside, max(0, single + len(beside) - decoding)


def _lengths(worth: Sequence[_Worth], beside: Sequence[int], left: int, most: int) -> list[int]:
    """The drafts of each, at most so many: those in groups as these have room, of the others the
    most likely, which are no more than those in the largest group."""
    most = min(most, beside[0]) if beside else most
    lengths = [min(room, most, len(each.refused)) for each, room in zip(worth, beside)]
    if not left:
        return lengths
    others = [each.refused[:most] for each in worth[len(beside) :]]
    if sum(map(len, others)) <= left:
        return lengths + list(map(len, others))
    return lengths + _likeliest(others, left)


def _likeliest(refused: Sequence[tuple[float, ...]], count: int) -> list[int]:
    """How many of each are among so many that are refused least; of equal ones the first."""
    limit = sorted(chain.from_iterable(refused))[count]
    lengths = [bisect_left(each, limit) for each in refused]
    left = count - sum(lengths)
    for at, each in enumerate(refused):
        if not left:
            break
        equal = min(left, bisect_right(each, limit) - lengths[at])
        lengths[at] += equal
        left -= equal
    return lengths
