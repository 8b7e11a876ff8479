"""What all plots share: matplotlib where it is installed, a row of panels, plain axes, a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rewrite.errors import PlanError
from rewrite.files import written_whole

INK, QUIET = "#222222", "#6b6b6b"
_SPINE, _GRID = "#bbbbbb", "#e6e6e6"
_DOTS_PER_IN = 160


class PlotError(PlanError):
    """Raised if a plot cannot be drawn."""


def must_be_possible(path: Path) -> None:
    """Raises PlotError if matplotlib is not installed, or does not support this kind of file."""
    known = figure(1, 1.0, 1.0)[0].canvas.get_supported_filetypes()
    if path.suffix[1:] not in known:
        hint = f"name it {path.stem or 'plot'}.png, .svg or .pdf"
        raise PlotError(
            f"cannot draw {path}: {path.suffix or 'no suffix'} is no picture", hint=hint
        )


def figure(panels: int, width_in: float, height_in: float) -> tuple[Any, list[Any]]:
    """(figure, panels side by side, each of this size in inches). Raises PlotError."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        hint = 'pip install "shardwright[plot]"'
        raise PlotError("a plot needs matplotlib, which is not installed", hint=hint) from error
    drawn = Figure(figsize=(width_in * panels, height_in), layout="constrained")
    drawn.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    return drawn, list(drawn.subplots(1, panels, squeeze=False)[0])


def dress(panel: Any, x: str, y: str) -> None:
    """Labels the axes; a faint grid, and no frame."""
    panel.grid(color=_GRID, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(colors=QUIET, labelsize=9, length=0, which="both")
    for side, spine in panel.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_SPINE)
    panel.set_xlabel(x, color=INK, fontsize=10)
    panel.set_ylabel(y, color=INK, fontsize=10)


def saved(drawn: Any, path: Path) -> None:
    """Writes a figure, whole or not at all. Raises FileError."""
    with written_whole(path) as part:
        drawn.savefig(part, dpi=_DOTS_PER_IN)
