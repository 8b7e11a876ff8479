"""A plot of latencies over the rate of requests, as in Figure 12 of arXiv:2309.06180.

Left the time to the first token, right the time per token: lines for half of the requests, and
faint ones for 99 % of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from dialect.reports.plotting import dress, figure, saved
from dialect.simulated.comparison import Run

_WIDTH_IN, _HEIGHT_IN = 6.0, 4.6
_PANELS = (
    ("first_token_s", "time to first token (s)", 1.0),
    ("per_token_s", "time per token (ms)", 1e3),
)


def draw(runs: Sequence[Run], path: Path) -> None:
    """Draws runs at rates; where all requests come at once there is none. Raises FileError."""
    drawn, axes = figure(len(_PANELS), _WIDTH_IN, _HEIGHT_IN)
    for panel, (name, label, scale) in zip(axes, _PANELS):
        for at, (way, points) in enumerate(_lines(runs)):
            rates = [run.rate for run in points]
            half, _, most = zip(*(getattr(run.figures, name) for run in points))
            color = f"C{at}"
            panel.plot(rates, [scale * y for y in half], color=color, marker="o", label=way)
            panel.plot(rates, [scale * y for y in most], color=color, linestyle=":", alpha=0.5)
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter("{x:g}")
        dress(panel, "requests per second", label)
    axes[0].legend(frameon=False, fontsize=8, title="dotted: 99 %", title_fontsize=8)
    saved(drawn, path)


def _lines(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """(what a line is called, its runs by rate)."""

    def way(run: Run) -> str:
        page = f" of {run.page}" if run.page else ""
        owner = f", {run.owner} own them" if run.owner else ""
        return f"{run.mesh} {run.method}{page}{owner}"

    ordered = sorted(
        (run for run in runs if run.rate < float("inf")), key=lambda r: (way(r), r.rate)
    )
    return [(name, list(points)) for name, points in itertools.groupby(ordered, key=way)]
