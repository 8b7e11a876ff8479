"""A plot of an evaluation: bits per byte, and what is right, over bytes of parameters and cache.

One panel for the text and one for each other task; one mark for each row of the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dialect.measured.evaluation import ORIGINAL, Measured
from dialect.reports.plotting import INK, QUIET, dress, figure, saved

_COLORS = ("#222222", "#1d4e89", "#4f9fdc", "#b3401a", "#f0954a", "#1b6b4a", "#56b98a", "#5b3a8c")
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
_WIDTH_IN, _HEIGHT_IN = 3.4, 4.6
_MIB = 2**20


def draw(rows: Sequence[Measured], title: str, path: Path) -> None:
    """Draws all rows of an evaluation. Raises PlotError, FileError."""
    names = list(rows[0].tasks)
    drawn, (of_text, *others) = figure(1 + len(names), _WIDTH_IN, _HEIGHT_IN)
    _panel(of_text, rows, "text", "bits per byte", [row.accuracy.bits_per_byte for row in rows])
    for panel, name in zip(others, names):
        _panel(panel, rows, name, "right (%)", [100 * row.tasks[name].right for row in rows])
        panel.set_ylim(-4, 104)
    drawn.suptitle(title, color=INK, fontsize=10, x=0.01, ha="left")
    handles, labels = of_text.get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower left", frameon=False, fontsize=8, ncols=2)
    saved(drawn, path)


def _panel(panel: Any, rows: Sequence[Measured], title: str, y: str, values: list[float]) -> None:
    for index, (row, value) in enumerate(zip(rows, values)):
        panel.plot(
            (row.param_bytes + row.cache_bytes) / _MIB,
            value,
            linestyle="",
            marker=_MARKS[index % len(_MARKS)],
            markersize=7,
            color=_COLORS[index % len(_COLORS)],
            label=_label(row),
        )
    dress(panel, x="parameters and cache (MiB)", y=y)
    panel.set_xlim(left=0)
    panel.set_title(title, loc="left", color=QUIET, fontsize=10, fontweight="bold")


def _label(row: Measured) -> str:
    return " ".join(part for part in (row.config, row.text) if part and part != ORIGINAL)
