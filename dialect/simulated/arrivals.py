"""Requests before they are sent: read from a trace, or drawn.

Where only lengths are known, tokens are numbers that occur nowhere else, so that nothing is shared
by chance.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from dialect.serving.policy import ServingError
from dialect.serving.requests import Request

MOONCAKE_BLOCK = 512  # tokens of a hash in Mooncake's traces
_FIRST_FRESH = 2**29  # tokens below may be named by a trace


@dataclass(frozen=True)
class Arrival:
    """A request `at` a second: a prompt, as ranges of tokens, and the length of its answer.

    guessed: the probability that a draft of its next token is right; 0 for no drafts
    """

    at: float
    prompt: tuple[range, ...]
    new: int
    guessed: float = 0.0

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return sum(map(len, self.prompt))

    def request(self) -> Request:
        """The request, to be submitted."""
        return Request(itertools.chain(*self.prompt), self.new)


class Fresh:
    """Tokens that occur nowhere else."""

    def __init__(self) -> None:
        self.next = _FIRST_FRESH

    def tokens(self, count: int) -> range:
        """The next `count` tokens."""
        self.next += count
        return range(self.next - count, self.next)


# Traces.


def read_trace(path: str | Path, most: int | None = None) -> list[Arrival]:
    """The first `most` requests of a trace: Azure's (.csv) or Mooncake's (.jsonl).

    Azure: TIMESTAMP, ContextTokens, GeneratedTokens (github.com/Azure/AzurePublicDataset).
    Mooncake: timestamp (ms), input_length, output_length, hash_ids of blocks of 512 tokens
    (github.com/kvcache-ai/Mooncake). Raises ServingError with the line that cannot be read.
    """
    path = Path(path)
    readers = {".csv": _azure, ".jsonl": _mooncake}
    if path.suffix not in readers:
        raise ServingError(f"{path} is no trace", hint="Azure's end in .csv, Mooncake's in .jsonl")
    arrivals: list[Arrival] = []
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            for arrival in itertools.islice(readers[path.suffix](lines), most):
                arrivals.append(arrival)
    except OSError as error:
        raise ServingError(f"cannot read the trace {str(path)!r}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        line = len(arrivals) + (2 if path.suffix == ".csv" else 1)
        raise ServingError(f"{path}, line {line}: not a request of a trace ({error})") from error
    if not arrivals:
        raise ServingError(f"{path} holds no request")
    first = min(arrival.at for arrival in arrivals)
    arrivals = [replace(arrival, at=arrival.at - first) for arrival in arrivals]
    return sorted(arrivals, key=lambda arrival: arrival.at)


def _azure(lines: Iterable[str]) -> Iterator[Arrival]:
    fresh = Fresh()
    for row in csv.DictReader(lines):
        at = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
        tokens = fresh.tokens(int(row["ContextTokens"]))
        yield Arrival(at, (tokens,), int(row["GeneratedTokens"]))


def _mooncake(lines: Iterable[str]) -> Iterator[Arrival]:
    for line in lines:
        row = json.loads(line)
        left, prompt = row["input_length"], []
        for block in row["hash_ids"]:
            start, count = block * MOONCAKE_BLOCK, min(MOONCAKE_BLOCK, left)
            prompt.append(range(start, start + count))
            left -= count
        yield Arrival(row["timestamp"] / 1000, tuple(prompt), row["output_length"])


# Arrivals that are drawn.


@dataclass(frozen=True)
class Lengths:
    """Lengths with a lognormal distribution: their mean, after the cut at `most`, and the standard
    deviation of their logarithm."""

    mean: float
    sigma: float
    most: int

    def draw(self, count: int, draw: random.Random) -> list[int]:
        """`count` lengths, scaled until their mean is right."""
        shapes = [draw.lognormvariate(0.0, self.sigma) for _ in range(count)]
        scale = self.mean / math.exp(self.sigma**2 / 2)
        for _ in range(20):
            lengths = [min(self.most, max(1, round(scale * shape))) for shape in shapes]
            scale *= self.mean * count / sum(lengths)
        return lengths


def drawn(
    count: int,
    prompts: Lengths,
    answers: Lengths,
    longest: int,
    prefixes: tuple[int, int] = (0, 0),
    seed: int = 0,
) -> list[Arrival]:
    """Requests that all come at once. Prompt and answer together have at most `longest` tokens.

    prefixes: (how many, tokens of one); every prompt begins with one of them.
    """
    draw, fresh = random.Random(seed), Fresh()
    shared = [fresh.tokens(prefixes[1]) for _ in range(prefixes[0])]
    arrivals = []
    for length, new in zip(prompts.draw(count, draw), answers.draw(count, draw)):
        prompt = (*([draw.choice(shared)] if shared else ()), fresh.tokens(length))
        room = longest - sum(map(len, prompt))
        arrivals.append(Arrival(0.0, prompt, max(1, min(new, room))))
    return arrivals


def spread(
    arrivals: Iterable[Arrival], rate: float, burst: float = 1.0, seed: int = 0
) -> list[Arrival]:
    """The same requests, `rate` a second: intervals have a Gamma distribution.

    burst: the coefficient of variation of the intervals: 1 is a Poisson process.
    """
    draw, now = random.Random(seed), 0.0
    shape = 1 / burst**2
    spread_out = []
    for arrival in arrivals:
        now += draw.gammavariate(shape, 1 / (rate * shape))
        spread_out.append(replace(arrival, at=now))
    return spread_out


def at_rate(arrivals: list[Arrival], rate: float) -> list[Arrival]:
    """The same requests, their intervals stretched to `rate` a second; inf: all at once."""
    lasts = max(arrival.at for arrival in arrivals)
    factor = len(arrivals) / rate / lasts if lasts else 0.0
    return [replace(arrival, at=arrival.at * factor) for arrival in arrivals]
