"""How long the scheduler takes for a step in which 256 rows decode, over 10,000 and 100,000 pages.

    python benchmarks/scheduler.py

Pages of 16 tokens; requests leave and join all the time, so that pages are taken, shared in the
radix tree and evicted. Without drafts, and with those that are looked up: in texts that repeat a
half of their tokens, where as many are verified as pay in steps like those of a chip, with groups
for prompts and drafts, and where they never pay. The time is that of `schedule`, `wants_to_know`
and `done` together, in processor seconds. Nothing may grow with the number of pages.
"""

from __future__ import annotations

import itertools
import random
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from dialect.serving.drafts import PromptLookup
from dialect.serving.policy import Policy
from dialect.serving.requests import Request
from dialect.serving.scheduler import Scheduler
from dialect.serving.shapes import Priced, rows_alone
from dialect.serving.steps import Row, Step

ROWS, CHUNK, STEPS, WAITING, LONGEST = 256, 1024, 6000, 200, 400
REPEATED, FEWEST, MOST = 0.03, 8, 24  # how often a repetition begins, and how long it is
LARGEST = ((256, 1), (49, 16))
CHIP = ((rows_alone(64), 5e-3), (rows_alone(256), 6e-3), (((256, 4),), 9e-3), (LARGEST, 9e-3))
NEVER = ((rows_alone(256), 6e-3), (rows_alone(1024), 60e-3))
DRAFTS: dict[str, tuple[int, Priced]] = {
    "no drafts": (0, ()),
    "drafts that pay": (16, CHIP),
    "drafts that do not": (16, NEVER),
}


class Texts:
    """What requests are asked and answered: a common beginning, new tokens, and repetitions."""

    def __init__(self, repeats: bool) -> None:
        self.draw, self.fresh, self.repeats = random.Random(0), itertools.count(1000), repeats
        self.whole: dict[Request, list[int]] = {}

    def request(self, user: str) -> Request:
        """A new one, of 200 tokens, whose answer is known."""
        text = [self.draw.randrange(50)] * 100 + list(itertools.islice(self.fresh, 100))
        new = self.draw.randint(1, LONGEST)
        while len(text) < 200 + new + 1:
            if self.repeats and self.draw.random() < REPEATED:
                place = self.draw.randrange(100, len(text) - MOST)
                text += text[place : place + self.draw.randint(FEWEST, MOST)]
            text.append(next(self.fresh))
        request = Request(text[:200], new, user=user)
        if self.repeats:
            request.drafts = PromptLookup(request.tokens)
        self.whole[request] = text
        return request

    def answer(self, row: Row) -> list[int]:
        """What a machine would sample for a row, as far as it is taken."""
        before = row.length - len(row.drafts)
        return list(row.taken(self.whole[row.request][before : row.length + 1]))


def measure(pages: int, drafts: str) -> None:
    """Prints the time of the steps after the tree has filled all pages."""
    most, steps = DRAFTS[drafts]
    texts = Texts(repeats=most > 0)
    policy = Policy(pages, page=16, rows=ROWS, chunk=CHUNK, drafts=most, steps=steps)
    scheduler = Scheduler(policy)
    times, rows, tokens, group, step = [], 0, 0, scheduler.groups[0], Step()
    scheduler.told = texts.whole.pop
    for at in range(STEPS):
        now = at * 0.02
        while len(group.waiting) < WAITING:
            scheduler.submit(texts.request(str(at % 7)), now)
        begun = time.process_time()
        scheduler.wants_to_know(step)
        step = scheduler.schedule(now)
        queued = time.process_time()
        answers = [texts.answer(row) for row in step.rows if row.answers]
        answered = time.process_time()
        scheduler.done(step, answers, now)
        if len(group.pages.free) < pages // 100:
            times.append(time.process_time() - answered + queued - begun)
            rows += len(step.rows)
            tokens += sum(map(len, answers))
    percentiles = statistics.quantiles(times, n=100)
    shown = ", ".join(f"{at} %: {percentiles[at - 1] * 1e3:.3f} ms" for at in (10, 50, 90, 99))
    mean = f"{rows / len(times):.0f} rows and {tokens / len(times):.0f} new tokens"
    print(f"{pages} pages, {drafts}, {len(times)} steps of {mean}; {shown}", flush=True)


if __name__ == "__main__":
    for count, kind in itertools.product((10_000, 100_000), DRAFTS):
        measure(count, kind)
