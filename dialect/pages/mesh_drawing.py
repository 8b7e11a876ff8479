"""The mesh, drawn: every chip, and which parts of the split axes it holds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from dialect.pages.drawing import line, rect, svg, text
from dialect.pages.tags import Html, folded, joined, table, tag
from dialect.planning.plan import Plan

_CELL, _HIGH, _GAP, _MOST = 104, 74, 14, 64  # pixels; chips that are drawn


def mesh_drawing(plan: Plan) -> Html:
    """The chips, and in words what each holds of the weights and of the cache."""
    chips = list(itertools.product(*(range(size) for _, size in plan.mesh)))
    shown = [chip for chip in chips if _planes(plan, chip) == 0][:_MOST]
    note = ""
    if len(shown) < len(chips):
        note = f"{len(shown)} of {len(chips)} chips are drawn: those that begin every other axis."
    rows = [
        (_name(plan, chip), *(_holds(plan, group, chip) for group in _GROUPS)) for chip in shown
    ]
    named = ("chip", *_GROUPS)
    held = folded("What each chip holds", table(named, rows, "what each chip holds"))
    return joined([_drawn(plan, shown), tag("p", note, class_="soft") if note else "", held])


_GROUPS = ("weights", "cache", "residual", "logits")


def _planes(plan: Plan, chip: Sequence[int]) -> int:
    """How far a chip lies behind the first plane of the last two axes."""
    return sum(chip[:-2])


def _name(plan: Plan, chip: Sequence[int]) -> str:
    return " ".join(f"{axis}={at}" for (axis, _), at in zip(plan.mesh, chip))


def _drawn(plan: Plan, chips: list[tuple[int, ...]]) -> Html:
    """A grid: the last axis goes to the right, the one before it down."""
    places = {chip: (chip[-1], chip[-2] if len(chip) > 1 else 0) for chip in chips}
    columns = max(x for x, _ in places.values()) + 1
    rows = max(y for _, y in places.values()) + 1
    shapes: list[Html] = []
    for x, y in places.values():
        left, top = _corner(x, y)
        if x + 1 < columns:
            side, right = left + _CELL, left + _CELL + _GAP
            shapes.append(line(side, top + _HIGH / 2, right, top + _HIGH / 2, "link"))
        if y + 1 < rows:
            low, middle = top + _HIGH, left + _CELL / 2
            shapes.append(line(middle, low, middle, low + _GAP, "link"))
    for chip, (x, y) in places.items():
        left, top = _corner(x, y)
        shapes.append(rect(left, top, _CELL, _HIGH, "chip", _told(plan, chip)))
        for number, words in enumerate(_short(plan, chip)):
            shapes.append(text(left + 6, top + 16 + 15 * number, words, "soft" if number else ""))
    width, height = _corner(columns, rows)
    names = [axis for axis, _ in plan.mesh]
    shapes.append(text(2, 13, f"{names[-1]} to the right", "soft"))
    if len(names) > 1:
        shapes.append(text(2, height + 8, f"{names[-2]} downwards", "soft"))
    label = f"mesh of {math.prod(size for _, size in plan.mesh)} chips: " + ", ".join(
        f"{axis} {size}" for axis, size in plan.mesh
    )
    return svg(width, height + 14, label, *shapes)


def _corner(x: int, y: int) -> tuple[int, int]:
    return 2 + x * (_CELL + _GAP), 20 + y * (_HIGH + _GAP)


def _short(plan: Plan, chip: Sequence[int]) -> Iterator[str]:
    yield ",".join(map(str, chip))
    held = (part for group in ("weights", "cache") for part in _parts(plan, group, chip))
    for axis, part, count in list(dict.fromkeys(held))[:3]:
        yield f"{axis[:9]} {part + 1}/{count}"


def _told(plan: Plan, chip: Sequence[int]) -> str:
    return "; ".join(f"{group}: {_holds(plan, group, chip)}" for group in _GROUPS)


def _holds(plan: Plan, group: str, chip: Sequence[int]) -> str:
    parts = [
        f"{axis} part {part + 1} of {count}" for axis, part, count in _parts(plan, group, chip)
    ]
    return ", ".join(parts) or "all of it"


def _parts(plan: Plan, group: str, chip: Sequence[int]) -> Iterator[tuple[str, int, int]]:
    """(axis, number of the part, number of parts) of every axis that a group splits."""
    place = {axis: (at, size) for (axis, size), at in zip(plan.mesh, chip)}
    for axis, over in plan.split(group).items():
        part, count = 0, 1
        for mesh_axis in over:
            at, size = place[mesh_axis]
            part, count = part * size + at, count * size
        if count > 1:
            yield axis, part, count
