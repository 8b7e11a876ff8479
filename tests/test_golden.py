"""What every pass makes of one layer, and all of them of a decoder. A refactoring moves no golden.

`python -m pytest tests/test_golden.py --update-golden` writes them anew. Texts of other libraries,
which a refactoring must not move either, are in tests/frameworks/ir.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rewrite import Program, Target, trace
from rewrite.passbase import pass_names
from tests.kit import after

TARGET = Target("cpu:8", (("x", 2), ("y", 4)))
BATCH, CONTEXT, D_MODEL, HEADS, D_HEAD, D_FF, VOCAB = 8, 16, 16, 8, 4, 32, 64


def floats(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, "float32")


X = floats(BATCH, D_MODEL)
NUMBER, IDS = jax.ShapeDtypeStruct((), "int32"), jax.ShapeDtypeStruct((BATCH,), "int32")
NETWORK = {"gate": floats(D_MODEL, D_FF), "up": floats(D_MODEL, D_FF)}
NETWORK |= {"down": floats(D_FF, D_MODEL), "norm": floats(D_MODEL)}
ATTENTION = {name: floats(D_MODEL, HEADS, D_HEAD) for name in "qkv"}
ATTENTION |= {"o": floats(HEADS, D_HEAD, D_MODEL)}
LATENT, ROTARY = 3 * D_HEAD, D_HEAD // 2
LATENTS = {name: floats(LATENT, HEADS, D_HEAD) for name in "kv"}
LATENTS |= {"c": floats(D_MODEL, LATENT), "r": floats(D_MODEL, ROTARY)}
LATENTS |= {"q": floats(D_MODEL, HEADS, D_HEAD + ROTARY), "o": floats(HEADS, D_HEAD, D_MODEL)}
LATENT_CACHE = {"c": floats(BATCH, CONTEXT, LATENT), "r": floats(BATCH, CONTEXT, ROTARY)}
CACHE = {name: floats(BATCH, CONTEXT, HEADS, D_HEAD) for name in "kv"} | {"position": NUMBER}
EMBEDDING = {"embedding": floats(VOCAB, D_MODEL)}


def network(w: Any, x: jax.Array) -> jax.Array:
    normed = x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * w["norm"]
    return x + (jax.nn.silu(normed @ w["gate"]) * (normed @ w["up"])) @ w["down"]


def attention(w: Any, cache: Any, x: jax.Array, window: int = 0) -> tuple[jax.Array, Any]:
    q, k, v = (jnp.einsum("bd,dhk->bhk", x, w[name]) for name in "qkv")
    at = cache["position"]
    keys = lax.dynamic_update_slice(cache["k"], k[:, None], (0, at, 0, 0))
    values = lax.dynamic_update_slice(cache["v"], v[:, None], (0, at, 0, 0))
    logits = jnp.einsum("bhk,bshk->bhs", q, keys) * D_HEAD**-0.5
    visible = jnp.arange(CONTEXT) <= at
    if window:
        visible &= jnp.arange(CONTEXT) > at - window
    weights = jax.nn.softmax(jnp.where(visible, logits, -jnp.inf), -1)
    mixed = jnp.einsum("bhs,bshk->bhk", weights, values)
    new = {"k": keys, "v": values, "position": at + 1}
    return x + jnp.einsum("bhk,hkd->bd", mixed, w["o"]), new


def latents(w: Any, cache: Any, x: jax.Array) -> tuple[jax.Array, Any]:
    """All heads' keys and values are expanded from what is cached, but for a part of the keys."""
    at = cache["position"]
    latent, rotary = (
        lax.dynamic_update_slice(cache[name], (x @ w[name])[:, None], (0, at, 0)) for name in "cr"
    )
    keys, values = (jnp.einsum("bsc,chk->bshk", latent, w[name]) for name in "kv")
    keys = jnp.concatenate([keys, jnp.repeat(rotary[:, :, None], HEADS, 2)], -1)
    logits = jnp.einsum("bhk,bshk->bhs", jnp.einsum("bd,dhk->bhk", x, w["q"]), keys)
    mixed = jnp.einsum("bhs,bshk->bhk", jax.nn.softmax(logits, -1), values)
    new = {"c": latent, "r": rotary, "position": at + 1}
    return jnp.einsum("bhk,hkd->bd", mixed, w["o"]), new


def step(w: Any, cache: Any, ids: jax.Array) -> tuple[jax.Array, Any]:
    """A decoder of one layer."""
    x, new = attention(w, cache, w["embedding"][ids])
    return network(w, x) @ w["embedding"].T, new


def pinned(w: Any, x: jax.Array) -> jax.Array:
    """Split over the mesh of another machine."""
    mesh = jax.sharding.AbstractMesh((8,), ("data",), axis_types=(AxisType.Auto,))
    return lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec("data"))) @ w


def scanned_attention(w: Any, cache: Any, x: jax.Array) -> tuple[jax.Array, Any]:
    """A loop over layers, whose cache goes in and comes out as rows."""
    at = cache["position"]

    def layer(x: jax.Array, each: Any) -> tuple[jax.Array, Any]:
        w, keys = each
        keys = lax.dynamic_update_slice(keys, (x @ w)[:, None], (0, at, 0))
        return x + keys.sum(1), keys

    x, keys = lax.scan(layer, x, (w, cache["k"]))
    return x, {"k": keys, "position": at + 1}


