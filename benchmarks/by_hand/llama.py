"""examples/llama.py as one would write it to lay it out by hand: the same step, with named points.

`constrain(value, "group: axes")` stands wherever a layout may be said. The cache is carried through
the scan whole, and written in place. Query heads are kept as [kv_heads, q_per_kv], since only so
can both be split over different mesh axes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from examples.llama import CONFIGS, Config, init_cache, init_params, rms_norm, rotate

__all__ = ["CACHE", "CONFIGS", "LOGITS", "PARAMS", "prefill", "shapes"]

PARAMS = {
    "embedding": "tables: vocab d_model",
    "final_norm": "norms: d_model",
    "head": "tables: d_model vocab",
    "layers": {
        "attention_norm": "norms: layers d_model",
        "ffn_norm": "norms: layers d_model",
        "wq": "weights: layers d_model kv_heads q_per_kv d_head",
        "wk": "weights: layers d_model kv_heads d_head",
        "wv": "weights: layers d_model kv_heads d_head",
        "wo": "weights: layers kv_heads q_per_kv d_head d_model",
        "w_gate": "weights: layers d_model d_ff",
        "w_up": "weights: layers d_model d_ff",
        "w_down": "weights: layers d_ff d_model",
    },
}
_CACHED = "layers batch context kv_heads d_head"
CACHE = {"position": "cache:", "k": f"cache: {_CACHED}", "v": f"cache: {_CACHED}"}
LOGITS = "logits: batch vocab"
_STREAM = "batch time d_model"
_QUERIES, _KEYS = "batch time kv_heads q_per_kv d_head", "batch time kv_heads d_head"


def shapes(config: Config, batch: int, context: int) -> tuple[Any, Any]:
    """Parameters and cache."""
    params = jax.eval_shape(partial(init_params, config), jax.random.key(0))
    layers = params["layers"]
    for name, heads_at in (("wq", 2), ("wo", 1)):
        shape = list(layers[name].shape)
        shape[heads_at : heads_at + 1] = config.kv_heads, config.heads // config.kv_heads
        layers[name] = jax.ShapeDtypeStruct(tuple(shape), layers[name].dtype)
    return params, jax.eval_shape(lambda: init_cache(config, batch, context))


def prefill(
    config: Config,
    constrain: Callable[[Array, str], Array],
    params: Any,
    cache: Any,
    tokens: Array,
) -> tuple[Array, Any]:
    """Logits f32[B,V] after the last of tokens i32[B,T], for which the cache must have room."""
    start, length = cache["position"], tokens.shape[1]
    positions = start + jnp.arange(length)
    angles = positions[:, None, None] * config.theta ** -jnp.arange(0, 1, 2 / config.d_head)

    def written(stack: Array, number: Array, new: Array) -> tuple[Array, Array]:
        """The caches of all layers, updated in place, and this layer's."""
        new = constrain(constrain(new, f"moved: {_KEYS}"), f"kept: {_KEYS}")
        stack = jax.lax.dynamic_update_slice(stack, new[None], (number, 0, start, 0, 0))
        stack = constrain(stack, f"kept: {_CACHED}")
        own = jax.lax.dynamic_index_in_dim(stack, number, keepdims=False)
        return stack, constrain(own, "kept: batch context kv_heads d_head")

    def block(carry: Any, scanned: Any) -> tuple[Any, None]:
        (x, keys, values), (number, layer) = carry, scanned

        def weight(name: str) -> Array:
            return constrain(layer[name], _used(PARAMS["layers"][name]))

        def added(x: Array, out: Array) -> Array:
            return constrain(x + constrain(out, f"residual: {_STREAM}"), f"residual: {_STREAM}")

        normed = constrain(rms_norm(x, layer["attention_norm"]), f"normed: {_STREAM}")
        q = constrain(jnp.einsum("btd,dgrk->btgrk", normed, weight("wq")), f"query: {_QUERIES}")
        k = constrain(jnp.einsum("btd,dgk->btgk", normed, weight("wk")), f"key: {_KEYS}")
        v = constrain(jnp.einsum("btd,dgk->btgk", normed, weight("wv")), f"key: {_KEYS}")
        q = constrain(rotate(q, angles[:, None]), f"moved: {_QUERIES}")
        q = constrain(q, f"attention: {_QUERIES}")
        keys, own_keys = written(keys, number, rotate(k, angles))
        values, own_values = written(values, number, v)
        scores = jnp.einsum("btgrk,bsgk->bgrts", q, own_keys, preferred_element_type=jnp.float32)
        visible = positions[:, None] >= jnp.arange(own_keys.shape[1])
        scores = jnp.where(visible, scores * config.d_head**-0.5, -jnp.inf)
        shares = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        mixed = jnp.einsum("bgrts,bsgk->btgrk", shares, own_values)
        mixed = constrain(constrain(mixed, f"attention: {_QUERIES}"), f"moved: {_QUERIES}")
        mixed = constrain(mixed, f"merged: {_QUERIES}")
        x = added(x, jnp.einsum("btgrk,grkd->btd", mixed, weight("wo")))
        normed = constrain(rms_norm(x, layer["ffn_norm"]), f"normed: {_STREAM}")
        gate = jnp.einsum("btd,df->btf", normed, weight("w_gate"))
        up = jnp.einsum("btd,df->btf", normed, weight("w_up"))
        gate = constrain(gate, "hidden: batch time d_ff")
        up = constrain(up, "hidden: batch time d_ff")
        inner = constrain(jax.nn.silu(gate) * up, "merged: batch time d_ff")
        x = added(x, jnp.einsum("btf,fd->btd", inner, weight("w_down")))
        return (x, keys, values), None

    x = constrain(params["embedding"][tokens], f"rows: {_STREAM}")
    x = constrain(x, f"residual: {_STREAM}")
    scanned = jnp.arange(config.layers), params["layers"]
    (x, keys, values), _ = jax.lax.scan(block, (x, cache["k"], cache["v"]), scanned)
    x = constrain(rms_norm(x[:, -1], params["final_norm"]), "last: batch d_model")
    logits = jnp.einsum("bd,dv->bv", x, params["head"], preferred_element_type=jnp.float32)
    return logits, {"k": keys, "v": values, "position": start + length}


def _used(weight: str) -> str:
    """One layer of a weight, as products read it."""
    return weight.replace("weights: layers", "used:")
