"""GPT-2 (Radford et al. 2019): serial blocks, multi-head attention, learned positions, GELU.

LayerNorm with scale and bias, a bias on every projection; the embedding is the head as well (tied).

Axes: B batch, T new tokens, S context, and those of Config.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
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
    longest: int = 1024  # P, the learned positions
    dtype: str = "bfloat16"

    def shape(self, axes: str) -> tuple[int, ...]:
        return tuple(astuple(self)["LDHKFVP".index(axis)] for axis in axes)


CONFIGS = {
    "toy": Config(3, 64, 16, 8, 256, 256, dtype="float32"),
    "xl": Config(48, 1600, 25, 64, 6400, 50257),
}
PARAMS = {
    "embedding": "VD",
    "positions": "PD",
    "final_norm": "D",
    "final_norm_bias": "D",
    "layers": {
        "attention_norm": "LD",
        "attention_norm_bias": "LD",
        "wq": "LDHK",
        "bq": "LHK",
        "wk": "LDHK",
        "bk": "LHK",
        "wv": "LDHK",
        "bv": "LHK",
        "wo": "LHKD",
        "bo": "LD",
        "ffn_norm": "LD",
        "ffn_norm_bias": "LD",
        "w_up": "LDF",
        "b_up": "LF",
        "w_down": "LFD",
        "b_down": "LD",
    },
}


def layer_norm(x: Array, scale: Array, bias: Array, epsilon: float = 1e-5) -> Array:
    """LayerNorm (arXiv:1607.06450) over the last axis, in float32."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(variance + epsilon)
    return (normed * scale + bias).astype(x.dtype)


def prefill(config: Config, params: Any, cache: Any, tokens: Array) -> tuple[Array, Any]:
    """Logits f32[B,V] after the last of tokens i32[B,T], for which the cache must have room."""
    start, length = cache["position"], tokens.shape[1]
    positions = start + jnp.arange(length)

    def block(x: Array, state: Any) -> tuple[Array, Any]:
        layer, keys, values = state
        normed = layer_norm(x, layer["attention_norm"], layer["attention_norm_bias"])
        q = jnp.einsum("btd,dhk->bthk", normed, layer["wq"]) + layer["bq"]
        k = jnp.einsum("btd,dhk->bthk", normed, layer["wk"]) + layer["bk"]
        v = jnp.einsum("btd,dhk->bthk", normed, layer["wv"]) + layer["bv"]
        keys = jax.lax.dynamic_update_slice(keys, k, (0, start, 0, 0))
        values = jax.lax.dynamic_update_slice(values, v, (0, start, 0, 0))
        logits = jnp.einsum("bthk,bshk->bhts", q, keys, preferred_element_type=jnp.float32)
        visible = positions[:, None] >= jnp.arange(keys.shape[1])
        logits = jnp.where(visible, logits * config.d_head**-0.5, -jnp.inf)
        weights = jax.nn.softmax(logits, axis=-1).astype(x.dtype)
        mixed = jnp.einsum("bhts,bshk->bthk", weights, values)
        x = x + jnp.einsum("bthk,hkd->btd", mixed, layer["wo"]) + layer["bo"]
        normed = layer_norm(x, layer["ffn_norm"], layer["ffn_norm_bias"])
        up = jnp.einsum("btd,df->btf", normed, layer["w_up"]) + layer["b_up"]
        hidden = jax.nn.gelu(up, approximate=True)
        x = x + jnp.einsum("btf,fd->btd", hidden, layer["w_down"]) + layer["b_down"]
        return x, (keys, values)

    x = params["embedding"][tokens] + params["positions"][positions]
    layers, keys, values = params["layers"], cache["k"], cache["v"]
    if isinstance(layers, list):
        keys, values = list(keys), list(values)
        for i, layer in enumerate(layers):
            x, (keys[i], values[i]) = block(x, (layer, keys[i], values[i]))
    else:
        x, (keys, values) = jax.lax.scan(block, x, (layers, keys, values))
    x = layer_norm(x[:, -1], params["final_norm"], params["final_norm_bias"])
    logits = jnp.einsum("bd,vd->bv", x, params["embedding"], preferred_element_type=jnp.float32)
    return logits, {"k": keys, "v": values, "position": start + length}


def decode_step(config: Config, params: Any, cache: Any, tokens: Array) -> tuple[Array, Any]:
    """A prefill of one token i32[B] per sequence."""
    return prefill(config, params, cache, tokens[:, None])


def init_params(config: Config, key: Array, unrolled: bool = False) -> Any:
    """Random weights. Scales and biases vary too, so that a test notices when one is lost."""

    def draw(path: Any, axes: str, key: Array) -> Array:
        noise = jax.random.normal(key, config.shape(axes), config.dtype) * config.d_model**-0.5
        return noise + path[-1].key.endswith("norm")

    leaves, tree = jax.tree.flatten(PARAMS)
    keys = jax.tree.unflatten(tree, jax.random.split(key, len(leaves)))
    params = jax.tree.map_with_path(draw, PARAMS, keys)
    if unrolled:
        stacked = params["layers"]
        params["layers"] = [dict(zip(stacked, each)) for each in zip(*stacked.values())]
    return params


def init_cache(config: Config, batch: int, context: int, unrolled: bool = False) -> Any:
    if context > config.longest:
        raise ValueError(f"a context of {context} exceeds the {config.longest} learned positions")
    shape = (config.layers, batch, context, config.heads, config.d_head)
    form = list if unrolled else jnp.asarray
    return {"position": jnp.int32(0)} | {key: form(jnp.zeros(shape, config.dtype)) for key in "kv"}
