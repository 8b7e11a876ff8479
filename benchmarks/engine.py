"""How long the engine takes, beside the TPU compiler on the same program.

    python benchmarks/engine.py [--layers 8 40 80] [--no-compile]

Traces Llama-3-70B's decode step with its layers unrolled, imports, normalises, recognises and
exports it, and prints each as a share of the ahead-of-time compilation for v5e:4x4. Time per layer
should not grow with the number of layers.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax

from dialect.arrays.evaluate import evaluate
from dialect.compiled.executable import compile_quietly
from dialect.jaxprs import jaxpr
from dialect.machine import mesh
from examples import llama
from rewrite import Pipeline, trace


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """(result, seconds)."""
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def arguments(layers: int) -> tuple[Any, tuple[Any, ...]]:
    """Llama-3-70B's decode step with that many unrolled layers, and its argument shapes."""
    config = dataclasses.replace(llama.CONFIGS["70b"], layers=layers)
    params = jax.eval_shape(partial(llama.init_params, config, unrolled=True), jax.random.key(0))
    cache = jax.eval_shape(lambda: llama.init_cache(config, 16, 2048, unrolled=True))
    tokens = jax.ShapeDtypeStruct((16,), "int32")
    return partial(llama.decode_step, config), (params, cache, tokens)


def measure(layers: int) -> dict[str, float]:
    """Seconds of each stage for one number of layers."""
    step, args = arguments(layers)
    leaves, tree = jax.tree.flatten(args)
    closed, traced_s = timed(
        lambda: jax.make_jaxpr(lambda *flat: step(*jax.tree.unflatten(tree, flat)))(*leaves)
    )
    graph, import_s = timed(lambda: jaxpr.import_jaxpr(closed))
    program = dataclasses.replace(trace(step, *args), graph=graph)
    program, rewrite_s = timed(lambda: Pipeline.parse("normalize, recognize").run(program))
    _, export_s = timed(
        lambda: jax.make_jaxpr(lambda *flat: evaluate(program.graph, flat))(*leaves)
    )
    return {
        "ops": graph.op_count,
        "jax trace": traced_s,
        "import": import_s,
        "normalize, recognize": rewrite_s,
        "export": export_s,
    }


def compile_seconds(layers: int) -> float:
    """Seconds that the TPU compiler takes for the original program, weights over 16 chips."""
    step, args = arguments(layers)
    topology = mesh.Topology.parse("v5e:4x4")
    devices = mesh.jax_mesh(topology, topology.mesh_axes())

    def placed(leaf: Any) -> jax.ShapeDtypeStruct:
        wide = [i for i, size in enumerate(leaf.shape) if size % 16 == 0]
        spec: list[Any] = [None] * len(leaf.shape)
        if wide:
            spec[max(wide, key=lambda i: leaf.shape[i])] = devices.axis_names
        sharding = jax.sharding.NamedSharding(devices, jax.sharding.PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    lowered = jax.jit(step).trace(*jax.tree.map(placed, args)).lower(lowering_platforms=("tpu",))
    return timed(lambda: compile_quietly(lowered))[1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 40, 80])
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    measure(2)  # what is loaded and traced once
    for layers in options.layers:
        row = measure(layers)
        own = row["import"] + row["normalize, recognize"] + row["export"]
        shown = ", ".join(f"{name} {value:.2f} s" for name, value in row.items() if name != "ops")
        print(
            f"{layers} layers, {row['ops']:.0f} ops: {shown}; {1e3 * own / layers:.1f} ms a layer"
        )
        if not options.no_compile:
            compiled_s = compile_seconds(layers)
            print(f"  TPU compilation {compiled_s:.1f} s; the engine takes {own / compiled_s:.1%}")


if __name__ == "__main__":
    main()
