"""One layer's schedule as lanes: the matrix unit, HBM, and every axis of links, over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dialect.compiled.schedule import DELIVERED, Event, Schedule
from dialect.machine.chips import Chip
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


def of_layer(schedule: Schedule, chip: Chip) -> list[Slot]:
    """One trip of the loop in which the compiled program spends most time. An instruction begins
    when the one before it is done; what overlaps with others adds less time than it takes."""
    loops: dict[int, list[Event]] = {}
    for event in schedule.events:
        loops.setdefault(event.trips, []).append(event)
    body = max(loops.values(), key=lambda events: sum(event.exposed_s for event in events))
    slots: list[Slot] = []
    now_s = 0.0
    for event in body:
        slots += _slots(event, chip, now_s)
        now_s += event.exposed_s / event.trips
    return slots


def _slots(event: Event, chip: Chip, now_s: float) -> list[Slot]:
    name = f"{event.opcode} {event.name}" + (f" for {event.source}" if event.source else "")
    peak = chip.flops_per_s(event.dtype or "bf16") * DELIVERED.compute
    compute_s = event.flops / event.trips / peak
    hbm_s = event.hbm_bytes / event.trips / (chip.hbm_bytes_per_s * DELIVERED.hbm)
    slots = [Slot("compute", now_s, compute_s, name)] if compute_s else []
    slots += [Slot("HBM", now_s, hbm_s, name)] if hbm_s else []
    for exchange in event.exchanges:
        for axis in exchange.axes or ("links",):
            what = f"{exchange.kind} over {' '.join(exchange.axes)}, {name}"
            slots.append(Slot(f"link {axis}", now_s, event.time_s / event.trips, what))
    return slots


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
