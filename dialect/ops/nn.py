"""The decoder's vocabulary: its pieces under the names that engineers use, as composite ops.

Each carries its reference, so recognising a piece can never lose its meaning. None of them takes
a weight matrix: products stay visible as `contract`, where quantisation, sharding and cost see
them. (A feed-forward network is therefore two or three contracts around a `gate`.)
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dialect.ops import (  # noqa: F401  (define words)
    activations,
    attend,
    caches,
    heads,
    lookups,
    ones,
    padding,
    picking,
    quant,
    rotary,
)
from dialect.ops.vocabulary import Traced, over_last, word  # noqa: F401
from rewrite.opdef import Traits


def softmax(x: Any, *, guarded: bool = False) -> Any:
    """Softmax over the last axis, shifted by its maximum. x: [..., s].

    A row that holds +infinity is NaN. Where `guarded`, as where nothing is shifted, only that
    element is, and the others are 0: a maximum that is not finite is not subtracted.
    """
    top = jax.lax.stop_gradient(jnp.expand_dims(jax.lax.reduce_max(x, (x.ndim - 1,)), -1))
    if guarded:
        top = jnp.where(jnp.isfinite(top), top, jnp.zeros_like(top))
    weights = jnp.exp(x - top)
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


def rms_norm(x: Any, added: Any = None, *, epsilon: float = 0.0) -> Any:
    """x / sqrt(mean(x²) + epsilon) over the last axis. x: [..., d]. Its scale is a `mul` behind.

    An epsilon that is no constant is `added`. Raises ValueError if this is no scalar.
    """
    if added is not None and jnp.ndim(added):
        raise ValueError(f"what is added to a mean is one number, not {jnp.shape(added)}")
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(mean_square + (epsilon if added is None else added))


def layer_norm(x: Any, added: Any = None, *, epsilon: float = 0.0) -> Any:
    """(x - mean) / sqrt(variance + epsilon) over the last axis. x: [..., d]. No scale, no bias.

    An epsilon that is no constant is `added`, as in `rms_norm`.
    """
    return rms_norm(x - jnp.mean(x, axis=-1, keepdims=True), added, epsilon=epsilon)


for _reference, *_rest in (
    (softmax, over_last, ("guarded",)),
    (rms_norm, over_last, ("epsilon",)),
    (layer_norm, over_last, ("epsilon",)),
):
    word(_reference, *_rest, traits=Traits(batches=True))
