"""Slices at positions of the program, gather and scatter in numpy, element by element.

The arrays of checks are small: a loop over places is the definition, and quick enough.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Arrays = list[np.ndarray]
_CLIP = jax.lax.GatherScatterMode.CLIP
_FILL = jax.lax.GatherScatterMode.FILL_OR_DROP


def _start(indices: Sequence[np.ndarray], sizes: Sequence[int], shape: Sequence[int]) -> list[int]:
    """Positions moved so that a block of these sizes lies inside."""
    return [min(max(int(i), 0), whole - size) for i, size, whole in zip(indices, sizes, shape)]


def _dynamic_slice(args: Arrays, params: dict[str, Any], types: Any) -> Any:
    array, *indices = args
    sizes = params["slice_sizes"]
    starts = _start(indices, sizes, array.shape)
    return array[tuple(slice(i, i + size) for i, size in zip(starts, sizes))]


def _dynamic_update_slice(args: Arrays, params: dict[str, Any], types: Any) -> Any:
    array, update, *indices = args
    starts = _start(indices, update.shape, array.shape)
    made = np.array(array)
    made[tuple(slice(i, i + size) for i, size in zip(starts, update.shape))] = update
    return made


def _places(shape: Sequence[int]) -> Any:
    return itertools.product(*map(range, shape))


def _gather(args: Arrays, params: dict[str, Any], types: Any) -> Any:
    table, indices = args
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    shape, made = types[0].shape, np.empty(types[0].shape, table.dtype)
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = [d for d in range(table.ndim) if d not in gone]
    fill = _filler(params["fill_value"], table.dtype)
    for place in _places(shape):
        row = [i for d, i in enumerate(place) if d not in numbers.offset_dims]
        offset = dict(zip(kept, (place[d] for d in numbers.offset_dims)))
        start = _row_start(indices, row, numbers.start_index_map, table.ndim)
        for d, i in zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims):
            start[d] = row[i]
        high = [whole - size for whole, size in zip(table.shape, sizes)]
        outside = any(not 0 <= i <= top for i, top in zip(start, high))
        if outside and params["mode"] == _FILL:
            made[place] = fill
            continue
        start = [min(max(i, 0), top) for i, top in zip(start, high)]
        made[place] = table[tuple(i + offset.get(d, 0) for d, i in enumerate(start))]
    return made


def _row_start(
    indices: np.ndarray, row: Sequence[int], where: Sequence[int], rank: int
) -> list[int]:
    start = [0] * rank
    vector = indices[tuple(row)]
    for n, d in enumerate(where):
        start[d] = int(vector[n])
    return start


def _filler(given: Any, dtype: Any) -> Any:
    if given is not None:
        return given
    if jnp.issubdtype(dtype, jnp.inexact):
        return np.nan
    if dtype == bool:
        return True
    info = jnp.iinfo(dtype)
    return int(info.min) if int(info.min) < 0 else int(info.max)


def _scattered(combine: Callable[[Any, Any], Any]) -> Any:
    def rule(args: Arrays, params: dict[str, Any], types: Any) -> Any:
        if params.get("update_jaxpr") is not None and combine is _second:
            return None
        array, indices, updates = args
        numbers, made = params["dimension_numbers"], np.array(array)
        gone = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
        windows = [d for d in range(array.ndim) if d not in gone]
        sizes = [1] * array.ndim
        for d, at in zip(windows, numbers.update_window_dims):
            sizes[d] = updates.shape[at]
        high = [whole - size for whole, size in zip(array.shape, sizes)]
        for place in _places(updates.shape):
            row = [i for d, i in enumerate(place) if d not in numbers.update_window_dims]
            offset = dict(zip(windows, (place[d] for d in numbers.update_window_dims)))
            start = _row_start(indices, row, numbers.scatter_dims_to_operand_dims, array.ndim)
            batching = zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims)
            for d, i in batching:
                start[d] = row[i]
            if params["mode"] == _CLIP:
                start = [min(max(i, 0), top) for i, top in zip(start, high)]
            if any(not 0 <= i <= top for i, top in zip(start, high)):
                continue
            at = tuple(i + offset.get(d, 0) for d, i in enumerate(start))
            made[at] = combine(made[at], updates[place])
        return made

    return rule


def _second(one: Any, other: Any) -> Any:
    return other


RULES = {
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "scatter": _scattered(_second),
    "scatter-add": _scattered(lambda one, other: one + other),
    "scatter-sub": _scattered(lambda one, other: one - other),
    "scatter-mul": _scattered(lambda one, other: one * other),
    "scatter-min": _scattered(np.minimum),
    "scatter-max": _scattered(np.maximum),
}
