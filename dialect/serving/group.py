"""One group of pages, and the requests that run on it.

In every step each running request catches up: it computes the positions that are known and not yet
computed. One position is a decode step, many are a chunk of a prompt, and one that has lost its
pages computes everything again. Requests join and leave at every step (iteration-level scheduling,
Orca, OSDI 2022, section 3); those that decode go first, and chunks of prompts fill what is left of
the step's tokens (Sarathi-Serve, arXiv:2403.02310).
"""

from __future__ import annotations

from collections.abc import Sequence

from dialect.serving.pages import Pages, PagesLost
from dialect.serving.policy import Policy
from dialect.serving.radix_tree import RadixTree
from dialect.serving.requests import Request
from dialect.serving.shapes import Room
from dialect.serving.steps import Row, Step
from dialect.serving.waiting import Waiting


class Group:
    """The pages, the waiting and the running requests of one group of chips."""

    def __init__(self, policy: Policy, number: int = 0) -> None:
        self.policy, self.number = policy, number
        self.pages = Pages(policy.pages, policy.page)
        self.tree = RadixTree(self.pages, policy.shares)
        self.waiting = Waiting(policy.patience, self.cached)
        self.running: list[Request] = []  # the first to join first
        self.ending: dict[Request, None] = {}  # all their steps are queued
        self.fresh: set[int] = set()  # pages that the step writes, and the tree has
        self.load = 0  # tokens that the requests here can still come to
        self.spare = round(policy.spare * policy.pages)
        self.prompt_pages = self.cached_pages = self.preemptions = 0
        self.drafted = self.declined = 0  # rows: with drafts, and without those that there were
        self.verified = self.accepted = 0  # drafts

    @property
    def available(self) -> int:
        """Pages that are free, or idle in the tree."""
        return len(self.pages.free) + len(self.tree.idle)

    def cached(self, request: Request) -> int:
        """The tokens of a request that are in the cache."""
        return len(self.tree.match(request.tokens)) * self.pages.size

    def add(self, request: Request) -> None:
        """Lets a request wait."""
        self.load += request.limit
        self.waiting.add(request)

    def remove(self, request: Request) -> None:
        """Ends a request, wherever it is; what it has computed stays in the tree while it can."""
        self.load -= request.limit
        if request.number in self.waiting.members:
            self.waiting.remove(request)
        elif request in self.ending:
            del self.ending[request]
        else:
            self.running.remove(request)
        self._release(request)

    def restart(self) -> None:
        """All pages are lost, and what queued steps would have answered."""
        for request in (*self.running, *self.ending):
            self.tree.release(request.table)
            request.table, request.path, request.scheduled = [], [], 0
            request.length = len(request.tokens)
            self.waiting.add(request)
        self.running, self.ending = [], {}
        while self.tree.idle:
            self.tree.evict()

    def fill(self, step: Step, now: float) -> None:
        """Adds the rows of this group to a step."""
        self.fresh, preempted, first = set(), self.preemptions, len(step.rows)
        decoding = self._decoding()
        room = Room(self.policy.largest)
        room.take_each(len(decoding))
        if len(decoding) < len(self.running):
            for request in self.running:
                if request.length - request.scheduled > 1:
                    self._chunk(request, room, step)
        if self.preemptions == preempted:
            self._admit(room, step, now)
        prompts = [row.count for row in step.rows[first:]]
        drafts = self._drafts(decoding, prompts) if self.policy.drafts else {}
        step.rows[first:first] = Row.next(decoding, drafts)
        ending = [request for request in self.running if request.length == request.limit]
        if ending:
            self.ending |= dict.fromkeys(ending)
            self.running = [request for request in self.running if request.length < request.limit]

    def _decoding(self) -> list[Request]:
        """The requests that compute one token, each with a page for it; others lose theirs."""
        size = self.pages.size
        while True:
            decoding = [r for r in self.running if r.length - r.scheduled == 1]
            full = [r for r in decoding if not r.scheduled % size]  # tables are far in memory
            growing = [r for r in full if r.scheduled == len(r.table) * size]
            if len(growing) <= self.available:
                break
            if len(self.running) == 1:  # requests that are ending have the other pages
                return []
            self._preempt()
        for request in growing:
            request.table.append(self._take())
        return decoding

    def _preempt(self) -> None:
        """Takes the pages of the request that the policy names."""
        victim = self.policy.loses(self.running)
        self.preemptions += 1
        self.running.remove(victim)
        self._release(victim)
        self.waiting.add(victim)

    def _chunk(self, request: Request, room: Room, step: Step) -> None:
        """Adds a row with as many tokens of a request as have room in the step."""
        self.tree.share(request)
        _, count = room.take(request.length - request.scheduled)
        if not count:
            return
        ends = request.scheduled + count == request.length
        step.rows.append(Row(request, request.scheduled, count, ends))
        request.scheduled += count
        shared = len(request.path)
        self.tree.share(request, exchanges=False)
        self.fresh.update(request.table[shared : len(request.path)])
        request.length += ends
        self.waiting.served[request.user] += count
        self.waiting.notice(request)

    def _admit(self, room: Room, step: Step, now: float) -> None:
        """Lets waiting requests join while there are tokens, rows and pages for them."""
        while any(room.free) and len(self.running) < self.policy.rows:
            request = self.waiting.first(now)
            if request is None or not self._join(request, step):
                break
            self._chunk(request, room, step)

    def _join(self, request: Request, step: Step) -> bool:
        """Gives a request the pages of all its tokens; False where there are too few."""
        if request.length > len(request.tokens):
            return False  # it lost its pages while its last token was on the way
        path = self.tree.match(request.tokens)
        # A token must be computed to get the next one: the last is, and that page is written.
        writes_shared = len(path) * self.pages.size == request.length
        if writes_shared and path[-1].page in self.fresh:  # nothing to copy before the step runs
            path.pop()
            writes_shared = False
        self.tree.hold(path)
        pages = self.pages.needed(max(request.length, self.policy.reserved(request)))
        lacking = pages - len(path) + writes_shared
        table = [node.page for node in path]
        if lacking > self.available - (self.spare if self.running else 0):
            self.tree.release(table)
            return False
        self.waiting.remove(request)
        request.table, request.path = table + [self._take() for _ in range(lacking)], path
        if writes_shared:
            self._copy_on_write(request, step)
        request.scheduled = min(len(table) * self.pages.size, request.length - 1)
        if request.cached < 0:
            request.cached = request.scheduled
            self.prompt_pages += self.pages.needed(request.length)
            self.cached_pages += len(table)
        self.running.append(request)
        return True

    def _copy_on_write(self, request: Request, step: Step) -> None:
        """The last page of the path goes back to the tree; a copy of it takes its place."""
        shared, copy = request.path.pop().page, request.table.pop()
        request.table[len(request.path)] = copy
        step.copies.append((self.number, shared, copy))
        self.tree.release([shared])

    def _drafts(self, decoding: list[Request], prompts: Sequence[int]) -> dict[Request, list[int]]:
        """Drafts of those that decode: as many as pay, of the rows that the step has left and the
        pages that are to spare; of those whose tokens are all known."""
        guessing = [r for r in decoding if r.drafts and r.drafts.chance]
        drafting = [request for request in guessing if not request.unknown]
        drafts = {}
        for place, count in self.policy.paying(len(decoding), prompts, drafting).items():
            request = drafting[place]
            if room_for := self._with_pages(request, count):
                drafts[request] = request.drafts.draft(room_for)
        self.declined += len(guessing) - len(drafts)
        return drafts

    def would_verify(self) -> bool:
        """Whether drafts would pay if their own guesses of what queued steps answer were right."""
        decoding = [r for r in self.running if r.length - r.scheduled == 1]
        guessing = [r for r in decoding if r.drafts and r.drafts.chance]
        return bool(self.policy.paying(len(decoding), (), guessing))

    def _with_pages(self, request: Request, count: int) -> int:
        """Takes the pages of so many drafts; returns of how many, where they are not to spare."""
        lacking = self.pages.needed(request.length + count) - len(request.table)
        if lacking <= 0:
            return count
        lacking = min(lacking, max(0, self.available - self.spare))
        request.table += [self._take() for _ in range(lacking)]
        return min(count, len(request.table) * self.pages.size - request.length)

    def answered(self, row: Row, tokens: Sequence[int]) -> None:
        """Takes the tokens that a row is answered; what its other drafts wrote is written over."""
        request, verified = row.request, len(row.drafts)
        for token in tokens:
            request.tokens.append(token)
        if request.drafts is not None:
            request.drafts.extend(tokens, verified)
        self.waiting.served[request.user] += len(tokens)
        if verified:
            self.drafted += 1
            self.verified += verified
            self.accepted += len(tokens) - 1
            request.length = max(request.length, len(request.tokens))
            request.scheduled = min(request.scheduled, request.length - 1)
            kept = self.pages.needed(request.length)
            self.tree.release(request.table[kept:])
            del request.table[kept:]

    def _take(self) -> int:
        if not self.pages.free:
            self.tree.evict()
        return self.pages.take()

    def _release(self, request: Request) -> None:
        """Lets go of a request's pages; the full ones stay in the tree while there is room."""
        self.tree.share(request)
        self.tree.release(request.table)
        request.table, request.path, request.scheduled = [], [], 0

    def check(self) -> None:
        """Raises PagesLost unless every page is accounted for. For tests: looks at all pages."""
        holding = [*self.running, *self.ending]
        self.pages.check([*(p for r in holding for p in r.table), *self.tree.nodes])
        self.tree.check()
        for request in holding:
            if [node.page for node in request.path] != request.table[: len(request.path)]:
                raise PagesLost(f"request {request.number} does not read the pages of its path")
        if any(request.table for request in self.waiting.members.values()):
            raise PagesLost("a request that waits has pages")
