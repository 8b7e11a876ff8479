"""A map of blocks from a file: which positions attend to which, a block of them at a time.

    128
    x...
    xx..
    .xx.
    x.xx

The first line is how many positions a row or a column stands for. In the row of a query's position
an `x` keeps the positions of its column, a `.` leaves them out. What is read is data: nothing of it
is evaluated.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from rewrite.source import Source

_MOST = 1 << 24  # characters: 4,096 rows and columns


class BlockMap(NamedTuple):
    """cells: bool[rows, columns]; cell: the positions of a row, and of a column."""

    cell: int
    cells: np.ndarray

    @property
    def context(self) -> int:
        """The positions that there are rows and columns for."""
        return self.cell * len(self.cells)


def read_block_map(text: str, name: str = "map") -> BlockMap:
    """The map of a text. Raises TextError with the line and a caret."""
    source = Source(text, name, _MOST)
    first, *rest = source.text.rstrip().split("\n")
    cell = int(first) if re.fullmatch(r" *[0-9]{1,9} *", first) else 0
    if cell < 1:
        source.fail(0, "a map begins with how many positions a block has", width=len(first))
    place, rows = len(first) + 1, []
    if not rest:
        source.fail(len(source.text.rstrip()), "a map has a row at least")
    for line in rest:
        row = line.rstrip()
        wrong = next((i for i, letter in enumerate(row) if letter not in "x."), None)
        if wrong is not None:
            source.fail(place + wrong, "a row of a map has x and . alone")
        if len(row) != len(rest):
            told = f"a map of {len(rest)} rows has as many columns, and here are {len(row)}"
            source.fail(place, told, width=len(row))
        rows.append([letter == "x" for letter in row])
        place += len(line) + 1
    return BlockMap(cell, np.array(rows))
