"""The requests that wait, and which of them is next.

1. Whoever has waited for more than `patience` seconds, in the order of arrival: nobody starves.
2. The highest priority.
3. The user who was served the fewest tokens (Virtual Token Counter, arXiv:2401.00588).
4. The earliest deadline, then the longest prefix in the cache, then the first to come.

Prefixes come and go while requests wait. What was evicted is noticed when a request would be next.
What was added lets those move up whose prompts stand beside it in alphabetical order; when they
have gone, their own neighbours do. So requests go depth first through the tree of their prompts,
which no other order beats (arXiv:2312.07104, theorem 3.1).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable
from heapq import heappop, heappush, heapreplace

from dialect.serving.requests import Request

BESIDE = 1  # prompts on either side
Place = tuple[float, int, int]  # deadline, -(tokens in the cache), number: the least is next


class Line:
    """The requests of one user at one priority."""

    def __init__(self, cached: Callable[[Request], int]) -> None:
        self.cached = cached
        self.members: dict[int, Request] = {}
        self.heap: list[Place] = []  # those that have gone since, too
        self.prompts: list[tuple[bytes, int]] = []  # sorted

    def add(self, request: Request) -> None:
        """Puts a request in."""
        self.members[request.number] = request
        insort(self.prompts, (request.prompt_bytes, request.number))
        heappush(self.heap, self.place(request))

    def remove(self, request: Request) -> None:
        """Takes a request out."""
        del self.members[request.number]
        del self.prompts[self.among_prompts(request)]

    def among_prompts(self, request: Request) -> int:
        """Where its prompt stands, or would."""
        return bisect_left(self.prompts, (request.prompt_bytes, request.number))

    def place(self, request: Request) -> Place:
        """Its place, as the cache is now."""
        return (request.deadline, -self.cached(request), request.number)

    def first(self) -> Request:
        """Who is next. Raises IndexError for an empty line."""
        while True:
            listed = self.heap[0]
            request = self.members.get(listed[2])
            if request is None:
                heappop(self.heap)
                continue
            place = self.place(request)
            if place <= listed:
                return request
            heapreplace(self.heap, place)

    def notice(self, request: Request) -> None:
        """A request has brought pages into the cache: those that begin most like it move up."""
        at = self.among_prompts(request)
        for _, number in self.prompts[max(0, at - BESIDE) : at + BESIDE]:
            heappush(self.heap, self.place(self.members[number]))


class Waiting:
    """The requests that wait for one group of pages.

    cached: how many tokens of a request are in the cache.
    """

    def __init__(self, patience: float, cached: Callable[[Request], int]) -> None:
        self.patience, self.cached = patience, cached
        self.members: dict[int, Request] = {}
        self.oldest: list[int] = []  # a heap of numbers; those that have gone since, too
        self.lines: dict[tuple[int, str], Line] = {}
        self.heap: list[tuple[int, float, int, str]] = []  # of lines, each once
        self.served: defaultdict[str, float] = defaultdict(float)  # by user
        self.least = 0.0  # what the user had been served who was next last

    def __len__(self) -> int:
        return len(self.members)

    def add(self, request: Request) -> None:
        """Puts a request in: a new one, or one that has lost its pages."""
        user, key = request.user, (request.priority, request.user)
        if key not in self.lines:
            # Nobody saves up service while asking for none.
            self.served[user] = max(self.served[user], self.least)
            self.lines[key] = Line(self.cached)
            heappush(self.heap, (-request.priority, self.served[user], request.number, user))
        self.lines[key].add(request)
        self.members[request.number] = request
        heappush(self.oldest, request.number)

    def remove(self, request: Request) -> None:
        """Takes a request out, to run or for good."""
        del self.members[request.number]
        self.lines[request.priority, request.user].remove(request)

    def notice(self, request: Request) -> None:
        """A request has brought pages into the cache."""
        line = self.lines.get((request.priority, request.user))
        if line is not None:
            line.notice(request)

    def first(self, now: float) -> Request | None:
        """Who is next; None where nobody waits."""
        if not self.members:
            return None
        while self.oldest[0] not in self.members:
            heappop(self.oldest)
        oldest = self.members[self.oldest[0]]
        return oldest if now - oldest.arrived > self.patience else self._line().first()

    def _line(self) -> Line:
        """The line of the user whose turn it is."""
        while True:
            priority, served, number, user = self.heap[0]
            line = self.lines[-priority, user]
            if not line.members:
                heappop(self.heap)
                del self.lines[-priority, user]
            elif self.served[user] > served:
                heapreplace(self.heap, (priority, self.served[user], number, user))
            else:
                self.least = max(self.least, served)
                return line
