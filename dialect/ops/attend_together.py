"""Attention of queries that share their keys: `attend` with `together`.

    queries [rows, ..], in groups of one or several that read the keys of their first row
      ->  queries [groups, queries of a group, ..] for every size of group

The tokens of a prompt, and those of a draft, are rows of a step as those of answers are, so that
all are in one product with every weight (Sarathi, Agrawal et al. 2023, section 4). Only attention
reads what a row has by itself: were every token of a prompt to read its keys, they would be read
as often as it is long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from dialect.ops.pages import PagedArray
from dialect.ops.scores import Arrays, Form, Named
from rewrite.signature import Array, Signature

_QUERIES = ("in_group",)


def together(
    form: Form,
    arrays: Arrays,
    groups: Sequence[tuple[int, int]],
    result_of: Callable[[Form, Arrays], Any],
) -> Any:
    """The result of an attention whose rows come in groups, (how many, rows of each) one behind the
    other. Raises ValueError where they do not."""
    rows = arrays["key"][1][0]
    count = arrays["query"][0].shape[arrays["query"][1].index(rows)]
    if sum(number * size for number, size in groups) != count:
        told = " and ".join(f"{number} groups of {size}" for number, size in groups)
        raise ValueError(f"{count} rows are not {told}")
    parts, at = [], 0
    for number, size in groups:
        part = slice(at, at := at + number * size)
        parts += [_of_a_size(form, arrays, rows, part, size, result_of)] if number else []
    return jnp.concatenate(parts, axis=form.out.index(rows))


def _of_a_size(
    form: Form,
    arrays: Arrays,
    rows: tuple[str, ...],
    part: slice,
    size: int,
    result_of: Callable[[Form, Arrays], Any],
) -> Any:
    """The result of the rows of a part, which is cut into groups of a size."""
    if size == 1:
        return result_of(form, {name: _every(each, rows, part) for name, each in arrays.items()})
    groups = {
        name: _every(each, rows, slice(part.start, part.stop, size))
        if name.startswith(("key", "value"))
        else _in_groups(_every(each, rows, part), rows, size)
        for name, each in arrays.items()
    }
    result = result_of(replace(form, axes=_with_queries(form.axes, rows, groups)), groups)
    at = form.out.index(rows)
    return result.reshape(*result.shape[:at], -1, *result.shape[at + 2 :])


def _every(named: Named, rows: tuple[str, ...], which: slice) -> Named:
    """An array with some of its rows, if it has any."""
    array, axes = named
    if rows not in axes:
        return named
    if isinstance(array, PagedArray):
        return array.of_rows(which), axes
    return array[(slice(None),) * axes.index(rows) + (which,)], axes


def _in_groups(named: Named, rows: tuple[str, ...], size: int) -> Named:
    """An array whose rows are cut into groups, with an axis behind them."""
    array, axes = named
    if rows not in axes:
        return named
    at = axes.index(rows)
    return array.reshape(*array.shape[:at], -1, size, *array.shape[at + 1 :]), _cut(axes, rows)


def _cut(axes: Array, rows: tuple[str, ...]) -> Array:
    at = axes.index(rows) + 1
    return (*axes[:at], _QUERIES, *axes[at:])


def _with_queries(named: Signature, rows: tuple[str, ...], groups: Arrays) -> Signature:
    """The axes of an attention whose arrays have become groups."""
    inputs = (
        _cut(axes, rows) if _QUERIES in groups[name][1] else axes
        for name, axes in zip(groups, named.inputs)
    )
    return Signature(tuple(inputs), (_cut(named.outputs[0], rows),))
