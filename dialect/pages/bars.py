"""Amounts as one bar in parts, with a legend that gives the figures in words."""

from __future__ import annotations

from collections.abc import Mapping

from dialect.display.quantities import size
from dialect.pages.drawing import line, rect, svg, text
from dialect.pages.tags import Html, joined, tag

_WIDTH, _HEIGHT = 640, 26
KINDS = ("fa", "fb", "fc", "fd")


def memory_bar(parts: Mapping[str, int], capacity: int, label: str) -> Html:
    """Bytes by use, and what is free of a chip's memory."""
    total = sum(parts.values())
    whole, shapes, at = max(capacity, total, 1), [], 0.0
    for number, (name, count) in enumerate(parts.items()):
        width = count / whole * _WIDTH
        shapes.append(rect(at, 0, width, _HEIGHT, KINDS[number % 4], f"{name}: {size(count)}"))
        at += width
    shapes.append(rect(at, 0, _WIDTH - at, _HEIGHT, "free", f"free: {size(whole - total)}"))
    if total > capacity > 0:
        full = capacity / whole * _WIDTH
        shapes += [line(full, 0, full, _HEIGHT + 6, "full"), text(full, _HEIGHT + 18, "full here")]
    entries = [(KINDS[n % 4], name, count) for n, (name, count) in enumerate(parts.items())]
    entries += [("free", "free", whole - total)] if capacity > total else []
    items = (
        tag("li", tag("span", class_=f"key {kind}"), f"{name} {size(count)}")
        for kind, name, count in entries
    )
    told = f"{label}: " + ", ".join(f"{name} {size(count)}" for _, name, count in entries)
    return joined(
        [
            svg(_WIDTH, _HEIGHT + (22 if total > capacity > 0 else 0), told, *shapes, fits=True),
            tag("ul", *items, class_="legend"),
        ]
    )
