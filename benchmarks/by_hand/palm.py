"""examples/palm.py as one would write it to lay it out by hand: the same step, with named points.

`constrain(value, "group: axes")` stands wherever a layout may be said. The cache is carried through
the scan whole, and written in place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from examples.palm import CONFIGS, Config, init_cache, init_params, rms_norm, rotate

__all__ = ["CACHE", "CONFIGS", "LOGITS", "PARAMS", "prefill", "shapes"]

PARAMS = {
    "embedding": "tables: vocab d_model",
    "final_norm": "norms: d_model",
    "layers": {
        "norm": "norms: layers d_model",
        "wq": "weights: layers d_model heads d_head",
        "wk": "weights: layers d_model d_head",
        "wv": "weights: layers d_model d_head",
        "wo": "weights: layers heads d_head d_model",
        "w_gate": "weights: layers d_model d_ff",
        "w_up": "weights: layers d_model d_ff",
        "w_down": "weights: layers d_ff d_model",
    },
}
_CACHED = "layers batch context d_head"
CACHE = {"position": "cache:", "k": f"cache: {_CACHED}", "v": f"cache: {_CACHED}"}
LOGITS = "logits: batch vocab"
_STREAM = "batch time d_model"


def shapes(config: Config, batch: int, context: int) -> tuple[Any, Any]:
    """Parameters and cache."""
    params = jax.eval_shape(partial(init_params, config), jax.random.key(0))
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
    angles = positions[:, None] * config.theta ** -jnp.arange(0, 1, 2 / config.d_head)

    def written(stack: Array, number: Array, new: Array) -> tuple[Array, Array]:
        """The caches of all layers, updated in place, and this layer's."""
        new = constrain(constrain(new, "moved: batch time d_head"), "kept: batch time d_head")
        stack = jax.lax.dynamic_update_slice(stack, new[None], (number, 0, start, 0))
        stack = constrain(stack, f"kept: {_CACHED}")
        own = jax.lax.dynamic_index_in_dim(stack, number, keepdims=False)
        return stack, constrain(own, "kept: batch context d_head")

    def block(carry: Any, scanned: Any) -> tuple[Any, None]:
        (x, keys, values), (number, layer) = carry, scanned

        def weight(name: str) -> Array:
            return constrain(layer[name], _used(PARAMS["layers"][name]))

        normed = constrain(rms_norm(x, layer["norm"]), f"normed: {_STREAM}")
        heads = "batch time heads d_head"
        q = constrain(jnp.einsum("btd,dhk->bthk", normed, weight("wq")), f"query: {heads}")
        k = constrain(jnp.einsum("btd,dk->btk", normed, weight("wk")), "key: batch time d_head")
        v = constrain(jnp.einsum("btd,dk->btk", normed, weight("wv")), "key: batch time d_head")
        q = constrain(rotate(q, angles[:, None]), f"moved: {heads}")
        q = constrain(q, f"attention: {heads}")
        keys, own_keys = written(keys, number, rotate(k, angles))
        values, own_values = written(values, number, v)
        scores = jnp.einsum("bthk,bsk->bhts", q, own_keys, preferred_element_type=jnp.float32)
        visible = positions[:, None] >= jnp.arange(own_keys.shape[1])
        scores = jnp.where(visible, scores * config.d_head**-0.5, -jnp.inf)
        shares = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        mixed = jnp.einsum("bhts,bsk->bthk", shares, own_values)
        mixed = constrain(constrain(mixed, f"attention: {heads}"), f"moved: {heads}")
        mixed = constrain(mixed, f"merged: {heads}")
        gate = jnp.einsum("btd,df->btf", normed, weight("w_gate"))
        up = jnp.einsum("btd,df->btf", normed, weight("w_up"))
        gate = constrain(gate, "hidden: batch time d_ff")
        up = constrain(up, "hidden: batch time d_ff")
        inner = constrain(jax.nn.silu(gate) * up, "merged: batch time d_ff")
        out = jnp.einsum("bthk,hkd->btd", mixed, weight("wo"))
        out += jnp.einsum("btf,fd->btd", inner, weight("w_down"))
        x = constrain(x + constrain(out, f"residual: {_STREAM}"), f"residual: {_STREAM}")
        return (x, keys, values), None

    x = constrain(params["embedding"][tokens], f"rows: {_STREAM}")
    x = constrain(x, f"residual: {_STREAM}")
    scanned = jnp.arange(config.layers), params["layers"]
    (x, keys, values), _ = jax.lax.scan(block, (x, cache["k"], cache["v"]), scanned)
    x = constrain(rms_norm(x[:, -1], params["final_norm"]), "last: batch d_model")
    logits = jnp.einsum("bd,vd->bv", x, params["embedding"], preferred_element_type=jnp.float32)
    return logits * config.d_model**-0.5, {"k": keys, "v": values, "position": start + length}


def _used(weight: str) -> str:
    """One layer of a weight, as products read it."""
    return weight.replace("weights: layers", "used:")
