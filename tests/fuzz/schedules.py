"""Random requests under random policies: the scheduler is checked after every step.

python -m tests.fuzz.schedules --seed 0 --count 10000
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter, deque

from dialect.serving import shapes
from dialect.serving.policy import VICTIMS, Policy
from dialect.serving.requests import Request
from dialect.serving.scheduler import Scheduler
from dialect.serving.steps import Step
from dialect.token_rows.packing import placed
from tests.fake_step import VOCABULARY, FakeDevice, Guesses, alone

LONGEST, TOKENS = 40, 3  # of a request; that prompts are written in, so that many begin alike
ENDS = ("stop", "length", "cancelled", "deadline")


def random_policy(draw: random.Random) -> Policy:
    """Few pages, so that requests lose theirs."""
    page, rows = draw.choice([1, 2, 3, 4, 8]), draw.randint(1, 8)
    chunk = draw.choice([rows, rows + 1, rows + 7, 64])
    grouped = ((rows, 1), (draw.randint(1, 4), draw.choice([2, 5])))
    largest = draw.choice([shapes.rows_alone(chunk), grouped])
    some = [shapes.rows_alone(2), ((rows, 3),), ((rows, 1), (1, 2), (1, 3)), largest]
    timed = draw.choice([0.0, 1.0])
    seconds = [timed * draw.randint(1, 5) for _ in some]
    return Policy(
        pages=draw.randint(LONGEST // page + 1, 3 * LONGEST // page + 1),
        page=page,
        rows=rows,
        groups=draw.choice([1, 1, 2, 3]),
        chunk=chunk,
        shares=draw.random() < 0.8,
        victim=draw.choice(sorted(VICTIMS)),
        patience=draw.choice([0.0, 3.0, 1000.0]),
        spare=draw.choice([0.0, 0.01, 0.2]),
        reserved=draw.choice([lambda request: 0, lambda request: request.limit]),
        drafts=draw.choice([0, 1, 4]),
        steps=draw.choice([(), tuple(zip(some, seconds))]),
        draft_s=draw.choice([0.0, 0.1]),
    )


def random_request(draw: random.Random, prefixes: list[list[int]], now: float) -> Request:
    """A request that begins as others do."""
    prefix = draw.choice(prefixes)
    prefix = prefix[: draw.randint(0, len(prefix))]
    own = [draw.randrange(TOKENS) for _ in range(draw.randint(0 if prefix else 1, 6))]
    request = Request(
        prefix + own,
        most_new=draw.randint(1, LONGEST - len(prefix + own)),
        stop=frozenset({draw.randrange(VOCABULARY)} if draw.random() < 0.3 else ()),
        priority=draw.choice([0, 0, 0, 1, -1]),
        user=draw.choice("ab"),
        deadline=now + draw.choice([5, 20]) if draw.random() < 0.1 else float("inf"),
    )
    if draw.random() < 0.8:
        request.drafts = Guesses(request, draw.choice([0.0, 0.5, 0.9, 1.0]))
    return request


def have_rows(step: Step, policy: Policy) -> None:
    """Raises AssertionError unless all tokens of a step have rows in one of its shapes."""
    if policy.groups > 1:
        return
    possible = [shape for shape, _ in policy.steps] or [policy.largest]
    shape, starts = placed(step, possible)
    taken = [at + n for at, row in zip(starts, step.rows) for n in range(row.count)]
    assert len({*taken}) == len(taken) and max(taken, default=0) < shapes.rows_of(shape)


def checked(seed: int) -> Counter[str]:
    """Runs one schedule to its end; what happened in it. Raises AssertionError, PagesLost."""
    draw = random.Random(seed)
    scheduler = Scheduler(random_policy(draw))
    device = FakeDevice(scheduler)
    prefixes = [[draw.randrange(TOKENS) for _ in range(draw.randint(1, 20))] for _ in range(3)]
    requests: list[Request] = []
    queued: deque[tuple[Step, list[list[int]]]] = deque()
    ahead, wanted, now = draw.choice([0, 0, 1, 2]), draw.randint(1, 20), 0.0
    seen: Counter[str] = Counter()
    while len(requests) < wanted or scheduler.requests:
        while len(requests) < wanted and draw.random() < 0.5:
            requests.append(random_request(draw, prefixes, now))
            scheduler.submit(requests[-1], now)
        if requests and now < 300 and draw.random() < 0.03:  # later it would hide a request stuck
            scheduler.cancel(draw.choice(requests), "cancelled", now)
        while queued and draw.random() < 0.5 and scheduler.wants_to_know(queued[0][0]):
            scheduler.done(*queued.popleft(), now)
            scheduler.check()
        step = scheduler.schedule(now)
        scheduler.check()
        have_rows(step, scheduler.policy)
        queued.append((step, device.run(step)))
        while len(queued) > (ahead if step.rows else 0):
            scheduler.done(*queued.popleft(), now)
            scheduler.check()
        seen += Counter(steps=1, copies=len(step.copies))
        now += 1
        assert now < 5000, "somebody starves"
    for request in requests:
        expected, answer = alone(request), list(request.answer)
        assert request.ended in ENDS, request.ended
        assert answer == (expected if request.ended in ENDS[:2] else expected[: len(answer)])
    for group in scheduler.groups:
        assert group.load == 0 and group.available == group.pages.count
        seen += Counter(preemptions=group.preemptions, shared=group.cached_pages)
        seen += Counter(accepted=group.accepted, refused=group.verified - group.accepted)
        seen += Counter(declined=group.declined)
    return seen + Counter(schedules=1, **Counter(request.ended for request in requests))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=10_000)
    args = parser.parse_args()
    seen: Counter[str] = Counter()
    for seed in range(args.seed, args.seed + args.count):
        try:
            seen += checked(seed)
        except Exception as error:
            print(f"seed {seed}: {type(error).__name__}: {error}")
            return 1
    print(", ".join(f"{count} {what}" for what, count in sorted(seen.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