def scanned(w: Any, x: jax.Array) -> jax.Array:
    return lax.scan(lambda x, w: (network(w, x), None), x, w)[0]


PROGRAMS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "network": (network, (NETWORK, X)),
    "attention": (attention, (ATTENTION, CACHE, X)),
    "window": (partial(attention, window=4), (ATTENTION, CACHE, X)),
    "latents": (latents, (LATENTS, LATENT_CACHE | {"position": NUMBER}, X)),
    "step": (step, ({**EMBEDDING, **ATTENTION, **NETWORK}, CACHE, IDS)),
    "pinned": (pinned, (floats(D_MODEL, D_MODEL), X)),
    "relu": (lambda w, x: jnp.maximum(x @ w, 0.0), (floats(D_MODEL, D_FF), X)),
    "product": (lambda w, x: x @ w["up"], ({"up": floats(D_MODEL, D_FF)}, X)),
    "looked up": (
        lambda w, ids: network(w, w["embedding"][ids]),
        ({**EMBEDDING, **NETWORK}, IDS),
    ),
    "scanned": (scanned, ({name: floats(2, *w.shape) for name, w in NETWORK.items()}, X)),
    "twice": (lambda w, x: network(w[1], network(w[0], x)), ([NETWORK, NETWORK], X)),
    "scanned attention": (
        scanned_attention,
        (
            floats(2, D_MODEL, D_MODEL),
            {"k": floats(2, BATCH, CONTEXT, D_MODEL), "position": NUMBER},
            X,
        ),
    ),
}
FOUND = "normalize, recognize"
PLANNED = f"{FOUND}, plan{{ffn=ws1d, attention=heads}}"
# pass -> (a program, what runs before, the pass)
PASSES = {
    "retarget": ("pinned", "", "retarget"),
    "normalize": ("network", "", "normalize"),
    "rules": ("relu", "normalize", 'rules{file="examples/own.rules"}'),
    "recognize": ("attention", "normalize", "recognize"),
    "carry_cache": ("scanned attention", FOUND, "carry_cache"),
    "cache_layout": ("attention", FOUND, "cache_layout"),
    "fold_scales": ("network", FOUND, "fold_scales"),
    "merge_dots": ("network", FOUND, "merge_dots"),
    "quantize": ("network", FOUND, "quantize"),
    "pad": ("network", FOUND, "pad{d_ff=40}"),
    "prune": ("network", FOUND, "prune{d_ff=24}"),
    "skip_layers": ("scanned", FOUND, 'skip_layers{layers="1"}'),
    "first_layer": ("looked up", FOUND, "first_layer{budget=100.0}"),
    "unroll": ("scanned", FOUND, "unroll"),
    "roll": ("twice", FOUND, "roll"),
    "absorb": ("latents", FOUND, "absorb"),
    "block_sparse": ("attention", FOUND, "block_sparse{window=4, sinks=2}"),
    "ring": ("window", FOUND, "ring"),
    "sparq": ("attention", FOUND, "sparq{r=2, k=4, local=1}"),
    "flash": ("attention", FOUND, "flash{key=8}"),
    "paged": ("attention", FOUND, "paged{page=4}"),
    "plan": ("step", FOUND, PLANNED.removeprefix(f"{FOUND}, ")),
    "shard": ("network", PLANNED, "shard"),
    "stage": ("network", f"{FOUND}, quantize", "stage"),
    "lower": ("product", f"{FOUND}, quantize{{vocab=true}}, stage", "lower"),
    "audit": ("product", PLANNED, "audit"),
}
SERVING = (
    "retarget, normalize, recognize, carry_cache, cache_layout, quantize, "
    "first_layer{budget=100.0}, plan{ffn=ws1d, attention=heads}, shard, stage, lower"
)


def traced(name: str) -> Program:
    function, args = PROGRAMS[name]
    state = (1,) if len(args) == 3 else ()
    made = trace(function, *args, params=0, state=state)
    return replace(made, name=name.replace(" ", "_"))


def text(program: Program) -> str:
    """Without the history, which names files and lines of this machine, and without what the cost
    model predicts: a plan's text changes when the plan does.
    """
    return re.sub(r"\n  predicted .*", "", str(replace(program, history=())))


def test_traced(golden):
    golden(text(traced("network")), "traced.ir")


@pytest.mark.parametrize("name", ["network", "scanned", "scanned attention", "latents"])
def test_what_goes_into_most_passes(name, golden):
    golden(text(after(traced(name), FOUND, TARGET)), f"{name.replace(' ', '_')}.ir")


@pytest.mark.parametrize("name", PASSES)
def test_one_pass(name, golden):
    program, before, last = PASSES[name]
    given = after(traced(program), before, TARGET) if before else traced(program)
    made = after(given, last, TARGET)
    golden(text(made), f"{name}.ir")
    if name != "audit":  # which only tells
        assert text(made) != text(given)


def test_serving(golden):
    golden(text(after(traced("step"), SERVING, TARGET)), "serving.ir")


def test_no_pass_is_forgotten():
    assert set(PASSES) == set(pass_names())
