"""A plot of a sweep: cost over latency, as in Figure 1 of arXiv:2211.05102.

One panel per function (decode, prefill), one line per configuration and weight dtype: its Pareto
front, labelled with the number of chips. The front over all dtypes is a band under the lines, and
points on no front are faint dots.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dialect.reports.plotting import INK, QUIET, dress, figure, saved
from dialect.reports.sweep import Point, front, grouped

# One hue per configuration, in two shades: dark and filled, light and open, alternating by dtype.
_HUES = (("#1d4e89", "#4f9fdc"), ("#b3401a", "#f0954a"), ("#1b6b4a", "#56b98a"))
_HUES += (("#5b3a8c", "#a283d6"), ("#8a1c4a", "#d9709c"))
_MARKS = ("o", "s", "^", "D", "v")
_BAND = "#f2d98b"
_WIDTH_IN, _HEIGHT_IN = 7.0, 5.2


def draw(points: Sequence[Point], path: Path) -> None:
    """Draws all points that have a cost. Raises PlotError, FileError."""
    functions = list(dict.fromkeys(point.function for point in points))
    configs = list(dict.fromkeys(point.config for point in points))
    dtypes = list(dict.fromkeys(point.weights for point in points))
    drawn, axes = figure(len(functions), _WIDTH_IN, _HEIGHT_IN)
    for panel, function in zip(axes, functions):
        panel_points = [point for point in points if point.function == function and point.cost]
        _dress(panel, function, panel_points)
        for group in grouped(panel_points).values():
            panel.plot(
                *_xy(front(group)), color=_BAND, linewidth=11, solid_capstyle="round", zorder=1
            )
        for config, weights in itertools.product(configs, dtypes):
            series = [
                point
                for point in panel_points
                if (point.config, point.weights) == (config, weights)
            ]
            style = _style(configs.index(config), dtypes.index(weights))
            _line(panel, series, f"{config} {weights}".strip(), style, dtypes.index(weights) % 2)
        _legend(panel, panel_points)
    saved(drawn, path)


def _style(config: int, dtype: int) -> dict[str, Any]:
    color = _HUES[config % len(_HUES)][dtype % 2]
    filled = color if dtype % 2 == 0 else "white"
    mark = _MARKS[dtype % len(_MARKS)]
    return {"color": color, "marker": mark, "markerfacecolor": filled}


def _unit(points: Sequence[Point]) -> tuple[float, str]:
    """(factor of a latency, label of its axis)."""
    new = points[0].new_tokens if points else 1
    if new == 1:
        return 1e3, "latency per token (ms)"
    return 1.0, f"time for {new} tokens (s)"


def _xy(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    """(latencies, costs in chip-milliseconds per token)."""
    scale = _unit(points)[0]
    x = [point.cost.time_s * scale for point in points]
    return x, [point.cost.chip_s_per_token * 1e3 for point in points]


def _line(
    panel: Any, series: Sequence[Point], label: str, style: dict[str, Any], below: int
) -> None:
    best = front(series)
    rest = [point for point in series if point not in best]
    panel.plot(*_xy(rest), linestyle="", marker=".", color=style["color"], alpha=0.22, zorder=2)
    if not best:
        return
    panel.plot(*_xy(best), linewidth=1.8, markersize=5.5, label=label, zorder=4, **style)
    _annotate(panel, best, style["color"], below)


def _annotate(panel: Any, best: Sequence[Point], color: str, below: int) -> None:
    """Labels the line with numbers of chips, above or below it so that adjacent lines do not
    collide."""
    from matplotlib.patheffects import withStroke

    for chips, run in itertools.groupby(best, key=lambda point: point.chips):
        stretch = list(run)
        (x,), (y,) = _xy([stretch[len(stretch) // 2]])
        panel.annotate(
            f"{chips}",
            (x, y),
            xytext=(-9, -7) if below else (6, 5),
            textcoords="offset points",
            ha="right" if below else "left",
            va="top" if below else "bottom",
            fontsize=8,
            color=color,
            zorder=5,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )


def _dress(panel: Any, function: str, points: Sequence[Point]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panel.set_xscale("log")
    panel.set_yscale("log")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    dress(panel, x=_unit(points)[1], y="cost (chip-ms per token)")
    machine = points[0].topology.split(":")[0] if points else ""
    about = f"{machine}, context {points[0].context}" if points else "nothing fits"
    panel.set_title(function, loc="left", color=INK, fontsize=12, fontweight="bold")
    panel.set_title(about, loc="right", color=QUIET, fontsize=9)


def _legend(panel: Any, points: Sequence[Point]) -> None:
    from matplotlib.lines import Line2D

    if not points:
        return
    handles, labels = panel.get_legend_handles_labels()
    band = Line2D([], [], color=_BAND, linewidth=8, solid_capstyle="round")
    text = panel.legend(
        [*handles, band],
        [*labels, "Pareto front"],
        frameon=False,
        fontsize=9,
        title="figures along a line: chips",
        title_fontsize=8,
        labelcolor=INK,
    )
    text.get_title().set_color(QUIET)
