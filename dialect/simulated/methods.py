"""Ways to batch requests, to be compared: lock-step batches, slots, pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from dialect.serving.policy import Policy
from dialect.simulated.arrivals import Arrival
from dialect.simulated.demand import Demand
from dialect.simulated.figures import Figures, Watch
from dialect.simulated.simulator import Seconds, simulate

Method = Callable[[Policy, Sequence[Arrival], Seconds, int], Figures]


def static(policy: Policy, arrivals: Sequence[Arrival], seconds: Seconds, longest: int) -> Figures:
    """A batch is filled, and runs until the last of its requests has ended; the next is filled.

    Its rows are in lock step, as in a decoder with one position for the whole batch: prompts are
    padded to the longest in the batch, and rows whose request has ended are computed on. Every row
    has room for the longest request there may be.
    """
    rows = max(1, policy.groups * policy.most_tokens // longest)
    waiting = [arrival for arrival in arrivals if arrival.length + arrival.new <= longest]
    watch, now, refused = Watch(), 0.0, len(arrivals) - len(waiting)
    while waiting:
        now = max(now, waiting[0].at)
        batch = [arrival for arrival in waiting[:rows] if arrival.at <= now]
        waiting = waiting[len(batch) :]
        prompt, ends = max(arrival.length for arrival in batch), [now]
        for at in range(max(arrival.new for arrival in batch)):
            count = rows * (1 if at else prompt)
            demand = Demand(rows, count, rows, rows * (prompt + at), count * (prompt + at))
            lasts = seconds(demand)
            running = [arrival for arrival in batch if arrival.new > at]
            watch.step(lasts, len(running))
            watch.memory(lasts, sum(arrival.length + at for arrival in running), rows * longest)
            ends.append(ends[-1] + lasts)
        now = ends[-1]
        for arrival in batch:
            watch.ended(
                arrival.length, arrival.new, ends[1] - arrival.at, ends[arrival.new] - ends[1]
            )
    return watch.figures(now, refused)


def slots(policy: Policy, arrivals: Sequence[Arrival], seconds: Seconds, longest: int) -> Figures:
    """Requests join and leave at every step; each has room for the longest there may be."""
    count = max(1, policy.most_tokens // longest)
    rows = min(policy.rows, count)
    fixed = replace(policy, page=longest, pages=count, rows=rows, shares=False, spare=0.0)
    return simulate(fixed, arrivals, seconds)


def pages(policy: Policy, arrivals: Sequence[Arrival], seconds: Seconds, longest: int) -> Figures:
    """Requests join and leave at every step, and take pages as they need them."""
    return simulate(policy, arrivals, seconds)


METHODS: dict[str, Method] = {"static": static, "slots": slots, "pages": pages}
