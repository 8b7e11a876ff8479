"""JAX's primitives in numpy: an oracle that shares no code with XLA, and compiles nothing.

    computed("mul", [x, y], {}, types)  ->  the results, or None for a primitive that is not here

Narrow floats are widened to f32 and rounded once, integers wrap, divisions by zero and conversions
out of range give what XLA gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from tests.fuzz import numpy_indexing, numpy_maps, numpy_sums
from tests.fuzz.numpy_maps import Arrays, Rule, Shaped

_WHOLE = ("copy", "copy_p", "name", "stop_gradient", "optimization_barrier", "sharding_constraint")


def computed(
    name: str, args: Arrays, params: dict[str, Any], types: Sequence[Shaped]
) -> Arrays | None:
    """The results of a primitive, in the given dtypes and shapes; None where it is not known."""
    rule = _RULES.get(name)
    if rule is None:
        return None
    with np.errstate(all="ignore"):
        args = [numpy_maps.wide(each) for each in args] if name in _ROUNDED else args
        made = rule(args, params, types)
        if made is None:
            return None
        made = made if isinstance(made, (list, tuple)) else [made]
        return [_typed(array, type_) for array, type_ in zip(made, types, strict=True)]


def _typed(array: Any, type_: Shaped) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype != type_.dtype:
        array = array.astype(type_.dtype)
    return array if array.shape == type_.shape else np.broadcast_to(array, type_.shape)


# Layout.


def _broadcast_in_dim(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
    if args[0].shape == types[0].shape:  # JAX leaves it as it is, whatever its places
        return args[0]
    sizes, places = [1] * len(params["shape"]), params["broadcast_dimensions"]
    for size, dimension in zip(args[0].shape, places):
        sizes[dimension] = size
    rising = args[0].transpose(np.argsort(places).astype(int))
    return np.broadcast_to(rising.reshape(sizes), types[0].shape)


def _reshape(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
    order = params.get("dimensions")
    return (args[0] if order is None else args[0].transpose(order)).reshape(types[0].shape)


def _pad(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
    """Each element at its own place, where that lies inside."""
    array, filler = args
    made = np.full(types[0].shape, filler, array.dtype)
    read, write = [], []
    for size, whole, (low, _, between) in zip(array.shape, made.shape, params["padding_config"]):
        places = low + np.arange(size) * (between + 1)
        inside = (places >= 0) & (places < whole)
        read.append(np.flatnonzero(inside))
        write.append(places[inside])
    made[np.ix_(*write)] = array[np.ix_(*read)]
    return made


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
    numbers = numpy_maps.converted(np.arange(shape[axis]), types[0].dtype)
    return np.broadcast_to(numbers.reshape(sizes), shape)


def _unstack(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
    return [np.take(args[0], i, axis=params["axis"]) for i in range(len(types))]


def _tile(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
    return np.tile(args[0], params["reps"])


_ROUNDED = {
    **{
        name: numpy_maps.each(function)
        for name, function in {
            "add": np.add,
            "add_any": np.add,
            "sub": np.subtract,
            "mul": np.multiply,
            "div": numpy_maps.divided,
            "rem": numpy_maps.remainder,
            "max": np.maximum,
            "min": np.minimum,
            "pow": numpy_maps.power,
            "atan2": numpy_maps.arctan2,
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
            "sign": numpy_maps.sign,
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
        name: numpy_maps.in_f64(function)
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
    "integer_pow": numpy_maps.integer_power,
    "round": numpy_maps.rounded,
    "reduce_sum": numpy_sums.reduced(np.add),
    "reduce_prod": numpy_sums.reduced(np.multiply),
    "cumsum": numpy_sums.running(np.add),
    "cumprod": numpy_sums.running(np.multiply),
    "cumlogsumexp": numpy_sums.running(np.logaddexp),
    "cummax": numpy_sums.running(np.maximum),
    "cummin": numpy_sums.running(np.minimum),
    "reduce_max": numpy_sums.reduced(np.maximum),
    "reduce_min": numpy_sums.reduced(np.minimum),
    "argmax": numpy_sums.arg(np.argmax),
    "argmin": numpy_sums.arg(np.argmin),
    "clamp": numpy_maps.each(numpy_maps.clamp),
}
_RULES: dict[str, Rule] = {
    **_ROUNDED,
    **dict.fromkeys(_WHOLE, lambda args, params, types: args),
    **numpy_indexing.RULES,
    "neg": numpy_maps.each(np.negative),
    "abs": numpy_maps.each(np.abs),
    "not": numpy_maps.each(numpy_maps.inverted),
    "and": numpy_maps.each(np.bitwise_and),
    "or": numpy_maps.each(np.bitwise_or),
    "xor": numpy_maps.each(np.bitwise_xor),
    "shift_left": numpy_maps.shifted("left"),
    "shift_right_logical": numpy_maps.shifted("logical"),
    "shift_right_arithmetic": numpy_maps.shifted("arithmetic"),
    "population_count": numpy_maps.counted(lambda bits: bits.count("1")),
    "clz": numpy_maps.counted(lambda bits: len(bits) - len(bits.lstrip("0"))),
    "real": numpy_maps.each(np.real),
    "imag": numpy_maps.each(np.imag),
    "conj": numpy_maps.each(np.conj),
    "complex": numpy_maps.each(numpy_maps.paired),
    "convert_element_type": numpy_maps.convert,
    "bitcast_convert_type": numpy_maps.bitcast,
    "select_n": numpy_maps.select,
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
    "reduce_and": numpy_sums.reduced(np.bitwise_and),
    "reduce_or": numpy_sums.reduced(np.bitwise_or),
    "reduce_xor": numpy_sums.reduced(np.bitwise_xor),
    "dot_general": numpy_sums.dot_general,
    "sort": numpy_sums.sort,
    "top_k": numpy_sums.top_k,
}
