"""One group of pages, and the requests that run on it.

In every step each running request catches up: it computes the positions that are known and not yet
computed. One position is a decode step, many are a chunk of a prompt, and one that has lost its
pages computes everything again. Requests join and leave at every step (iteration-level scheduling,
Orca, OSDI 2022, section 3); those that decode go first, and chunks of prompts fill what is left of
the step's tokens (Sarathi-Serve, arXiv:2403.02310).
"""

from __future__ import annotations

from collections import Counter
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
        self.users: Counter[str] = Counter()  # how many of these each has
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
            self._stops(request)
        self._release(request)

    def restart(self) -> None:
        """All pages are lost, and what queued steps would have answered."""
        for request in (*self.running, *self.ending):
            self.tree.release(request.table)
            request.table, request.shared, request.scheduled = [], 0, 0
            request.length = len(request.tokens)
            self.waiting.add(request)
        self.running, self.ending, self.users = [], {}, Counter()
        self.tree.evict(len(self.tree.idle))

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
        for user, tokens in self.users.items():
            self.waiting.served[user] += tokens
        for request in [r for r in self.running if r.length == r.limit]:
            self._stops(request)
            self.ending[request] = None

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
            victim = self.policy.loses(self.running)
            self.preemptions += 1
            self._stops(victim)
            self._release(victim)
            self.waiting.add(victim)
        for request, page in zip(growing, self._take(len(growing))):
            request.table.append(page)
        return decoding

    def _chunk(self, request: Request, room: Room, step: Step) -> None:
        """Adds a row with as many tokens of a request as have room in the step."""
        self.tree.share(request)
        _, count = room.take(request.length - request.scheduled)
        if not count:
            return
        ends = request.scheduled + count == request.length
        step.rows.append(Row(request, request.scheduled, count, ends))
        request.scheduled += count
        shared = request.shared
        self.tree.share(request, exchanges=False)
        self.fresh.update(request.table[shared : request.shared])
        request.length += ends
        self.waiting.served[request.user] += count + ends
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
        if writes_shared and path[-1] in self.fresh:  # nothing to copy before the step runs
            path.pop()
            writes_shared = False
        self.tree.hold(path)
        pages = self.pages.needed(max(request.length, self.policy.reserved(request)))
        lacking = pages - len(path) + writes_shared
        if lacking > self.available - (self.spare if self.running else 0):
            self.tree.release(path)
            return False
        self.waiting.remove(request)
        request.table = path + self._take(lacking)
        request.shared = len(path)
        if writes_shared:
            self._copy_on_write(request, step)
        request.scheduled = min(len(path) * self.pages.size, request.length - 1)
        if request.cached < 0:
            request.cached = request.scheduled
            self.prompt_pages += self.pages.needed(request.length)
            self.cached_pages += len(path)
        self.running.append(request)
        self.users[request.user] += 1
        return True

    def _stops(self, request: Request) -> None:
        """Takes a request out of those that run."""
        self.running.remove(request)
        self.users[request.user] -= 1
        if not self.users[request.user]:
            del self.users[request.user]

    def _copy_on_write(self, request: Request, step: Step) -> None:
        """The last page that is shared goes back to the tree; a copy of it takes its place."""
        request.shared -= 1
        shared, copy = request.table[request.shared], request.table.pop()
        request.table[request.shared] = copy
        step.copies.append((self.number, shared, copy))
        self.tree.release([shared])

    def _drafts(self, decoding: list[Request], prompts: Sequence[int]) -> dict[int, list[int]]:
        """Drafts of those that decode, by their places: as many as pay, of the rows that the step
        has left and the pages that are to spare; of those whose tokens are all known."""
        guessing = [at for at, r in enumerate(decoding) if r.drafts and r.drafts.chance]
        known = [at for at in guessing if not decoding[at].unknown]
        drafts = {}
        lengths = self.policy.paying(len(decoding), prompts, [decoding[at] for at in known])
        for place, count in lengths.items():
            request = decoding[known[place]]
            if room_for := self._with_pages(request, count):
                drafts[known[place]] = request.drafts.draft(room_for)
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
        request.table += self._take(lacking)
        return min(count, len(request.table) * self.pages.size - request.length)

    def verified_drafts(self, request: Request, count: int, accepted: int) -> None:
        """Counts the drafts of a request; what those wrote that were wrong is written over."""
        self.drafted += 1
        self.verified += count
        self.accepted += accepted
        self.waiting.served[request.user] += accepted
        request.length = max(request.length, len(request.tokens))
        request.scheduled = min(request.scheduled, request.length - 1)
        kept = self.pages.needed(request.length)
        if kept < len(request.table):
            self.tree.release(request.table[kept:])
            del request.table[kept:]

    def _take(self, count: int) -> list[int]:
        """So many pages; of the tree, where too few are free."""
        if (lacking := count - len(self.pages.free)) > 0:
            self.tree.evict(lacking)
        return self.pages.take(count)

    def _release(self, request: Request) -> None:
        """Lets go of a request's pages; the full ones stay in the tree while there is room."""
        self.tree.share(request)
        self.tree.release(request.table)
        request.table, request.shared, request.scheduled = [], 0, 0

    def check(self) -> None:
        """Raises PagesLost unless every page is accounted for. For tests: looks at all pages."""
        holding = [*self.running, *self.ending]
        self.pages.check([*(p for r in holding for p in r.table), *self.tree.known.values()])
        self.tree.check()
        for request in holding:
            if self.tree.match(request.tokens)[: request.shared] != request.table[: request.shared]:
                raise PagesLost(f"request {request.number} does not read the pages of its path")
        if any(request.table for request in self.waiting.members.values()):
            raise PagesLost("a request that waits has pages")
