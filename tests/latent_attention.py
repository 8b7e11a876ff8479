"""A decoder with latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1), in plain JAX.

Keys and values of all heads are expanded from one latent per position, which alone is cached; a
part of each key carries the rotary position and is shared by all heads. Three spellings of the
same function:

- `expanded`: keys and values are computed from the cache, and a key is its two parts side by side
- `summed`: the same, with logits that are a sum of two products
- `latent`: as DeepSeek serves it: queries and results go through the weights, the cache does not

Axes: B batch, T new positions, S context, and those of Config.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from examples.llama import rms_norm, rotate


@dataclass(frozen=True)
class Config:
    layers: int  # L
    d_model: int  # D
    heads: int  # H
    latent: int  # C, of keys and values
    latent_query: int  # Q
    nope: int  # N, of each head's query and key, without a position
    rope: int  # P, with one
    value: int  # U, of each head
    d_ff: int  # F
    vocab: int  # V
    dtype: str = "bfloat16"

    def shape(self, axes: str) -> tuple[int, ...]:
        return tuple(astuple(self)["LDHCQNPUFV".index(axis)] for axis in axes)


TINY = Config(2, 32, 8, 16, 24, 8, 4, 12, 64, 96, "float32")
# DeepSeek-V2 (table in its appendix), with dense networks and few layers.
V2 = Config(4, 5120, 128, 512, 1536, 128, 64, 128, 12288, 102400)
SPELLINGS = ("expanded", "summed", "latent")
PARAMS = {
    "embedding": "VD",
    "final_norm": "D",
    "head": "DV",
    "layers": {
        "attention_norm": "LD",
        "query_down": "LDQ",
        "query_norm": "LQ",
        "query_nope": "LQHN",
        "query_rope": "LQHP",
        "latent_down": "LDC",
        "latent_norm": "LC",
        "key_rope": "LDP",
        "key_up": "LCHN",
        "value_up": "LCHU",
        "out": "LHUD",
        "ffn_norm": "LD",
        "gate": "LDF",
        "up": "LDF",
        "down": "LFD",
    },
}


def prefill(
    config: Config, params: Any, cache: Any, tokens: Array, spelling: str = "expanded"
) -> tuple[Array, Any]:
    """Logits f32[B,V] after the last of tokens i32[B,T], for which the cache must have room."""
    start, length = cache["position"], tokens.shape[1]
    positions = start + jnp.arange(length)
    angles = positions[:, None, None] * 10_000.0 ** -jnp.arange(0, 1, 2 / config.rope)
    visible = positions[:, None] >= jnp.arange(cache["latent"][0].shape[1])
    scale = (config.nope + config.rope) ** -0.5

    def shares(logits: Array) -> Array:
        return jax.nn.softmax(jnp.where(visible, logits * scale, -jnp.inf), -1)

    def attend(layer: Any, nope: Array, rope: Array, latents: Array, keys: Array) -> Array:
        wide = {"preferred_element_type": jnp.float32}
        if spelling == "latent":
            inner = jnp.einsum("bthn,chn->bthc", nope, layer["key_up"])
            logits = jnp.einsum("bthc,bsc->bhts", inner, latents, **wide)
            logits += jnp.einsum("bthp,bsp->bhts", rope, keys, **wide)
            weights = shares(logits).astype(latents.dtype)
            mixed = jnp.einsum("bhts,bsc->bthc", weights, latents)
            return jnp.einsum("bthc,chu->bthu", mixed, layer["value_up"])
        expanded = jnp.einsum("bsc,chn->bshn", latents, layer["key_up"])
        values = jnp.einsum("bsc,chu->bshu", latents, layer["value_up"])
        if spelling == "summed":
            logits = jnp.einsum("bthn,bshn->bhts", nope, expanded, **wide)
            logits += jnp.einsum("bthp,bsp->bhts", rope, keys, **wide)
        else:
            shared = jnp.broadcast_to(keys[:, :, None], (*expanded.shape[:3], config.rope))
            query, key = (jnp.concatenate(x, -1) for x in ((nope, rope), (expanded, shared)))
            logits = jnp.einsum("bthk,bshk->bhts", query, key, **wide)
        return jnp.einsum("bhts,bshu->bthu", shares(logits).astype(values.dtype), values)

    def block(x: Array, state: Any) -> tuple[Array, Any]:
        layer, latents, keys = state
        normed = rms_norm(x, layer["attention_norm"])
        query = rms_norm(normed @ layer["query_down"], layer["query_norm"])
        nope = jnp.einsum("btq,qhn->bthn", query, layer["query_nope"])
        rope = rotate(jnp.einsum("btq,qhp->bthp", query, layer["query_rope"]), angles)
        latent = rms_norm(normed @ layer["latent_down"], layer["latent_norm"])
        key = rotate((normed @ layer["key_rope"])[:, :, None], angles)[:, :, 0]
        latents = jax.lax.dynamic_update_slice(latents, latent, (0, start, 0))
        keys = jax.lax.dynamic_update_slice(keys, key, (0, start, 0))
        mixed = attend(layer, nope, rope, latents, keys)
        x = x + jnp.einsum("bthu,hud->btd", mixed, layer["out"])
        normed = rms_norm(x, layer["ffn_norm"])
        hidden = jax.nn.silu(normed @ layer["gate"]) * (normed @ layer["up"])
        return x + hidden @ layer["down"], (latents, keys)

    x, layers = params["embedding"][tokens], params["layers"]
    x, (latents, keys) = jax.lax.scan(block, x, (layers, cache["latent"], cache["rope"]))
    x = rms_norm(x[:, -1], params["final_norm"])
    logits = jnp.einsum("bd,dv->bv", x, params["head"], preferred_element_type=jnp.float32)
    return logits, {"latent": latents, "rope": keys, "position": start + length}


def decode_step(
    config: Config, params: Any, cache: Any, tokens: Array, spelling: str = "expanded"
) -> tuple[Array, Any]:
    """A prefill of one token i32[B] per sequence."""
    return prefill(config, params, cache, tokens[:, None], spelling)


def init_params(config: Config, key: Array) -> Any:
    """Random weights, those of norms about one."""
    names, tree = jax.tree.flatten_with_path(PARAMS)
    keys = jax.random.split(key, len(names))

    def draw(path: Any, axes: str, key: Array) -> Array:
        noise = jax.random.normal(key, config.shape(axes), config.dtype) * config.d_model**-0.5
        return noise + path[-1].key.endswith("norm")

    return jax.tree.unflatten(
        tree, [draw(path, axes, key) for (path, axes), key in zip(names, keys)]
    )


def init_cache(config: Config, batch: int, context: int) -> Any:
    shape = (config.layers, batch, context)
    return {
        "position": jnp.int32(0),
        "latent": jnp.zeros((*shape, config.latent), config.dtype),
        "rope": jnp.zeros((*shape, config.rope), config.dtype),
    }
