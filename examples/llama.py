"""Llama 3 (arXiv:2407.21783): serial blocks, grouped-query attention, rotary positions, SwiGLU.

Axes: B batch, T new tokens, S context, R query heads per key-value head, and those of Config.
"""

from dataclasses import astuple, dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


@dataclass(frozen=True)
class Config:
    layers: int  # L
    d_model: int  # D
    heads: int  # H, of the queries
    kv_heads: int  # G
    d_head: int  # K
    d_ff: int  # F
    vocab: int  # V
    theta: float = 500_000.0  # unscaled, as in Llama 3.0
    dtype: str = "bfloat16"

    def shape(self, axes: str) -> tuple[int, ...]:
        return tuple(astuple(self)["LDHGKFV".index(axis)] for axis in axes)


CONFIGS = {
    "toy": Config(3, 64, 16, 8, 8, 256, 256, dtype="float32"),
    "8b": Config(32, 4096, 32, 8, 128, 14336, 128256),
    "70b": Config(80, 8192, 64, 8, 128, 28672, 128256),
}
# Each parameter's axes, those it is summed over first, and its names in files of Hugging Face and
# GGUF, from which checkpoint.py reads them.
PARAMS = {
    "embedding": "VD model.embed_tokens token_embd", "final_norm": "D model.norm output_norm",
    "head": "D V lm_head output",
    "layers": {
        "attention_norm": "L D input_layernorm attn_norm",
        "wq": "L D HK self_attn.q_proj attn_q", "wk": "L D GK self_attn.k_proj attn_k",
        "wv": "L D GK self_attn.v_proj attn_v", "wo": "L HK D self_attn.o_proj attn_output",
        "ffn_norm": "L D post_attention_layernorm ffn_norm",
        "w_gate": "L D F mlp.gate_proj ffn_gate", "w_up": "L D F mlp.up_proj ffn_up",
        "w_down": "L F D mlp.down_proj ffn_down",
    },
}


def rms_norm(x: Array, scale: Array, epsilon: float = 1e-5) -> Array:
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(mean_square + epsilon) * scale).astype(x.dtype)


def rotate(x: Array, angles: Array) -> Array:
    """Rotary positions (arXiv:2104.09864), half-split. x: [B,T,heads,K], angles: f32[T,1,K/2]."""
    low, high = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], -1).astype(x.dtype)


def prefill(config: Config, params: Any, cache: Any, tokens: Array) -> tuple[Array, Any]:
    """Logits f32[B,V] after the last of tokens i32[B,T], for which the cache must have room."""
    start, length = cache["position"], tokens.shape[1]
    positions = start + jnp.arange(length)
    angles = positions[:, None, None] * config.theta ** -jnp.arange(0, 1, 2 / config.d_head)

    def block(x: Array, state: Any) -> tuple[Array, Any]:
        layer, keys, values = state
        normed = rms_norm(x, layer["attention_norm"])
        q = rotate(jnp.einsum("btd,dhk->bthk", normed, layer["wq"]), angles)
        k = rotate(jnp.einsum("btd,dgk->btgk", normed, layer["wk"]), angles)
        v = jnp.einsum("btd,dgk->btgk", normed, layer["wv"])
        keys = jax.lax.dynamic_update_slice(keys, k, (0, start, 0, 0))
        values = jax.lax.dynamic_update_slice(values, v, (0, start, 0, 0))
        grouped = q.reshape(*tokens.shape, config.kv_heads, -1, config.d_head)
        logits = jnp.einsum("btgrk,bsgk->bgrts", grouped, keys, preferred_element_type=jnp.float32)
        visible = positions[:, None] >= jnp.arange(keys.shape[1])
        logits = jnp.where(visible, logits * config.d_head**-0.5, -jnp.inf)
        weights = jax.nn.softmax(logits, axis=-1).astype(x.dtype)
        mixed = jnp.einsum("bgrts,bsgk->btgrk", weights, values).reshape(q.shape)
        x = x + jnp.einsum("bthk,hkd->btd", mixed, layer["wo"])
        normed = rms_norm(x, layer["ffn_norm"])
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
    x = rms_norm(x[:, -1], params["final_norm"])
    logits = jnp.einsum("bd,dv->bv", x, params["head"], preferred_element_type=jnp.float32)
    return logits, {"k": keys, "v": values, "position": start + length}


def decode_step(config: Config, params: Any, cache: Any, tokens: Array) -> tuple[Array, Any]:
    """A prefill of one token i32[B] per sequence."""
    return prefill(config, params, cache, tokens[:, None])


def init_params(config: Config, key: Array, unrolled: bool = False) -> Any:
    """Random weights. The norms' scales vary too, so that a test notices when one is lost."""

    def draw(spec: str, key: Array) -> Array:
        *axes, name, _ = spec.split()
        noise = jax.random.normal(key, config.shape("".join(axes)), config.dtype)
        return noise * config.d_model**-0.5 + name.endswith("norm")

    specs, tree = jax.tree.flatten(PARAMS)
    params = jax.tree.unflatten(tree, map(draw, specs, jax.random.split(key, len(specs))))
    if unrolled:
        stacked = params["layers"]
        params["layers"] = [dict(zip(stacked, each)) for each in zip(*stacked.values())]
    return params


def init_cache(config: Config, batch: int, context: int, unrolled: bool = False) -> Any:
    shape = (config.layers, batch, context, config.kv_heads, config.d_head)
    form = list if unrolled else jnp.asarray
    return {"position": jnp.int32(0)} | {key: form(jnp.zeros(shape, config.dtype)) for key in "kv"}
