"""How far a long piece of work is: a bar or a spinner on a terminal, elsewhere plain lines.

    4 s: packing parameters, 12 of 80

A line comes on standard error after two seconds, and then every ten. SHARDWRIGHT_PROGRESS=off
silences these lines.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import track

_VARIABLE = "SHARDWRIGHT_PROGRESS"
_FIRST, _NEXT = 2.0, 10.0  # seconds before a line


class Shows(Protocol):
    """What shows what is being done: a spinner of rich, or `Lines`."""

    def update(self, *, text: str) -> None:
        """Says what is being done from now on."""


class Lines:
    """Says a line now and then, until `ended`.

    wait: waits so many seconds, and returns whether the work has ended before.
    """

    def __init__(self, text: str, wait: Callable[[float], bool], clock: Callable[[], float]):
        self.text, self._wait, self._clock = text, wait, clock
        self._began = clock()

    def update(self, *, text: str) -> None:
        """Says what is being done from now on."""
        self.text = text

    def run(self) -> None:
        """Says lines until the work has ended."""
        pause = _FIRST
        while not self._wait(pause):
            print(f"{self._clock() - self._began:.0f} s: {self.text}", file=sys.stderr, flush=True)
            pause = _NEXT


@contextmanager
def lines(text: str) -> Iterator[Lines]:
    """Says on standard error what is being done, where that takes its time."""
    ended = threading.Event()
    shown = Lines(text, ended.wait, time.monotonic)
    if os.environ.get(_VARIABLE) == "off":
        yield shown
        return
    teller = threading.Thread(target=shown.run, name="progress", daemon=True)
    teller.start()
    try:
        yield shown
    finally:
        ended.set()
        teller.join()


def tracked(items: Sequence[Any], doing: str) -> Iterable[Any]:
    """The items, with a progress bar on stderr if that is a terminal, else lines now and then."""
    screen = Console(stderr=True)
    if screen.is_terminal:
        yield from track(items, doing, console=screen, transient=True)
        return
    with lines(doing) as shown:
        for number, item in enumerate(items):
            shown.update(text=f"{doing}, {number} of {len(items)}")
            yield item
