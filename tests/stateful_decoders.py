"""Layers with a state that is no attention, in plain JAX; alone and beside attention.

A layer takes (weights, state, x) with x: [b, d], and gives (x, state).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def joint_state_space(w: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
    """Mamba 2 (Dao & Gu 2024): one product gives z, x, B, C and the rates of the heads, of which a
    convolution mixes x, B and C with those before them."""
    batch, heads, width, n = state["memory"].shape
    f = heads * width
    z, xbc, rate = jnp.split(norm(x) @ w["into"], [f, 2 * f + 2 * n], -1)
    seen = jnp.concatenate([state["conv"].transpose(0, 2, 1), xbc[:, None]], 1)
    mixed = jax.lax.conv_general_dilated(
        seen,
        w["conv"],
        (1,),
        "VALID",
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=f + 2 * n,
    )
    inner, b, c = jnp.split(jax.nn.silu(mixed[:, 0] + w["bias"]), [f, f + n], -1)
    inner, rate = inner.reshape(batch, heads, width), jax.nn.softplus(rate + w["rate"])
    memory = state["memory"] * jnp.exp(-rate * jnp.exp(w["a"]))[..., None, None]
    memory = memory + (rate[..., None] * inner)[..., None] * b[:, None, None]
    out = (jnp.einsum("bhkn,bn->bhk", memory, c) + w["d"][:, None] * inner).reshape(batch, f)
    x = x + (norm(out * jax.nn.silu(z)) * w["norm"]) @ w["out"]
    return x, {"conv": seen[:, 1:].transpose(0, 2, 1), "memory": memory}


def receptance(w: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
    """RWKV: time mix (Peng et al. 2023, arXiv:2305.13048, section 3), and channel mix without a
    gate (RWKV-7, Peng et al. 2025, arXiv:2503.14456).

    Both see the input of the step before, and keep this one. A mean of all values, weighted by
    keys that decay, is a numerator and a denominator over the largest weight's power of e.
    """
    now, before = norm(x), state["time"]
    r, k, v = (
        (now * w[f"mix {name}"] + before * (1 - w[f"mix {name}"])) @ w[name] for name in "rkv"
    )
    top, new = state["top"], jnp.maximum(state["top"], k + w["first"])
    old, own = jnp.exp(top - new), jnp.exp(k + w["first"] - new)
    mean = (old * state["sum"] + own * v) / (old * state["weights"] + own)
    x = x + (jax.nn.sigmoid(r) * mean) @ w["o"]
    decayed = top - jnp.exp(w["decay"])
    top = jnp.maximum(decayed, k)
    old, own = jnp.exp(decayed - top), jnp.exp(k - top)
    kept = {"time": now, "sum": old * state["sum"] + own * v}
    kept |= {"weights": old * state["weights"] + own, "top": top}
    now, before = norm(x), state["channel"]
    hidden = jax.nn.relu((now * w["mix up"] + before * (1 - w["mix up"])) @ w["up"])
    return x + jnp.square(hidden) @ w["down"], kept | {"channel": now}


def layers(
    batch: int, d: int, f: int, h: int, k: int, n: int
) -> dict[str, tuple[Layer, dict[str, tuple[int, ...]], Any]]:
    """Every kind of layer, with the shapes of its weights and of its state at these sizes."""
    network_ = {"gate": (d, f), "up": (d, f), "down": (f, d)}
    heads = {name: (d, h, k) for name in "qkv"} | {"o": (h, k, d)} | network_
    mixed = f + 2 * n
    return {
        "attention": (attention, heads, {name: (batch, CONTEXT, h, k) for name in "kv"}),
        "linear attention": (linear_attention, heads | {"decay": (h,)}, (batch, h, k, k)),
        "delta rule": (
            delta_rule,
            heads | {name: (d, h) for name in ("rate", "keep")},
            (batch, h, k, k),
        ),
        "state space": (
            state_space,
            {"into": (d, 2 * f), "conv": (WIDTH, f), "rate": (f,), "a": (f, n), "b": (f, n)}
            | {"c": (f, n), "out": (f, d)},
            {"conv": (batch, WIDTH, f), "memory": (batch, f, n)},
        ),
        "joint state space": (
            joint_state_space,
            {"into": (d, f + mixed + h), "conv": (WIDTH, 1, mixed), "bias": (mixed,)}
            | {"norm": (f,), "out": (f, d)}
            | {name: (h,) for name in ("rate", "a", "d")},
            {"conv": (batch, mixed, WIDTH - 1), "memory": (batch, h, f // h, n)},
        ),
        "gated recurrence": (
            gated_recurrence,
            {"into": (d, f), "beside": (d, f), "out": (f, d)}
            | {name: (f,) for name in ("decay", "recur", "input")}
            | network_,
            (batch, f),
        ),
        "receptance": (
            receptance,
            {name: (d, f) for name in "rkv"}
            | {"o": (f, d), "up": (d, f), "down": (f, d)}
            | {f"mix {name}": (d,) for name in ("r", "k", "v", "up")}
            | {name: (f,) for name in ("first", "decay")},
            {name: (batch, d) for name in ("time", "channel")}
            | {name: (batch, f) for name in ("sum", "weights", "top")},
        ),
    }


LAYERS = layers(BATCH, D, F, H, K, N)


def decoder(*kinds: str) -> Callable[..., Any]:
    """`step(params, state, tokens)` of these layers in turn."""

    def step(params: Any, state: Any, tokens: jax.Array) -> Any:
        x, new = params["embedding"][tokens], []
        for kind, w, own in zip(kinds, params["layers"], state):
            x, own = LAYERS[kind][0](w, own, x)
            new.append(own)
        return norm(x) @ params["embedding"].T, new

    return step


def shapes(*kinds: str, sizes: Sequence[int], vocab: int) -> tuple[Any, Any, Any]:
    """Parameters, state and tokens of such a decoder, as shapes, for the sizes of `layers`."""
    known, (batch, d, *_) = layers(*sizes), sizes

    def of(shapes: Any) -> Any:
        is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x, "float32"), shapes, is_leaf=is_shape)

    params = {"embedding": of((vocab, d)), "layers": [of(known[kind][1]) for kind in kinds]}
    state = [of(known[kind][2]) for kind in kinds]
    return params, state, jax.ShapeDtypeStruct((batch,), "int32")


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
