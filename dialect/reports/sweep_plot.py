"""A sweep as a picture: cost over latency, as Figure 1 of arXiv:2211.05102 draws them.

One panel for each function (decode, prefill), one line for each configuration and dtype of
weights: its own Pareto front, with the chips that each stretch of it takes. The front of all
dtypes together lies under it as a band; what no front needs is a faint dot.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dialect.reports.sweep import Point, front, grouped
from rewrite.errors import PlanError
from rewrite.files import written_whole

# One hue for each configuration, in two depths: dark and filled, light and open, in turn by dtype.
_HUES = (("#1d4e89", "#4f9fdc"), ("#b3401a", "#f0954a"), ("#1b6b4a", "#56b98a"))
_HUES += (("#5b3a8c", "#a283d6"), ("#8a1c4a", "#d9709c"))
_MARKS = ("o", "s", "^", "D", "v")
_BAND, _INK, _QUIET, _GRID = "#f2d98b", "#222222", "#6b6b6b", "#e6e6e6"
_WIDTH_IN, _HEIGHT_IN, _DOTS_PER_IN = 7.0, 5.2, 160


class PlotError(PlanError):
    """A picture cannot be drawn."""


def must_be_possible(path: Path) -> None:
    """Raises PlotError where matplotlib is not installed, or does not know this kind of file."""
    known = _figure(1)[0].canvas.get_supported_filetypes()
    if path.suffix[1:] not in known:
        hint = f"name it {path.stem or 'sweep'}.png, .svg or .pdf"
        raise PlotError(
            f"cannot draw {path}: {path.suffix or 'no suffix'} is no picture", hint=hint
        )


def draw(points: Sequence[Point], path: Path) -> None:
    """Draws all points that could be costed. Raises PlotError, FileError."""
    functions = list(dict.fromkeys(each.function for each in points))
    configs = list(dict.fromkeys(each.config for each in points))
    dtypes = list(dict.fromkeys(each.weights for each in points))
    figure, axes = _figure(len(functions))
    for panel, function in zip(axes, functions):
        own = [each for each in points if each.function == function and each.cost]
        _dress(panel, function, own)
        for group in grouped(own).values():
            panel.plot(
                *_xy(front(group)), color=_BAND, linewidth=11, solid_capstyle="round", zorder=1
            )
        for config, weights in itertools.product(configs, dtypes):
            series = [each for each in own if (each.config, each.weights) == (config, weights)]
            style = _style(configs.index(config), dtypes.index(weights))
            _line(panel, series, f"{config} {weights}".strip(), style, dtypes.index(weights) % 2)
        _legend(panel, own)
    with written_whole(path) as part:
        figure.savefig(part, dpi=_DOTS_PER_IN)


def _figure(panels: int) -> tuple[Any, list[Any]]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        hint = 'pip install "shardwright[plot]"'
        raise PlotError("a plot needs matplotlib, which is not installed", hint=hint) from error
    figure = Figure(figsize=(_WIDTH_IN * panels, _HEIGHT_IN), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _style(config: int, dtype: int) -> dict[str, Any]:
    color = _HUES[config % len(_HUES)][dtype % 2]
    filled = color if dtype % 2 == 0 else "white"
    mark = _MARKS[dtype % len(_MARKS)]
    return {"color": color, "marker": mark, "markerfacecolor": filled}


def _unit(points: Sequence[Point]) -> tuple[float, str]:
    """What a latency is multiplied with, and the name of its axis."""
    new = points[0].new_tokens if points else 1
    if new == 1:
        return 1e3, "latency per token (ms)"
    return 1.0, f"time for {new} tokens (s)"


def _xy(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    """Latency, and cost in chip-milliseconds per token."""
    scale = _unit(points)[0]
    x = [each.cost.time_s * scale for each in points]
    return x, [each.cost.chip_s_per_token * 1e3 for each in points]


def _line(
    panel: Any, series: Sequence[Point], label: str, style: dict[str, Any], below: int
) -> None:
    best = front(series)
    rest = [each for each in series if each not in best]
    panel.plot(*_xy(rest), linestyle="", marker=".", color=style["color"], alpha=0.22, zorder=2)
    if not best:
        return
    panel.plot(*_xy(best), linewidth=1.8, markersize=5.5, label=label, zorder=4, **style)
    _annotate(panel, best, style["color"], below)


def _annotate(panel: Any, best: Sequence[Point], color: str, below: int) -> None:
    """The number of chips, once for each stretch of the line; every other line has it below, so
    that lines which touch keep theirs apart."""
    from matplotlib.patheffects import withStroke

    for chips, run in itertools.groupby(best, key=lambda each: each.chips):
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
    panel.grid(color=_GRID, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(colors=_QUIET, labelsize=9, length=0, which="both")
    for side, spine in panel.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#bbbbbb")
    panel.set_xlabel(_unit(points)[1], color=_INK, fontsize=10)
    panel.set_ylabel("cost (chip-ms per token)", color=_INK, fontsize=10)
    machine = points[0].topology.split(":")[0] if points else ""
    about = f"{machine}, context {points[0].context}" if points else "nothing fits"
    panel.set_title(function, loc="left", color=_INK, fontsize=12, fontweight="bold")
    panel.set_title(about, loc="right", color=_QUIET, fontsize=9)


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
        labelcolor=_INK,
    )
    text.get_title().set_color(_QUIET)
