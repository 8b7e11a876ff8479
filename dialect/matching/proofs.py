"""Proofs about values: the range of their elements, derived from the ops that compute them.

Rules that hold only for finite operands, or only for indices in range, prove it here. The proof is
conservative: the result of an unknown op may be anything that its dtype holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from dialect.arrays import dtypes
from dialect.arrays.constants import CONST
from dialect.matching.values import number, through
from rewrite.ir import Graph, Op, Value

_DEEPEST = 40  # ops that a proof looks through; beyond them a value may be anything


class Range(NamedTuple):
    """Every element is in [low, high], or NaN where `nan`."""

    low: float
    high: float
    nan: bool = False

    def __or__(self, other: Range) -> Range:
        nan = self.nan or other.nan
        return Range(min(self.low, other.low), max(self.high, other.high), nan)


def is_finite(value: Value, finite_parameters: bool = False) -> bool:
    """Whether no element can be NaN or infinite, assuming finite parameters if that is allowed."""
    return _holds(
        value, finite_parameters, lambda it: not it.nan and it.low > -inf and it.high < inf
    )


def is_bounded(value: Value, finite_parameters: bool = False) -> bool:
    """Whether no element can be infinite, under the same assumption; it may be NaN."""
    return _holds(value, finite_parameters, lambda it: it.low > -inf and it.high < inf)


def _holds(value: Value, finite_parameters: bool, test: Callable[[Range], bool]) -> bool:
    """Whether a test of the range holds. Parameters that must be finite for it are recorded."""
    if test(range_of(value)):
        return True
    parameters = _PARAMETERS.get()
    if not finite_parameters or not test(_range_of(value, _DEEPEST, parameters.ranges())):
        return False
    parameters.must_be_finite(value)
    return True


def holds_no_number(value: Value) -> bool:
    """Whether a constant, perhaps laid out, holds NaN or infinity."""
    return through(value, *_LAYOUT).op.name == "const" and not is_finite(value)


def is_within(value: Value, low: float, high: float) -> bool:
    """Whether every element is proven to be a number in [low, high]."""
    range_ = range_of(value)
    return not range_.nan and low <= range_.low and range_.high <= high


def has_no_sign(value: Value) -> bool:
    """Whether every element is NaN or a number without a minus: 0.0 or more, and not -0.0."""
    return range_of(value).low >= 0 and is_never_minus_zero(value)


def is_never_minus_zero(value: Value) -> bool:
    """Whether no element can be -0.0, which roots and reciprocals tell from 0.0."""
    return _never_minus_zero(value, _DEEPEST, {}, {})


def _never_minus_zero(
    value: Value, deepest: int, known: dict[Value, bool], proven: dict[Op, Range]
) -> bool:
    """`known` and `proven` hold what was asked before: programs read values more than once."""
    if value not in known:
        known[value] = _derived_never_minus_zero(value, deepest, known, proven)
    return known[value]


def _derived_never_minus_zero(
    value: Value, deepest: int, known: dict[Value, bool], proven: dict[Op, Range]
) -> bool:
    op, dtype = value.op, value.type.dtype
    if not dtypes.is_float(dtype):
        return _is_real(dtype)
    low, high, _ = _range_of(value, _DEEPEST, proven)
    if low > 0 or high < 0 or op.name in _NEVER_MINUS_ZERO:
        return True
    if op.name == "const":
        array = _content(op)
        return not (np.signbit(array) & (array == 0)).any()
    if deepest == 0 or len(op.types) > 1 or op.name not in _TELLING:
        return False
    below = [_never_minus_zero(arg, deepest - 1, known, proven) for arg in op.args]
    if op.name == "add":  # -0.0 + -0.0
        return any(below)
    if op.name == "sub":  # -0.0 - 0.0
        return below[0]
    if op.name in ("mul", "div", "convert_element_type"):  # underflow keeps the sign
        floats = [arg for arg in op.args if dtypes.is_float(arg.type.dtype)]
        return all(below) and all(_range_of(arg, _DEEPEST, proven).low >= 0 for arg in floats)
    return all(below)


_NEVER_MINUS_ZERO = frozenset({"abs", "square", "exp", "exp2", "logistic", "iota"})
_LAYOUT = frozenset(
    """broadcast_in_dim reshape transpose squeeze expand_dims slice rev tile stop_gradient
    optimization_barrier known shared""".split()
)
# Each element of the result is an element of an argument, or a sum of them.
_CHOOSING = _LAYOUT | {"max", "min", "clamp", "select_n", "concatenate", "stack", "pad"}
_CHOOSING |= {"reduce_sum", "reduce_max", "reduce_min"}
# Whose arguments tell whether an element of the result is -0.0.
_TELLING = _CHOOSING | {"add", "sub", "mul", "div", "convert_element_type"}


@dataclass(frozen=True)
class Parameters:
    """The inputs that are parameters, and those that a proof assumed to be finite."""

    inputs: tuple[Value, ...] = ()
    finite: set[Value] = field(default_factory=set)

    def ranges(self) -> dict[Op, Range]:
        """The ranges of finite numbers of the parameters."""
        floats = [value for value in self.inputs if dtypes.is_float(value.type.dtype)]
        ends = {value.op: _largest(value.type.dtype) for value in floats}
        return {op: Range(-largest, largest) for op, largest in ends.items()}

    def must_be_finite(self, value: Value) -> None:
        """Assumes that all parameters that a value depends on are finite."""
        upstream = set(Graph((), (value,)).ops)
        self.finite.update(input_ for input_ in self.inputs if input_.op in upstream)


_NO_PARAMETERS = Parameters()
_PARAMETERS: ContextVar[Parameters] = ContextVar("parameters", default=_NO_PARAMETERS)


@contextmanager
def beside_parameters(inputs: Iterable[Value]) -> Iterator[Parameters]:
    """A context in which proofs know these inputs as parameters, which they may assume finite."""
    token = _PARAMETERS.set(parameters := Parameters(tuple(inputs)))
    try:
        yield parameters
    finally:
        _PARAMETERS.reset(token)


def range_of(value: Value) -> Range:
    """The proven range of the elements of an array; anything for one that holds no numbers."""
    return _range_of(value, _DEEPEST, {})


def _range_of(value: Value, deepest: int, proven: dict[Op, Range]) -> Range:
    if value.op in proven:
        return proven[value.op]
    widest = anything(value.type.dtype)
    derive = _RULES.get(value.op.name)
    if derive is None or deepest == 0 or len(value.op.types) > 1 or not _is_real(value.type.dtype):
        return widest
    arguments = [_range_of(arg, deepest - 1, proven) for arg in value.op.args]
    proven[value.op] = _held(derive(value.op, arguments), value.type.dtype)
    return proven[value.op]


def anything(dtype: str) -> Range:
    """The range of all numbers of a dtype."""
    if dtype == "bool":
        return Range(0, 1)
    if not _is_real(dtype):
        return Range(-inf, inf, True)
    kind = dtypes.dtype_of(dtype)
    if jnp.issubdtype(kind, jnp.integer):
        limits = jnp.iinfo(kind)
        return Range(int(limits.min), int(limits.max))
    return Range(-inf, inf, True)


def _held(derived: Range, dtype: str) -> Range:
    """`derived` if the dtype holds it; else anything, as integers and floats without infinity wrap
    or become NaN."""
    widest = anything(dtype)
    if _has_infinity(dtype):
        return derived
    least, most = (
        (widest.low, widest.high) if not widest.nan else (-_largest(dtype), _largest(dtype))
    )
    fits = least <= derived.low and derived.high <= most and derived.nan <= widest.nan
    return derived if fits else widest


def _has_infinity(dtype: str) -> bool:
    """Whether numbers too large for the dtype become infinite, rather than wrap or become NaN."""
    return dtypes.is_float(dtype) and bool(np.isinf(np.asarray(np.inf, dtypes.dtype_of(dtype))))


def _largest(dtype: str) -> float:
    """The largest finite number of a float dtype."""
    return float(jnp.finfo(dtypes.dtype_of(dtype)).max)


def _rounded(op: Op, low: float, high: float, nan: bool = False) -> Range:
    """The range in numbers of the result's dtype: beyond its largest float is infinity.

    An end may be rounded outward, but not inward: XLA may compute with more digits.
    """
    dtype = op.types[0].dtype
    if not dtypes.is_float(dtype):
        return Range(low, high, nan)
    return Range(min(low, _nearest(low, dtype)), max(high, _nearest(high, dtype)), nan)


def _nearest(number: float, dtype: str) -> float:
    """The number of a float dtype that is nearest: infinity beyond its largest."""
    largest = _largest(dtype)
    if abs(number) > largest:
        return math.copysign(inf, number)
    return float(np.asarray(number, np.float64).astype(dtypes.dtype_of(dtype)))


def _content(op: Op) -> np.ndarray:
    """The elements of a constant."""
    return np.asarray(CONST.reference(**dict(op.attrs)))


def _const(op: Op, _: list[Range]) -> Range:
    array = _content(op)
    numbers = array if array.dtype.kind in "biu" else array.astype(np.float64)
    real = numbers[~np.isnan(numbers)]
    if real.size == 0:
        return anything(op.types[0].dtype)
    return Range(real.min().item(), real.max().item(), real.size < numbers.size)


def _is_real(dtype: str) -> bool:
    return dtypes.is_dtype(dtype) and not dtypes.is_complex(dtype)


def _union(op: Op, args: list[Range]) -> Range:
    union = args[0]
    for range_ in args[1:]:
        union = union | range_
    return union


def _chosen(op: Op, args: list[Range]) -> Range:
    """The union of the choices; where the test is is_finite(x), the finite part of x."""
    test = op.args[0].op
    if test.name == "is_finite" and op.args[2:] == test.args:
        largest = _largest(op.types[0].dtype)
        args[2] = Range(max(args[2].low, -largest), min(args[2].high, largest))
    return _union(op, args[1:])


def _ends(op: Op, args: list[Range], of: Callable[[float, float], float]) -> Range:
    """The range of a function that is monotone in either argument: between its corners."""
    (a, b, one_nan), (c, d, two_nan) = args
    corners = [of(x, y) for x in (a, b) for y in (c, d)]
    if any(math.isnan(x) for x in corners):
        return anything(op.types[0].dtype)
    return _rounded(op, min(corners), max(corners), one_nan or two_nan)


def _times(x: float, y: float) -> float:
    return x * y


def _mul(op: Op, args: list[Range]) -> Range:
    holds_zero = [low <= 0 <= high for low, high, _ in args]
    endless = [inf in (-low, high) for low, high, _ in args]
    if (holds_zero[0] and endless[1]) or (holds_zero[1] and endless[0]):
        return anything(op.types[0].dtype)
    return _ends(op, args, _times)


def _div(op: Op, args: list[Range]) -> Range:
    low, high, _ = args[1]
    if low <= 0 <= high or not anything(op.types[0].dtype).nan:
        return anything(op.types[0].dtype)  # by zero, or of integers
    return _ends(op, args, lambda x, y: x / y)


def _convert(op: Op, args: list[Range]) -> Range:
    (low, high, nan), widest = args[0], anything(op.types[0].dtype)
    if widest.nan:
        return _rounded(op, low, high, nan)
    if nan or inf in (-low, high) or op.types[0].dtype == "bool":
        return widest
    return Range(math.trunc(low), math.trunc(high))


def _clamp(op: Op, args: list[Range]) -> Range:
    (a, b, _), (low, high, _), (c, d, _) = args
    return Range(min(max(a, low), c), min(max(b, high), d), any(range_.nan for range_ in args))


def _abs(op: Op, args: list[Range]) -> Range:
    low, high, nan = args[0]
    nearest = 0 if low <= 0 <= high else min(abs(low), abs(high))
    return Range(nearest, max(abs(low), abs(high)), nan)


def _square(op: Op, args: list[Range]) -> Range:
    low, high, nan = _abs(op, args)
    return _rounded(op, low * low, high * high, nan)


def _between(low: float, high: float) -> Callable[[Op, list[Range]], Range]:
    return lambda op, args: Range(low, high, args[0].nan)


def _sqrt(op: Op, args: list[Range]) -> Range:
    low, high, nan = args[0]
    low, high = (math.sqrt(max(0, end)) for end in (low, high))
    return _rounded(op, low, high, nan or args[0].low < 0)


def _rsqrt(op: Op, args: list[Range]) -> Range:
    low, _, nan = args[0]
    if low <= 0:  # -0.0 gives -infinity
        return anything(op.types[0].dtype)
    return _rounded(op, 0, 2 / math.sqrt(low), nan)  # with room for an approximate root


def _sum(op: Op, args: list[Range]) -> Range:
    """The range of a sum of n terms: each is added with an error of at most its own size."""
    low, high, nan = args[0]
    terms = op.args[0].type.size // max(1, op.types[0].size)
    if low < 0 < high and inf in (-low, high):
        return anything(op.types[0].dtype)
    ends = (0, low, high, 2 * terms * low, 2 * terms * high)
    total = _rounded(op, min(ends), max(ends), nan)
    mixed = low < 0 < high and not -inf < total.low <= total.high < inf
    return anything(op.types[0].dtype) if mixed else total


def _extreme(op: Op, args: list[Range]) -> Range:
    return args[0] if op.args[0].type.size else anything(op.types[0].dtype)


def _wave(op: Op, args: list[Range]) -> Range:
    return Range(-1, 1, args[0].nan or inf in (-args[0].low, args[0].high))


def _rem(op: Op, args: list[Range]) -> Range:
    source, divisor = args[0], number(op.args[1])
    if not isinstance(divisor, int) or divisor == 0:
        return anything(op.types[0].dtype)
    most = abs(divisor) - 1
    return Range(max(min(source.low, 0), -most), min(max(source.high, 0), most))


_RULES: dict[str, Callable[[Op, list[Range]], Range]] = {
    "const": _const,
    "iota": lambda op, _: _rounded(op, 0, max(0, op.types[0].shape[op["dimension"]] - 1)),
    "convert_element_type": _convert,
    "neg": lambda op, args: Range(-args[0].high, -args[0].low, args[0].nan),
    "add": lambda op, args: _ends(op, args, lambda x, y: x + y),
    "sub": lambda op, args: _ends(op, args, lambda x, y: x - y),
    "mul": _mul,
    "div": _div,
    "max": lambda op, args: Range(*map(max, *args)),
    "min": lambda op, args: Range(
        *map(min, *(ends[:2] for ends in args)), any(r.nan for r in args)
    ),
    "clamp": _clamp,
    "abs": _abs,
    "square": _square,
    "sqrt": _sqrt,
    "rsqrt": _rsqrt,
    "reduce_sum": _sum,
    "reduce_max": _extreme,
    "reduce_min": _extreme,
    "rem": _rem,
    "select_n": _chosen,
    "exp": _between(0, inf),
    "logistic": _between(0, 1),
    "tanh": _between(-1, 1),
    "sin": _wave,
    "cos": _wave,
    "stack": _union,
    "concatenate": _union,
    "pad": _union,
    **dict.fromkeys(_LAYOUT, lambda op, args: args[0]),
}
