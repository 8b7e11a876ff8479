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

    def take(self, count: int) -> list[int]:
        """So many free pages, with one holder each. Raises IndexError where there are fewer."""
        if (left := len(self.free) - count) < 0:
            raise IndexError(f"{count} pages are asked for, and {len(self.free)} are free")
        taken = self.free[left:]
        del self.free[left:]
        for page in taken:
            self.holders[page] = 1
        return taken

    def hold(self, pages: Iterable[int]) -> None:
        """One holder more, of pages that have some."""
        for page in pages:
            self.holders[page] += 1

    def release(self, pages: Iterable[int]) -> list[int]:
        """One holder less; returns the pages that have one left. Those without holders are free."""
        holders, with_one = self.holders, []
        for page in pages:
            left = holders[page] = holders[page] - 1
            if left == 0:
                self.free.append(page)
            elif left == 1:
                with_one.append(page)
        return with_one

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
