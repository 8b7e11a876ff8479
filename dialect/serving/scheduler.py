"""Who runs in the next step: a pure function of what arrived, and when.

    scheduler = Scheduler(Policy(pages=1000))
    scheduler.submit(request, now)
    step = scheduler.schedule(now)               # rows, copies of pages
    scheduler.done(step, tokens, now)            # the tokens that every row is answered

A step may be scheduled before the tokens of the last are known, so that the device never waits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from heapq import heappop, heappush

from dialect.serving.group import Group
from dialect.serving.pages import PagesLost
from dialect.serving.policy import Policy
from dialect.serving.requests import Request
from dialect.serving.steps import Step


class Scheduler:
    """Requests, routed to groups of pages, and the steps of all groups.

    told: called with every request that ends, one that is refused included.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.groups = [Group(policy, number) for number in range(policy.groups)]
        self.requests: dict[int, Request] = {}  # those that have not ended
        self.numbers = itertools.count()
        self.deadlines: list[tuple[float, int]] = []  # a heap; those that have ended, too
        self.told: Callable[[Request], None] = lambda request: None

    def submit(self, request: Request, now: float) -> None:
        """Lets a request wait, or refuses it: then `request.ended` says why."""
        request.arrived, request.number = now, next(self.numbers)
        request.ended = self._refused(request, now)
        if request.ended:
            request.ended_at = now
            self.told(request)
            return
        request.group = self._route(request)
        self.requests[request.number] = request
        self.groups[request.group].add(request)
        if request.deadline < math.inf:
            heappush(self.deadlines, (request.deadline, request.number))

    def _refused(self, request: Request, now: float) -> str:
        """Why a request cannot be served; empty where it can."""
        most = self.policy.most_tokens
        if not request.asked or request.most_new < 1:
            return "refused: it needs a prompt, and room for a new token"
        if request.limit > most:
            return f"refused: {request.limit} tokens, where {most} have room"
        if request.deadline <= now:
            return "refused: its deadline has passed"
        if sum(len(group.waiting) for group in self.groups) >= self.policy.most_waiting:
            return f"refused: {self.policy.most_waiting} requests are waiting"
        return ""

    def _route(self, request: Request) -> int:
        """The group that would be through with it first: what its requests have still to compute,
        and this one without the prefix that the group has."""
        work = [group.load - group.cached(request) for group in self.groups]
        return work.index(min(work))

    def cancel(self, request: Request, why: str, now: float) -> None:
        """Ends a request; answers that are on the way are dropped."""
        if request.number in self.requests:
            self._end(request, why, now)

    def schedule(self, now: float) -> Step:
        """The next step; without rows where nobody can run."""
        while self.deadlines and self.deadlines[0][0] <= now:
            _, number = heappop(self.deadlines)
            if number in self.requests:
                self._end(self.requests[number], "deadline", now)
        step = Step()
        for group in self.groups:
            group.fill(step, now)
        return step

    def done(self, step: Step, tokens: Sequence[Sequence[int]], now: float) -> list[Request]:
        """Takes the tokens that every row is answered (`Row.taken`: one where it has no drafts), in
        the order of the rows that answer; returns who has ended.

        Raises ValueError for another number of rows.
        """
        ended, groups = [], self.groups
        answering = [row for row in step.rows if row.answers]
        for (request, start, _, _, guesses), new in zip(answering, tokens, strict=True):
            if request.ended:
                continue
            known = request.tokens
            if request.drafts is not None:
                request.drafts.extend(new, len(guesses))
            if guesses:
                known.extend(new)
                groups[request.group].verified_drafts(request, len(guesses), len(new) - 1)
            else:
                known.append(new[0])
            if start < request.asked == len(known) - len(new):
                request.first_token_at = now
            if request.stop and new[-1] in request.stop:
                request.ended = "stop"
            elif len(known) == request.limit:
                request.ended = "length"
            else:
                continue
            ended.append(request)
        for request in ended:
            self._end(request, request.ended, now)
        return ended

    def wants_to_know(self, queued: Step) -> bool:
        """Whether what the last step that is queued answers must be known before the next: it has
        drafts, or there would be some if it were."""
        if not self.policy.drafts:
            return False
        drafted = any(row.drafts for row in queued.rows)
        return drafted or any(group.would_verify() for group in self.groups)

    def _end(self, request: Request, why: str, now: float) -> None:
        del self.requests[request.number]
        self.groups[request.group].remove(request)
        request.ended, request.ended_at = why, now
        self.told(request)

    def restart(self) -> None:
        """All pages are lost: who runs computes everything again, and queued steps do not count."""
        for group in self.groups:
            group.restart()

    def check(self) -> None:
        """Raises PagesLost unless every page and every request is accounted for."""
        for group in self.groups:
            group.check()
        places = [
            request.number
            for group in self.groups
            for request in (*group.running, *group.ending, *group.waiting.members.values())
        ]
        if sorted(places) != sorted(self.requests):
            raise PagesLost(f"{len(self.requests)} requests, and {len(places)} of them in place")
