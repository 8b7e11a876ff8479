"""The rows of a step: those that are alone, and groups of one request whose pages are read once.

    ((64, 1), (13, 16))    64 rows that are alone, and behind them 13 groups of 16

A token takes a row. A step has one of a few shapes, of which each is an executable.
"""

from __future__ import annotations

from collections.abc import Sequence

Shape = tuple[tuple[int, int], ...]  # (groups, rows of each), one behind the other
Priced = Sequence[tuple[Shape, float]]  # shapes, and the seconds of their steps


def rows_alone(rows: int) -> Shape:
    """So many rows that are alone."""
    return ((rows, 1),)


def rows_of(shape: Shape) -> int:
    """The rows of a shape, those in groups included."""
    return sum(groups * size for groups, size in shape)


def part_of(shape: Shape, parts: int) -> Shape:
    """The shape of a part of the rows, where every size of group has a share in each."""
    return tuple((groups // parts, size) for groups, size in shape)


def told(shape: Shape) -> str:
    """For people: 64 + 13 groups of 16."""
    parts = (f"{groups} groups of {size}" if size > 1 else str(groups) for groups, size in shape)
    return " + ".join(parts)


class Room:
    """The rows of a shape that nobody has taken."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.free = [groups for groups, _ in shape]

    def take(self, tokens: int) -> tuple[int, int]:
        """(the first row, how many) for so many tokens of a request, or as many as have room: in
        the smallest groups that hold all of them, or else in the largest."""
        of_one = [(size < tokens, abs(size - tokens), at) for at, (_, size) in self._left()]
        if not of_one:
            return 0, 0
        *_, at = min(of_one)
        size = self.shape[at][1]
        groups = min(self.free[at], -(-tokens // size))
        first = self._first(at)
        self.free[at] -= groups
        return first, min(tokens, groups * size)

    def take_each(self, count: int) -> list[int]:
        """A row for each of so many requests of one token, or of as many as have room."""
        rows: list[int] = []
        for at, (_, size) in sorted(self._left(), key=lambda kind: kind[1][1]):
            groups = min(self.free[at], count - len(rows))
            first = self._first(at)
            rows += range(first, first + groups * size, size)
            self.free[at] -= groups
        return rows

    def _first(self, at: int) -> int:
        """The first row that is free of the groups at a place."""
        before = rows_of(self.shape[:at])
        groups, size = self.shape[at]
        return before + (groups - self.free[at]) * size

    def _left(self) -> list[tuple[int, tuple[int, int]]]:
        return [kind for kind in enumerate(self.shape) if self.free[kind[0]]]
