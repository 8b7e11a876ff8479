"""Short dtype names (`bf16`, `f32`, `i8`, `key<fry>`) and the JAX dtypes behind them."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rewrite.errors import brief, nearest
from rewrite.ir import Type

_LONG = {"bool": "bool", "bf16": "bfloat16", "f16": "float16", "f32": "float32", "f64": "float64"}
_LONG |= {f"i{n}": f"int{n}" for n in (2, 4, 8, 16, 32, 64)}
_LONG |= {f"u{n}": f"uint{n}" for n in (2, 4, 8, 16, 32, 64)}
_LONG |= {"c64": "complex64", "c128": "complex128", "f4_e2m1fn": "float4_e2m1fn"}
_EIGHT_BIT = ("e3m4", "e4m3", "e4m3b11fnuz", "e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")
_LONG |= {f"f8_{form}": f"float8_{form}" for form in _EIGHT_BIT}
_KEYS = {"key<fry>": "threefry2x32", "key<rbg>": "rbg", "key<urbg>": "unsafe_rbg"}
_MOST_AXES = 64  # numpy's limit
_MOST_ELEMENTS = 1 << 59  # so that their bytes are a number of 63 bits
_SHORT = {long: short for short, long in _LONG.items()}


@lru_cache(maxsize=256)
def short(dtype: Any) -> str:
    """`float32` -> `f32`. Extended dtypes (typed PRNG keys) keep the name that JAX gives them."""
    return _SHORT.get(str(dtype), str(dtype))


def dtype_of(name: str) -> np.dtype:
    """`f32` -> `dtype('float32')`. Raises KeyError for a name that is not a plain dtype."""
    return jnp.dtype(_LONG[name])


def is_dtype(name: str) -> bool:
    """Whether `name` is the short name of a plain dtype."""
    return name in _LONG


def is_carried(dtype: Any) -> bool:
    """Whether arrays of a JAX dtype can be values of a program: numbers, booleans and PRNG keys."""
    name = short(dtype)
    return is_dtype(name) or name in _KEYS


def check(type_: Type) -> None:
    """Raises ValueError for a type that no array has."""
    if not (is_dtype(type_.dtype) or type_.dtype in _KEYS):
        known = _SHORT.get(type_.dtype)
        hint = f"write {known}" if known else nearest(type_.dtype, [*_LONG, *_KEYS])
        raise ValueError(f"there is no dtype {brief(type_.dtype)}: {hint}")
    if type_.rank > _MOST_AXES:
        raise ValueError(f"an array has at most {_MOST_AXES} axes, not {type_.rank}")
    if max((math.prod(size for size in type_.shape if size), *type_.shape)) > _MOST_ELEMENTS:
        raise ValueError(f"{brief(str(type_))} has more elements than can be counted")


def is_float(name: str) -> bool:
    """Whether `name` is the short name of a real float dtype, however narrow."""
    return is_dtype(name) and bool(jnp.issubdtype(dtype_of(name), jnp.floating))


def is_complex(name: str) -> bool:
    """Whether `name` is the short name of a complex dtype."""
    return name in ("c64", "c128")


def type_of(value: Any) -> Type:
    """The Type of an array, a ShapeDtypeStruct, an abstract value or a Python scalar."""
    if not hasattr(value, "dtype"):
        value = jax.typeof(value)
    shape = tuple(int(size) for size in value.shape)
    return Type(short(value.dtype), shape, bool(getattr(value, "weak_type", False)))


def struct_of(type_: Type) -> jax.ShapeDtypeStruct:
    """The ShapeDtypeStruct of a Type. A PRNG key's dtype is made again from its name."""
    if type_.dtype.startswith("key<"):
        key = jax.eval_shape(lambda: jax.random.key(0, impl=key_impl(type_.dtype)))
        return key.update(shape=type_.shape)
    return jax.ShapeDtypeStruct(type_.shape, dtype_of(type_.dtype), weak_type=type_.weak)


def key_impl(name: str) -> str:
    """What `jax.random.key` calls the generator of a key dtype: `key<fry>` is `threefry2x32`."""
    return _KEYS[name]
