"""How long the scheduler takes for a step in which 256 rows decode, over 10,000 and 100,000 pages.

    python benchmarks/scheduler.py

Pages of 16 tokens; requests leave and join all the time, so that pages are taken, shared in the
radix tree and evicted. The time is that of `schedule` and `done` together, in processor seconds.
Nothing may grow with the number of pages.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time

from dialect.serving.policy import Policy
from dialect.serving.requests import Request
from dialect.serving.scheduler import Scheduler

ROWS, STEPS, WAITING = 256, 6000, 200


def measure(pages: int) -> None:
    """Prints the time of the steps after the tree has filled all pages."""
    draw, fresh = random.Random(0), itertools.count(1000)
    scheduler = Scheduler(Policy(pages=pages, page=16, rows=ROWS, chunk=1024))
    times, rows, group = [], 0, scheduler.groups[0]
    for at in range(STEPS):
        now = at * 0.02
        while len(group.waiting) < WAITING:
            prompt = [draw.randrange(50)] * 100 + list(itertools.islice(fresh, 100))
            scheduler.submit(Request(prompt, draw.randint(1, 400), user=str(at % 7)), now)
        begun = time.process_time()
        step = scheduler.schedule(now)
        queued = time.process_time()
        tokens = [[next(fresh)] for row in step.rows if row.answers]
        answered = time.process_time()
        scheduler.done(step, tokens, now)
        if len(group.pages.free) < pages // 100:
            times.append(time.process_time() - answered + queued - begun)
            rows += len(step.rows)
    percentiles = statistics.quantiles(times, n=100)
    shown = ", ".join(f"{at} %: {percentiles[at - 1] * 1e3:.3f} ms" for at in (10, 50, 90, 99))
    print(f"{pages} pages, {rows / len(times):.0f} rows, {len(times)} steps; {shown}")


if __name__ == "__main__":
    for count in (10_000, 100_000):
        measure(count)
