"""A step as one array: what every token row is, and where its pages are.

    columns of a row: token, source, position, how its token is chosen, page, page, ..

A token that a queued step has still to give is `source`, its place among the results of the step
before; -1 where the token is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dialect.engine import sampling
from dialect.engine.sampling import Choice
from dialect.serving.requests import Request
from dialect.serving.steps import Step

TOKEN, SOURCE, POSITION = range(3)
CHOICE = slice(3, 3 + sampling.COLUMNS)
PAGES = CHOICE.stop
NO_PAGE = -1
GROUP = 16  # tokens of a prompt that read its pages together
NOBODY = (0, -1, 0, *Choice().columns)  # but for its pages


@dataclass
class Packed:
    """A step in an array, i32[rows, PAGES + pages of a table].

    answering: the place of every request that gets a token, in their order; those of its drafts
    follow.
    """

    rows: np.ndarray
    answering: dict[Request, int]


def tokens_of(step: Step, groups: int = 1) -> int:
    """The token rows that a step takes, where every group of chips has as many as the fullest."""
    counts = [0] * groups
    for row in step.rows:
        counts[row.request.group] += row.count
    return groups * max(counts)


def in_groups(step: Step, alone: int, rows: int, group: int) -> list[int] | None:
    """Where the tokens of every request begin in a step whose rows behind so many come in groups
    that have the same pages: those of prompts in groups, if there is room; None if there is not."""
    free, at, starts = alone, alone, dict[int, int]()
    longest_first = sorted(range(len(step.rows)), key=lambda number: -step.rows[number].count)
    for number in longest_first:
        count = step.rows[number].count
        end = at + -(-count // group) * group
        if count > 1 and end <= rows:
            starts[number], at = at, end
        elif count <= free:
            starts[number], free = alone - free, free - count
        else:
            return None
    return [starts[number] for number in range(len(step.rows))]


def one_by_one(step: Step, rows: int, groups: int = 1) -> list[int]:
    """Where the tokens of every request begin in a step of so many rows that are alone: those of a
    group of chips in its part of them."""
    free, starts = [rows // groups * group for group in range(groups)], []
    for row in step.rows:
        starts.append(free[row.request.group])
        free[row.request.group] += row.count
    return starts


def packed(
    step: Step,
    rows: int,
    starts: Sequence[int],
    width: int,
    sources: Mapping[Request, int],
    choices: Mapping[Request, Choice],
    pages: Sequence[int] = (0,),
) -> Packed:
    """A step in an array of so many rows, each with the pages of a table of this width.

    starts: where the tokens of every request begin; sources: where the tokens are that the step
    before gives; pages: the first of every group of chips.
    """
    array = np.full((rows, PAGES + width), NO_PAGE, np.int32)
    array[:, :PAGES] = NOBODY
    answering = {}
    tokens, places, positions, columns, at = [], [], [], [], list[int]()
    for row, start in zip(step.rows, starts, strict=True):
        known = row.tokens
        tokens += known
        places += [-1] * len(known)
        if len(known) < row.count:
            tokens.append(0)
            places.append(sources[row.request])
        positions += range(row.start, row.length)
        columns.append(choices[row.request].columns)
        end, first = start + row.count, pages[row.request.group]
        table = [page + first for page in row.table] if first else row.table
        array[start:end, PAGES : PAGES + len(table)] = table
        at += range(start, end)
        if row.answers:
            answering[row.request] = end - 1 - len(row.drafts)
    array[at, TOKEN], array[at, SOURCE], array[at, POSITION] = tokens, places, positions
    array[at, CHOICE] = np.repeat(columns, [row.count for row in step.rows], axis=0)
    return Packed(array, answering)
