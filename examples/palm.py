"""PaLM (arXiv:2204.02311): parallel blocks, multiquery attention, rotary positions, SwiGLU.

No biases; the embedding is the head as well. One key-value head serves all query heads, so that
keys, values and their caches have no axis of heads.

Axes: B batch, T new tokens, S context, and those of Config.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


@dataclass(frozen=True)
class Config:
    layers: int  # L
    d_model: int  # D
    heads: int  # H
    d_head: int  # K
    d_ff: int  # F
    vocab: int  # V
    theta: float = 10_000.0
    dtype: str = "bfloat16"

    def shape(self, axes: str) -> tuple[int, ...]:
        return tuple(astuple(self)["LDHKFV".index(axis)] for axis in axes)


CONFIGS = {
    "toy": Config(3, 64, 16, 8, 256, 256, dtype="float32"),
    "8b": Config(32, 4096, 16, 256, 16384, 256_000),
    "62b": Config(64, 8192, 32, 256, 32768, 256_000),
    "540b": Config(118, 18432, 48, 256, 73728, 256_000),
}
# With 16 idle heads, the heads divide over 64 chips (Pope et al., arXiv:2211.05102, appendix D.1).
CONFIGS["540b_padded"] = replace(CONFIGS["540b"], heads=64)

PARAMS = {
    "embedding": "VD",
    "final_norm": "D",
    "layers": {
        "norm": "LD",
        "wq": "LDHK",
        "wk": "LDK",
        "wv": "LDK",
        "wo": "LHKD",
        "w_gate": "LDF",
        "w_up": "LDF",
        "w_down": "LFD",
    },
}


def rms_norm(x: Array, scale: Array, epsilon: float = 1e-6) -> Array:
    """Layer norm in its root-mean-square form (arXiv:1910.07467), in float32."""
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(mean_square + epsilon) * scale).astype(x.dtype)


def rotate(x: Array, angles: Array) -> Array:
    """Rotary positions (arXiv:2104.09864), half-split. x: [...,K], angles: f32, to each half."""
    low, high = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], -1).astype(x.dtype)


def prefill(config: Config, params: Any, cache: Any, tokens: Array) -> tuple[Array, Any]:
    """Logits f32[B,V] after the last of tokens i32[B,T], for which the cache must have room."""
    start, length = cache["position"], tokens.shape[1]
    positions = start + jnp.arange(length)
    angles = positions[:, None] * config.theta ** -jnp.arange(0, 1, 2 / config.d_head)

    def block(x: Array, state: Any) -> tuple[Array, Any]:
        layer, keys, values = state
        normed = rms_norm(x, layer["norm"])
        q = rotate(jnp.einsum("btd,dhk->bthk", normed, layer["wq"]), angles[:, None])
        k = rotate(jnp.einsum("btd,dk->btk", normed, layer["wk"]), angles)
        v = jnp.einsum("btd,dk->btk", normed, layer["wv"])
        keys = jax.lax.dynamic_update_slice(keys, k, (0, start, 0))
        values = jax.lax.dynamic_update_slice(values, v, (0, start, 0))
        logits = jnp.einsum("bthk,bsk->bhts", q, keys, preferred_element_type=jnp.float32)
        visible = positions[:, None] >= jnp.arange(keys.shape[1])
        logits = jnp.where(visible, logits * config.d_head**-0.5, -jnp.inf)
        weights = jax.nn.softmax(logits, axis=-1).astype(x.dtype)
        mixed = jnp.einsum("bhts,bsk->bthk", weights, values)
        attended = jnp.einsum("bthk,hkd->btd", mixed, layer["wo"])
        gate = jax.nn.silu(jnp.einsum("btd,df->btf", normed, layer["w_gate"]))
        up = jnp.einsum("btd,df->btf", normed, layer["w_up"])
        fed = jnp.einsum("btf,fd->btd", gate * up, layer["w_down"])
        return x + attended + fed, (keys, values)

    x, layers, keys, values = params["embedding"][tokens], params["layers"], cache["k"], cache["v"]
    if isinstance(layers, list):
        keys, values = list(keys), list(values)
        for i, layer in enumerate(layers):
            x, (keys[i], values[i]) = block(x, (layer, keys[i], values[i]))
    else:
        x, (keys, values) = jax.lax.scan(block, x, (layers, keys, values))
    x = rms_norm(x[:, -1], params["final_norm"])
    logits = jnp.einsum("bd,vd->bv", x, params["embedding"], preferred_element_type=jnp.float32)
    logits = logits * config.d_model**-0.5
    return logits, {"k": keys, "v": values, "position": start + length}


def decode_step(config: Config, params: Any, cache: Any, tokens: Array) -> tuple[Array, Any]:
    """A prefill of one token i32[B] per sequence."""
    return prefill(config, params, cache, tokens[:, None])


def init_params(config: Config, key: Array, unrolled: bool = False) -> Any:
    """Random weights. The norms' scales vary too, so that a test notices when one is lost.

    The embedding's variance is one, that of all else 1/d_model: hence the factor on the logits.
    """

    def draw(path: Any, axes: str, key: Array) -> Array:
        name = path[-1].key
        spread = 1 if name == "embedding" else config.d_model**-0.5
        noise = jax.random.normal(key, config.shape(axes), config.dtype) * spread
        return noise + name.endswith("norm")

    leaves, tree = jax.tree.flatten(PARAMS)
    keys = jax.tree.unflatten(tree, jax.random.split(key, len(leaves)))
    params = jax.tree.map_with_path(draw, PARAMS, keys)
    if unrolled:
        stacked = params["layers"]
        params["layers"] = [dict(zip(stacked, each)) for each in zip(*stacked.values())]
    return params


def init_cache(config: Config, batch: int, context: int, unrolled: bool = False) -> Any:
    shape = (config.layers, batch, context, config.d_head)
    form = list if unrolled else jnp.asarray
    return {"position": jnp.int32(0)} | {key: form(jnp.zeros(shape, config.dtype)) for key in "kv"}
