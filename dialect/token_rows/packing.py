"""A step as two arrays: its token rows with their pages, and the choices of tokens behind some.

    columns of a row: token, source, position, page, page, ..
    columns of a choice: row, position, how the token is chosen

A token that a queued step has still to give is `source`, its place among the choices of the step
before; -1 where the token is known. Of chips that own rows, every group has its part of the rows
and of the choices, whose rows are counted from the first of the group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dialect.serving.requests import Request
from dialect.serving.shapes import Room, Shape, part_of, rows_of
from dialect.serving.steps import Row, Step
from dialect.token_rows import sampling
from dialect.token_rows.sampling import Choice

TOKEN, SOURCE, POSITION, PAGES = range(4)
NO_PAGE = -1


@dataclass
class Packed:
    """A step in arrays.

    - rows: i32[rows of its shape, PAGES + pages of a table]
    - choices: i32[tokens that a step chooses, sampling.COLUMNS]
    - answering: the place among the choices of every request that gets a token, in their order;
      those of its drafts follow
    """

    shape: Shape
    rows: np.ndarray
    choices: np.ndarray
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
    most: int,
    sources: Mapping[Request, int],
    choices: Mapping[Request, Choice],
    pages: Sequence[int] = (0,),
) -> Packed:
    """A step in arrays: of the rows of a shape, each with the pages of a table of this width, and
    of so many choices at most.

    starts: where the tokens of every request begin; sources: where the tokens are that the step
    before gives; pages: the first of every group of chips.
    """
    array = empty(rows_of(shape), width)
    tokens, places, positions, at = [], [], [], list[int]()
    for row, start in zip(step.rows, starts, strict=True):
        known = row.tokens
        tokens += known
        places += [-1] * len(known)
        if len(known) < row.count:
            tokens.append(0)
            places.append(sources[row.request])
        positions += range(row.start, row.length)
        end, first = start + row.count, pages[row.request.group]
        table = [page + first for page in row.table] if first else row.table
        array[start:end, PAGES : PAGES + len(table)] = table
        at += range(start, end)
    array[at, TOKEN], array[at, SOURCE], array[at, POSITION] = tokens, places, positions
    return Packed(shape, array, *_chosen(step, starts, len(array), most, choices, len(pages)))


def empty(rows: int, width: int) -> np.ndarray:
    """So many rows without a token, each with a table of this width without pages."""
    array = np.full((rows, PAGES + width), NO_PAGE, np.int32)
    array[:, :PAGES] = 0
    array[:, SOURCE] = -1
    return array


def _chosen(
    step: Step,
    starts: Sequence[int],
    rows: int,
    most: int,
    choices: Mapping[Request, Choice],
    groups: int,
) -> tuple[np.ndarray, dict[Request, int]]:
    """The choices of a step of so many rows, and where those of every request begin: at its rows,
    where there are as many choices."""
    array, in_order = sampling.unasked(most), rows <= most
    answering, taken = {}, [0] * groups
    places, columns = list[int](), list[list[int]]()
    for row, start in zip(step.rows, starts, strict=True):
        if not row.answers:
            continue
        group, count = row.request.group, 1 + len(row.drafts)
        at = start + row.count - count - rows // groups * group  # among the rows of its group
        first = most // groups * group + (at if in_order else taken[group])
        answering[row.request] = first
        taken[group] += count
        places += range(first, first + count)
        how, position = choices[row.request].columns, row.length - count
        columns += ([at + more, position + more, *how] for more in range(count))
    if places:
        array[places] = columns
    return array, answering
