"""The door that every text comes in by: how long and how deep it may be, and where errors point.

What is read is data and stays data. What could take minutes or more stack than there is, is
refused here; every mistake is shown with its line and a caret.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedInput
from lark.lexer import PatternStr

from rewrite.errors import ShardwrightError, TextError, brief

Parsed: TypeAlias = Any  # a Token or a Tree of lark; what it holds its grammar says
MOST_CHARACTERS = 1 << 20  # of a text that people write
MOST_OF_A_PROGRAM = 1 << 24  # some 200,000 ops, which are read in half a minute
MOST_DEEP = 64  # brackets inside one another
MOST_DIGITS = 1000  # of a whole number
_SHOWN = 100  # columns of a line that an error shows
_REFUSED = re.compile(r"[\0-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_FOUND = re.compile(r"[\w.%-]+|.|$", re.DOTALL)


class Source:
    """One text. `name` stands before the line in errors; places are numbers of characters."""

    def __init__(self, text: str, name: str = "", most: int = MOST_CHARACTERS) -> None:
        self.name = name
        self.text = text[: most + 1].removeprefix("\ufeff").replace("\r\n", "\n")
        if len(text) > most:
            self.fail(0, f"the text has {len(text):,} characters, at most {most:,} are read")
        if refused := _REFUSED.search(self.text):
            self.fail(refused.start(), f"a text cannot hold the character {refused[0]!a}")

    def tree(self, grammar: Lark, words: Mapping[str, str], start: str | None = None) -> Parsed:
        """The text as `grammar` reads it. Raises TextError; `words` says terminals in words."""
        try:
            return grammar.parse(self.text, start=start)
        except (TooDeep, UnexpectedInput) as error:
            self.unexpected(error, grammar, words)

    def unexpected(
        self, error: Any, grammar: Lark, words: Mapping[str, str], part: str = "", at: int = 0
    ) -> NoReturn:
        """Says what stands where something else was expected. `part` is what was read where that
        was not the whole text, and begins at `at`."""
        if isinstance(error, TooDeep):
            self.fail(at + error.place, f"more than {MOST_DEEP} brackets inside one another")
        read = part or self.text
        named = isinstance(error, UnexpectedCharacters)
        ended = not named and error.token.type == "$END"
        place = len(read.rstrip()) if ended else error.pos_in_stream
        wanted = (error.allowed if named else error.accepts) or set()
        expected = sorted({_in_words(token, grammar, words) for token in wanted - {"$END"}})
        actual = "" if ended else _FOUND.findall(read, place)[0]
        message = f"expected {' or '.join(expected) or 'the end'}, found "
        hint = "end the string on the same line" if actual == '"' else ""
        self.fail(
            at + place, message + (repr(brief(actual)) if actual else "the end"), hint, len(actual)
        )

    def fail(
        self,
        place: int | Parsed,
        message: str,
        hint: str = "",
        width: int = 1,
        error: type[ShardwrightError] = TextError,
    ) -> NoReturn:
        """Raises `error` at a place in the text; a token or a tree has a width."""
        if not isinstance(place, int):
            meta: Any = place.meta if isinstance(place, Tree) else place
            place, width = meta.start_pos, meta.end_pos - meta.start_pos
        number = self.text.count("\n", 0, place) + 1
        first = self.text.rfind("\n", 0, place) + 1
        last = self.text.find("\n", place)
        row = self.text[first : last if last >= 0 else None]
        column = place - first
        if len(row) > _SHOWN:  # a window of it, the column near its middle
            cut = max(0, min(column - _SHOWN // 2, len(row) - _SHOWN))
            row, column = row[cut : cut + _SHOWN], column - cut
        shown = "".join(letter if letter.isprintable() else " " for letter in row)
        marks = " " * column + "^" * max(1, min(width, len(row) - column))
        text = brief(message) if self.name else f"line {number}: {brief(message)}"
        where = f"{self.name}:{number}" if self.name else ""
        raise error(f"{text}\n    {shown}\n    {marks}", where=where, hint=brief(hint)) from None

    def string(self, token: Token) -> str:
        """What stands in quotes."""
        try:
            return str(json.loads(token, strict=False))
        except json.JSONDecodeError:
            self.fail(token, "unknown escape in a string", "write a backslash as \\\\")


class TooDeep(Exception):
    """Brackets nest deeper than whoever walks the tree could follow."""

    def __init__(self, place: int) -> None:
        self.place = place


class Nesting:
    """Counts the brackets of a text while they are read: the `postlex` of every grammar."""

    always_accept = ()

    def process(self, tokens: Iterator[Token]) -> Iterator[Token]:
        """The tokens as they are. Raises TooDeep where brackets nest too deeply."""
        depth = 0
        for token in tokens:
            if token in _BRACKETS:
                depth += _BRACKETS[token]
                if depth > MOST_DEEP:
                    raise TooDeep(token.start_pos or 0)
            yield token


_BRACKETS = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}


def grammar(path: Path, **options: Any) -> Lark:
    """The grammar in a file."""
    given = {"parser": "lalr", "propagate_positions": True, "postlex": Nesting(), **options}
    return Lark(path.read_text(encoding="utf-8"), **given)


def _in_words(terminal: str, grammar: Lark, words: Mapping[str, str]) -> str:
    """A terminal of the grammar as a person would say it."""
    if terminal in words:
        return words[terminal]
    pattern = grammar.get_terminal(terminal).pattern
    return repr(pattern.value) if isinstance(pattern, PatternStr) else "a value"


def whole_number(text: str) -> int:
    """The number that decimal digits are. Raises ValueError where there are too many of them."""
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits is too long")
    return int(text)


def quoted(text: str) -> str:
    """A text in quotes, as every grammar reads it; what cannot be printed is escaped."""
    plain = json.dumps(str(text), ensure_ascii=False)
    if plain.isprintable():
        return plain
    return "".join(x if x.isprintable() else json.dumps(x)[1:-1] for x in plain)


def read_file(path: str | Path, what: str, error: type[ShardwrightError] = TextError) -> str:
    """The text of a file, no more than a `Source` takes. Raises `error` where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(4 * MOST_OF_A_PROGRAM).decode("utf-8")
    except (OSError, ValueError) as wrong:
        why = getattr(wrong, "strerror", None) or wrong
        raise error(f"cannot read the {what} {str(path)!r}: {why}") from wrong
