"""A decoder as Pythia's (GPT-NeoX): parallel blocks with two norms, biases, a rope over a quarter.

x + attention(norm(x)) + mlp(norm'(x)), layers stacked, multi-head, its head untied. Plain JAX.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Config:
    layers: int = 2
    d_model: int = 16
    heads: int = 2
    d_ff: int = 64
    vocab: int = 32

    @property
    def d_head(self) -> int:
        return self.d_model // self.heads


PYTHIA_6_9B = Config(layers=32, d_model=4096, heads=32, d_ff=16384, vocab=50400)


def init_params(config: Config, key: jax.Array) -> Any:
    layers, d, f = config.layers, config.d_model, config.d_ff
    heads = (config.heads, config.d_head)
    shapes = {
        **{name: (layers, d) for name in ("norm", "norm_bias", "norm2", "norm2_bias", "bo")},
        **{name: (layers, d, *heads) for name in ("wq", "wk", "wv")},
        **{name: (layers, *heads) for name in ("bq", "bk", "bv")},
        **{"wo": (layers, *heads, d), "w_in": (layers, d, f), "b_in": (layers, f)},
        **{"w_out": (layers, f, d), "b_out": (layers, d)},
    }
    keys = iter(jax.random.split(key, len(shapes) + 3))
    made = {name: 0.1 * jax.random.normal(next(keys), shape) for name, shape in shapes.items()}
    table, final, head = ((config.vocab, d), (2, d), (d, config.vocab))
    return {
        "layers": made,
        "embedding": jax.random.normal(next(keys), table),
        "final": jax.random.normal(next(keys), final),
        "head": jax.random.normal(next(keys), head),
    }


def init_cache(config: Config, batch: int, context: int) -> Any:
    shape = (config.layers, batch, context, config.heads, config.d_head)
    return {"k": jnp.zeros(shape), "v": jnp.zeros(shape), "position": jnp.zeros((), jnp.int32)}


def decode_step(config: Config, params: Any, cache: Any, tokens: jax.Array) -> Any:
    """tokens: i32[b] -> logits f32[b, v] and the cache one position longer."""
    position = cache["position"]
    x = params["embedding"][tokens]
    context = cache["k"].shape[2]

    def layer(x: jax.Array, each: Any) -> Any:
        p, k, v = each
        y = _norm(x, p["norm"], p["norm_bias"])
        q = _rope(jnp.einsum("bd,dhk->bhk", y, p["wq"]) + p["bq"], position)
        new = _rope(jnp.einsum("bd,dhk->bhk", y, p["wk"]) + p["bk"], position)
        k = jax.lax.dynamic_update_slice_in_dim(k, new[:, None], position, 1)
        new = jnp.einsum("bd,dhk->bhk", y, p["wv"]) + p["bv"]
        v = jax.lax.dynamic_update_slice_in_dim(v, new[:, None], position, 1)
        scores = jnp.einsum("bhk,bshk->bhs", q, k) / config.d_head**0.5
        scores = jnp.where(jnp.arange(context) <= position, scores, -jnp.inf)
        attended = jnp.einsum("bhs,bshk->bhk", jax.nn.softmax(scores, axis=-1), v)
        attended = jnp.einsum("bhk,hkd->bd", attended, p["wo"]) + p["bo"]
        hidden = jax.nn.gelu(_norm(x, p["norm2"], p["norm2_bias"]) @ p["w_in"] + p["b_in"])
        return x + attended + (hidden @ p["w_out"] + p["b_out"]), (k, v)

    x, (k, v) = jax.lax.scan(layer, x, (params["layers"], cache["k"], cache["v"]))
    logits = _norm(x, *params["final"]) @ params["head"]
    return logits, {"k": k, "v": v, "position": position + 1}


def _norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    mean = jnp.mean(x, -1, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), -1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * scale + bias


def _rope(x: jax.Array, position: jax.Array) -> jax.Array:
    """Rotates the first quarter of the last axis."""
    turned = x.shape[-1] // 4
    angles = position * 10000.0 ** (-jnp.arange(turned // 2) * 2 / turned)
    one, other = jnp.split(x[..., :turned], 2, axis=-1)
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    return jnp.concatenate(
        [one * cos - other * sin, other * cos + one * sin, x[..., turned:]], axis=-1
    )
