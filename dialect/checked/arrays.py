"""Arrays to try a program on: plain ones, and those at which guards are needed.

plain      small numbers that every float dtype holds exactly, so that sums of them are exact
normal     random ones
special    infinities, NaN, signed zeros, the smallest and largest of the dtype, ties
equal      the same number everywhere
zero       zeros
scaled     random ones, very small or very large, and finite
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from dialect.arrays.dtypes import dtype_of
from dialect.checked import samples
from rewrite.ir import Type

KINDS = ("plain", "normal", "special", "equal", "zero", "scaled")
_FLOATS = (0.0, -0.0, np.inf, -np.inf, np.nan, 0.5, 1.5, -2.5, 1.0, -1.0, 2.0, 3.0)
_INTEGERS = (-4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 7, 8)


def array_of(type_: Type, kind: str, random: np.random.Generator) -> Any:
    """An array of this type and kind: numpy's, but for keys."""
    if type_.dtype.startswith("key"):
        return samples.array_of(type_, random)
    dtype, shape = dtype_of(type_.dtype), type_.shape
    if type_.dtype == "bool":
        numbers = random.integers(0, 2, shape) if kind not in ("zero", "equal") else _one(random, 2)
        return np.broadcast_to(numbers, shape).astype(bool)
    with np.errstate(all="ignore"):
        if jnp.issubdtype(dtype, jnp.integer):
            return _integers(dtype, shape, kind, random)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            parts = [_floats(np.dtype("float32"), shape, kind, random) for _ in range(2)]
            return (parts[0] + 1j * parts[1]).astype(dtype)
        return _floats(dtype, shape, kind, random).astype(dtype)


def finite(array: Any) -> np.ndarray:
    """Which elements are finite numbers; all those of integers, booleans and keys."""
    if not hasattr(array, "dtype") or not jnp.issubdtype(array.dtype, jnp.inexact):
        return np.ones(np.shape(array), bool)
    wide = np.complex128 if jnp.issubdtype(array.dtype, jnp.complexfloating) else np.float64
    return np.isfinite(np.asarray(array).astype(wide))  # numpy has no test for narrow floats


def _one(random: np.random.Generator, count: int) -> int:
    return int(random.integers(0, count))


def _integers(dtype: Any, shape: tuple, kind: str, random: np.random.Generator) -> np.ndarray:
    limits = jnp.iinfo(dtype)
    small = np.asarray([n for n in _INTEGERS if limits.min <= n <= limits.max])
    numbers = random.choice(small, shape)
    if kind == "zero":
        numbers = np.zeros(shape, np.int64)
    if kind == "equal":
        numbers = np.full(shape, random.choice(small))
    if kind in ("special", "scaled"):
        ends = [limits.min, limits.min + 1, limits.max, limits.max - 1]
        pool = np.asarray(
            [int(end) for end in ends], np.dtype(dtype) if dtype.itemsize > 1 else int
        )
        chosen = random.random(shape) < (0.5 if kind == "special" else 0.9)
        return np.where(chosen, random.choice(pool, shape), numbers).astype(dtype)
    return np.asarray(numbers).astype(dtype)


def _floats(dtype: Any, shape: tuple, kind: str, random: np.random.Generator) -> np.ndarray:
    if kind == "zero":
        return np.zeros(shape)
    if kind == "normal":
        return random.standard_normal(shape)
    if kind == "scaled":
        ends = float(jnp.finfo(dtype).max) * np.asarray([-1, 1])
        return np.clip(random.standard_normal(shape) * 10.0 ** random.integers(-6, 7), *ends)
    numbers = random.integers(-16, 17, shape) / 4.0
    if kind == "equal":
        return np.full(shape, random.integers(-8, 9) / 4.0)
    if kind == "special":
        info = jnp.finfo(dtype)
        ends = [float(info.max), float(info.min), float(info.tiny), float(info.smallest_subnormal)]
        pool = np.asarray([*_FLOATS, *ends]) if random.random() < 0.5 else np.asarray(_FLOATS)
        return np.where(random.random(shape) < 0.4, random.choice(pool, shape), numbers)
    return numbers
