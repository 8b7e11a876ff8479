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
from dialect.serving.shapes import Room, Shape, part_of, rows_of
from dialect.serving.steps import Row, Step

TOKEN, SOURCE, POSITION = range(3)
CHOICE = slice(3, 3 + sampling.COLUMNS)
PAGES = CHOICE.stop
NO_PAGE = -1
NOBODY = (0, -1, 0, *Choice().columns)  # but for its pages


@dataclass
class Packed:
    """A step in an array, i32[rows of its shape, PAGES + pages of a table].

    answering: the place of every request that gets a token, in their order; those of its drafts
    follow.
    """

    shape: Shape
    rows: np.ndarray
    answering: dict[Request, int]


def placed(step: Step, shapes: Sequence[Shape], groups: int = 1) -> tuple[Shape, list[int]]:
    """The first shape that has rows for a step, and where the tokens of every request begin there.

    groups: of chips, which have their part of the rows of every shape. Raises ValueError for a step
    that no shape has rows for.
    """
    of_groups = [[row for row in step.rows if row.request.group == at] for at in range(groups)]
    for shape in shapes:
        part = part_of(shape, groups)
        starts = [_placed(rows, part) for rows in of_groups]
        if None not in starts:
            firsts = enumerate(starts)
            return shape, [at * rows_of(part) + first for at, each in firsts for first in each]
    raise ValueError(f"no step has rows for {[row.count for row in step.rows]} tokens")


def _placed(rows: Sequence[Row], shape: Shape) -> list[int] | None:
    """Where the tokens of every request begin, if all have rows: prompts as they come, then who has
    one token, then who has drafts, the most first (`dialect.serving.drafts.paying`)."""
    prompts = [at for at, row in enumerate(rows) if row.count > 1 and not row.drafts]
    single = [at for at, row in enumerate(rows) if row.count == 1]
    drafting = [at for at, row in enumerate(rows) if row.drafts]
    drafting.sort(key=lambda at: -rows[at].count)
    room = Room(shape)
    taken = [room.take(rows[at].count) for at in prompts]
    taken += [(first, 1) for first in room.take_each(len(single))]
    taken += [room.take(rows[at].count) for at in drafting]
    starts, order = [0] * len(rows), [*prompts, *single, *drafting]
    if [count for _, count in taken] != [rows[at].count for at in order]:
        return None
    for at, (first, _) in zip(order, taken):
        starts[at] = first
    return starts


def packed(
    step: Step,
    shape: Shape,
    starts: Sequence[int],
    width: int,
    sources: Mapping[Request, int],
    choices: Mapping[Request, Choice],
    pages: Sequence[int] = (0,),
) -> Packed:
    """A step in an array of the rows of a shape, each with the pages of a table of this width.

    starts: where the tokens of every request begin; sources: where the tokens are that the step
    before gives; pages: the first of every group of chips.
    """
    array = np.full((rows_of(shape), PAGES + width), NO_PAGE, np.int32)
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
    return Packed(shape, array, answering)
