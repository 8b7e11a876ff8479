"""JAX's primitives in numpy: an oracle that shares no code with XLA, and compiles nothing.

    computed("mul", [x, y], {}, types)  ->  the results, or None for a primitive that is not here

Narrow floats are widened to f32 and rounded once, integers wrap, divisions by zero and conversions
out of range give what XLA gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from dialect.checked import numpy_indexing

Arrays = list[np.ndarray]
Shaped = Any  # has dtype and shape
Rule = Callable[[Arrays, dict[str, Any], Sequence[Shaped]], Any]

_WHOLE = ("copy", "copy_p", "name", "stop_gradient", "optimization_barrier", "sharding_constraint")


def computed(
    name: str, args: Arrays, params: dict[str, Any], types: Sequence[Shaped]
) -> Arrays | None:
    """The results of a primitive, in the given dtypes and shapes; None where it is not known."""
    rule = _RULES.get(name)
    if rule is None:
        return None
    with np.errstate(all="ignore"):
        made = rule([_wide(each) for each in args] if name in _ROUNDED else args, params, types)
        if made is None:
            return None
        made = made if isinstance(made, (list, tuple)) else [made]
        return [_typed(array, type_) for array, type_ in zip(made, types, strict=True)]


def _typed(array: Any, type_: Shaped) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype != type_.dtype:
        array = array.astype(type_.dtype)
    return array if array.shape == type_.shape else np.broadcast_to(array, type_.shape)


def is_float(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def _wide(array: np.ndarray) -> np.ndarray:
    """Narrow floats as f32, in which their results are rounded once more only."""
    narrow = is_float(array.dtype) and array.dtype.itemsize < 4
    return array.astype(np.float32) if narrow else array


# Elementwise.


def _each(function: Callable[..., Any]) -> Rule:
    return lambda args, params, types: function(*args)


def _in_f64(function: Callable[..., Any]) -> Rule:
    """A special function, which numpy has in f64 only."""

    def rule(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
        if any(jnp.issubdtype(each.dtype, jnp.complexfloating) for each in args):
            return None
        return function(*(each.astype(np.float64) for each in args))

    return rule


def _divided(x: np.ndarray, y: np.ndarray) -> Any:
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return x / y
    if jnp.issubdtype(x.dtype, jnp.unsignedinteger):
        top = np.array(jnp.iinfo(x.dtype).max).astype(x.dtype)
        return np.where(y == 0, top, x // np.where(y == 0, y + y.dtype.type(1), y))
    wide, by = x.astype(object), y.astype(object)
    flat = [-1 if b == 0 else _truncated(a, b) for a, b in np.broadcast(wide, by)]
    return _wrapped(flat, np.broadcast_shapes(x.shape, y.shape), x.dtype)


def _truncated(a: int, b: int) -> int:
    a, b = int(a), int(b)
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _remainder(x: np.ndarray, y: np.ndarray) -> Any:
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return np.fmod(x, y)
    pairs = [(int(a), int(b)) for a, b in np.broadcast(x.astype(object), y.astype(object))]
    flat = [a if b == 0 else a - b * _truncated(a, b) for a, b in pairs]
    return _wrapped(flat, np.broadcast_shapes(x.shape, y.shape), x.dtype)


def _wrapped(numbers: Sequence[int], shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Python integers as ones of a dtype, modulo its range."""
    bits = jnp.iinfo(dtype).bits
    signed = not jnp.issubdtype(dtype, jnp.unsignedinteger)
    half = 1 << (bits - 1)
    flat = [(n + half) % (2 * half) - half if signed else n % (2 * half) for n in numbers]
    kind = np.int64 if signed else np.uint64
    return np.array(flat, kind).reshape(shape).astype(dtype)


def _power(x: np.ndarray, y: np.ndarray) -> Any:
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return None
    return np.power(x, y.astype(x.dtype))


