"""Llama 3 (arXiv:2407.21783): serial blocks, grouped-query attention, rotary positions, SwiGLU.

Axes: B batch, T new tokens, S context, R query heads that share a key-value head; others below.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Config:
    layers: int  # L
    d_model: int  # D
    heads: int  # H
    kv_heads: int  # G
    d_head: int  # K
    d_ff: int  # F
    vocab: int  # V
    theta: float = 500_000.0
    epsilon: float = 1e-5
    dtype: str = "bfloat16"

    def shape(self, axes: str) -> tuple[int, ...]:
        sizes = dict(zip("LDHGKFV", astuple(self)))
        return tuple(sizes[axis] for axis in axes)


CONFIGS = {
    "toy": Config(3, 64, 16, 8, 8, 256, 256, dtype="float32"),
    "8b": Config(32, 4096, 32, 8, 128, 14336, 128256),
    "70b": Config(80, 8192, 64, 8, 128, 28672, 128256),
}
# Each parameter's axes, those it sums over first, and its name in a Hugging Face checkpoint.
PARAMS = {
    "embedding": "VD model.embed_tokens",
    "final_norm": "D model.norm",
    "head": "D V lm_head",
    "layers": {
        "attention_norm": "L D input_layernorm",
        "wq": "L D HK self_attn.q_proj",
        "wk": "L D GK self_attn.k_proj",
        "wv": "L D GK self_attn.v_proj",
        "wo": "L HK D self_attn.o_proj",
        "ffn_norm": "L D post_attention_layernorm",
        "w_gate": "L D F mlp.gate_proj",
        "w_up": "L D F mlp.up_proj",
        "w_down": "L F D mlp.down_proj",
    },
}


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(mean_square + epsilon) * scale).astype(x.dtype)


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Rotary positions (arXiv:2104.09864), half-split. x: [B,T,heads,K], angles: [T,1,K/2]."""
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (left * cos - right * sin, right * cos + left * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def prefill(config: Config, params: Any, cache: Any, tokens: jax.Array) -> tuple[jax.Array, Any]:
    """Appends tokens i32[B,T] to a cache with room for them; the last one's logits f32[B,V]."""
    start, (batch, length) = cache["position"], tokens.shape
    positions = start + jnp.arange(length)
    angles = positions[:, None, None] * config.theta ** -jnp.arange(0, 1, 2 / config.d_head)

    def block(x: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        layer, keys, values = state
        normed = rms_norm(x, layer["attention_norm"], config.epsilon)
        q = rotate(jnp.einsum("btd,dhk->bthk", normed, layer["wq"]), angles)
        k = rotate(jnp.einsum("btd,dgk->btgk", normed, layer["wk"]), angles)
        v = jnp.einsum("btd,dgk->btgk", normed, layer["wv"])
        keys = jax.lax.dynamic_update_slice(keys, k, (0, start, 0, 0))
        values = jax.lax.dynamic_update_slice(values, v, (0, start, 0, 0))
        q = q.reshape(batch, length, config.kv_heads, -1, config.d_head)
        logits = jnp.einsum("btgrk,bsgk->bgrts", q, keys, preferred_element_type=jnp.float32)
        visible = positions[:, None] >= jnp.arange(keys.shape[1])
        logits = jnp.where(visible, logits * config.d_head**-0.5, -jnp.inf)
        weights = jax.nn.softmax(logits, axis=-1).astype(x.dtype)
        mixed = jnp.einsum("bgrts,bsgk->btgrk", weights, values)
        mixed = mixed.reshape(batch, length, config.heads, config.d_head)
        x = x + jnp.einsum("bthk,hkd->btd", mixed, layer["wo"])
        normed = rms_norm(x, layer["ffn_norm"], config.epsilon)
        gate = jax.nn.silu(jnp.einsum("btd,df->btf", normed, layer["w_gate"]))
        up = jnp.einsum("btd,df->btf", normed, layer["w_up"])
        return x + jnp.einsum("btf,fd->btd", gate * up, layer["w_down"]), (keys, values)

    x, layers, keys, values = params["embedding"][tokens], params["layers"], cache["k"], cache["v"]
    if isinstance(layers, list):
        keys, values = list(keys), list(values)
        for i, layer in enumerate(layers):
            x, (keys[i], values[i]) = block(x, (layer, keys[i], values[i]))
    else:
        x, (keys, values) = jax.lax.scan(block, x, (layers, keys, values))
    x = rms_norm(x[:, -1], params["final_norm"], config.epsilon)
    logits = jnp.einsum("bd,dv->bv", x, params["head"], preferred_element_type=jnp.float32)
    return logits, {"k": keys, "v": values, "position": start + length}


def decode_step(
    config: Config, params: Any, cache: Any, tokens: jax.Array
) -> tuple[jax.Array, Any]:
    """A prefill of one token per sequence. tokens: i32[B]."""
    return prefill(config, params, cache, tokens[:, None])


def init_params(config: Config, key: jax.Array, unrolled: bool = False) -> Any:
    """Random weights, norm scales too: scales of one would hide from a test that one is lost."""
    specs, tree = jax.tree.flatten(PARAMS)
    shapes = [config.shape("".join(spec.split()[:-1])) for spec in specs]
    keys = jax.random.split(key, len(specs))
    draws = [jax.random.normal(*each, config.dtype) for each in zip(keys, shapes)]
    params = jax.tree.unflatten(tree, draws)
    return unstacked(params) if unrolled else params


def init_cache(config: Config, batch: int, context: int, unrolled: bool = False) -> Any:
    shape = (config.layers, batch, context, config.kv_heads, config.d_head)
    keys, values = jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype)
    if unrolled:
        keys, values = list(keys), list(values)
    return {"k": keys, "v": values, "position": jnp.zeros((), jnp.int32)}
