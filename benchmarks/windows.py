"""A decode step of Mistral 7B, whose attention has a window: at once, in blocks, and with rings.

    pip install "shardwright[tpu]" transformers flax
    python benchmarks/windows.py [--slice v5e:2x4] [--batch 16] [--context 32768]

The decoder is Hugging Face's in Flax, as the tests have it. Each row is a pipeline: the default one
without `flash`, with it, and with `ring`. Seconds and bytes come from a walk over the compiled
schedule (`dialect.compiled.schedule`), all of a chip. Nothing is allocated.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests/frameworks"))

import hf_flax

from dialect.compiled.compiling import Compilable
from dialect.compiled.executable import DoesNotFit, compile_quietly
from dialect.compiled.schedule import schedule
from dialect.display.quantities import size
from dialect.front.api import DEFAULT_PIPELINE
from dialect.machine.mesh import Topology
from rewrite import auto_shard
from rewrite.errors import ShardwrightError

PIPELINES = {
    "at once": DEFAULT_PIPELINE.replace("flash, ", ""),
    "flash": DEFAULT_PIPELINE,
    "ring": DEFAULT_PIPELINE.replace("absorb", "cache_layout, ring, absorb"),
}


def main() -> None:
    """Prints a row for every pipeline."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--slice", default="v5e:2x4")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=32768)
    given = parser.parse_args()
    case = hf_flax.build("mistral", size="full", batch=given.batch, max_len=given.context)
    for name, pipeline in PIPELINES.items():
        step = auto_shard(case.function, given.slice, pipeline=pipeline, params=0, state=1)
        try:
            program = step.program(*case.args)
            executable, _ = compile_quietly(Compilable(program, step.mesh).lower())
        except (ShardwrightError, DoesNotFit) as error:
            print(f"{name:8} {type(error).__name__}: {str(error).splitlines()[0]}")
            continue
        run = schedule(executable, Topology.parse(given.slice), step.mesh)
        state = sum(source.type.bytes for source in program.step_inputs if source.role == "state")
        chips = Topology.parse(given.slice).devices
        print(
            f"{name:8} {1e3 * run.time_s:8.2f} ms, predicted"
            f" {1e3 * program.plan.predicted.time_s:8.2f} ms, read and written"
            f" {size(run.hbm_bytes)}, state {size(state // chips)},"
            f" temporaries {size(run.memory.temp_bytes)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
