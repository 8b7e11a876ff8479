"""Scatters over axes of size one, without them: what is left of a step's batch in a batch of one.

scatter at (0, p), the first axis being of size one  ->  scatter at p, without that axis
scatter of updates [b, 1, d] at places [b, 1, n]     ->  scatter of [b, d] at [b, n]
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import jax.numpy as jnp

from dialect.matching.constant_arrays import constant_array
from dialect.matching.values import columns, reshaped
from rewrite.ir import Op, Record, Value
from rewrite.opdef import make
from rewrite.rules import Miss, Outcome, local


@local(
    "scatter",
    example=lambda cache, new, place: cache.at[jnp.arange(1), place].set(new),
    types=("f32[1,8,4]", "f32[1,4]", "i32[1]"),
)
def scatter_into_axis_of_one(op: Op) -> Outcome:
    """scatter(x: [1, s, d], at (0, p))  ->  scatter(x: [s, d], at p)"""
    cache, indices, new = op.args
    numbers, places = dict(op["dimension_numbers"].fields), columns(indices)
    indexed = numbers["scatter_dims_to_operand_dims"]
    if places is None or indexed != numbers["inserted_window_dims"]:
        return None
    ones = {d for d, place in zip(indexed, places) if cache.type.shape[d] == 1 and _is_zero(place)}
    if not ones or len(ones) == len(indexed):
        return Miss("it indexes no axis of size one at 0, and another", 3)
    for field in ("inserted_window_dims", "scatter_dims_to_operand_dims", "operand_batching_dims"):
        numbers[field] = _renumbered(numbers[field], ones)
    kept = [place for d, place in zip(indexed, places) if d not in ones]
    smaller = reshaped(cache, _without(cache.type.shape, ones))
    return reshaped(_scatter(op, smaller, kept, new, numbers), cache.type.shape)


@local(
    "scatter",
    example=lambda cache, new, place: cache.at[:, place].set(new),
    types=("f32[2,8,4]", "f32[2,1,4]", "i32[1]"),
)
def scatter_at_one_place(op: Op) -> Outcome:
    """scatter(updates: [b, 1, d], at [b, 1, n])  ->  scatter(updates: [b, d], at [b, n])"""
    cache, indices, new = op.args
    numbers, places = dict(op["dimension_numbers"].fields), columns(indices)
    batch = numbers["scatter_indices_batching_dims"]
    sizes = indices.type.shape[:-1]
    ones = {d for d, size in enumerate(sizes) if size == 1 and d not in batch}
    if places is None or not ones:
        return Miss("no axis of its places has size one", 3)
    windows = numbers["update_window_dims"]
    rows = [d for d in range(new.type.rank) if d not in windows]
    gone = {rows[d] for d in ones}
    numbers["update_window_dims"] = _renumbered(windows, gone)
    numbers["scatter_indices_batching_dims"] = _renumbered(batch, ones)
    kept = [reshaped(place, (*_without(sizes, ones), 1)) for place in places]
    updates = reshaped(new, _without(new.type.shape, gone))
    return _scatter(op, cache, kept, updates, numbers)


def _scatter(
    op: Op, cache: Value, places: Sequence[Value], new: Value, numbers: dict[str, Any]
) -> Value:
    """The scatter with other operands; `places` are the columns of its indices, [..., 1]."""
    parts = [reshaped(place, place.type.shape[:-1]) for place in places]
    axis = parts[0].type.rank
    indices = make("stack", *parts, axis=axis) if len(parts) > 1 else places[0]
    dimension_numbers = Record(op["dimension_numbers"].name, tuple(numbers.items()))
    attrs = dict(op.attrs) | {"dimension_numbers": dimension_numbers}
    return make(op.name, cache, indices, new, **attrs, regions=op.regions)


def _is_zero(place: Value) -> bool:
    array = constant_array(place)
    return array is not None and not array.any()


def _renumbered(axes: Sequence[int], gone: Collection[int]) -> tuple[int, ...]:
    """Axes of an array, once those in `gone` are no longer there."""
    return tuple(axis - sum(d < axis for d in gone) for axis in axes if axis not in gone)


def _without(shape: Sequence[int], gone: Collection[int]) -> tuple[int, ...]:
    return tuple(size for axis, size in enumerate(shape) if axis not in gone)
