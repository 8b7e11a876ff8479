"""Attention at once and in blocks, side by side: time, temporaries, and what the model predicts.

    pip install "shardwright[tpu]"
    python benchmarks/flash.py [--only "8b prefill"] [--show 10]

Each row is a decoder of examples/, its step and a TPU slice, planned by the default pipeline with
`flash` and without, and compiled ahead of time. Seconds come from a walk over the compiled schedule
(`dialect.compiled.schedule`); a prediction is beside them as a part of them, and behind it what it
would be if the model took a chip to deliver the same fractions of its data sheet as the schedule
does: the rest of the difference is what the two count. Nothing is allocated.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp

from dialect.compiled.compiling import Compilable
from dialect.compiled.executable import DoesNotFit, compile_quietly
from dialect.compiled.schedule import DELIVERED, Schedule, schedule
from dialect.front.api import DEFAULT_PIPELINE
from dialect.machine.mesh import Topology
from dialect.planning.cost import CONSTANTS
from dialect.planning.plan import Prediction
from examples import llama, palm
from rewrite import auto_shard
from rewrite.errors import ShardwrightError

OTHERS = {"1b": llama.Config(16, 2048, 32, 8, 64, 8192, 128256)}  # Llama-3.2-1B
AT_ONCE, IN_BLOCKS = DEFAULT_PIPELINE.replace("flash, ", ""), DEFAULT_PIPELINE


@dataclass(frozen=True)
class Row:
    """A decoder, its step, and what it is compiled for."""

    model: ModuleType
    config: str
    slice: str
    step: str
    batch: int
    context: int = 2048

    def __str__(self) -> str:
        name = f"{self.model.__name__.rpartition('.')[2]} {self.config}"
        return f"{name} {self.step} {self.batch} x {self.context}, {self.slice}"


ROWS = (
    *(Row(llama, "8b", "v5e:2x4", "prefill", batch) for batch in (1, 16, 64)),
    Row(llama, "8b", "v5e:2x4", "decode", 64),
    Row(llama, "8b", "v5e:2x4", "prefill", 1, 32768),
    Row(llama, "8b", "v5e:2x4", "decode", 16, 32768),
    *(Row(llama, "1b", "v5e:1x1", "decode", batch) for batch in (32, 64)),
    *(Row(llama, "70b", "v5p:2x2x2", "prefill", batch) for batch in (1, 16, 64)),
    *(Row(llama, "70b", "v6e:4x4", "prefill", batch) for batch in (1, 16, 64)),
    *(Row(palm, "62b", "v5e:4x4", "prefill", batch) for batch in (1, 16, 64)),
    *(Row(palm, "62b", "v4:2x2x4", "prefill", batch) for batch in (1, 16, 64)),
    *(Row(palm, "540b_padded", "v4:4x4x4", "prefill", batch) for batch in (1, 16, 64)),
)


def compiled(row: Row, pipeline: str) -> tuple[Any, Schedule]:
    """The plan of a row and the schedule of what it compiles to. Raises ShardwrightError."""
    config, topology = (row.model.CONFIGS | OTHERS)[row.config], Topology.parse(row.slice)
    function = row.model.prefill if row.step == "prefill" else row.model.decode_step
    step = auto_shard(partial(function, config), row.slice, pipeline=pipeline)
    params = jax.eval_shape(partial(row.model.init_params, config), jax.random.key(0))
    cache = jax.eval_shape(lambda: row.model.init_cache(config, row.batch, row.context))
    sizes = (row.batch, row.context) if row.step == "prefill" else (row.batch,)
    program = step.program(params, cache, jax.ShapeDtypeStruct(sizes, jnp.int32))
    executable, _ = compile_quietly(Compilable(program, step.mesh).lower())
    return program.plan, schedule(executable, topology, step.mesh)


def at_equal_rates(predicted: Prediction) -> float:
    """The predicted seconds, with the schedule's fractions of the matrix unit and of HBM."""
    compute_s, hbm_s = predicted.compute_s, predicted.hbm_s
    longest_s = max(
        compute_s * CONSTANTS.compute / DELIVERED.compute, hbm_s * CONSTANTS.hbm / DELIVERED.hbm
    )
    return predicted.time_s - max(compute_s, hbm_s) + longest_s


def figures(row: Row, pipeline: str, show: int) -> tuple[str, float]:
    """(time, temporaries and prediction as text, seconds); what does not fit takes none."""
    try:
        plan, found = compiled(row, pipeline)
    except (ShardwrightError, DoesNotFit) as error:
        return "does not fit" if isinstance(error, DoesNotFit) else "no plan fits", 0.0
    if show:
        print(f"\n{row}, {plan.label}")
        print("\n".join("  ".join(line) for line in found.table(show)))
    temporaries, part = found.memory.temp_bytes / 1e9, plan.predicted.time_s / found.time_s
    equal = at_equal_rates(plan.predicted) / found.time_s
    shown = f"{found.time_s * 1e3:9,.1f} ms {temporaries:5.2f} GB {part:5.2f} {equal:5.2f}"
    return shown, found.time_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="rows whose name has this text")
    parser.add_argument("--show", type=int, default=0, help="so many of the dearest instructions")
    args = parser.parse_args()
    print(f"{'':44}{'at once: time, temp, predicted':38}{'in blocks':36}ratio")
    for row in ROWS:
        if args.only not in str(row):
            continue
        (whole, once_s), (blocks, blocks_s) = (
            figures(row, pipeline, args.show) for pipeline in (AT_ONCE, IN_BLOCKS)
        )
        ratio = f"{blocks_s / once_s:.2f}" if once_s and blocks_s else ""
        print(f"{row!s:44}{whole:38}{blocks:36}{ratio}", flush=True)


if __name__ == "__main__":
    main()
