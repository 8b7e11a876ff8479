"""SVG from small functions: shapes with a class, so that light and dark are the page's style."""

from __future__ import annotations

from dialect.pages.tags import Html, scrolling, tag


def svg(width: float, height: float, label: str, *shapes: Html, fits: bool = False) -> Html:
    """A drawing; `label` says what it shows. Where the screen is narrower it is moved sideways, or
    `fits`: it has no words that would become too small."""
    size = {"width": _n(width), "height": _n(height), "viewBox": f"0 0 {_n(width)} {_n(height)}"}
    named = {"role": "img", "aria_label": label, "class_": "fits" if fits else None}
    drawn = tag("svg", tag("title", label), *shapes, **named, **size)
    return drawn if fits else scrolling(drawn, f"drawing: {label.partition(':')[0]}")


def rect(x: float, y: float, width: float, height: float, kind: str, title: str = "") -> Html:
    """A rectangle; `title` shows where the pointer rests."""
    inner = [tag("title", title)] if title else []
    size = {"width": _n(max(width, 0)), "height": _n(max(height, 0))}
    return tag("rect", *inner, x=_n(x), y=_n(y), class_=kind, **size)


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> Html:
    """Words that begin, end or are centred at a place."""
    return tag("text", words, x=_n(x), y=_n(y), class_=kind or None, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Html:
    """A straight line."""
    return tag("line", x1=_n(x1), y1=_n(y1), x2=_n(x2), y2=_n(y2), class_=kind)


def dot(x: float, y: float, radius: float, kind: str, title: str) -> Html:
    """A circle; `title` shows where the pointer rests."""
    return tag("circle", tag("title", title), cx=_n(x), cy=_n(y), r=_n(radius), class_=kind)


def path(points: list[tuple[float, float]], kind: str) -> Html:
    """A line through points."""
    steps = " ".join(f"{'L' if at else 'M'}{_n(x)} {_n(y)}" for at, (x, y) in enumerate(points))
    return tag("path", d=steps, class_=kind)


def _n(number: float) -> str:
    """At most one decimal: pixels."""
    return f"{number:.1f}".removesuffix(".0")
