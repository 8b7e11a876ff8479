"""What a value is proven to be: the range of its elements, read off the ops that make it.

Rules that hold only for finite operands, or only for indices in range, prove it here. The proof is
conservative: what is not understood may be anything that its dtype holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from dialect import attributes, dtypes
from dialect.values import number
from rewrite.ir import Op, Value

_DEEPEST = 40  # ops that a proof looks through; beyond them a value may be anything


class Range(NamedTuple):
    """Every element is in [low, high], or NaN where `nan`."""

    low: float
    high: float
    nan: bool = False

    def __or__(self, other: Range) -> Range:
        nan = self.nan or other.nan
        return Range(min(self.low, other.low), max(self.high, other.high), nan)


def is_finite(value: Value) -> bool:
    """Whether no element can be NaN or infinite."""
    found = range_of(value)
    return not found.nan and -math.inf < found.low and found.high < math.inf


def is_within(value: Value, low: float, high: float) -> bool:
    """Whether every element is proven to be a number in [low, high]."""
    found = range_of(value)
    return not found.nan and low <= found.low and found.high <= high


def range_of(value: Value) -> Range:
    """The proven range of the elements of an array; anything for one that holds no numbers."""
    return _range_of(value, _DEEPEST, {})


def _range_of(value: Value, deepest: int, proven: dict[Op, Range]) -> Range:
    if value.op in proven:
        return proven[value.op]
    widest = anything(value.type.dtype)
    derive = _RULES.get(value.op.name)
    if derive is None or deepest == 0 or len(value.op.types) > 1:
        return widest
    arguments = [_range_of(arg, deepest - 1, proven) for arg in value.op.args]
    proven[value.op] = _held(derive(value.op, arguments), widest)
    return proven[value.op]


def anything(dtype: str) -> Range:
    """What an array of this dtype may hold."""
    if dtype == "bool":
        return Range(0, 1)
    if not _is_real(dtype):
        return Range(-math.inf, math.inf, True)
    kind = dtypes.dtype_of(dtype)
    if jnp.issubdtype(kind, jnp.integer):
        limits = jnp.iinfo(kind)
        return Range(int(limits.min), int(limits.max))
    return Range(-math.inf, math.inf, True)


def _largest(dtype: str) -> float:
    """The largest finite number of a float dtype."""
    kind = dtypes.dtype_of(dtype)
    return float(jnp.finfo(kind).max) if jnp.issubdtype(kind, jnp.floating) else math.inf


def _held(derived: Range, widest: Range) -> Range:
    """`derived`, where the dtype holds it: integers that could wrap may be anything."""
    if widest.nan:
        return derived
    fits = widest.low <= derived.low and derived.high <= widest.high and not derived.nan
    return derived if fits else widest


def _rounded(op: Op, low: float, high: float, nan: bool = False) -> Range:
    """The range as floats of the result's dtype: beyond its largest number lies infinity."""
    if nan or math.isnan(low) or math.isnan(high):
        return anything(op.types[0].dtype)
    largest = _largest(op.types[0].dtype)
    low = -math.inf if low < -largest else min(low, largest)
    high = math.inf if high > largest else max(high, -largest)
    return Range(low, high)


def _const(op: Op, _: list[Range]) -> Range:
    array = np.asarray(attributes.decode(op["value"]))
    if array.size == 0 or not _is_real(op.types[0].dtype):
        return anything(op.types[0].dtype)
    numbers = array if array.dtype.kind in "biu" else array.astype(np.float64)
    nan = bool(np.isnan(numbers).any())
    return anything(op.types[0].dtype) if nan else Range(numbers.min().item(), numbers.max().item())


def _is_real(dtype: str) -> bool:
    return dtypes.is_dtype(dtype) and not dtype.startswith("c")


def _union(op: Op, args: list[Range]) -> Range:
    whole = args[0]
    for each in args[1:]:
        whole = whole | each
    return whole


