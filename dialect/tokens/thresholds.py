"""Which tokens a row may choose: those whose logits reach a threshold, one number for each row.

The k most probable tokens, and the fewest whose probabilities sum to p, are sets of largest logits.
Their least logit is searched for, digit by digit, as in a radix sort: a search counts and sums, so
a vocabulary that is split over chips is neither sorted nor gathered. Equal logits are kept or left
together.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_BITS = 4  # of a digit: 15 thresholds are tried at a time, and 32 bits are 8 digits
_LEAST = 0x007FFFFF  # what stands for -infinity: below it are NaNs


def of_most_probable(logits: jax.Array, count: jax.Array) -> jax.Array:
    """The least of the `count` largest logits; -infinity where count is 0.

    logits: f32[.., vocabulary], count: i32[..] -> f32[..]
    """
    reached = threshold(logits, jnp.ones_like(logits), count.astype(jnp.float32))
    return jnp.where(count > 0, reached, -jnp.inf)


def of_probability(logits: jax.Array, share: jax.Array) -> jax.Array:
    """The least of the fewest logits whose probabilities sum to `share`; -infinity where it is 1.

    logits: f32[.., vocabulary], -infinity for what cannot be chosen, share: f32[..] -> f32[..]
    Nucleus sampling (Holtzman et al. 2020, section 3.1).
    """
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    wanted = jnp.maximum(share * weights.sum(axis=-1), jnp.finfo(jnp.float32).tiny)
    return jnp.where(share < 1, threshold(logits, weights, wanted), -jnp.inf)


def threshold(logits: jax.Array, weights: jax.Array, wanted: jax.Array) -> jax.Array:
    """The largest number that logits of together so much weight reach, or -infinity.

    logits and weights: f32[.., vocabulary], wanted: f32[..], more than zero -> f32[..]
    """
    digits = jnp.arange(1, 2**_BITS, dtype=jnp.uint32)

    def of_digit(number: jax.Array, code: jax.Array) -> jax.Array:
        place = jnp.uint32(32 - _BITS) - _BITS * number.astype(jnp.uint32)
        tried = _in_order(code[..., None] | (digits << place))
        reach = logits[..., None, :] >= tried[..., None]
        sums = jnp.where(reach, weights[..., None, :], 0).sum(axis=-1)
        enough = (sums >= wanted[..., None]).sum(axis=-1, dtype=jnp.uint32)
        return code | (enough << place)

    start = jnp.zeros(wanted.shape, jnp.uint32)
    return _in_order(jax.lax.fori_loop(0, 32 // _BITS, of_digit, start))


def _in_order(code: jax.Array) -> jax.Array:
    """The floats in their order, for u32 in theirs."""
    code = jnp.maximum(code, _LEAST)
    sign = jnp.uint32(1 << 31)
    bits = jnp.where(code >= sign, code ^ sign, ~code)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
