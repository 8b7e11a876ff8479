"""One layer of attention with a cache, whose mask is causal and more: a window, or a map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

CONTEXT = 64


def layer(keeps: Callable[[jax.Array, jax.Array], jax.Array] | None = None) -> Any:
    """A step from x: [B, n, 16] on; `keeps` tells of (last, place) whether a query keeps a key."""

    def step(w: Any, cache: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        at, (q, k, v) = cache["position"], (jnp.einsum("btd,dhk->bthk", x, each) for each in w)
        keys = jax.lax.dynamic_update_slice(cache["k"], k, (0, at, 0, 0))
        values = jax.lax.dynamic_update_slice(cache["v"], v, (0, at, 0, 0))
        place, last = jnp.arange(CONTEXT), at + jnp.arange(x.shape[1])[:, None]
        mask = place <= last
        if keeps is not None:
            mask &= keeps(last, place)
        logits = jnp.where(mask, jnp.einsum("bthk,bshk->bhts", q, keys), -jnp.inf)
        mixed = jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(logits, -1), values)
        return mixed, {"k": keys, "v": values, "position": at + x.shape[1]}

    return step


def layer_arguments(
    drawn: Callable[..., jax.Array], queries: int, position: int
) -> tuple[Any, ...]:
    """Weights, a cache at this position, and x, of numbers that are `drawn`."""
    cache: dict[str, Any] = {name: drawn(8, CONTEXT, 8, 4) for name in "kv"}
    cache["position"] = jnp.int32(position)
    return [drawn(16, 8, 4) for _ in "qkv"], cache, drawn(8, queries, 16)
