"""A step without a model: a token is a hash of everything before it, read through the pages.

Every slot of a page holds what a key and value would depend on: its token, its position and all
before it. So a wrong page, a copy too few or a token at a wrong position changes the answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from dialect.serving.requests import Request
from dialect.serving.scheduler import Scheduler
from dialect.serving.steps import Step

VOCABULARY = 50


def mixed(state: int, token: int, position: int) -> int:
    return hash((state, token, position))


def sampled(states: Sequence[int]) -> int:
    return hash(tuple(states)) % VOCABULARY


def alone(request: Request) -> list[int]:
    """The answer to a request that runs alone, without pages."""
    states: list[int] = []
    answer: list[int] = []
    for token in request.tokens[: request.asked]:
        states.append(mixed(states[-1] if states else 0, token, len(states)))
    while len(answer) < request.most_new:
        answer.append(sampled(states))
        if answer[-1] in request.stop:
            break
        states.append(mixed(states[-1], answer[-1], len(states)))
    return answer


class Guesses:
    """Drafts of which some are right: each so often, as a hash of what is known has it."""

    def __init__(self, request: Request, right: float, answer: Sequence[int] = ()) -> None:
        self.request, self.right, self.chance = request, right, max(right, 0.5)
        self.answer = list(answer) or alone(request)

    def draft(self, count: int) -> list[int]:
        known = len(self.request.tokens) - self.request.asked
        drafts = [
            token if hash((self.request.number, at, 7)) % 100 < 100 * self.right else token + 1
            for at, token in enumerate(self.answer[known : known + count], known)
        ]
        return drafts + [0] * (count - len(drafts))

    def extend(self, tokens: Sequence[int], verified: int) -> None:
        """What is known is looked up."""


class FakeDevice:
    """Runs steps in the order in which they are queued."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler, self.size = scheduler, scheduler.policy.page
        groups, pages = scheduler.policy.groups, scheduler.policy.pages
        self.pools = [[[0] * self.size for _ in range(pages)] for _ in range(groups)]
        self.last: dict[int, int] = {}  # the token that a request was answered last

    def run(self, step: Step) -> list[list[int]]:
        """The tokens of every row that answers. A device knows those of steps before, the scheduler
        may not yet."""
        for group, page, copy in step.copies:
            self.pools[group][copy] = list(self.pools[group][page])
        for row in step.rows:
            self.write(row)
        answers = []
        for row in step.rows:
            if row.answers:
                states = [self.slot(row, at) for at in range(row.length)]
                behind = range(row.length - len(row.drafts), row.length + 1)
                answers.append(row.taken([sampled(states[:at]) for at in behind]))
                self.last[row.request.number] = answers[-1][-1]
        return answers

    def slot(self, row, at: int) -> int:
        return self.pools[row.request.group][row.table[at // self.size]][at % self.size]

    def write(self, row) -> None:
        tokens = list(row.tokens)
        assert len(tokens) == row.count or row.count == 1, "only a row that decodes may wait"
        tokens += [self.last.get(row.request.number, -1)] * (row.count - len(tokens))
        group = self.scheduler.groups[row.request.group]
        pages = set(row.table[row.start // self.size : (row.length - 1) // self.size + 1])
        assert not pages & set(group.tree.known.values()) - group.fresh, "a shared page is written"
        for at, token in enumerate(tokens, row.start):
            state = mixed(self.slot(row, at - 1) if at else 0, token, at)
            self.pools[row.request.group][row.table[at // self.size]][at % self.size] = state
