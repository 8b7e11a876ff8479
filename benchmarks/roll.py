"""What rolling saves: a decoder's layers written out, as its library has them, and as one loop.

    pip install "shardwright[tpu,frameworks]"
    python benchmarks/roll.py [hf_flax:llama] [--slice v5e:4x4] [--phase prefill]

Compiles one case of tests/frameworks twice at its published size, with and without `roll`, for the
same slice and with the same partitioning, and prints the compiler's seconds, each chip's temporary
memory, and the bytes that one step moves to and from HBM. Nothing is allocated.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "frameworks"))

from dialect.compiled.compiling import Compilable, compiled
from dialect.compiled.traffic import hbm_bytes
from dialect.front.api import resolve
from rewrite import Pipeline, Program, trace
from rewrite.target import Target


@dataclass(frozen=True)
class Measured:
    """One executable. On a busy machine the CPU time, that of all threads, tells more."""

    ops: int
    compile_s: float
    cpu_s: float
    temp_bytes: int
    hbm_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.ops:,} ops; compiled in {self.compile_s:.1f} s ({self.cpu_s:.1f} s of CPU); "
            f"temp {self.temp_bytes / 2**20:.1f} MiB; HBM {self.hbm_bytes / 1e9:.2f} GB a step"
        )


def measure(program: Program, passes: str, mesh: Any, target: Target) -> Measured:
    made = Pipeline.parse(passes).run(program, target)
    start, cpu = time.perf_counter(), time.process_time()
    executable, _ = compiled(Compilable(made, mesh))
    return Measured(
        ops=made.graph.op_count,
        compile_s=time.perf_counter() - start,
        cpu_s=time.process_time() - cpu,
        temp_bytes=executable.memory_analysis().temp_size_in_bytes,
        hbm_bytes=hbm_bytes(executable),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("case", nargs="?", default="hf_flax:llama", metavar="library:model")
    parser.add_argument("--slice", default="v5e:4x4")
    parser.add_argument("--phase", choices=["decode", "prefill"], default="decode")
    options = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)  # the libraries' own
    library, _, model = options.case.partition(":")
    module = importlib.import_module(library)
    mesh, target = resolve(options.slice, None, Pipeline(()))

    small = module.build(model, size="small", phase=options.phase)
    measure(trace(small.function, *small.args, state=1), "normalize, stage", mesh, target)  # loads

    case = module.build(model, size="full", phase=options.phase)
    program = trace(case.function, *case.args, state=1)
    planned = Pipeline.parse("normalize, recognize, plan").run(program, target)
    rolled = measure(planned, "roll, carry_cache, shard, stage, lower", mesh, target)
    written_out = measure(planned, "shard, stage, lower", mesh, target)
    print(f"{options.case} {options.phase} on {options.slice}, {planned.plan.label}")
    print(f"written out: {written_out}")
    print(f"rolled: {rolled}")
    ratios = {
        "time to compile": rolled.compile_s / written_out.compile_s,
        "CPU time": rolled.cpu_s / written_out.cpu_s,
        "temporary memory": rolled.temp_bytes / max(1, written_out.temp_bytes),
        "HBM traffic": rolled.hbm_bytes / written_out.hbm_bytes,
    }
    shown = ", ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items())
    print(f"rolled / written out: {shown}")


if __name__ == "__main__":
    main()
