"""Reductions, running sums, products and sorting in numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from string import ascii_letters
from typing import Any

import jax.numpy as jnp
import numpy as np

from tests.fuzz.numpy_maps import Arrays, Rule, Shaped, is_float, wide, wrapped


def reduced(function: Any) -> Rule:
    def rule(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
        # Laid out as usual: the order in which numpy adds up depends on the strides.
        x, axes = np.asarray(args[0], order="C"), tuple(params["axes"])
        if x.size == 0 or jnp.issubdtype(x.dtype, jnp.integer) and x.dtype.itemsize < 4:
            start = _IDENTITY[function](x.dtype)
            x = x.astype(object) if jnp.issubdtype(x.dtype, jnp.integer) else x
            made = function.reduce(x, axis=axes, initial=start)
            if x.dtype == object:
                made = np.asarray(made, object)
                return wrapped([int(n) for n in made.ravel()], made.shape, types[0].dtype)
            return made
        kind = x.dtype if x.dtype != bool else None
        return function.reduce(x, axis=axes, dtype=kind) if kind else function.reduce(x, axis=axes)

    return rule


def _lowest(dtype: Any) -> Any:
    return -np.inf if is_float(dtype) else int(jnp.iinfo(dtype).min) if dtype != bool else False


def _highest(dtype: Any) -> Any:
    return np.inf if is_float(dtype) else int(jnp.iinfo(dtype).max) if dtype != bool else True


_IDENTITY: dict[Any, Callable[[Any], Any]] = {
    np.add: lambda dtype: 0,
    np.multiply: lambda dtype: 1,
    np.maximum: _lowest,
    np.minimum: _highest,
    np.bitwise_or: lambda dtype: 0 if dtype != bool else False,
    np.bitwise_xor: lambda dtype: 0 if dtype != bool else False,
    np.bitwise_and: lambda dtype: -1 if dtype != bool else True,
}


def arg(function: Any) -> Rule:
    def rule(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
        (axis,) = params["axes"]
        return function(args[0], axis=axis)

    return rule


def running(function: Any) -> Rule:
    def rule(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
        axis, turned = params["axis"], params["reverse"]
        x = np.flip(args[0], axis) if turned else args[0]
        made = function.accumulate(x, axis=axis) if x.size else x
        return np.flip(made, axis) if turned else made

    return rule


def dot_general(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
    (left_sum, right_sum), (left_batch, right_batch) = params["dimension_numbers"]
    kind = types[0].dtype
    integer = jnp.issubdtype(kind, jnp.integer)
    work = np.int64 if integer else np.result_type(kind, np.float32) if kind.itemsize < 4 else kind
    if kind == bool or any(each.dtype == bool for each in args):
        return None
    left, right = (each.astype(work, order="C") for each in args)
    letters = iter(ascii_letters)
    names = [[next(letters) for _ in range(each.ndim)] for each in (left, right)]
    for i, j in zip((*left_batch, *left_sum), (*right_batch, *right_sum)):
        names[1][j] = names[0][i]
    out = [names[0][i] for i in left_batch]
    out += [n for i, n in enumerate(names[0]) if i not in (*left_batch, *left_sum)]
    out += [n for j, n in enumerate(names[1]) if j not in (*right_batch, *right_sum)]
    spec = f"{''.join(names[0])},{''.join(names[1])}->{''.join(out)}"
    made = np.einsum(spec, left, right)
    return wrapped([int(n) for n in made.ravel()], made.shape, kind) if integer else made


def sort(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
    axis, keys = params["dimension"], params["num_keys"]
    if any(jnp.issubdtype(each.dtype, jnp.complexfloating) for each in args[:keys]):
        return None
    order = np.lexsort([_sortable(each) for each in reversed(args[:keys])], axis=axis)
    return [np.take_along_axis(each, order, axis) for each in args]


def _sortable(array: np.ndarray) -> np.ndarray:
    """Numbers in the order in which JAX sorts them: zeros of both signs are equal, NaN is last."""
    if is_float(array.dtype):
        return wide(array)
    return array if array.dtype == np.uint64 else array.astype(np.int64)


def top_k(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
    x, k = args[0], params["k"]
    axis = params.get("axis", -1) % x.ndim
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return None
    turned = np.flip(_sortable(x), axis)
    order = np.flip(np.argsort(turned, axis=axis, kind="stable"), axis)
    order = np.take(x.shape[axis] - 1 - order, np.arange(k), axis=axis)
    return [np.take_along_axis(x, order, axis), order]