def _ends(op: Op, args: list[Range], of: Callable[[float, float], float]) -> Range:
    """A function that is monotone in either argument: its range lies between its corners."""
    (a, b, one_nan), (c, d, two_nan) = args
    corners = [of(x, y) for x in (a, b) for y in (c, d)]
    nan = one_nan or two_nan or any(math.isnan(x) for x in corners)
    return _rounded(op, min(corners), max(corners), nan)


def _times(x: float, y: float) -> float:
    return x * y


def _mul(op: Op, args: list[Range]) -> Range:
    holds_zero = [low <= 0 <= high for low, high, _ in args]
    endless = [math.inf in (-low, high) for low, high, _ in args]
    if (holds_zero[0] and endless[1]) or (holds_zero[1] and endless[0]):
        return anything(op.types[0].dtype)
    return _ends(op, args, _times)


def _convert(op: Op, args: list[Range]) -> Range:
    source, widest = args[0], anything(op.types[0].dtype)
    if widest.nan:
        return _rounded(op, *source)
    if source.nan or math.inf in (-source.low, source.high):
        return widest
    return Range(math.trunc(source.low), math.trunc(source.high))


def _clamp(op: Op, args: list[Range]) -> Range:
    least, source, most = args
    if least.nan or most.nan:
        return anything(op.types[0].dtype)
    low, high = max(least.low, min(source.low, most.low)), min(most.high, source.high)
    return Range(min(low, most.low), max(high, least.low, most.low), source.nan)


def _abs(op: Op, args: list[Range]) -> Range:
    low, high, nan = args[0]
    nearest = 0 if low <= 0 <= high else min(abs(low), abs(high))
    return Range(nearest, max(abs(low), abs(high)), nan)


def _square(op: Op, args: list[Range]) -> Range:
    low, high, nan = _abs(op, args)
    return _rounded(op, low * low, high * high, nan)


def _between(low: float, high: float) -> Callable[[Op, list[Range]], Range]:
    return lambda op, args: Range(low, high, args[0].nan)


def _wave(op: Op, args: list[Range]) -> Range:
    return Range(-1, 1, args[0].nan or math.inf in (-args[0].low, args[0].high))


def _rem(op: Op, args: list[Range]) -> Range:
    source, divisor = args[0], number(op.args[1])
    if not isinstance(divisor, int) or divisor == 0:
        return anything(op.types[0].dtype)
    most = abs(divisor) - 1
    return Range(max(min(source.low, 0), -most), min(max(source.high, 0), most))


_RULES: dict[str, Callable[[Op, list[Range]], Range]] = {
    "const": _const,
    "iota": lambda op, _: Range(0, max(0, op.types[0].shape[op["dimension"]] - 1)),
    "convert_element_type": _convert,
    "neg": lambda op, args: Range(-args[0].high, -args[0].low, args[0].nan),
    "add": lambda op, args: _ends(op, args, lambda x, y: x + y),
    "sub": lambda op, args: _ends(op, args, lambda x, y: x - y),
    "mul": _mul,
    "max": lambda op, args: Range(*map(max, *args)),
    "min": lambda op, args: Range(*map(min, *(ends[:2] for ends in args)), any(r.nan for r in args)),
    "clamp": _clamp,
    "abs": _abs,
    "square": _square,
    "rem": _rem,
    "select_n": lambda op, args: _union(op, args[1:]),
    "exp": _between(0, math.inf),
    "logistic": _between(0, 1),
    "tanh": _between(-1, 1),
    "sin": _wave,
    "cos": _wave,
    "stack": _union,
    "concatenate": _union,
    "pad": _union,
    **dict.fromkeys(
        (
            "broadcast_in_dim",
            "reshape",
            "transpose",
            "squeeze",
            "expand_dims",
            "slice",
            "rev",
            "tile",
            "stop_gradient",
            "optimization_barrier",
            "reduce_precision",
            "known",
            "shared",
        ),
        lambda op, args: args[0],
    ),
}
