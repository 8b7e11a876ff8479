"""Elementwise primitives in numpy, with what XLA gives where numpy gives something else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Arrays = list[np.ndarray]
Shaped = Any  # has dtype and shape
Rule = Callable[[Arrays, dict[str, Any], Sequence[Shaped]], Any]


def is_float(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def wide(array: np.ndarray) -> np.ndarray:
    """Narrow floats as f32, in which their results are rounded once more only."""
    narrow = is_float(array.dtype) and array.dtype.itemsize < 4
    return array.astype(np.float32) if narrow else array


def each(function: Callable[..., Any]) -> Rule:
    return lambda args, params, types: function(*args)


def in_f64(function: Callable[..., Any]) -> Rule:
    """A special function, which numpy has in f64 only."""

    def rule(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
        if any(jnp.issubdtype(each.dtype, jnp.complexfloating) for each in args):
            return None
        return function(*(each.astype(np.float64) for each in args))

    return rule


def divided(x: np.ndarray, y: np.ndarray) -> Any:
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return x / y
    if jnp.issubdtype(x.dtype, jnp.unsignedinteger):
        top = np.array(jnp.iinfo(x.dtype).max).astype(x.dtype)
        return np.where(y == 0, top, x // np.where(y == 0, y + y.dtype.type(1), y))
    wide, by = x.astype(object), y.astype(object)
    flat = [-1 if b == 0 else truncated(a, b) for a, b in np.broadcast(wide, by)]
    return wrapped(flat, np.broadcast_shapes(x.shape, y.shape), x.dtype)


def truncated(a: int, b: int) -> int:
    a, b = int(a), int(b)
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def remainder(x: np.ndarray, y: np.ndarray) -> Any:
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return np.fmod(x, y)
    pairs = [(int(a), int(b)) for a, b in np.broadcast(x.astype(object), y.astype(object))]
    flat = [a if b == 0 else a - b * truncated(a, b) for a, b in pairs]
    return wrapped(flat, np.broadcast_shapes(x.shape, y.shape), x.dtype)


def wrapped(numbers: Sequence[int], shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Python integers as ones of a dtype, modulo its range."""
    bits = jnp.iinfo(dtype).bits
    signed = not jnp.issubdtype(dtype, jnp.unsignedinteger)
    half = 1 << (bits - 1)
    flat = [(n + half) % (2 * half) - half if signed else n % (2 * half) for n in numbers]
    kind = np.int64 if signed else np.uint64
    return np.array(flat, kind).reshape(shape).astype(dtype)


def power(x: np.ndarray, y: np.ndarray) -> Any:
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return None
    return np.power(x, y.astype(x.dtype))


def arctan2(x: np.ndarray, y: np.ndarray) -> Any:
    return np.arctan2(x, y) if is_float(x.dtype) else None


def integer_power(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
    x, power = args[0], params["y"]
    made, base = np.ones_like(x), x
    for bit in reversed(f"{abs(power):b}"):
        made = made * base if bit == "1" else made
        base = base * base
    return made if power >= 0 else divided(np.ones_like(x), made)


def shifted(how: str) -> Rule:
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
        return wrapped(flat, types[0].shape, dtype)

    return rule


def counted(one: Callable[[str], int]) -> Rule:
    """A function of the bits of an integer."""

    def rule(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
        bits = jnp.iinfo(types[0].dtype).bits
        mask = (1 << bits) - 1
        flat = [one(f"{int(a) & mask:0{bits}b}") for a in args[0].astype(object).ravel()]
        return np.array(flat, np.int64).reshape(types[0].shape)

    return rule


def sign(x: np.ndarray) -> Any:
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return np.where(x == 0, x, x / np.abs(x))
    return np.where(x == 0, x, np.sign(x))


def rounded(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
    x = args[0]
    if params["rounding_method"] == jax.lax.RoundingMethod.TO_NEAREST_EVEN:
        return np.rint(x)
    near = np.trunc(x)
    return np.where(np.abs(x - near) >= 0.5, near + np.sign(x), np.copysign(near, x))


def inverted(x: np.ndarray) -> Any:
    return np.logical_not(x) if x.dtype == bool else np.invert(x)


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
            return wrapped([int(n) for n in array.astype(object).ravel()], array.shape, dtype)
        return array.astype(dtype)
    info, wide = jnp.iinfo(dtype), np.trunc(array.astype(np.float64))
    low, high = int(info.min), int(info.max)
    flat = [
        0 if math.isnan(n) else low if n <= low else high if n >= high else int(n)
        for n in wide.ravel().tolist()
    ]
    return wrapped(flat, array.shape, dtype)


def convert(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
    return converted(args[0], types[0].dtype)


def select(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
    which, *cases = args
    which = np.broadcast_to(np.clip(which.astype(np.int64), 0, len(cases) - 1), types[0].shape)
    made = np.array(cases[0])
    for number, case in enumerate(cases[1:], 1):
        made = np.where(which == number, case, made)
    return made


def clamp(low: np.ndarray, x: np.ndarray, high: np.ndarray) -> Any:
    return np.minimum(np.maximum(x, low), high)


def bitcast(args: Arrays, params: dict[str, Any], types: Sequence[Shaped]) -> Any:
    old, new = args[0].dtype, np.dtype(types[0].dtype)
    if jnp.iinfo(old).bits < 8 if jnp.issubdtype(old, jnp.integer) else old.itemsize < 1:
        return None
    if str(new) in ("int4", "uint4", "int2", "uint2", "float4_e2m1fn"):
        return None
    return np.ascontiguousarray(args[0]).view(new).reshape(types[0].shape)


def paired(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    made = np.empty(np.broadcast_shapes(x.shape, y.shape), np.result_type(x.dtype, np.complex64))
    made.real, made.imag = x, y
    return made
