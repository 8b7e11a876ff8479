"""What attention reads of its caches in a decode step, compiled: all of it, or what SparQ chooses.

    pip install "shardwright[tpu]"
    python benchmarks/sparq.py [--chip v5e]

Attention alone, of one layer of stacked caches in bf16, 4096 positions and heads of 128 numbers, on
one chip, compiled ahead of time; r = 32 columns and k = 128 positions. Bytes are those of HBM, by
the compiled schedule (`dialect.compiled.traffic`). Beside them what the formulas of the paper say:
2 S d + 2 d numbers a head, and S r + 2 k d + 4 d. Nothing is allocated.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from jax.experimental.layout import Format, Layout
from jax.sharding import NamedSharding, PartitionSpec

from dialect.compiled import hlo
from dialect.compiled.executable import compile_quietly
from dialect.compiled.traffic import traffic
from dialect.machine.mesh import devices
from dialect.machine.topology import Topology
from dialect.ops.attend import attend
from dialect.ops.attend_layer import attend_layer

LAYERS, CONTEXT, WIDTH = 2, 4096, 128
COLUMNS, POSITIONS, LOCAL = 32, 128, 32
CASES = ((8, 8, 1), (16, 32, 1), (64, 8, 4))  # sequences, KV heads, queries of each
AXES = "b g j k, b s g k, b s g v, {}-> b g j v"


def dense(query: Any, keys: Any, values: Any, layer: Any, last: Any) -> Any:
    """Attention to all positions up to the last."""
    axes = AXES.format(" ")
    return attend(query, keys[layer], values[layer], last, axes=axes, given="last", scale=0.1)


def chosen(mean: bool) -> Any:
    """The same with SparQ."""

    def step(query: Any, keys: Any, values: Any, layer: Any, last: Any, *kept: Any) -> Any:
        columns, total = kept
        return attend_layer(
            *(query, keys, values, layer, columns, total[layer], last),
            axes=AXES.format("b g k s, b g v, "),
            given="columns total last",
            stacked="columns",
            scale=0.1,
            sparq=(COLUMNS, POSITIONS, LOCAL, mean),
        )

    return step


def read(function: Any, arrays: tuple[Any, ...], sharding: Any) -> int:
    """The bytes of HBM that a compiled function of these arrays reads."""
    layouts = tuple(Format(Layout.AUTO, sharding) for _ in arrays)
    executable, _ = compile_quietly(jax.jit(function, in_shardings=layouts).lower(*arrays))
    module, total = hlo.module_of(executable), 0
    for name, trips in hlo.scheduled(module):
        body = module.computation(name)
        total += (trips or 0) * sum(traffic(module, body, op).read for op in body.values())
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--chip", default="v5e")
    chip = devices(Topology.parse(f"{parser.parse_args().chip}-1"))
    sharding = NamedSharding(jax.make_mesh((1,), ("x",), devices=chip[:1]), PartitionSpec())
    all_of_head = (2 * CONTEXT + 2) * WIDTH
    of_head = CONTEXT * COLUMNS + (2 * POSITIONS + 4) * WIDTH
    print(f"by the formulas 1/{all_of_head / of_head:.2f} is read")
    for batch, heads, queries in CASES:
        cache = (LAYERS, batch, CONTEXT, heads, WIDTH)
        shapes = ((batch, heads, queries, WIDTH), cache, cache)
        number = jax.ShapeDtypeStruct((), "int32")
        arrays = (*(jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes), number, number)
        kept = (
            jax.ShapeDtypeStruct((LAYERS, batch, heads, WIDTH, CONTEXT), jnp.bfloat16),
            jax.ShapeDtypeStruct((LAYERS, batch, heads, WIDTH), jnp.float32),
        )
        whole = read(dense, arrays, sharding)
        part = read(chosen(queries == 1), (*arrays, *kept), sharding)
        beside = part / (2 * batch * heads * of_head)
        print(
            f"{batch} sequences, {heads} KV heads, {queries} queries each: {whole / 1e6:,.1f} MB"
            f" and {part / 1e6:,.1f} MB, 1/{whole / part:.2f}, {beside:.3f} of the formula",
            flush=True,
        )


if __name__ == "__main__":
    main()
