"""The scheduler with a clock instead of a machine: what it would do with the requests of a load.

    simulate(Policy(pages=2800), arrivals, seconds) -> Figures

A step takes as long as `seconds` says of its demand. Nothing else takes time: the next step is
queued while one runs; but where one has drafts, the machine waits for the host before it. A draft
is right with the probability that its arrival says, which the scheduler learns.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Mapping

from dialect.serving.drafts import WAITS_S, Ahead, Usual
from dialect.serving.policy import Policy
from dialect.serving.scheduler import Scheduler
from dialect.serving.steps import Row
from dialect.simulated.arrivals import Arrival
from dialect.simulated.demand import Demand
from dialect.simulated.figures import Figures, Watch

Seconds = Callable[[Demand], float]
_LOOKED_AT = 16  # every so many steps the pages are counted


def simulate(policy: Policy, arrivals: Iterable[Arrival], seconds: Seconds) -> Figures:
    """Serves a load, which is sorted by time, and tells how that went."""
    scheduler, watch = Scheduler(policy), Watch()
    now, refused, fresh, coming = 0.0, 0, itertools.count(), iter(arrivals)
    arrival, chance = next(coming, None), random.Random(0)
    guessed, usual = dict[int, float](), Usual()
    while True:
        while arrival is not None and arrival.at <= now:
            request = arrival.request()
            request.drafts = Ahead(usual) if arrival.guessed else None
            scheduler.submit(request, arrival.at)
            guessed[request.number] = arrival.guessed
            refused += bool(request.ended)
            arrival = next(coming, None)
        step = scheduler.schedule(now)
        if not step.rows and arrival is None:
            return watch.figures(now, refused, _hit_rate(scheduler), _preemptions(scheduler))
        if not step.rows:
            now = arrival.at
            continue
        demand = Demand.of(step, policy.groups)
        lasts = seconds(demand) + WAITS_S * any(row.drafts for row in step.rows)
        _observe(watch, scheduler, lasts)
        now += lasts
        counts = [1 + _right(row, chance, guessed) for row in step.rows if row.answers]
        answers = [list(itertools.islice(fresh, count)) for count in counts]
        for done in scheduler.done(step, answers, now):
            first_s, others_s = done.first_token_at - done.arrived, now - done.first_token_at
            watch.ended(done.asked, len(done.answer), first_s, others_s)


def _right(row: Row, chance: random.Random, guessed: Mapping[int, float]) -> int:
    """How many drafts of a row are right, up to the first that is not."""
    right = (chance.random() < guessed[row.request.number] for _ in row.drafts)
    return sum(itertools.takewhile(bool, right))


def _observe(watch: Watch, scheduler: Scheduler, lasts: float) -> None:
    groups = scheduler.groups
    if watch.steps % _LOOKED_AT == 0:
        holding = [r for group in groups for r in (*group.running, *group.ending)]
        slots = sum(len(r.table) for r in holding) * scheduler.policy.page
        watch.memory(lasts, sum(r.scheduled for r in holding), slots)
    watch.step(lasts, sum(len(group.running) + len(group.ending) for group in groups))


def _hit_rate(scheduler: Scheduler) -> float:
    asked = sum(group.prompt_pages for group in scheduler.groups)
    return sum(group.cached_pages for group in scheduler.groups) / asked if asked else 0.0


def _preemptions(scheduler: Scheduler) -> int:
    return sum(group.preemptions for group in scheduler.groups)
