"""Causal attention of one layer on one chip: at once, in blocks, and by JAX's Pallas kernels.

    pip install "shardwright[tpu]"
    python benchmarks/kernels.py [--slice v5e:2x2] [--context 2048] [--batch 2]

Heads are those of Llama-3-8B (32 of 8 KV heads, 128 wide), in bf16. Each row is compiled ahead of
time, a batch on every chip: time by the compiled schedule (`dialect.compiled.schedule`), the
products that it sees as a part of those of the whole square, temporaries. Nothing is allocated.
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
from jax.experimental import topologies
from jax.experimental.pallas.ops.tpu.flash_attention import flash_attention
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)
from jax.sharding import NamedSharding, PartitionSpec

from dialect.compiled.schedule import schedule
from dialect.machine.mesh import Topology
from dialect.ops.attend import attend

HEADS, KV_HEADS, WIDTH = 32, 8, 128


def ours(blocks: tuple[int, int] | None, q: Any, k: Any, v: Any) -> Any:
    """q: [b, 8, 4, t, k]; k, v: [b, 8, t, k]."""
    last = jnp.arange(q.shape[3], dtype=jnp.int32)
    count = q.shape[3] // blocks[0] if blocks else 1
    how = {"blocks": blocks, "visits": count * (count + 1) // 2} if blocks else {}
    axes = "b g j t k, b g s k, b g s v, t -> b g j t v"
    how |= {"given": "last", "scale": WIDTH**-0.5, "logits": jnp.float32}
    return attend(q, k, v, last, axes=axes, **how)


def splash(q: Any, k: Any, v: Any) -> Any:
    """The kernel for heads that share keys, over sequences and KV heads."""
    shape = (q.shape[3],) * 2
    mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.CausalMask(shape)] * 4)
    with jax.ensure_compile_time_eval():
        kernel = splash_attention_kernel.make_splash_mqa(mask, head_shards=1, q_seq_shards=1)
    return jax.vmap(jax.vmap(kernel))(q * WIDTH**-0.5, k, v)


def flash(q: Any, k: Any, v: Any) -> Any:
    """The kernel that wants as many keys as queries."""
    b, g, j, t, d = q.shape
    k, v = (jnp.repeat(each, j, axis=1) for each in (k, v))
    return flash_attention(q.reshape(b, g * j, t, d), k, v, causal=True, sm_scale=WIDTH**-0.5)


FORMS: dict[str, Callable[..., Any]] = {
    "at once": partial(ours, None),
    "attend in blocks of 512": partial(ours, (512, 512)),
    "splash_attention": splash,
    "flash_attention": flash,
}


def main() -> None:
    """Prints a row for every form."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--slice", default="v5e:2x2")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--context", type=int, default=2048)
    given = parser.parse_args()
    topology = Topology.parse(given.slice)
    devices = topologies.get_topology_desc(platform="tpu", topology_name=given.slice).devices
    mesh = jax.sharding.Mesh(devices, ("chips",))
    rows = PartitionSpec("chips")
    sizes = (given.batch * len(devices), KV_HEADS, HEADS // KV_HEADS, given.context, WIDTH)
    query = jax.ShapeDtypeStruct(sizes, jnp.bfloat16, sharding=NamedSharding(mesh, rows))
    keys = jax.ShapeDtypeStruct(
        (*sizes[:2], *sizes[3:]), jnp.bfloat16, sharding=NamedSharding(mesh, rows)
    )
    square = 4 * given.batch * HEADS * given.context**2 * WIDTH
    for name, form in FORMS.items():
        mapped = jax.shard_map(
            form, mesh=mesh, in_specs=(rows,) * 3, out_specs=rows, check_vma=False
        )
        compiled = jax.jit(mapped).lower(query, keys, keys).compile()
        run = schedule(compiled, topology, mesh)
        print(
            f"{name:24} {1e3 * run.time_s:8.3f} ms, products seen {run.flops / square:5.2f},"
            f" temporaries {run.memory.temp_bytes / 1e6:8.1f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()
