"""A progress bar on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import track


def tracked(items: Sequence[Any], doing: str) -> Iterable[Any]:
    """The items, with a progress bar on stderr if that is a terminal."""
    screen = Console(stderr=True)
    shown = screen.is_terminal
    return track(items, doing, console=screen, transient=True, disable=not shown)
