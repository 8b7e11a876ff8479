"""Layers with a state that is no attention, in plain JAX; alone and beside attention.

A layer takes (weights, state, x) with x: [b, d], and gives (x, state).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

BATCH, D, F, H, K, N, CONTEXT, VOCAB, WIDTH = 8, 32, 64, 8, 4, 4, 16, 96, 4
Layer = Callable[[Any, Any, jax.Array], tuple[jax.Array, Any]]


def norm(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def network(w: Any, x: jax.Array) -> jax.Array:
    hidden = norm(x)
    return x + (jax.nn.silu(hidden @ w["gate"]) * (hidden @ w["up"])) @ w["down"]


def attention(w: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
    q, k, v = (jnp.einsum("bd,dhk->bhk", norm(x), w[name]) for name in "qkv")
    at = state["position"]
    keys = jax.lax.dynamic_update_slice(state["k"], k[:, None], (0, at, 0, 0))
    values = jax.lax.dynamic_update_slice(state["v"], v[:, None], (0, at, 0, 0))
    logits = jnp.einsum("bhk,bshk->bhs", q, keys) * K**-0.5
    shares = jax.nn.softmax(jnp.where(jnp.arange(CONTEXT) <= at, logits, -jnp.inf), -1)
    x = x + jnp.einsum("bhs,bshk,hkd->bd", shares, values, w["o"])
    return network(w, x), {"k": keys, "v": values, "position": at + 1}


def linear_attention(w: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
    """Katharopoulos et al. 2020, with a decay per head (RetNet, Sun et al. 2023)."""
    q, k, v = (jnp.einsum("bd,dhk->bhk", norm(x), w[name]) for name in "qkv")
    memory = state * jax.nn.sigmoid(w["decay"])[:, None, None] + k[..., None] * v[..., None, :]
    x = x + jnp.einsum("bhk,bhkv,hvd->bd", q, memory, w["o"])
    return network(w, x), memory


def delta_rule(w: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
    """Gated DeltaNet (Yang et al. 2024): S (decay I - b k k') + b v k'."""
    normed = norm(x)
    q, k, v = (jnp.einsum("bd,dhk->bhk", normed, w[name]) for name in "qkv")
    k = k * jax.lax.rsqrt(jnp.sum(k * k, -1, keepdims=True) + 1e-6)
    rate, decay = (jax.nn.sigmoid(normed @ w[name])[..., None, None] for name in ("rate", "keep"))
    old = state * decay
    held = jnp.einsum("bhkv,bhk->bhv", old, k)
    memory = old + rate * k[..., None] * (v - held)[..., None, :]
    x = x + jnp.einsum("bhk,bhkv,hvd->bd", q, memory, w["o"])
    return network(w, x), memory


def state_space(w: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
    """Mamba (Gu & Dao 2023): a convolution over the last inputs, then a selective state."""
    inner, gate = jnp.split(norm(x) @ w["into"], 2, -1)
    seen = jnp.concatenate([state["conv"][:, 1:], inner[:, None]], 1)
    inner = jax.nn.silu(jnp.einsum("bwf,wf->bf", seen, w["conv"]))
    rate = jax.nn.softplus(inner * w["rate"])[..., None]
    memory = state["memory"] * jnp.exp(-rate * jnp.exp(w["a"]))
    memory = memory + rate * (inner @ w["b"])[:, None] * inner[..., None]
    mixed = jnp.einsum("bfn,bn->bf", memory, inner @ w["c"]) * jax.nn.silu(gate)
    return x + mixed @ w["out"], {"conv": seen, "memory": memory}


def gated_recurrence(w: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
    """RG-LRU (Griffin, De et al. 2024, section 2.4) between two projections."""
    normed = norm(x)
    inner, beside = normed @ w["into"], jax.nn.gelu(normed @ w["beside"])
    log_decay = -8.0 * jax.nn.softplus(w["decay"]) * jax.nn.sigmoid(inner * w["recur"])
    decay = jnp.exp(log_decay)
    given = jnp.sqrt(1 - jnp.exp(2 * log_decay)) * jax.nn.sigmoid(inner * w["input"]) * inner
    memory = decay * state + given
    return network(w, x + (memory * beside) @ w["out"]), memory


_NETWORK = {"gate": (D, F), "up": (D, F), "down": (F, D)}
_HEADS = {name: (D, H, K) for name in "qkv"} | {"o": (H, K, D)} | _NETWORK
LAYERS: dict[str, tuple[Layer, dict[str, tuple[int, ...]], Any]] = {
    "attention": (attention, _HEADS, {name: (BATCH, CONTEXT, H, K) for name in "kv"}),
    "linear attention": (linear_attention, _HEADS | {"decay": (H,)}, (BATCH, H, K, K)),
    "delta rule": (
        delta_rule,
        _HEADS | {name: (D, H) for name in ("rate", "keep")},
        (BATCH, H, K, K),
    ),
    "state space": (
        state_space,
        {"into": (D, 2 * F), "conv": (WIDTH, F), "rate": (F,), "a": (F, N), "b": (F, N)}
        | {"c": (F, N), "out": (F, D)},
        {"conv": (BATCH, WIDTH, F), "memory": (BATCH, F, N)},
    ),
    "gated recurrence": (
        gated_recurrence,
        {"into": (D, F), "beside": (D, F), "out": (F, D)}
        | {name: (F,) for name in ("decay", "recur", "input")}
        | _NETWORK,
        (BATCH, F),
    ),
}


def decoder(*kinds: str) -> Callable[..., Any]:
    """`step(params, state, tokens)` of these layers in turn."""

    def step(params: Any, state: Any, tokens: jax.Array) -> Any:
        x, new = params["embedding"][tokens], []
        for kind, w, own in zip(kinds, params["layers"], state):
            x, own = LAYERS[kind][0](w, own, x)
            new.append(own)
        return norm(x) @ params["embedding"].T, new

    return step


def arguments(*kinds: str, seed: int = 0) -> tuple[Any, Any, jax.Array]:
    """Parameters, state and tokens of such a decoder."""
    random = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...]) -> jax.Array:
        return jnp.asarray(random.standard_normal(shape) * D**-0.5, "float32")

    def drawn(shapes: Any) -> Any:
        return jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))

    params = {"embedding": draw((VOCAB, D)), "layers": [drawn(LAYERS[kind][1]) for kind in kinds]}
    state = [drawn(LAYERS[kind][2]) for kind in kinds]
    for kind, own in zip(kinds, state):
        if kind == "attention":
            own["position"] = jnp.int32(3)
    return params, state, jnp.arange(BATCH, dtype=jnp.int32) * 7 % VOCAB
