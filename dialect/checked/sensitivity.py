"""How far rounding may move a result: the program run again, each op's result disturbed.

    y = op(x)  ->  y + step * u, u random, 1/2 <= |u| <= 1: the next float or so

An element that moves much more under a rewrite than under disturbance is not rounded but wrong.
Where a comparison, a conversion to integers or a sort flips, an element may be anything, and is not
compared. Results that are exact however one rounds stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rewrite import opdef
from rewrite.opdef import Traits

Disturb = Callable[[str, list[Any], list[Any]], list[Any]]  # name, arguments, results -> results

_RUNS = 4
_TERMS = "terms"  # given as the name of the op where its arguments are disturbed
_FACTOR = 64.0  # several roundings in a row, and sums in other orders


class Disturbance:
    """Multiplies rounded results by nearly one: off by `least`, or by the dtype's epsilon."""

    def __init__(self, seed: int, least: float = 0.0) -> None:
        self.random, self.least = np.random.default_rng(seed), least

    def __call__(self, name: str, args: list[Any], results: list[Any]) -> list[Any]:
        traits = Traits() if name == _TERMS else opdef.lookup(name).traits
        widens = name == "convert_element_type" and _widens(args[0], results[0])
        if traits.moves or traits.exact or widens:
            return results
        if all(map(_exact, args)) and all(map(_exact, results)):
            return results
        return [self.disturbed(array) for array in results]

    def disturbed(self, array: Any) -> Any:
        """An array of floats, each moved to the next float or so; other arrays unchanged."""
        if not hasattr(array, "dtype") or not jnp.issubdtype(array.dtype, jnp.inexact):
            return array
        wide = np.asarray(array)
        if wide.dtype.kind == "c":  # its parts are rounded apart
            return (self.moved(wide.real) + 1j * self.moved(wide.imag)).astype(wide.dtype)
        return self.moved(wide)

    def moved(self, array: np.ndarray) -> np.ndarray:
        """Every element of an array of real floats moved, in the array's dtype."""
        about = jnp.finfo(array.dtype)
        epsilon = max(self.least, float(about.eps))
        by = self.random.choice((-1, 1), array.shape) * self.random.uniform(0.5, 1, array.shape)
        with np.errstate(all="ignore"):
            wide = array.astype(np.float64)
            # The next subnormal float is further away than epsilon; zeros are often exact.
            step = np.maximum(epsilon * np.abs(wide), float(about.smallest_subnormal))
            return (wide + np.where(wide == 0, 0.0, by * step)).astype(array.dtype)


def terms(disturb: Disturb | None, name: str, args: list[Any], result: Any) -> list[Any]:
    """The arguments of an op, disturbed where it sums them; as floats if its result is one.

    Each part of a product of complex numbers is a sum, too.
    """
    adds = opdef.lookup(name).traits.sums or jnp.issubdtype(result, jnp.complexfloating)
    if disturb is None or not adds:
        return args
    if jnp.issubdtype(result, jnp.floating):
        args = [*map(_as_float, args[:2]), *args[2:]]  # the factors; sizes of groups stay integers
    return disturb(_TERMS, args, args)


def _as_float(array: Any) -> Any:
    rounded = jnp.issubdtype(array.dtype, jnp.inexact)
    return array if rounded else np.asarray(array).astype(np.float64)


def magnitude(array: Any) -> float:
    """The largest finite magnitude among the elements of a float array, else 0."""
    if not hasattr(array, "dtype") or not jnp.issubdtype(array.dtype, jnp.floating):
        return 0.0
    numbers = np.abs(np.asarray(array).astype(np.float64))
    numbers = numbers[np.isfinite(numbers)]
    return float(numbers.max()) if numbers.size else 0.0


def _widens(source: Any, result: Any) -> bool:
    kinds = [jax.typeof(array).dtype for array in (source, result)]
    floats = all(jnp.issubdtype(kind, jnp.floating) for kind in kinds)
    return floats and jnp.finfo(kinds[0]).nmant <= jnp.finfo(kinds[1]).nmant


def _exact(array: Any) -> bool:
    """Whether all numbers are small integers, or sixteenths: any float holds those exactly."""
    if jnp.issubdtype(jax.typeof(array).dtype, jax.dtypes.prng_key):
        return True
    if not jnp.issubdtype(jax.typeof(array).dtype, jnp.inexact):
        return True
    numbers = _wide(array)
    with np.errstate(invalid="ignore", over="ignore"):
        size = np.abs(numbers)
        steps = np.where(size <= 8, 16 * numbers, numbers)
        return bool(np.all((np.round(steps) == steps) & (size <= 256)))


def forgiven(
    run: Callable[[Disturb], Sequence[Any]],
    expected: Sequence[Any],
    got: Sequence[Any],
    least: float = 0.0,
) -> list[Any]:
    """`got` with the expected value for each element that rounding may have moved so far.

    `run(disturb)` gives the expected results again, each op's disturbed; `least` is how far off
    its constants are, relatively.
    """
    runs = [run(Disturbance(seed, least)) for seed in range(_RUNS)]
    return [
        _forgiven(one, two, [results[number] for results in runs])
        for number, (one, two) in enumerate(zip(expected, got))
    ]


def _forgiven(expected: Any, got: Any, runs: list[Any]) -> Any:
    if jnp.issubdtype(jax.typeof(expected).dtype, jax.dtypes.prng_key):
        return got
    one, two = np.asarray(expected), np.asarray(got)
    if (one.dtype, one.shape) != (two.dtype, two.shape):
        return got
    disturbed = [np.asarray(run) for run in runs]
    if not jnp.issubdtype(one.dtype, jnp.inexact):
        loose = np.any([other != one for other in disturbed], axis=0)
        return np.where(loose, one, two)
    wide = _wide(one)
    with np.errstate(invalid="ignore", over="ignore"):
        moved = np.max([np.abs(_wide(other) - wide) for other in disturbed], axis=0)
        near = np.abs(_wide(two) - wide) <= _FACTOR * moved
    # Elements that a disturbance turns into NaN or infinity, or back, may be anything.
    near |= ~np.isfinite(moved) & np.any([~_same(other, one) for other in disturbed], axis=0)
    return np.where(near, one, two).astype(one.dtype)


def _same(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return (left == right) | (np.isnan(left) & np.isnan(right))


def _wide(array: Any) -> np.ndarray:
    array = np.asarray(array)
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
