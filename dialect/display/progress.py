"""A bar for long work, while there is a terminal to show it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import track


def tracked(items: Sequence[Any], doing: str) -> Iterable[Any]:
    """The items, one by one, with a bar on stderr while there is a terminal to show it."""
    screen = Console(stderr=True)
    shown = screen.is_terminal
    return track(items, doing, console=screen, transient=True, disable=not shown)
