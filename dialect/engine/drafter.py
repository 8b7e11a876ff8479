"""The decoder's own drafts: with quantised weights it runs ahead of itself, in the same pages.

It reads the keys and values of the decoder, and writes some behind them, which are written over
when its drafts are verified. So there is no prompt for it to compute, and no cache of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dialect.engine.executables import Executables
from dialect.engine.sizes import Sizes
from dialect.serving.shapes import rows_alone
from dialect.serving.steps import Step
from dialect.token_rows import packing, sampling
from dialect.token_rows.packing import Packed


class Drafter:
    """`executables.draft`, whose rows are requests; params: packed, as that takes them."""

    def __init__(self, executables: Executables, params: Any, sizes: Sizes) -> None:
        self.executables, self.params = executables, params
        self.rows, self.choices, self.groups = sizes.rows, sizes.choices, sizes.groups

    def fill(self, step: Step, arrays: Packed) -> None:
        """Runs for as many rounds as there are drafts, and puts them into a step and its arrays.

        A draft is drawn with the noise of its position, as the token that it is compared with.
        """
        drafted = [row for row in step.rows if row.drafts]
        if not drafted:
            return
        firsts = np.array([arrays.answering[row.request] for row in drafted])
        groups = np.array([row.request.group for row in drafted])
        choices = arrays.choices[firsts]
        places = choices[:, sampling.ROW] + groups * (len(arrays.rows) // self.groups)
        lengths = np.array([len(row.drafts) for row in drafted])
        tokens = self.ahead(arrays.rows[places], choices, lengths, groups)
        for row, place, guesses in zip(drafted, places, tokens.tolist(), strict=True):
            row.drafts[:] = guesses[: len(row.drafts)]
            arrays.rows[place + 1 : place + 1 + len(row.drafts), packing.TOKEN] = row.drafts

    def ahead(
        self, rows: np.ndarray, choices: np.ndarray, lengths: np.ndarray, groups: np.ndarray
    ) -> np.ndarray:
        """i32[rows, most drafts], behind the tokens of some rows, chosen as theirs are, for so many
        rounds of each; groups: of chips, in their order."""
        places = np.arange(len(groups)) - np.searchsorted(groups, groups)  # within their group
        at, asked = (groups * (of // self.groups) + places for of in (self.rows, self.choices))
        array = packing.empty(self.rows, self.executables.width)
        chosen = sampling.unasked(self.choices)
        array[at], chosen[asked] = rows, choices
        chosen[asked, sampling.ROW] = places
        results: list[Any] = []
        for number in range(lengths.max()):
            array[at[lengths <= number], packing.PAGES :] = packing.NO_PAGE
            step = Packed(rows_alone(self.rows), array.copy(), chosen.copy(), {})
            results.append(self.executables.draft(self.params, step, *results[-1:]))
            array[at, packing.SOURCE] = asked
            array[at, packing.POSITION] += 1
            chosen[asked, sampling.POSITION] += 1
        return np.stack([np.asarray(result)[asked, 0] for result in results], axis=1)
