"""Two lists of arrays compared in the class that a rewrite claims to keep.

- `bits`: the same bits; any NaN is any other NaN, but -0.0 is not 0.0; subnormal floats may be
  zero, since a processor may flush them;
- `reals`: integers exactly, NaN and infinities at the same places, floats within a tolerance; what
  is near the smallest normal float of 32 or 64 bits may be zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Difference:
    """Where two results differ: the output's number, the element's index, and both elements."""

    output: int
    place: tuple[int, ...]
    expected: Any
    got: Any
    what: str

    def __str__(self) -> str:
        at = f"[{', '.join(map(str, self.place))}]" if self.place else ""
        return f"output {self.output}{at}: {self.what}, expected {self.expected}, got {self.got}"


def difference(
    expected: Sequence[Any],
    got: Sequence[Any],
    keeps: str,
    tolerance: float = 0.0,
    magnitude: float = 0.0,
) -> Difference | None:
    """The first difference between two lists of results, or None.

    For `reals`, floats may differ by `tolerance` times their magnitude, or times `magnitude` where
    that is larger: it is that of terms that cancelled on the way (see `evaluated`).
    """
    if len(expected) != len(got):
        return Difference(0, (), len(expected), len(got), "number of outputs")
    for number, (one, two) in enumerate(zip(expected, got)):
        one, two = _plain(one), _plain(two)
        if (one.dtype, one.shape) != (two.dtype, two.shape):
            types = (f"{array.dtype}{list(array.shape)}" for array in (one, two))
            return Difference(number, (), *types, "type")
        wrong = _wrong(one, two, keeps, tolerance, magnitude)
        if wrong.any():
            place = tuple(int(i) for i in np.argwhere(wrong)[0])
            what = f"{int(wrong.sum())} of {wrong.size} elements differ"
            return Difference(number, place, one[place], two[place], what)
    return None


def _plain(array: Any) -> np.ndarray:
    """A numpy array; a typed PRNG key as its words."""
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    return np.asarray(array)


def _wrong(
    one: np.ndarray, two: np.ndarray, keeps: str, tolerance: float, magnitude: float
) -> np.ndarray:
    """Which elements differ."""
    if not jnp.issubdtype(one.dtype, jnp.inexact):
        return np.asarray(one != two)
    if jnp.issubdtype(one.dtype, jnp.complexfloating):
        parts = [(one.real, two.real), (one.imag, two.imag)]
        return np.logical_or(*(_wrong(a, b, keeps, tolerance, magnitude) for a, b in parts))
    left, right = one.astype(np.float64), two.astype(np.float64)
    both_nan = np.isnan(left) & np.isnan(right)
    if keeps == "bits":
        left, right = (_flushed(numbers, jnp.finfo(one.dtype).tiny) for numbers in (left, right))
        same = (left == right) & (np.signbit(left) == np.signbit(right))
        return ~(same | both_nan)
    with np.errstate(invalid="ignore", over="ignore"):
        allowed = tolerance * np.maximum(np.maximum(np.abs(left), np.abs(right)), magnitude)
        near = np.abs(left - right) <= allowed + _smallest(one.dtype)
    finite = np.isfinite(left) & np.isfinite(right)
    return ~((finite & near) | (left == right) | both_nan)


def _smallest(dtype: np.dtype) -> float:
    """How much a processor that flushes subnormals may lose, once the results were scaled."""
    return 1024 * float(jnp.finfo(dtype).tiny) if dtype.itemsize >= 4 else 0.0


def _flushed(numbers: np.ndarray, smallest: Any) -> np.ndarray:
    """The numbers with those below the smallest normal one as zeros of their sign."""
    tiny = np.abs(numbers) < float(smallest)
    return np.where(tiny, np.copysign(0.0, numbers), numbers)
