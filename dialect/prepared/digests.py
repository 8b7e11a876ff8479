"""Checksums of arrays on devices, independent of their sharding.

A checksum is computed shard by shard where the array is, so no host sends its shard. It is the sum
of the 32-bit words, word i times 2 i + 1, modulo 2 ** 32: a flipped bit always changes it, and so
do two swapped elements.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import jax
import jax.numpy as jnp
import numpy as np


def digests(arrays: Mapping[str, jax.Array]) -> dict[str, int]:
    """{name: checksum} of the arrays."""
    return {name: int(np.asarray(_digest(array))) for name, array in arrays.items()}


@jax.jit
def _digest(array: jax.Array) -> jax.Array:
    words = _words(array)
    weights = jnp.ones(words.shape, jnp.uint32)
    for axis in range(words.ndim):
        step = np.uint32(2 * prod(words.shape[axis + 1 :]) % 2**32)
        weights += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * step
    return jnp.sum(words * weights, dtype=jnp.uint32)


def _words(array: jax.Array) -> jax.Array:
    """The bits of the elements in 32-bit words; longer elements have several, on a last axis."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        array = jnp.stack([array.real, array.imag], axis=-1)
    if array.dtype == bool:
        return array.astype(jnp.uint32)
    about = jnp.iinfo if jnp.issubdtype(array.dtype, jnp.integer) else jnp.finfo
    bits = min(32, about(array.dtype).bits)
    return jax.lax.bitcast_convert_type(array, f"uint{bits}").astype(jnp.uint32)
