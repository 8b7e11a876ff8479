"""Decoders that write all places of their caches in every step: planned beside compiled.

    pip install "shardwright[tpu]"
    python benchmarks/whole_writes.py [--layers 4] [--only TEXT]

A decode step with the layers of Llama-2-7B, 64 x 2,048, bfloat16, v5e:2x4, whose new keys and
values come into the cache in the ways that libraries have: at their place, by adding or blending
with a one-hot array, by shifting all others. Planned by the default pipeline, compiled ahead of
time, both per chip. Nothing is allocated.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
from jax import Array, lax

from dialect.compiled.compiling import Compilable, compiled
from dialect.front.api import DEFAULT_PIPELINE
from dialect.machine.mesh import MeshSpec, Topology, jax_mesh
from dialect.reports.beside_plan import beside_plan
from rewrite import Pipeline, Target, trace

WIDTH, HEADS, D_HEAD, D_FF, VOCAB, BATCH, CONTEXT = 4096, 32, 128, 11008, 32000, 64, 2048
SLICE = "v5e:2x4"


def added(cache: Array, new: Array, position: Array) -> Array:
    return cache + _one_hot(position) * new


def blended(cache: Array, new: Array, position: Array) -> Array:
    return cache * (1 - _one_hot(position)) + _one_hot(position) * new


def selected(cache: Array, new: Array, position: Array) -> Array:
    return jnp.where((jnp.arange(CONTEXT) == position)[:, None], new, cache)


def placed(cache: Array, new: Array, position: Array) -> Array:
    return lax.dynamic_update_slice(cache, new, (0, 0, position, 0))


def shifted(cache: Array, new: Array, _: Array) -> Array:
    return jnp.concatenate([cache[:, :, 1:], new], axis=2)


def rolled(cache: Array, new: Array, _: Array) -> Array:
    return jnp.roll(cache, -1, axis=2).at[:, :, -1:].set(new)


def last(cache: Array, new: Array, _: Array) -> Array:
    """What the step shifts behind all layers."""
    return cache.at[:, :, -1:].set(new)


def _one_hot(position: Array) -> Array:
    return jax.nn.one_hot(position, CONTEXT, dtype="bfloat16")[:, None]


Write = Callable[[Array, Array, Array], Array]
WRITES: tuple[Write, ...] = (placed, selected, added, blended, shifted, rolled, last)


def step(write: Write, params: Any, cache: Any, tokens: Array) -> Any:
    position = cache["position"]
    places = jnp.arange(CONTEXT)
    ends = write in (shifted, rolled, last)
    mask = places >= CONTEXT - 1 - position if ends else places <= position

    def layer(x: Array, given: Any) -> Any:
        weights, keys, values = given
        h = _normed(x)
        q, k, v = (jnp.einsum("bd,dhk->bhk", h, weights[name]) for name in ("q", "k", "v"))
        keys, values = (
            write(kept, new[:, :, None], position) for kept, new in ((keys, k), (values, v))
        )
        scores = jnp.einsum("bhk,bhsk->bhs", q, keys).astype("float32") / D_HEAD**0.5
        shares = jax.nn.softmax(jnp.where(mask, scores, -1e30)).astype("bfloat16")
        mixed = jnp.einsum("bhs,bhsk->bhk", shares, values)
        x = x + jnp.einsum("bhk,hkd->bd", mixed, weights["out"])
        h = _normed(x)
        hidden = jax.nn.silu(h @ weights["gate"]) * (h @ weights["up"])
        return x + hidden @ weights["down"], (keys, values)

    x = params["table"][tokens]
    x, caches = lax.scan(layer, x, (params["layers"], cache["keys"], cache["values"]))
    if write is last:
        caches = jax.tree.map(lambda kept: jnp.roll(kept, -1, axis=3), caches)
    new = dict(zip(("keys", "values"), caches)) | {"position": position + 1}
    return x @ params["head"], new


def _normed(x: Array) -> Array:
    wide = x.astype("float32")
    return (wide * lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + 1e-6)).astype("bfloat16")


def shapes(layers: int) -> tuple[Any, Any, Any]:
    """The types of what a step is called with."""

    def array(*sizes: int, dtype: str = "bfloat16") -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype)

    heads = dict.fromkeys("qkv", array(layers, WIDTH, HEADS, D_HEAD))
    weights = heads | {
        "out": array(layers, HEADS, D_HEAD, WIDTH),
        "gate": array(layers, WIDTH, D_FF),
        "up": array(layers, WIDTH, D_FF),
        "down": array(layers, D_FF, WIDTH),
    }
    tables = {"table": array(VOCAB, WIDTH), "head": array(WIDTH, VOCAB)}
    kept = array(layers, BATCH, HEADS, CONTEXT, D_HEAD)
    cache = {"keys": kept, "values": kept, "position": array(dtype="int32")}
    return tables | {"layers": weights}, cache, array(BATCH, dtype="int32")


def row(write: Write, layers: int) -> str:
    topology = Topology.parse(SLICE)
    target = Target(SLICE, topology.mesh_axes().axes)
    program = trace(partial(step, write), *shapes(layers), params=0, state=1)
    program = Pipeline.parse(DEFAULT_PIPELINE).run(program, target)
    mesh = jax_mesh(topology, MeshSpec(target.mesh))
    executable, _ = compiled(Compilable(program, mesh))
    figures = (
        f"{each.what} {each.compiled / 2**20:,.0f} MiB, {each.compiled / each.planned:.3f}"
        for each in beside_plan(program, executable, mesh)
    )
    return f"{write.__name__}, {program.plan.label}: " + "; ".join(figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--only", default="", metavar="TEXT", help="writes with this in their name")
    options = parser.parse_args()
    print("compiled, and compiled / planned")
    for write in WRITES:
        if options.only in write.__name__:
            print(row(write, options.layers), flush=True)


if __name__ == "__main__":
    main()
