"""One layer's schedule as lanes: the matrix unit, HBM, and every axis of links, over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dialect.arrays.source_lines import line_of
from dialect.compiled.clock import Busy
from dialect.compiled.schedule import Event, Schedule
from dialect.pages.drawing import line, rect, svg, text
from dialect.pages.tags import Html

_NAME, _WIDTH, _ROW = 90, 620, 30  # pixels


@dataclass(frozen=True)
class Slot:
    """What one unit does from `start_s` for `seconds`."""

    lane: str
    start_s: float
    seconds: float
    what: str


def of_layer(schedule: Schedule) -> list[Slot]:
    """What the units do in one trip of the loop in which the compiled program spends most time, at
    the times of the schedule: what overlaps there overlaps here."""
    return [slot for busy in schedule.layer for slot in _slots(busy)]


def _slots(busy: Busy) -> list[Slot]:
    event = busy.of
    if not isinstance(event, Event):
        return [Slot(busy.unit, busy.start_s, busy.seconds, str(event))]
    source = line_of(event.source) or event.source
    name = f"{event.opcode} {event.name}" + (f" for {source}" if source else "")
    if busy.unit != "links":
        return [Slot(busy.unit, busy.start_s, busy.seconds, name)]
    return [
        Slot(f"link {axis}", busy.start_s, busy.seconds, f"{exchange.kind}, {name}")
        for exchange in event.exchanges
        for axis in exchange.axes or ("",)
    ]


def lanes(slots: Sequence[Slot], label: str) -> Html:
    """The lanes, in microseconds."""
    names = [name for name in ("compute", "HBM") if any(s.lane == name for s in slots)]
    names += sorted({slot.lane for slot in slots} - set(names))
    end_s = max((slot.start_s + slot.seconds for slot in slots), default=0) or 1.0
    shapes = []
    for number, name in enumerate(names):
        y = 8 + number * _ROW
        shapes += [text(0, y + 16, name), line(_NAME, y + 24, _NAME + _WIDTH, y + 24, "grid")]
        kind = {"compute": "fa", "HBM": "fb"}.get(name, "fc")
        for slot in (slot for slot in slots if slot.lane == name):
            x, width = slot.start_s / end_s * _WIDTH, slot.seconds / end_s * _WIDTH
            told = f"{slot.what}: {slot.seconds * 1e6:.1f} us from {slot.start_s * 1e6:.1f} us"
            shapes.append(rect(_NAME + x, y, max(width - 0.5, 0.8), 22, kind, told))
    base = 8 + len(names) * _ROW
    shapes += [text(_NAME, base + 14, "0", "soft")]
    shapes += [text(_NAME + _WIDTH, base + 14, f"{end_s * 1e6:.0f} us", "soft", "end")]
    return svg(_NAME + _WIDTH + 10, base + 22, label, *shapes)
