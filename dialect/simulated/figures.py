"""What is told of how a load was served."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

QUANTILES = (50, 90, 99)  # percent of the requests


@dataclass(frozen=True)
class Figures:
    """What became of a load.

    - requests: those that were answered; refused: those that no group of pages has room for
    - seconds: from the first arrival to the last token; prompt_per_s, new_per_s: tokens
    - first_token_s, per_token_s: half of the requests, 90 and 99 % of them, had their first token
      within this time of their arrival, and every other at such intervals
    - batch: requests that run, on average over the time in which some do
    - used: the part of their pages that holds tokens
    - hit_rate: the part of the prompts' pages that was in the cache
    """

    requests: int
    refused: int
    seconds: float
    prompt_per_s: float
    new_per_s: float
    first_token_s: tuple[float, ...]
    per_token_s: tuple[float, ...]
    batch: float
    used: float
    hit_rate: float = 0.0
    preemptions: int = 0
    steps: int = 0


@dataclass
class Watch:
    """What is summed up while a load is served."""

    steps: int = 0
    prompt: int = 0
    new: int = 0
    busy_s: float = 0.0
    batch_s: float = 0.0
    tokens_s: float = 0.0
    slots_s: float = 0.0
    first_token_s: list[float] = field(default_factory=list)
    per_token_s: list[float] = field(default_factory=list)

    def step(self, lasts: float, batch: int) -> None:
        """A step of so many seconds, with so many requests running."""
        self.steps += 1
        self.busy_s += lasts
        self.batch_s += lasts * batch

    def memory(self, lasts: float, tokens: int, slots: int) -> None:
        """So many tokens, in pages with room for `slots`, for so many seconds."""
        self.tokens_s += lasts * tokens
        self.slots_s += lasts * slots

    def ended(self, prompt: int, new: int, first_token_s: float, others_s: float) -> None:
        """A request of so many tokens has its last: the first took so long, then the others."""
        self.prompt += prompt
        self.new += new
        self.first_token_s.append(first_token_s)
        if new > 1:
            self.per_token_s.append(others_s / (new - 1))

    def figures(
        self, now: float, refused: int, hit_rate: float = 0.0, preemptions: int = 0
    ) -> Figures:
        """All of it, at the end."""
        return Figures(
            requests=len(self.first_token_s),
            refused=refused,
            seconds=now,
            prompt_per_s=_ratio(self.prompt, now),
            new_per_s=_ratio(self.new, now),
            first_token_s=quantiles(self.first_token_s),
            per_token_s=quantiles(self.per_token_s),
            batch=_ratio(self.batch_s, self.busy_s),
            used=_ratio(self.tokens_s, self.slots_s),
            hit_rate=hit_rate,
            preemptions=preemptions,
            steps=self.steps,
        )


def quantiles(values: list[float]) -> tuple[float, ...]:
    """The values that 50, 90 and 99 % do not exceed; 0 where there are none."""
    ordered = sorted(values) or [0.0]
    return tuple(ordered[math.ceil(percent / 100 * len(ordered)) - 1] for percent in QUANTILES)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
