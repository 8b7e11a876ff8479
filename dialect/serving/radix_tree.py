"""Prefixes whose pages stay in the cache, as a radix tree: requests that begin alike share pages.

The letters of the tree are whole pages, so no edge is ever split: a page is known by the page
before it and its own tokens, and its path from the root is everything before it (RadixAttention,
arXiv:2312.07104, section 3; keys aligned to pages). A page that only the tree holds is idle, and
idle pages are taken back in the order of their last use. Whoever holds a page holds all pages
before it, and lets the last go first; so of the idle pages the one used longest ago is a leaf.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence

from dialect.serving.pages import Pages, PagesLost
from dialect.serving.requests import Request

_ROOT = -1  # where a page has no other before it
Key = tuple[int, bytes]  # the page before, and the tokens of the page


class RadixTree:
    """The prefixes that are in some pages. No operation looks at more than a request's pages."""

    def __init__(self, pages: Pages, shares: bool = True) -> None:
        self.pages, self.shares = pages, shares
        self.known: dict[Key, int] = {}  # the page of a key
        self.keys: list[Key | None] = [None] * pages.count  # of every page that is here
        self.idle: OrderedDict[int, None] = OrderedDict()  # the page used longest ago first

    def match(self, tokens: array[int]) -> list[int]:
        """The pages of the longest prefix of the tokens that is here, in whole pages."""
        known, page, path, size = self.known, _ROOT, list[int](), self.pages.size
        for start in range(0, len(tokens) - size + 1, size):
            page = known.get((page, tokens[start : start + size].tobytes()), _ROOT)
            if page == _ROOT:
                break
            path.append(page)
        return path

    def hold(self, path: Sequence[int]) -> None:
        """One holder more for every page of a path."""
        self.pages.hold(path)
        for page in path:
            self.idle.pop(page, None)

    def release(self, table: list[int]) -> None:
        """One holder less for every page of a table; those that are left to the tree are idle."""
        for page in self.pages.release(reversed(table)):
            if self.keys[page]:
                self.idle[page] = None

    def share(self, request: Request, exchanges: bool = True) -> None:
        """The full pages of a request come into the tree, and it goes on with those that others
        brought: where they have computed its next tokens since it was matched, it need not.

        A page is shared as soon as the step that writes it is queued, since a step writes all its
        rows before it reads any. exchanges: whether pages of its own, where the tree has the same,
        may be let go of: not while the step that writes them is put together.
        """
        size, tokens, table, at = self.pages.size, request.tokens, request.table, request.shared
        before, new = table[at - 1] if at else _ROOT, list[int]()
        written = min(request.scheduled, len(tokens)) // size
        to_read = (request.length - 1) // size  # its last token is computed in any case
        ends = max(written, min(to_read, len(table))) if self.shares else 0
        while at < ends:
            key = before, tokens[at * size : (at + 1) * size].tobytes()
            page = self.known.get(key, _ROOT)
            if page == _ROOT and at < written:
                page = self.known[key] = table[at]
                self.keys[page] = key
                new.append(page)
            elif page == _ROOT or not exchanges:
                break
            else:
                self.hold([page])
                self.pages.release([table[at]])
                table[at] = page
            before, at = page, at + 1
        self.pages.hold(new)
        request.shared, request.scheduled = at, max(request.scheduled, at * size)

    def evict(self, count: int) -> None:
        """Frees so many idle pages, used longest ago. Raises KeyError where there are fewer."""
        pages = [self.idle.popitem(last=False)[0] for _ in range(count)]
        for page in pages:
            del self.known[self.keys[page]]
            self.keys[page] = None
        self.pages.release(pages)

    def check(self) -> None:
        """Raises PagesLost unless the pages are a tree, and idle those that nobody else holds."""
        here = {page: key for page, key in enumerate(self.keys) if key}
        if {key: page for page, key in here.items()} != self.known:
            raise PagesLost("a page of the tree is not known by its key")
        if any(before != _ROOT and before not in here for before, _ in here.values()):
            raise PagesLost("a page of the tree cannot be reached from its root")
        alone = {page for page in here if self.pages.holders[page] == 1}
        if alone != set(self.idle):
            raise PagesLost(f"{len(alone)} pages are idle, and {len(self.idle)} are listed")
        place = {page: at for at, page in enumerate(self.idle)}
        if any(place.get(here[p][0], len(place)) < at for p, at in place.items()):
            raise PagesLost("an idle page would be freed before those behind it")