def _integer_power(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
    x, power = args[0], params["y"]
    made, base = np.ones_like(x), x
    for bit in reversed(f"{abs(power):b}"):
        made = made * base if bit == "1" else made
        base = base * base
    return made if power >= 0 else _divided(np.ones_like(x), made)


def _shifted(how: str) -> Rule:
    def rule(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
        dtype = types[0].dtype
        bits = jnp.iinfo(dtype).bits
        mask = (1 << bits) - 1

        def one(a: int, b: int) -> int:
            by, a = int(b) & mask, int(a)
            if how == "left":
                return a << by if by < bits else 0
            if how == "logical":
                return (a & mask) >> by if by < bits else 0
            return a >> min(by, bits - 1)

        flat = [one(a, b) for a, b in np.broadcast(*(each.astype(object) for each in args))]
        return _wrapped(flat, types[0].shape, dtype)

    return rule


def _counted(one: Callable[[str], int]) -> Rule:
    """A function of the bits of an integer."""

    def rule(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
        bits = jnp.iinfo(types[0].dtype).bits
        mask = (1 << bits) - 1
        flat = [one(f"{int(a) & mask:0{bits}b}") for a in args[0].astype(object).ravel()]
        return np.array(flat, np.int64).reshape(types[0].shape)

    return rule


def _sign(x: np.ndarray) -> Any:
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return np.where(x == 0, x, x / np.abs(x))
    return np.where(x == 0, x, np.sign(x))


def _round(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
    x = args[0]
    if params["rounding_method"] == jax.lax.RoundingMethod.TO_NEAREST_EVEN:
        return np.rint(x)
    near = np.trunc(x)
    return np.where(np.abs(x - near) >= 0.5, near + np.sign(x), np.copysign(near, x))


def _not(x: np.ndarray) -> Any:
    return np.logical_not(x) if x.dtype == bool else np.invert(x)


def _extreme(numpy_function: Any) -> Callable[..., Any]:
    return lambda x, y: numpy_function(x, y)


def converted(array: np.ndarray, dtype: Any) -> np.ndarray:
    """What `convert_element_type` gives: floats out of range are clipped, NaN is zero."""
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        if jnp.issubdtype(dtype, jnp.complexfloating):
            return array.astype(dtype)
        array = array.real
    if dtype == bool:
        return array != 0
    if not (is_float(array.dtype) and jnp.issubdtype(dtype, jnp.integer)):
        if jnp.issubdtype(array.dtype, jnp.integer) and jnp.issubdtype(dtype, jnp.integer):
            return _wrapped([int(n) for n in array.astype(object).ravel()], array.shape, dtype)
        return array.astype(dtype)
    info, wide = jnp.iinfo(dtype), np.trunc(array.astype(np.float64))
    low, high = int(info.min), int(info.max)
    flat = [
        0 if math.isnan(n) else low if n <= low else high if n >= high else int(n)
        for n in wide.ravel().tolist()
    ]
    return _wrapped(flat, array.shape, dtype)


def _convert(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
    return converted(args[0], types[0].dtype)


def _select(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
    which, *cases = args
    which = np.broadcast_to(np.clip(which.astype(np.int64), 0, len(cases) - 1), types[0].shape)
    made = np.array(cases[0])
    for number, case in enumerate(cases[1:], 1):
        made = np.where(which == number, case, made)
    return made


def _clamp(low: np.ndarray, x: np.ndarray, high: np.ndarray) -> Any:
    return np.minimum(np.maximum(x, low), high)


def _bitcast(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
    old, new = args[0].dtype, np.dtype(types[0].dtype)
    if jnp.iinfo(old).bits < 8 if jnp.issubdtype(old, jnp.integer) else old.itemsize < 1:
        return None
    if str(new) in ("int4", "uint4", "int2", "uint2", "float4_e2m1fn"):
        return None
    return np.ascontiguousarray(args[0]).view(new).reshape(types[0].shape)


# Layout.


def _broadcast_in_dim(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
    sizes = [1] * len(params["shape"])
    for size, dimension in zip(args[0].shape, params["broadcast_dimensions"]):
        sizes[dimension] = size
    return np.broadcast_to(args[0].reshape(sizes), types[0].shape)


def _reshape(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
    order = params.get("dimensions")
    return (args[0] if order is None else args[0].transpose(order)).reshape(types[0].shape)


def _pad(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
    array, filler = args
    for axis, (low, high, between) in enumerate(params["padding_config"]):
        size = array.shape[axis]
        spread = list(array.shape)
        spread[axis] = max(0, size + between * (size - 1))
        wide = np.full(spread, filler, array.dtype)
        place = [slice(None)] * array.ndim
        place[axis] = slice(0, None, between + 1)
        wide[tuple(place)] = array
        low_cut, high_cut = max(0, -low), spread[axis] - max(0, -high)
        place[axis] = slice(low_cut, max(low_cut, high_cut))
        pads = [(0, 0)] * array.ndim
        pads[axis] = (max(0, low), max(0, high))
        array = np.pad(wide[tuple(place)], pads, constant_values=filler)
    return array


def _slice(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
    strides = params.get("strides") or (1,) * args[0].ndim
    cuts = zip(params["start_indices"], params["limit_indices"], strides)
    return args[0][tuple(slice(*cut) for cut in cuts)]


def _split(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
    return np.split(args[0], np.cumsum(params["sizes"])[:-1], axis=params["axis"])


def _iota(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
    shape, axis = types[0].shape, params["dimension"]
    sizes = [1] * len(shape)
    sizes[axis] = shape[axis]
    numbers = converted(np.arange(shape[axis]), types[0].dtype)
    return np.broadcast_to(numbers.reshape(sizes), shape)


def _unstack(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
    return [np.take(args[0], i, axis=params["axis"]) for i in range(len(types))]


def _tile(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
    return np.tile(args[0], params["reps"])


# Sums and products.


def _reduced(function: Any) -> Rule:
    def rule(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
        x, axes = args[0], tuple(params["axes"])
        if x.size == 0 or jnp.issubdtype(x.dtype, jnp.integer) and x.dtype.itemsize < 4:
            start = _IDENTITY[function](x.dtype)
            x = x.astype(object) if jnp.issubdtype(x.dtype, jnp.integer) else x
            made = function.reduce(x, axis=axes, initial=start)
            if x.dtype == object:
                made = np.asarray(made, object)
                return _wrapped([int(n) for n in made.ravel()], made.shape, types[0].dtype)
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


def _arg(function: Any) -> Rule:
    def rule(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
        (axis,) = params["axes"]
        return function(args[0], axis=axis)

    return rule


def _running(function: Any) -> Rule:
    def rule(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
        axis, turned = params["axis"], params["reverse"]
        x = np.flip(args[0], axis) if turned else args[0]
        made = function.accumulate(x, axis=axis) if x.size else x
        return np.flip(made, axis) if turned else made

    return rule


def _dot_general(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
    (left_sum, right_sum), (left_batch, right_batch) = params["dimension_numbers"]
    kind = types[0].dtype
    integer = jnp.issubdtype(kind, jnp.integer)
    work = np.int64 if integer else np.result_type(kind, np.float32) if kind.itemsize < 4 else kind
    if kind == bool or any(each.dtype == bool for each in args):
        return None
    left, right = (each.astype(work) for each in args)
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    names = [[next(letters) for _ in range(each.ndim)] for each in (left, right)]
    for i, j in zip((*left_batch, *left_sum), (*right_batch, *right_sum)):
        names[1][j] = names[0][i]
    out = [names[0][i] for i in left_batch]
    out += [n for i, n in enumerate(names[0]) if i not in (*left_batch, *left_sum)]
    out += [n for j, n in enumerate(names[1]) if j not in (*right_batch, *right_sum)]
    spec = f"{''.join(names[0])},{''.join(names[1])}->{''.join(out)}"
    made = np.einsum(spec, left, right)
    return _wrapped([int(n) for n in made.ravel()], made.shape, kind) if integer else made


def _sort(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
    axis, keys = params["dimension"], params["num_keys"]
    if any(jnp.issubdtype(each.dtype, jnp.complexfloating) for each in args[:keys]):
        return None
    order = np.lexsort([_sortable(each) for each in reversed(args[:keys])], axis=axis)
    return [np.take_along_axis(each, order, axis) for each in args]


def _sortable(array: np.ndarray) -> np.ndarray:
    """Numbers in the order in which JAX sorts them: zeros of both signs are equal, NaN is last."""
    return _wide(array) if is_float(array.dtype) else array.astype(np.int64 if array.dtype != np.uint64 else np.uint64)


def _top_k(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
    x, k = args[0], params["k"]
    axis = params.get("axis", -1) % x.ndim
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return None
    turned = np.flip(_sortable(x), axis)
    order = np.flip(np.argsort(turned, axis=axis, kind="stable"), axis)
    order = np.take(x.shape[axis] - 1 - order, np.arange(k), axis=axis)
    return [np.take_along_axis(x, order, axis), order]


_ROUNDED = {
    **{
        name: _each(function)
        for name, function in {
            "add": np.add,
            "add_any": np.add,
            "sub": np.subtract,
            "mul": np.multiply,
            "div": _divided,
            "rem": _remainder,
            "max": np.maximum,
            "min": np.minimum,
            "pow": _power,
            "atan2": np.arctan2,
            "exp": np.exp,
            "exp2": np.exp2,
            "log": np.log,
            "log1p": np.log1p,
            "expm1": np.expm1,
            "sin": np.sin,
            "cos": np.cos,
            "tan": np.tan,
            "asin": np.arcsin,
            "acos": np.arccos,
            "atan": np.arctan,
            "sinh": np.sinh,
            "cosh": np.cosh,
            "tanh": np.tanh,
            "asinh": np.arcsinh,
            "acosh": np.arccosh,
            "atanh": np.arctanh,
            "sqrt": np.sqrt,
            "rsqrt": lambda x: 1 / np.sqrt(x),
            "cbrt": np.cbrt,
            "logistic": lambda x: 1 / (1 + np.exp(-x)),
            "square": lambda x: x * x,
            "floor": np.floor,
            "ceil": np.ceil,
            "sign": _sign,
            "is_finite": np.isfinite,
            "eq": np.equal,
            "ne": np.not_equal,
            "lt": np.less,
            "le": np.less_equal,
            "gt": np.greater,
            "ge": np.greater_equal,
        }.items()
    },
    **{
        name: _in_f64(function)
        for name, function in {
            "erf": special.erf,
            "erfc": special.erfc,
            "erf_inv": special.erfinv,
            "lgamma": special.gammaln,
            "digamma": special.digamma,
            "bessel_i0e": special.i0e,
            "bessel_i1e": special.i1e,
        }.items()
    },
    "integer_pow": _integer_power,
    "round": _round,
    "reduce_sum": _reduced(np.add),
    "reduce_prod": _reduced(np.multiply),
    "cumsum": _running(np.add),
    "cumprod": _running(np.multiply),
    "cumlogsumexp": _running(np.logaddexp),
    "cummax": _running(np.maximum),
    "cummin": _running(np.minimum),
    "reduce_max": _reduced(np.maximum),
    "reduce_min": _reduced(np.minimum),
    "argmax": _arg(np.argmax),
    "argmin": _arg(np.argmin),
    "clamp": _each(_clamp),
}
_RULES: dict[str, Rule] = {
    **_ROUNDED,
    **dict.fromkeys(_WHOLE, lambda args, params, types: args),
    **numpy_indexing.RULES,
    "neg": _each(np.negative),
    "abs": _each(np.abs),
    "not": _each(_not),
    "and": _each(np.bitwise_and),
    "or": _each(np.bitwise_or),
    "xor": _each(np.bitwise_xor),
    "shift_left": _shifted("left"),
    "shift_right_logical": _shifted("logical"),
    "shift_right_arithmetic": _shifted("arithmetic"),
    "population_count": _counted(lambda bits: bits.count("1")),
    "clz": _counted(lambda bits: len(bits) - len(bits.lstrip("0"))),
    "real": _each(np.real),
    "imag": _each(np.imag),
    "conj": _each(np.conj),
    "complex": _each(lambda x, y: x + 1j * np.zeros_like(x) if y is None else _complex(x, y)),
    "convert_element_type": _convert,
    "bitcast_convert_type": _bitcast,
    "select_n": _select,
    "broadcast_in_dim": _broadcast_in_dim,
    "reshape": _reshape,
    "transpose": lambda args, params, types: args[0].transpose(params["permutation"]),
    "squeeze": lambda args, params, types: args[0].reshape(types[0].shape),
    "expand_dims": lambda args, params, types: args[0].reshape(types[0].shape),
    "rev": lambda args, params, types: np.flip(args[0], params["dimensions"]),
    "concatenate": lambda args, params, types: np.concatenate(args, params["dimension"]),
    "stack": lambda args, params, types: np.stack(args, params["axis"]),
    "unstack": _unstack,
    "tile": _tile,
    "pad": _pad,
    "slice": _slice,
    "split": _split,
    "iota": _iota,
    "reduce_and": _reduced(np.bitwise_and),
    "reduce_or": _reduced(np.bitwise_or),
    "reduce_xor": _reduced(np.bitwise_xor),
    "dot_general": _dot_general,
    "sort": _sort,
    "top_k": _top_k,
}


def _complex(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    made = np.empty(np.broadcast_shapes(x.shape, y.shape), np.result_type(x.dtype, np.complex64))
    made.real, made.imag = x, y
    return made
