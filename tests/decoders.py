"""Small decoders written out layer by layer, in the ways in which libraries do it.

A layer is a letter: `g` attends to everything before, `l` to a window, both with a dense network;
`e` attends like `g` and has two experts, `n` has a scale of its own number, `c` a constant array
of its own, `w` a wider network, `s` the same weights as every other `s`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import rewrite
from rewrite import Pipeline, Program
from tests.kit import assert_same_bits, run

BATCH, CONTEXT, HEADS, D_HEAD, D_FF, VOCAB, WINDOW = 2, 8, 2, 4, 12, 16, 3
D_MODEL = HEADS * D_HEAD
FIRST = "normalize, recognize"


def weights(kinds: str, seed: int = 0) -> Any:
    """Parameters of a decoder with these layers."""
    random = np.random.default_rng(seed)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(random.standard_normal(shape) * 0.3, "float32")

    def layer(kind: str) -> dict[str, jax.Array]:
        width = D_FF * 2 if kind == "w" else D_FF
        own = {name: draw(D_MODEL, D_MODEL) for name in ("q", "k", "v", "o")}
        own |= {"up": draw(D_MODEL, width), "down": draw(width, D_MODEL), "scale": draw(D_MODEL)}
        own |= {"router": draw(D_MODEL, 2), "up2": draw(D_MODEL, width)} if kind == "e" else {}
        return own

    return {
        "embedding": draw(VOCAB, D_MODEL),
        "layers": [layer(kind) for kind in kinds if kind != "s"],
        "shared": layer("s") if "s" in kinds else {},
        "head": draw(D_MODEL, VOCAB),
    }


def with_numbers(params: Any, fill: float) -> Any:
    """Parameters that hold what every layer adds to its mean and has for logits that are masked."""
    numbers = {"epsilon": jnp.float32(1e-6), "fill": jnp.float32(fill)}
    return params | {"layers": [layer | numbers for layer in params["layers"]]}


def block(kind: str, number: int, w: Any, x: Any, keys: Any, values: Any, start: Any) -> Any:
    """One layer. x: [b, d]; keys, values: [b, s, h, k] hold `start` positions already.

    start: a scalar, or [b] where each sequence has a length of its own.
    """
    heads = (BATCH, HEADS, D_HEAD)
    root = lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + w.get("epsilon", 1e-6))
    normed = x * root * w["scale"]
    q, k, v = ((normed @ w[name]).reshape(heads) for name in ("q", "k", "v"))
    if start.ndim:
        rows = jnp.arange(BATCH)
        keys, values = keys.at[rows, start].set(k), values.at[rows, start].set(v)
        start = start[:, None, None]
    else:
        keys = lax.dynamic_update_slice(keys, k[:, None], (0, start, 0, 0))
        values = lax.dynamic_update_slice(values, v[:, None], (0, start, 0, 0))
    visible = jnp.arange(CONTEXT) <= start
    if kind == "l":
        visible &= jnp.arange(CONTEXT) > start - WINDOW
    logits = jnp.where(
        visible, jnp.einsum("bhk,bshk->bhs", q, keys) * D_HEAD**-0.5, w.get("fill", -jnp.inf)
    )
    mixed = jnp.einsum("bhs,bshk->bhk", jax.nn.softmax(logits, -1), values)
    x = x + mixed.reshape(x.shape) @ w["o"]
    hidden = jax.nn.silu(x @ w["up"])
    if kind == "e":
        share = jax.nn.softmax(x @ w["router"], -1)
        hidden = hidden * share[:, :1] + jax.nn.silu(x @ w["up2"]) * share[:, 1:]
    if kind == "n":
        hidden = hidden / (number + 1.5)
    if kind == "c":
        hidden = hidden * np.linspace(1, 2 + number, D_FF, dtype="float32")
    return x + hidden @ w["down"], keys, values


def decoder(kinds: str, starts: str = "shared") -> Callable[..., Any]:
    """`step(params, cache, tokens)`; `starts`: one position for all, `own` ones for each layer, or
    for each of the `rows`.
    """

    def step(params: Any, cache: Any, tokens: jax.Array) -> Any:
        x, new, rest = params["embedding"][tokens], [], iter(params["layers"])
        for number, kind in enumerate(kinds):
            w, own = params["shared"] if kind == "s" else next(rest), cache["layers"][number]
            start = own["start"] if starts == "own" else cache["start"]
            x, keys, values = block(kind, number, w, x, own["k"], own["v"], start)
            new.append({"k": keys, "v": values})
            if starts == "own":
                new[-1]["start"] = start + 1
        state: dict[str, Any] = {"layers": new}
        if starts != "own":
            state["start"] = cache["start"] + 1
        return x @ params["head"], state

    return step


def caches(kinds: str, starts: str = "shared", seed: int = 1) -> Any:
    """A cache per layer that holds three positions."""
    random = np.random.default_rng(seed)
    shape = (BATCH, CONTEXT, HEADS, D_HEAD)
    layers: list[dict[str, Any]] = [
        {name: jnp.asarray(random.standard_normal(shape), "float32") for name in ("k", "v")}
        for _ in kinds
    ]
    if starts == "own":
        return {"layers": [{**each, "start": jnp.int32(3)} for each in layers]}
    start = jnp.array([3, 5], jnp.int32) if starts == "rows" else jnp.int32(3)
    return {"layers": layers, "start": start}


TOKENS = jnp.array([5, 9], jnp.int32)


def arguments(kinds: str, starts: str = "shared") -> tuple[Any, Any, jax.Array]:
    return weights(kinds), caches(kinds, starts), TOKENS


def recognized(kinds: str, starts: str = "shared", step: Any = None, more: str = "") -> Program:
    """The program of a decoder after `normalize, recognize` and more passes."""
    first = traced(kinds, starts, step) if step else plain(kinds, starts)
    return Pipeline.parse(more.removeprefix(", ")).run(first) if more else first


def traced(kinds: str, starts: str, step: Any) -> Program:
    return Pipeline.parse(FIRST).run(rewrite.trace(step, *arguments(kinds, starts)))


@lru_cache(maxsize=64)  # many tests begin with the same
def plain(kinds: str, starts: str) -> Program:
    return traced(kinds, starts, decoder(kinds, starts))


def assert_computes_the_same_bits(
    program: Program, function: Callable[..., Any], *args: Any
) -> None:
    """Op by op the program computes what the function does, bit for bit."""
    assert_same_bits(run(program, *args), run(function, *args))
