"""Pages of the KV cache: which are free, and how many hold each of the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


class PagesLost(AssertionError):
    """Raised by a check where the pages and those who hold them disagree."""


class Pages:
    """`count` pages of `size` tokens; the holders of a page are requests, and the tree."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size
        self.free = list(range(count - 1, -1, -1))
        self.holders = [0] * count

    def take(self) -> int:
        """A free page, with one holder. Raises IndexError where none is free."""
        page = self.free.pop()
        self.holders[page] = 1
        return page

    def hold(self, page: int) -> None:
        """One holder more, of a page that has some."""
        self.holders[page] += 1

    def release(self, page: int) -> int:
        """One holder less; returns how many are left. A page without holders is free."""
        self.holders[page] -= 1
        left = self.holders[page]
        if left == 0:
            self.free.append(page)
        return left

    def needed(self, tokens: int) -> int:
        """Pages that so many tokens take."""
        return -(-tokens // self.size)

    def check(self, held: Iterable[int]) -> None:
        """Raises PagesLost unless `held` names every page as often as it has holders, and exactly
        the others are free, once."""
        counted = Counter(held)
        for page, holders in enumerate(self.holders):
            if counted[page] != holders:
                raise PagesLost(f"page {page} has {holders} holders, but {counted[page]} hold it")
        if sorted([*self.free, *counted]) != list(range(self.count)):
            raise PagesLost(f"{len(self.free)} pages are free and {len(counted)} held")
