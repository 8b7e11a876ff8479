"""The decoder's own drafts: with quantised weights it runs ahead of itself, in the same pages.

It reads the keys and values of the decoder, and writes some behind them, which are written over
when its drafts are verified. So there is no prompt for it to compute, and no cache of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dialect.engine import packing
from dialect.engine.executables import Executables
from dialect.engine.packing import Packed
from dialect.engine.sizes import Sizes
from dialect.serving.steps import Row, Step


class Drafter:
    """`executables.draft`, whose rows are requests; params: packed, as that takes them."""

    def __init__(self, executables: Executables, params: Any, sizes: Sizes) -> None:
        self.executables, self.params = executables, params
        self.rows, self.groups = sizes.rows, sizes.groups

    def fill(self, step: Step, arrays: Packed) -> None:
        """Runs for as many rounds as there are drafts, and puts them into a step and its array.

        A draft is drawn with the noise of its position, as the token that it is compared with.
        """
        drafted = [row for row in step.rows if row.drafts]
        if not drafted:
            return
        places = [arrays.answering[row.request] for row in drafted]
        lengths = np.array([len(row.drafts) for row in drafted])
        tokens = self.ahead(arrays.rows[places], lengths, self._at(drafted))
        for row, place, guesses in zip(drafted, places, tokens.tolist(), strict=True):
            row.drafts[:] = guesses[: len(row.drafts)]
            arrays.rows[place + 1 : place + 1 + len(row.drafts), packing.TOKEN] = row.drafts

    def _at(self, drafted: Sequence[Row]) -> np.ndarray:
        """Where they are in a step of requests: each among those of its group."""
        groups = np.array([row.request.group for row in drafted])
        firsts = np.searchsorted(groups, groups)  # rows of a group are side by side
        return groups * (self.rows // self.groups) + np.arange(len(groups)) - firsts

    def ahead(self, rows: np.ndarray, lengths: np.ndarray, at: np.ndarray) -> np.ndarray:
        """i32[rows, most drafts], behind the tokens of rows `at` some places, for so many rounds
        of each."""
        array = np.zeros((self.rows, rows.shape[1]), np.int32)
        array[:, packing.PAGES :] = packing.NO_PAGE
        array[at] = rows
        results: list[Any] = []
        for number in range(lengths.max()):
            array[at[lengths <= number], packing.PAGES :] = packing.NO_PAGE
            results.append(self.executables.draft(self.params, array.copy(), *results[-1:]))
            array[:, packing.SOURCE] = np.arange(self.rows)
            array[:, packing.POSITION] += 1
        return np.stack([np.asarray(result)[at, 0] for result in results], axis=1)
