"""Tables as data, and as aligned lines of text."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows under a title. A column whose name begins with `>` is right-aligned."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def as_text(tables: Iterable[Table]) -> str:
    """The text of the tables, with an empty line before every one and without trailing blanks."""
    return "\n".join(line for table in tables for line in ("", *_lines(table)))


def _lines(table: Table) -> list[str]:
    headed = any(name.strip(">") for name in table.columns)
    names = tuple(name.removeprefix(">") for name in table.columns)
    rows = [names, *table.rows] if headed else list(table.rows)
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(len(names))]
    right = [name[:1] == ">" for name in table.columns]
    lines = [
        "  "
        + "  ".join(
            f"{cell:>{width}}" if set_right else f"{cell:{width}}"
            for cell, width, set_right in zip(row, widths, right)
        )
        for row in rows
    ]
    return [table.title, *(line.rstrip() for line in lines)]


def brief(text: str) -> str:
    """A text with source lines, relative to the working directory or to site-packages."""
    return re.sub(r"\S*site-packages/", "", text).replace(os.getcwd() + os.sep, "")
