"""Attention of queries that share their keys: `attend` with `together`.

    queries [rows, ..], of which some come in groups that read the keys of their first row
      ->  queries [rows alone, ..] and [groups, queries of a group, ..]

The tokens of a prompt are rows of a step as those of answers are, so that both are in one product
with every weight (Sarathi, Agrawal et al. 2023, section 4). Only attention reads what a row has by
itself: were every token of a prompt to read its keys, they would be read as often as it is long.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from dialect.ops.pages import PagedArray
from dialect.ops.scores import Arrays, Form, Named
from rewrite.signature import Array, Signature

_QUERIES = ("in_group",)


def together(
    form: Form, arrays: Arrays, alone: int, size: int, result_of: Callable[[Form, Arrays], Any]
) -> Any:
    """The result of an attention whose rows behind so many come in groups of a size.

    Raises ValueError where they do not.
    """
    rows = arrays["key"][1][0]
    count = arrays["query"][0].shape[arrays["query"][1].index(rows)]
    if not 0 <= alone <= count or (count - alone) % size:
        raise ValueError(f"{count} rows are not {alone} and groups of {size}")
    first = {name: _every(named, rows, slice(alone)) for name, named in arrays.items()}
    groups = {
        name: _every(named, rows, slice(alone, None, size))
        if name.startswith(("key", "value"))
        else _in_groups(_every(named, rows, slice(alone, None)), rows, size)
        for name, named in arrays.items()
    }
    of_groups = replace(form, axes=_with_queries(form.axes, rows, groups))
    parts = [result_of(form, first)] if alone else []
    if alone < count:
        result, at = result_of(of_groups, groups), form.out.index(rows)
        parts.append(result.reshape(*result.shape[:at], -1, *result.shape[at + 2 :]))
    return jnp.concatenate(parts, axis=form.out.index(rows))


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
