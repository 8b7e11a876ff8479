"""A byte-level decoder of 0.9 M parameters, trained on the Python standard library's source.

Its two checkpoints were made by train.py, in the same folder. With them what a rewrite costs can
be measured:

    shardwright eval examples/tiny/model.py:decode_step --config mha -p "quantize{weights=int8}"

Axes: B batch, T new tokens, S context, R query heads per key-value head, and those of Config.
"""

import hashlib
import sysconfig
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Config:
    kv_heads: int  # G
    checkpoint: str  # the key-value heads in it are merged where it has more
    layers: int = 4  # L
    d_model: int = 128  # D
    heads: int = 8  # H, of the queries
    d_head: int = 16  # K
    d_ff: int = 384  # F
    vocab: int = 256  # V
    theta: float = 10_000.0
    dtype: str = "float32"

    def shape(self, axes: str) -> tuple[int, ...]:
        return tuple(astuple(self)["G_LDHKFV".index(axis)] for axis in axes)


CONFIGS = {
    "mha": Config(8, "mha.npz"),
    "merged": Config(1, "mha.npz"),  # multi-head to multiquery, as it is
    "mqa": Config(1, "mqa.npz"),  # and after a short uptraining
    "distilled": Config(8, "distilled.npz"),  # which train.py writes, for passes that are named
}
PARAMS = {
    "embedding": "VD", "final_norm": "D", "head": "DV",
    "layers": {
        "attention_norm": "LD", "ffn_norm": "LD",
        "wq": "LDHK", "wk": "LDGK", "wv": "LDGK", "wo": "LHKD",
        "w_gate": "LDF", "w_up": "LDF", "w_down": "LFD",
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
    """Logits f32[B,T,V] after each of tokens i32[B,T], for which the cache must have room."""
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
    x = rms_norm(x, params["final_norm"])
    logits = jnp.einsum("btd,dv->btv", x, params["head"], preferred_element_type=jnp.float32)
    return logits, {"k": keys, "v": values, "position": start + length}


def decode_step(config: Config, params: Any, cache: Any, tokens: Array) -> tuple[Array, Any]:
    """A prefill of one token i32[B] per sequence. Logits f32[B,V]."""
    logits, cache = prefill(config, params, cache, tokens[:, None])
    return logits[:, 0], cache


def init_params(config: Config, key: Array, unrolled: bool = False) -> Any:
    """Random weights, norms with scales of one: where training starts."""
    flat, tree = jax.tree.flatten_with_path(PARAMS)
    keys = jax.random.split(key, len(flat))
    params = [
        jnp.ones(config.shape(axes), config.dtype) if "norm" in path[-1].key
        else jax.random.normal(key, config.shape(axes), config.dtype) * config.d_model**-0.5
        for key, (path, axes) in zip(keys, flat)
    ]
    return _as_asked(jax.tree.unflatten(tree, params), unrolled)


def init_cache(config: Config, batch: int, context: int, unrolled: bool = False) -> Any:
    shape = (config.layers, batch, context, config.kv_heads, config.d_head)
    form = list if unrolled else jnp.asarray
    return {"position": jnp.int32(0)} | {key: form(jnp.zeros(shape, config.dtype)) for key in "kv"}


def trained_params(config: Config, unrolled: bool = False) -> Any:
    """The trained weights, their key-value heads merged to as many as the configuration has."""
    flat, tree = jax.tree.flatten_with_path(PARAMS)
    with np.load(FOLDER / config.checkpoint, allow_pickle=False) as file:
        found = [jnp.asarray(file[path[-1].key], config.dtype) for path, _ in flat]
    return _as_asked(merged(jax.tree.unflatten(tree, found), config.kv_heads), unrolled)


def merged(params: Any, kv_heads: int) -> Any:
    """The mean of each group of neighbouring key-value heads (GQA, arXiv:2305.13245, 2.1)."""

    def mean(weights: Array) -> Array:
        *rest, heads, d_head = weights.shape
        return weights.reshape(*rest, kv_heads, heads // kv_heads, d_head).mean(-2)

    layers = params["layers"]
    return params | {"layers": layers | {name: mean(layers[name]) for name in ("wk", "wv")}}


def _as_asked(params: Any, unrolled: bool) -> Any:
    if unrolled:
        stacked = params["layers"]
        params["layers"] = [dict(zip(stacked, each)) for each in zip(*stacked.values())]
    return params


# Its text.

SKIPPED = {
    *("test", "tests", "idle_test", "site-packages", "dist-packages"),
    *("encodings", "pydoc_data"),  # tables that no person wrote
}


def text(held_out: bool) -> bytes:
    """The Python files of the standard library, sorted: about one in 32, or all others.

    Which file is held out is told by its name, so that no Python trains on what another holds out.
    """
    root = Path(sysconfig.get_path("stdlib"))
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    chosen = [
        name for name in names
        if not SKIPPED & set(name.split("/"))
        and (hashlib.sha256(name.encode()).digest()[0] < 8) == held_out
    ]
    return b"\n".join((root / name).read_bytes() for name in chosen)


def held_out() -> bytes:
    return text(held_out=True)
