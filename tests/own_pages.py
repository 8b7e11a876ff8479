"""A decoder that keeps its caches in pages itself, with a table of its own, as people write it.

Every row is at a place of its own; its pages lie anywhere in the pools. Spellings:

- `heads first`: pools [P, K, page, H]; the pages that are read are transposed
- `places first`: pools [P, page, K, H], read by `jnp.take`
- `by page`: places first, and products over pages and their places, side by side
- `by row`: places first, and attention to one row under `jax.vmap`
- `slots`: places first, written as [P * page, K, H]
- `given`: places first; the caller says to which page and place a row is written
- `integers`: places first; each pool is one of integers and one of a scale for every head
- `scanned`, `carried`: pools [L, P, page, K, H], scanned by the loop over layers, or carried by it
- `stacked`: these pools, and layers that are written out

Axes: B batch, N pages of a row, P pages of a pool, and those of Config.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from examples.llama import rms_norm


@dataclass(frozen=True)
class Config:
    layers: int  # L
    d_model: int  # D
    heads: int  # Q
    kv_heads: int  # K
    d_head: int  # H
    d_ff: int  # F
    vocab: int  # V
    page: int
    dtype: str = "bfloat16"


TINY = Config(2, 16, 4, 2, 8, 32, 64, 4, "float32")
LLAMA_8B = Config(32, 4096, 32, 8, 128, 14336, 128256, 128)
ONE_POOL = ("scanned", "carried", "stacked")  # an array for the pools of all layers
LOOPED = ("scanned", "carried")
SPELLINGS = (
    "heads first",
    "places first",
    "by page",
    "by row",
    "slots",
    "given",
    "integers",
    *ONE_POOL,
)


def params_of(config: Config, spelling: str) -> dict[str, Any]:
    """The shapes of the parameters."""
    c = config
    layer = {
        "attention_norm": (c.d_model,),
        "ffn_norm": (c.d_model,),
        "query": (c.d_model, c.heads, c.d_head),
        "key": (c.d_model, c.kv_heads, c.d_head),
        "value": (c.d_model, c.kv_heads, c.d_head),
        "out": (c.heads, c.d_head, c.d_model),
        "gate": (c.d_model, c.d_ff),
        "up": (c.d_model, c.d_ff),
        "down": (c.d_ff, c.d_model),
    }

    def of(*front: int) -> dict[str, Any]:
        return {
            name: jax.ShapeDtypeStruct((*front, *shape), c.dtype) for name, shape in layer.items()
        }

    layers = of(c.layers) if spelling in LOOPED else [of() for _ in range(c.layers)]
    table = jax.ShapeDtypeStruct((c.vocab, c.d_model), c.dtype)
    return {"embedding": table, "norm": jax.ShapeDtypeStruct((c.d_model,), c.dtype)} | {
        "layers": layers
    }


def state_of(config: Config, spelling: str, rows: int, pages: int, count: int) -> dict[str, Any]:
    """The shapes of the state: `pages` of every row, `count` in a pool."""
    c = config
    page = (c.kv_heads, c.page) if spelling == "heads first" else (c.page, c.kv_heads)
    pool = (count, *page, c.d_head)
    stacked = (c.layers, *pool) if spelling in ONE_POOL else pool

    def pools() -> Any:
        array: Any = jax.ShapeDtypeStruct(stacked, c.dtype)
        if spelling == "integers":
            scales = jax.ShapeDtypeStruct(stacked[:-1], "float32")
            array = jax.ShapeDtypeStruct(stacked, "int8"), scales
        return array if spelling in ONE_POOL else [array] * c.layers

    numbers = {"position": (rows,), "table": (rows, pages)}
    if spelling == "given":
        numbers |= {"page": (rows,), "place": (rows,)}
    state = {name: jax.ShapeDtypeStruct(shape, "int32") for name, shape in numbers.items()}
    return state | {"keys": pools(), "values": pools()}


def step(config: Config, spelling: str, params: Any, state: Any, tokens: Array) -> Any:
    """Logits [B, V] of the next tokens i32[B], and the state with them."""
    x = params["embedding"][tokens]
    keys, values = state["keys"], state["values"]
    if spelling == "scanned":

        def scanned(x: Array, row: Any) -> Any:
            x, *pools = _layer(config, spelling, x, state, *row)
            return x, pools

        x, (keys, values) = lax.scan(scanned, x, (params["layers"], keys, values))
    elif spelling == "carried":

        def carried(carry: Any, row: Any) -> Any:
            weights, layer = row
            return _layer(config, spelling, carry[0], state, weights, *carry[1:], layer), None

        rows = (params["layers"], jnp.arange(config.layers))
        (x, keys, values), _ = lax.scan(carried, (x, keys, values), rows)
    elif spelling == "stacked":
        for layer, weights in enumerate(params["layers"]):
            x, keys, values = _layer(config, spelling, x, state, weights, keys, values, layer)
    else:
        pools = []
        for weights, *pair in zip(params["layers"], keys, values):
            x, *pair = _layer(config, spelling, x, state, weights, *pair)
            pools.append(pair)
        keys, values = map(list, zip(*pools))
    logits = rms_norm(x, params["norm"]) @ params["embedding"].T
    left = {"position": state["position"] + 1, "keys": keys, "values": values}
    return logits, state | left


def _layer(
    config: Config,
    spelling: str,
    x: Array,
    state: Any,
    weights: Any,
    keys: Any,
    values: Any,
    layer: Any = None,
) -> tuple[Array, Any, Any]:
    """One layer on its pools, or on those of all layers."""
    normed = rms_norm(x, weights["attention_norm"])
    q, k, v = (jnp.einsum("bd,dhk->bhk", normed, weights[n]) for n in ("query", "key", "value"))
    q = q.reshape(len(x), config.kv_heads, -1, config.d_head)
    pools = [
        _written(config, spelling, pool, new, state, layer)
        for pool, new in ((keys, k), (values, v))
    ]
    attended = _attended(config, spelling, q, *pools, state, layer)
    x = x + jnp.einsum("bhk,hkd->bd", attended.reshape(len(x), config.heads, -1), weights["out"])
    normed = rms_norm(x, weights["ffn_norm"])
    hidden = jax.nn.silu(normed @ weights["gate"]) * (normed @ weights["up"])
    return x + hidden @ weights["down"], *pools


def _written(config: Config, spelling: str, pool: Any, new: Array, state: Any, layer: Any) -> Any:
    if spelling == "integers":
        scale = jnp.max(jnp.abs(new), -1) / 127
        integers = jnp.round(new / scale[..., None]).astype("int8")
        pairs = zip(pool, (integers, scale))
        return tuple(_written(config, "places first", *pair, state, layer) for pair in pairs)
    position, page = state["position"], config.page
    number, place = state["table"][jnp.arange(len(new)), position // page], position % page
    if spelling == "heads first":
        return pool.at[number, :, place].set(new)
    if spelling == "slots":
        slots = pool.reshape(-1, *pool.shape[2:]).at[number * page + place].set(new)
        return slots.reshape(pool.shape)
    if spelling == "given":
        return pool.at[state["page"], state["place"]].set(new)
    return (
        pool.at[number, place].set(new) if layer is None else pool.at[layer, number, place].set(new)
    )


def _attended(
    config: Config, spelling: str, q: Array, keys: Any, values: Any, state: Any, layer: Any
) -> Array:
    """The values [B, K, Q / K, H] of the pages of all rows, by the attention of their queries."""
    table, position = state["table"], state["position"]
    (rows, count), kv_heads = table.shape, config.kv_heads
    shape = (rows, count * config.page, kv_heads, config.d_head)
    if spelling == "by row":
        return jax.vmap(
            lambda q, pages, place: _attention(
                q[None],
                keys[pages].reshape(1, *shape[1:]),
                values[pages].reshape(1, *shape[1:]),
                place[None],
            )[0]
        )(q, table, position)
    if spelling == "by page":
        logits = jnp.einsum("bkgh,bnpkh->bkgnp", q, keys[table])
        weights = _weights(logits.reshape(*q.shape[:3], -1), position)
        weights = weights.reshape(*q.shape[:3], count, -1)
        return jnp.einsum("bkgnp,bnpkh->bkgh", weights, values[table])
    if spelling == "heads first":
        read = [pool[table].transpose(0, 1, 3, 2, 4).reshape(shape) for pool in (keys, values)]
    elif spelling == "integers":
        pairs = ((q[table].astype("float32"), s[table][..., None]) for q, s in (keys, values))
        read = [(integers * scale).reshape(shape) for integers, scale in pairs]
    elif spelling == "carried":
        read = [pool[layer][table].reshape(shape) for pool in (keys, values)]
    elif spelling == "stacked":
        read = [pool[layer, table].reshape(shape) for pool in (keys, values)]
    else:
        read = [jnp.take(pool, table, axis=0).reshape(shape) for pool in (keys, values)]
    return _attention(q, *read, position)


def _attention(q: Array, keys: Array, values: Array, position: Array) -> Array:
    weights = _weights(jnp.einsum("bkgh,bskh->bkgs", q, keys), position)
    return jnp.einsum("bkgs,bskh->bkgh", weights, values)


def _weights(logits: Array, position: Array) -> Array:
    scaled = logits.astype("float32") * 8**-0.5
    is_there = jnp.arange(logits.shape[-1]) <= position[:, None]
    masked = jnp.where(is_there[:, None, None], scaled, -1e30)
    return jax.nn.softmax(masked).astype(logits.dtype)
