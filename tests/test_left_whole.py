"""Attention that a pass cannot change as it was asked to: one message, and the rest compiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewrite import auto_shard
from tests.kit import assert_close, run

CONTEXT = 32
DECODE, PREFILL = 1, 16


def step(w: Any, cache: Any, x: jax.Array, *kept: jax.Array) -> tuple[jax.Array, Any]:
    """A layer of attention from x: [b, t, 16] on, causal, to what the caller marks if given."""
    at, (q, k, v) = cache["position"], (jnp.einsum("btd,dhk->bthk", x, each) for each in w)
    keys = jax.lax.dynamic_update_slice(cache["k"], k, (0, at, 0, 0))
    values = jax.lax.dynamic_update_slice(cache["v"], v, (0, at, 0, 0))
    mask = jnp.arange(CONTEXT) <= at + jnp.arange(x.shape[1])[:, None]
    if kept:
        mask = kept[0][:, None, None]
    logits = jnp.where(mask, jnp.einsum("bthk,bshk->bhts", q, keys), -1e9)
    mixed = jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(logits, -1), values)
    return mixed.sum((2,)), {"k": keys, "v": values, "position": at + x.shape[1]}


def arguments(queries: int, data: bool) -> tuple[Any, ...]:
    random = np.random.default_rng(0)

    def drawn(*sizes: int) -> jax.Array:
        return jnp.asarray(random.normal(size=sizes), jnp.float32)

    cache = {name: drawn(8, CONTEXT, 8, 4) for name in "kv"} | {"position": jnp.int32(5)}
    marked = (jnp.asarray(random.random((8, CONTEXT)) > 0.5),) if data else ()
    return [drawn(16, 8, 4) for _ in "qkv"], cache, drawn(8, queries, 16), *marked


ASKED = {
    "keys that blocks do not divide": (
        "flash{query=8, key=12}",
        PREFILL,
        False,
        "not divide 32 keys",
    ),
    "queries that they do not": (
        "flash{query=5, key=8}",
        PREFILL,
        False,
        "do not divide 16 queries",
    ),
    "k beyond the context": ("sparq{k=33, r=2}", DECODE, False, "k=33 is more than its 32 posit"),
    "r beyond a query": ("sparq{k=8, r=5, local=2}", DECODE, False, "r=5 is more than the 4 numb"),
    "sparq of a prefill": ("sparq{k=8, r=2, local=2}", PREFILL, False, "it is no decode step"),
    "sparq of data": ("sparq{k=8, r=2, local=2}", DECODE, True, "its mask depends on data"),
    "a window of data": ("block_sparse{window=8}", DECODE, True, "its mask depends on data"),
    "a map of data": ('block_sparse{blocks="MAP"}', DECODE, True, "its mask depends on data"),
    "a map that ends early": ('block_sparse{blocks="MAP"}', DECODE, False, "the map has 16 posit"),
    "a ring of a causal prefill": ("ring", PREFILL, False, "its attention has no window"),
    "a ring of data": ("ring", DECODE, True, "its mask depends on data"),
    "a ring without a window": ("ring", DECODE, False, "its attention has no window"),
}


@pytest.mark.parametrize("case", ASKED)
def test_one_message_and_the_rest_compiles(case: str, tmp_path: Path) -> None:
    asked, queries, data, why = ASKED[case]
    (tmp_path / "own.map").write_text("8\nxx\n.x\n", encoding="utf-8")
    asked = asked.replace("MAP", str(tmp_path / "own.map"))
    args, passes = arguments(queries, data), f"normalize, recognize, {asked}"
    sharded = auto_shard(step, "cpu:8", pipeline=f"{passes}, plan, shard, stage, lower")
    mixed, cache = sharded(sharded.prepare(*args), sharded.adapt(args[1]), *args[2:])
    assert_close((mixed, sharded.restore(cache)), run(step, *args), atol=1e-4)
    remarks = sharded.program(*args).history[2].remarks
    (message,) = {remark.text.partition(": ")[0] for remark in remarks}
    assert why in message
