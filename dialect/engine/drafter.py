"""The decoder's own drafts: with quantised weights it runs ahead of itself, in the same pages.

It reads the keys and values of the decoder, and writes some behind them, which are written over
when its drafts are verified. So there is no prompt for it to compute, and no cache of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dialect.engine import packing
from dialect.engine.executables import Executables
from dialect.engine.packing import Packed
from dialect.serving.steps import Step


class Drafter:
    """`executables.draft`, whose rows are requests; params: packed, as that takes them."""

    def __init__(self, executables: Executables, params: Any, rows: int) -> None:
        self.executables, self.params, self.rows = executables, params, rows

    def fill(self, step: Step, arrays: Packed) -> None:
        """Runs for as many rounds as there are drafts, and puts them into a step and its array.

        A draft is drawn with the noise of its position, as the token that it is compared with.
        """
        drafted = [row for row in step.rows if row.drafts]
        if not drafted:
            return
        places = [arrays.answering[row.request] for row in drafted]
        tokens = self.ahead(arrays.rows[places], np.array([len(row.drafts) for row in drafted]))
        for row, place, guesses in zip(drafted, places, tokens.tolist(), strict=True):
            row.drafts[:] = guesses[: len(row.drafts)]
            arrays.rows[place + 1 : place + 1 + len(row.drafts), packing.TOKEN] = row.drafts

    def ahead(self, rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """i32[rows, most drafts], behind the tokens of some rows, for so many rounds of each."""
        count = len(lengths)
        array = np.zeros((self.rows, rows.shape[1]), np.int32)
        array[:, packing.PAGES :] = packing.NO_PAGE
        array[:count] = rows
        results: list[Any] = []
        for at in range(lengths.max()):
            array[:count][lengths <= at, packing.PAGES :] = packing.NO_PAGE
            results.append(self.executables.draft(self.params, array.copy(), *results[-1:]))
            array[:, packing.SOURCE] = np.arange(self.rows)
            array[:, packing.POSITION] += 1
        return np.stack([np.asarray(result)[:count, 0] for result in results], axis=1)
