"""What packing a model holds in memory at most, beside the model itself.

    python benchmarks/prepare.py [--layers 24] [--dtype float32]

Packs a Llama of random weights to int8 on one CPU device, each way in a process of its own, and
prints the most that the process held (resident memory on Linux, above what it held before the
weights were made) over the bytes of the original parameters:

- streamed, donated: `step.prepare(params, ..., donate=True)`
- streamed, kept: `step.prepare(params, ...)`
- streamed, read lazily: from a safetensors file
- one function: the same `prepare`, jitted whole
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from dialect.compiled.compiling import compiled_stage
from dialect.prepared import safetensors_file
from dialect.prepared.checkpoint_trees import as_tree
from dialect.prepared.packed_files import read_checkpoint
from examples import llama
from rewrite import auto_shard

WAYS = ("streamed, donated", "streamed, kept", "streamed, read lazily", "one function")
PIPELINE = "normalize, recognize, carry_cache, quantize, stage, lower"


def weights(shapes: Any) -> Any:
    """Random parameters, made on the host so that making them leaves nothing behind."""
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda each: jnp.asarray(random.standard_normal(each.shape, np.float32), each.dtype), shapes
    )


def resident_bytes(field: str) -> int:
    """`VmRSS`, or `VmHWM`, the most since `forget_peak`."""
    line = next(x for x in Path("/proc/self/status").read_text().split("\n") if field in x)
    return int(line.split()[1]) << 10


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def measure(way: str, layers: int, dtype: str) -> dict[str, float]:
    """Peak and originals in bytes, and seconds, of packing one model in this process."""
    config = llama.Config(layers, 512, 8, 8, 64, 2048, 8192, dtype=dtype)
    shapes = jax.eval_shape(partial(llama.init_params, config), jax.random.key(0))
    cache = jax.eval_shape(partial(llama.init_cache, config, 1, 32))
    rest = (cache, jax.ShapeDtypeStruct((1,), jnp.int32))
    step = auto_shard(partial(llama.decode_step, config), "cpu:1", pipeline=PIPELINE)
    whole = compiled_stage(step.program(shapes, *rest).stages.prepare, None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "originals.safetensors")
        ways = {
            "streamed, donated": lambda p: step.prepare(p, *rest, donate=True).leaves,
            "streamed, kept": lambda p: step.prepare(p, *rest).leaves,
            "streamed, read lazily": lambda _: (
                step.prepare(as_tree(shapes, read_checkpoint(path)), *rest).leaves
            ),
            "one function": lambda p: whole(jax.tree.leaves(p)),
        }

        def originals() -> Any:
            made = weights(shapes)
            if way != "streamed, read lazily":
                return made
            paths = jax.tree_util.tree_leaves_with_path(made)
            name = partial(jax.tree_util.keystr, simple=True, separator="/")
            safetensors_file.write(path, {name(keys): each for keys, each in paths}, {})
            return None

        jax.block_until_ready(ways[way](originals()))  # compiles
        params = originals()
        held = sum(each.nbytes for each in jax.tree.leaves(params) if each is not None)
        before = resident_bytes("VmRSS") - held
        forget_peak()
        start = time.perf_counter()
        jax.block_until_ready(ways[way](params))
        spent_s = time.perf_counter() - start
        peak = resident_bytes("VmHWM") - before
    total = sum(np.dtype(each.dtype).itemsize * each.size for each in jax.tree.leaves(shapes))
    return {"peak_bytes": peak, "original_bytes": total, "time_s": spent_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--way", choices=WAYS, help="measure this one, here")
    asked = parser.parse_args()
    if asked.way:
        print(json.dumps(measure(asked.way, asked.layers, asked.dtype)))
        return
    same = ["--layers", str(asked.layers), "--dtype", asked.dtype]
    for way in WAYS:
        command = [sys.executable, __file__, "--way", way, *same]
        # What is freed goes back to the system at once, so that resident memory tells the truth.
        returned = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 18)}
        result = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=returned
        )
        found = json.loads(result.stdout)
        ratio = found["peak_bytes"] / found["original_bytes"]
        size = found["original_bytes"] / 2**20
        print(f"{way:22} peak / originals = {ratio:.2f} ({size:.0f} MiB, {found['time_s']:.1f} s)")


if __name__ == "__main__":
    main()
