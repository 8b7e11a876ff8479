"""How far work is, where there is no terminal: lines that come after a while, and end with it."""

from __future__ import annotations

import io
import threading

import pytest

from dialect.display import progress
from dialect.display.progress import Lines, tracked
from dialect.front.console import Screen
from tests.kit import Captured


class Clock:
    """A clock that moves by what is waited; the work ends after so many waits."""

    def __init__(self, waits: int) -> None:
        self.now, self.left = 100.0, waits

    def time(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize(("waits", "told"), [(0, ""), (3, "2 s: a\n12 s: a\n22 s: a\n")])
def test_a_line_comes_after_two_seconds_and_then_every_ten(
    waits: int, told: str, capsys: Captured
) -> None:
    clock = Clock(waits)
    Lines("a", clock.wait, clock.time).run()
    assert capsys.readouterr() == ("", told)


def test_a_line_says_what_is_being_done_then(capsys: Captured) -> None:
    clock = Clock(1)
    shown = Lines("tracing", clock.wait, clock.time)
    shown.update(text="pass plan")
    shown.run()
    assert capsys.readouterr().err == "2 s: pass plan\n"


@pytest.mark.parametrize("setting", ["on", "off"])
def test_items_come_as_they_are(
    setting: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines are said by a thread, which has ended with the last item, or with an error."""
    monkeypatch.setenv("SHARDWRIGHT_PROGRESS", setting)
    monkeypatch.setattr(progress, "_FIRST", 3600.0)
    assert list(tracked([1, 2, 3], "packing")) == [1, 2, 3]
    with pytest.raises(ValueError), progress.lines("packing"):
        raise ValueError
    assert "progress" not in [thread.name for thread in threading.enumerate()]
    assert capsys.readouterr() == ("", "")


def test_items_that_are_counted_say_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(Lines, "update", lambda self, *, text: said.append(text))
    assert list(tracked("ab", "packing")) == ["a", "b"]
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert Screen().counted("costing", iter("ab"), 2) == ["a", "b"]
    assert said == ["packing, 0 of 2", "packing, 1 of 2", "costing, 1 of 2", "costing, 2 of 2"]
