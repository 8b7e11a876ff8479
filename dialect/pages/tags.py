"""HTML and SVG as text that is escaped where it is put in.

tag("p", "a < b", class_="note")   ->   <p class="note">a &lt; b</p>
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_EMPTY = ("meta", "br", "line", "rect", "circle", "path")  # tags without an end


class Html(str):
    """Text that is markup already, and is not escaped again."""


def tag(name: str, /, *children: str | Iterable[str], **attributes: object) -> Html:
    """An element. Children are escaped unless they are `Html`; `class_` is the attribute class,
    and other underscores are dashes. An attribute of None or False is left out."""
    shown = "".join(
        f" {key.rstrip('_').replace('_', '-')}"
        + ("" if value is True else f'="{escape(str(value), quote=True)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _EMPTY and not children:
        return Html(f"<{name}{shown}/>" if name != "meta" else f"<{name}{shown}>")
    return Html(f"<{name}{shown}>{joined(children)}</{name}>")


def joined(children: Iterable[str | Iterable[str]]) -> Html:
    """Children one after the other, escaped where they are plain text."""
    parts = []
    for child in children:
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(escape(child, quote=False))
        else:
            parts.append(joined(child))
    return Html("".join(parts))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], label: str) -> Html:
    """A table that scrolls by itself. A column whose name begins with `>` is set to the right."""
    right = [name[:1] == ">" for name in columns]

    def cells(kind: str, row: Sequence[str]) -> Html:
        named = (
            tag(
                kind,
                cell,
                class_="right" if is_right else None,
                scope="col" if kind == "th" else None,
            )
            for cell, is_right in zip(row, right)
        )
        return tag("tr", *named)

    head = tag("thead", cells("th", [name.removeprefix(">") for name in columns]))
    body = tag("tbody", *(cells("td", row) for row in rows))
    return scrolling(tag("table", head, body), label)


def scrolling(content: Html, label: str) -> Html:
    """What may be wider than the screen, and is moved by the keyboard too."""
    return tag("div", content, class_="scroll", tabindex=0, role="region", aria_label=label)


def folded(summary: str, *content: str | Iterable[str], is_open: bool = False) -> Html:
    """What opens by a click or by the keyboard."""
    return tag("details", tag("summary", summary), *content, open=is_open)


def listing(html: str, label: str) -> Html:
    """Preformatted lines that are markup already."""
    return scrolling(tag("pre", Html(html)), label)
