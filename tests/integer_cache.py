"""A decoder that keeps its cache in int8 itself, with a scale for every token and head.

{"k": i8[layers, batch, context, kv_heads, d_head], "k_scale": f32[.., kv_heads, 1], "v": ..}
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

LAYERS, D_MODEL, KV_HEADS, GROUP, D_HEAD, VOCAB = 2, 32, 2, 4, 8, 64


def init_params(key: Array) -> Any:
    """Random weights."""
    heads = (KV_HEADS, GROUP, D_HEAD)
    shapes = {
        "embedding": (VOCAB, D_MODEL),
        "head": (D_MODEL, VOCAB),
        "wq": (LAYERS, D_MODEL, *heads),
        "wk": (LAYERS, D_MODEL, KV_HEADS, D_HEAD),
        "wv": (LAYERS, D_MODEL, KV_HEADS, D_HEAD),
        "wo": (LAYERS, *heads, D_MODEL),
    }
    keys = jax.random.split(key, len(shapes))
    drawn = zip(keys, shapes.items())
    return {name: jax.random.normal(key, shape) * D_MODEL**-0.5 for key, (name, shape) in drawn}


def init_cache(batch: int, context: int) -> Any:
    """An empty cache."""
    shape = (LAYERS, batch, context, KV_HEADS)
    integers = {name: jnp.zeros((*shape, D_HEAD), jnp.int8) for name in "kv"}
    return integers | {
        "k_scale": jnp.ones((*shape, 1)),
        "v_scale": jnp.ones((*shape, 1)),
        "position": jnp.int32(0),
    }


def decode_step(params: Any, cache: Any, tokens: Array) -> tuple[Array, Any]:
    """Logits f32[B,V] after a token i32[B] of every sequence."""
    position = cache["position"]

    def layer(x: Array, state: Any) -> tuple[Array, Any]:
        weights, kept = state

        def written(name: str) -> Array:
            """Keys or values of all places, of which those of `x` are written."""
            new = jnp.einsum("bd,dgk->bgk", x, weights[f"w{name}"])[:, None]
            scale = jnp.max(jnp.abs(new), axis=-1, keepdims=True) / 127
            q = jnp.round(new / scale).astype(jnp.int8)
            for key, value in ((name, q), (f"{name}_scale", scale)):
                start = (0, position, 0, 0)
                kept[key] = jax.lax.dynamic_update_slice(kept[key], value, start)
            return kept[name].astype(x.dtype) * kept[f"{name}_scale"]

        kept = dict(kept)
        query = jnp.einsum("bd,dgrk->bgrk", x, weights["wq"])
        keys, values = written("k"), written("v")
        logits = jnp.einsum("bgrk,bsgk->bgrs", query, keys) * D_HEAD**-0.5
        logits = jnp.where(jnp.arange(keys.shape[1]) <= position, logits, -jnp.inf)
        mixed = jnp.einsum("bgrs,bsgk->bgrk", jax.nn.softmax(logits), values)
        return x + jnp.einsum("bgrk,grkd->bd", mixed, weights["wo"]), kept

    kept = {name: array for name, array in cache.items() if name != "position"}
    weights = {name: array for name, array in params.items() if array.ndim > 2}
    x, kept = jax.lax.scan(layer, params["embedding"][tokens], (weights, kept))
    return x @ params["head"], kept | {"position": position + 1}
