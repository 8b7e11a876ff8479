"""Llama 3 (arXiv:2407.21783): serial blocks, grouped-query attention, rotary positions, SwiGLU.

Axes: B batch, T new tokens, S context, L layers, D d_model, F d_ff, V vocabulary, K d_head,
H query heads; G key-value heads, each shared by a group of R query heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Config:
    layers: int
    d_model: int
    heads: int
    kv_heads: int
    d_head: int
    d_ff: int
    vocab: int
    theta: float = 500_000.0
    epsilon: float = 1e-5
    dtype: str = "bfloat16"

    def shape(self, axes: str) -> tuple[int, ...]:
        sizes = {"L": self.layers, "D": self.d_model, "F": self.d_ff, "V": self.vocab}
        sizes |= {"H": self.heads, "G": self.kv_heads, "K": self.d_head}
        return tuple(sizes[axis] for axis in axes)


CONFIGS = {
    "toy": Config(3, 64, 16, 8, 8, 256, 256, dtype="float32"),
    "8b": Config(32, 4096, 32, 8, 128, 14336, 128256),
    "70b": Config(80, 8192, 64, 8, 128, 28672, 128256),
}

# name: (axes it sums over, axes it makes, name in a Hugging Face checkpoint)
WEIGHTS = {
    "embedding": ("", "VD", "model.embed_tokens"),
    "final_norm": ("", "D", "model.norm"),
    "head": ("D", "V", "lm_head"),
}
LAYER_WEIGHTS = {
    "attention_norm": ("", "D", "input_layernorm"),
    "wq": ("D", "HK", "self_attn.q_proj"),
    "wk": ("D", "GK", "self_attn.k_proj"),
    "wv": ("D", "GK", "self_attn.v_proj"),
    "wo": ("HK", "D", "self_attn.o_proj"),
    "ffn_norm": ("", "D", "post_attention_layernorm"),
    "w_gate": ("D", "F", "mlp.gate_proj"),
    "w_up": ("D", "F", "mlp.up_proj"),
    "w_down": ("F", "D", "mlp.down_proj"),
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


def attend(q: jax.Array, keys: jax.Array, values: jax.Array, positions: jax.Array) -> jax.Array:
    """Causal attention. q: [B,T,H,K], keys and values: [B,S,G,K], positions of q: [T]."""
    grouped = q.reshape(*q.shape[:2], keys.shape[2], -1, q.shape[3])
    logits = jnp.einsum("btgrk,bsgk->bgrts", grouped, keys, preferred_element_type=jnp.float32)
    visible = positions[:, None] >= jnp.arange(keys.shape[1])
    logits = jnp.where(visible, logits * q.shape[3] ** -0.5, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(q.dtype)
    return jnp.einsum("bgrts,bsgk->btgrk", weights, values).reshape(q.shape)


def prefill(config: Config, params: Any, cache: Any, tokens: jax.Array) -> tuple[jax.Array, Any]:
    """Appends tokens i32[B,T] to the cache, and gives the last one's logits f32[B,V].

    The caller keeps cache["position"] + T <= S: a write past the end would land before it.
    """
    start, length = cache["position"], tokens.shape[1]
    positions = start + jnp.arange(length)
    frequencies = config.theta ** -jnp.arange(0, 1, 2 / config.d_head)
    angles = positions[:, None, None] * frequencies

    def block(x: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        layer, keys, values = state
        normed = rms_norm(x, layer["attention_norm"], config.epsilon)
        q = rotate(jnp.einsum("btd,dhk->bthk", normed, layer["wq"]), angles)
        k = rotate(jnp.einsum("btd,dgk->btgk", normed, layer["wk"]), angles)
        v = jnp.einsum("btd,dgk->btgk", normed, layer["wv"])
        keys = jax.lax.dynamic_update_slice(keys, k, (0, start, 0, 0))
        values = jax.lax.dynamic_update_slice(values, v, (0, start, 0, 0))
        mixed = attend(q, keys, values, positions)
        x = x + jnp.einsum("bthk,hkd->btd", mixed, layer["wo"])
        normed = rms_norm(x, layer["ffn_norm"], config.epsilon)
        gate = jnp.einsum("btd,df->btf", normed, layer["w_gate"])
        up = jnp.einsum("btd,df->btf", normed, layer["w_up"])
        x = x + jnp.einsum("btf,fd->btd", jax.nn.silu(gate) * up, layer["w_down"])
        return x, (keys, values)

    x = params["embedding"][tokens]
    x, (keys, values) = over_layers(block, x, (params["layers"], cache["k"], cache["v"]))
    x = rms_norm(x[:, -1], params["final_norm"], config.epsilon)
    logits = jnp.einsum("bd,dv->bv", x, params["head"], preferred_element_type=jnp.float32)
    return logits, {"k": keys, "v": values, "position": start + length}


def decode_step(config: Config, params: Any, cache: Any, tokens: jax.Array) -> tuple[jax.Array, Any]:
    """A prefill of one token per sequence. tokens: i32[B]."""
    return prefill(config, params, cache, tokens[:, None])


def over_layers(block: Any, x: jax.Array, state: Any) -> tuple[jax.Array, Any]:
    """jax.lax.scan over a state stacked by layer; the same, unrolled, over lists of layers."""
    if not isinstance(state[0], list):
        return jax.lax.scan(block, x, state)
    updates = []
    for each in zip(*state):
        x, update = block(x, each)
        updates.append(update)
    return x, tuple(map(list, zip(*updates)))


def init_params(config: Config, key: jax.Array, unrolled: bool = False) -> Any:
    """Random weights, norm scales included: scales of one would hide a scale left out."""

    def draw(table: Any, key: jax.Array, lead: str = "") -> dict[str, jax.Array]:
        shapes = {name: config.shape(lead + ins + outs) for name, (ins, outs, _) in table.items()}
        keys = jax.random.split(key, len(shapes))
        noise = {name: jax.random.normal(k, shape) * config.d_model**-0.5
    return
