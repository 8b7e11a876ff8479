"""Numbers to run a program on, drawn from a seed: small, of every sign, and the same each time."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dialect.arrays.dtypes import key_impl, struct_of
from rewrite.ir import Type
from rewrite.program import Input, Program

_INTEGERS = 4  # tokens, positions and indices are below it, so that they are in any small range


def samples(program: Program, seed: int) -> list[Any]:
    """One array per input of the program. Weights are scaled so that products stay near 1."""
    random = np.random.default_rng(seed)
    return [_scaled(declared, array_of(declared.type, random)) for declared in program.inputs]


def array_of(type_: Type, random: np.random.Generator) -> Any:
    """Random elements: floats near 1, integers in [0, 4), a key."""
    dtype = struct_of(type_).dtype
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return _keys(type_, random)
    if dtype == bool:
        return jnp.asarray(random.integers(0, 2, type_.shape), bool)
    if jnp.issubdtype(dtype, jnp.integer):
        least = 0 if type_.shape else 1  # at position 0 there is nothing to attend to or to turn
        most = min(_INTEGERS, int(jnp.iinfo(dtype).max) + 1)
        return jnp.asarray(random.integers(least, most, type_.shape), dtype)
    numbers = random.standard_normal(type_.shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        numbers = numbers + 1j * random.standard_normal(type_.shape)
    return jnp.asarray(numbers, dtype)


def _keys(type_: Type, random: np.random.Generator) -> Any:
    one = jax.random.key(0, impl=key_impl(type_.dtype))
    words = jax.random.key_data(one)
    drawn = random.integers(0, 2**32, (*type_.shape, *words.shape), dtype=np.uint32)
    return jax.random.wrap_key_data(jnp.asarray(drawn), impl=key_impl(type_.dtype))


def _scaled(declared: Input, array: Any) -> Any:
    if declared.role != "param" or declared.type.rank < 2 or declared.type.dtype[0] not in "fb":
        return array
    return (array / math.sqrt(max(1, declared.type.shape[-2]))).astype(array.dtype)
