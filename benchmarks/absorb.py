"""Latents expanded to keys and values of all heads, and attended as they are, side by side.

    pip install "shardwright[tpu]"
    python benchmarks/absorb.py [--layers 4] [--only decode] [--show 10]

A decoder with the latent attention of DeepSeek-V2 (arXiv:2405.04434: 128 heads, latents of 512 and
rotary keys of 64 numbers, keys of 128 + 64, values of 128), planned by the default pipeline with
`absorb` and without, and compiled ahead of time. Seconds, FLOPs and bytes come from a walk over the
compiled schedule. Bytes of a position are what a longer context adds to the traffic, for each
position of a sequence and layer, over all chips. Nothing is allocated.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp

from dialect.compiled.compiling import Compilable
from dialect.compiled.executable import DoesNotFit, compile_quietly
from dialect.compiled.schedule import Schedule, schedule
from dialect.display.tables import Table, as_text
from dialect.front.api import DEFAULT_PIPELINE
from dialect.machine.mesh import Topology
from rewrite import auto_shard
from rewrite.errors import ShardwrightError
from tests import latent_attention as latent

EXPANDED, ABSORBED = DEFAULT_PIPELINE.replace("absorb, ", ""), DEFAULT_PIPELINE
FORMS = {"expanded": EXPANDED, "absorbed": ABSORBED}


@dataclass(frozen=True)
class Row:
    """A step of so many sequences, and the slice that it is compiled for."""

    step: str
    batch: int
    context: int
    slice: str = "v5e:2x4"

    def __str__(self) -> str:
        return f"{self.step} {self.batch} x {self.context}, {self.slice}"


ROWS = (
    Row("decode", 16, 4096),
    Row("decode", 64, 4096),
    Row("decode", 16, 32768),
    Row("prefill", 8, 4096),
)


def compiled(row: Row, layers: int, pipeline: str) -> tuple[Any, Schedule]:
    """The program of a row, and the schedule of what it compiles to. Raises ShardwrightError."""
    config, topology = replace(latent.V2, layers=layers), Topology.parse(row.slice)
    function = latent.prefill if row.step == "prefill" else latent.decode_step
    step = auto_shard(partial(function, config), row.slice, pipeline=pipeline)
    params = jax.eval_shape(partial(latent.init_params, config), jax.random.key(0))
    cache = jax.eval_shape(lambda: latent.init_cache(config, row.batch, row.context))
    sizes = (row.batch, row.context) if row.step == "prefill" else (row.batch,)
    program = step.program(params, cache, jax.ShapeDtypeStruct(sizes, jnp.int32))
    executable, _ = compile_quietly(Compilable(program, step.mesh).lower())
    return program, schedule(executable, topology, step.mesh)


def bytes_of_position(row: Row, layers: int, pipeline: str, found: Schedule) -> str:
    """HBM traffic of a position of the context, of all chips; "" where the context is short, so
    that what else the compiler keeps on the chip tells more, and for a prefill, whose positions do
    more than to be read."""
    if row.step == "prefill" or row.context <= 4096:
        return ""
    _, shorter = compiled(replace(row, context=row.context // 2), layers, pipeline)
    positions = row.batch * row.context // 2 * layers
    chips = Topology.parse(row.slice).devices
    return f"{(found.hbm_bytes - shorter.hbm_bytes) * chips / positions:,.0f}"


def figures(row: Row, layers: int, pipeline: str, show: int) -> tuple[str, ...]:
    """Milliseconds, GFLOPs, GB of HBM traffic, bytes of a position, GB of temporaries, the plan and
    its prediction."""
    try:
        program, found = compiled(row, layers, pipeline)
        of_position = bytes_of_position(row, layers, pipeline, found)
    except (ShardwrightError, DoesNotFit):
        return ("does not fit", "", "", "", "", "", "")
    if show:
        print(f"\n{row}", *("  ".join(line) for line in found.table(show)), sep="\n")
    time_ms, plan = 1e3 * found.time_s, program.plan
    return (
        f"{time_ms:,.2f}",
        f"{found.flops / 1e9:,.0f}",
        f"{found.hbm_bytes / 1e9:,.3f}",
        of_position,
        f"{found.memory.temp_bytes / 1e9:.2f}",
        plan.label,
        f"{plan.predicted.time_s / found.time_s:.2f}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--only", default="", help="rows whose name has this text")
    parser.add_argument("--show", type=int, default=0, help="so many of the dearest instructions")
    asked = parser.parse_args()
    columns = (
        *("step", "latents", ">ms", ">GFLOP", ">GB of HBM", ">bytes/position", ">GB temp"),
        *("plan", ">predicted"),
    )
    rows = [row for row in ROWS if asked.only in str(row)]
    lines = [
        (str(row), form, *figures(row, asked.layers, pipeline, asked.show))
        for row in rows
        for form, pipeline in FORMS.items()
    ]
    title = f"{asked.layers} layers, per chip and step, by the compiled schedule"
    print(as_text([Table(title, columns, tuple(lines))]))


if __name__ == "__main__":
    main()
