"""Lines for people: words with a kind, so that a terminal and a page can colour them alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape

from rich.text import Text

# What a word is -> its style on a terminal. On a page the kind is the name of a class.
STYLES = {
    "head": "bold",
    "name": "cyan",
    "op": "bold",
    "type": "green",
    "attr": "dim",
    "note": "dim",
    "fold": "magenta",
    "gone": "red",
    "new": "green",
    "saved": "bold green",
    "cost": "bold yellow",
    "": "",
}
_WIDEST = 64  # columns before the types of a block, where they are aligned


@dataclass(frozen=True)
class Word:
    """A piece of a line, and its kind: a key of `STYLES`."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Line:
    """Words, and behind them, aligned within a block, a type and a note. `mark`: -, + or none."""

    words: tuple[Word, ...]
    type: str = ""
    note: str = ""
    depth: int = 0
    mark: str = ""

    @property
    def left(self) -> str:
        """What stands before the type."""
        return "  " * self.depth + "".join(word.text for word in self.words)

    def marked(self, mark: str) -> Line:
        """The same line with a mark in front."""
        return replace(self, mark=mark)

    def deeper(self, by: int = 1) -> Line:
        """The same line, indented."""
        return replace(self, depth=self.depth + by)


def line(text: str, kind: str = "", note: str = "", depth: int = 0) -> Line:
    """A line of one word."""
    return Line((Word(text, kind),), note=note, depth=depth)


def words_of(lines: Sequence[Line]) -> list[list[Word]]:
    """The words of every line, indented, with the types and the notes in columns."""
    typed = [len(row.left) for row in lines if row.type]
    at = min(max(typed, default=0), _WIDEST)
    behind = [len(row.type) for row in lines if row.type and row.note]
    wide = min(max(behind, default=0), _WIDEST // 2)
    return [_in_columns(row, at, wide) for row in lines]


def _in_columns(row: Line, at: int, wide: int) -> list[Word]:
    mark = {"-": "gone", "+": "new"}.get(row.mark, "")
    words = [Word(f"{row.mark or ' '} ", mark)] if row.mark else []
    words += [Word("  " * row.depth), *row.words]
    if row.type:
        words += [Word(" " * max(1, at - len(row.left)) + ": "), Word(row.type, "type")]
    if row.note:
        space = " " * max(2, wide - len(row.type) + 2) if row.type else "  "
        words += [Word(space), Word(row.note, "note")]
    return [word if not mark or word.kind == "note" else Word(word.text, mark) for word in words]


def plain(lines: Sequence[Line]) -> str:
    """The lines as text without colour."""
    return "\n".join("".join(w.text for w in words).rstrip() for words in words_of(lines))


def coloured(lines: Sequence[Line]) -> Text:
    """The lines as a rich text."""
    shown = (Text.assemble(*((w.text, STYLES[w.kind]) for w in words)) for words in words_of(lines))
    return Text("\n").join(shown)


def as_html(lines: Iterable[Line]) -> str:
    """The lines for inside a `<pre>`: every word escaped, in a `<span>` with its kind as class."""
    rows = ("".join(map(_span, words)).rstrip() for words in words_of(list(lines)))
    return "\n".join(rows)


def _span(word: Word) -> str:
    text = escape(word.text)
    return f'<span class="{word.kind}">{text}</span>' if word.kind else text
