"""Published decoders at full size, from shapes alone to an executable for the TPUs that hold them.

    pip install "shardwright[tpu,frameworks]"
    python benchmarks/full_size.py [hf_flax:llama ...] [--phase prefill] [--no-compile]

For each case of tests/frameworks, bfloat16, batch 16 and a context of up to 2048: how many ops it
has, seconds of the library's own tracing, of import, of every pass and of the TPU compiler, the HBM
that each chip needs, how often what a decoder is made of was found, and compiled / planned memory,
received bytes and HBM traffic with what causes a difference. Nothing is allocated.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "frameworks"))

from harness import recognition

from dialect.compiled.compiling import Compilable, compiled
from dialect.front.api import DEFAULT_PIPELINE, resolve
from dialect.reports.beside_plan import beside_plan, differences
from rewrite import Pipeline, trace
from rewrite.errors import ShardwrightError

PIPELINE = DEFAULT_PIPELINE
# Case -> slices that hold its weights and its cache in bfloat16.
CASES = {
    "hf_flax:llama": "v5e:4x4",
    "hf_flax:mistral": "v5e:2x4",
    "hf_flax:gemma": "v5e:2x4",
    "hf_flax:gptj": "v5e:2x4",
    "hf_flax:gpt_neo": "v5e:2x4",
    "hf_flax:gpt2": "v5e:2x4",
    "hf_flax:bloom": "v5e:2x4",
    "hf_flax:opt": "v4:4x4x4",
    "hf_flax:xglm": "v5e:2x4",
    "tunix_models:llama3_70b": "v5e:4x4",
    "tunix_models:llama3_405b": "v4:4x4x4",
    "tunix_models:llama3_70b_w8": "v5e:4x4",
    "tunix_models:llama3_70b_w8a8": "v5e:4x4",
    "tunix_models:llama3_8b_remat": "v5e:2x4",
    "tunix_models:llama3_8b_remat_w8": "v5e:2x4",
    "tunix_models:llama3_8b_remat_w8a8": "v5e:2x4",
    "tunix_models:gemma_2b": "v5e:2x4",
    "tunix_models:gemma_7b": "v5e:2x4",
    "tunix_models:gemma2_9b": "v5e:2x4",
    "tunix_models:gemma3_27b": "v5e:4x4",
    "tunix_models:qwen2p5_7b": "v5e:2x4",
    "tunix_models:qwen3_32b": "v5e:4x4",
    "tunix_models:qwen3_30b_a3b": "v5e:4x4",
}
# Whose prefill gives logits for every position, of a large vocabulary.
LARGER = dict.fromkeys(
    (
        "tunix_models:gemma2_9b",
        "tunix_models:qwen2p5_7b",
        "tunix_models:qwen3_32b",
        "tunix_models:qwen3_30b_a3b",
    ),
    "v5p:2x2x2",
)


class Timed:
    """A function that counts the seconds spent in it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.spent_s = function, 0.0

    def __call__(self, *args: Any) -> Any:
        start = time.perf_counter()
        try:
            return self.function(*args)
        finally:
            self.spent_s += time.perf_counter() - start


def measure(name: str, phase: str, text: str, compiling: bool) -> str:
    """One row of the table."""
    library, _, model = name.partition(":")
    case = importlib.import_module(library).build(model, size="full", phase=phase)
    function, clock = Timed(case.function), time.perf_counter
    start = clock()
    program = trace(function, *case.args, params=0, state=1)
    import_s, ops = clock() - start - function.spent_s, program.graph.op_count
    chips = LARGER.get(name, CASES[name]) if phase == "prefill" else CASES[name]
    mesh, target = resolve(chips, None, Pipeline(()))
    spent_s, found = {}, {}
    for each in Pipeline.parse(text).passes():
        start = clock()
        program = Pipeline((("", (each,)),)).run(program, target)
        spent_s[str(each)] = clock() - start
        if str(each) == "recognize":
            found = recognition(program)
    passes = ", ".join(f"{each} {seconds:.1f}" for each, seconds in spent_s.items())
    told = ", ".join(f"{name} {found[name]}" for name in ("embedding", "attend", "ffn", "head"))
    row = (
        f"{name} {phase}: {ops} ops, {told}; "
        f"trace {function.spent_s:.1f} s, import {import_s:.1f} s, {passes} s"
    )
    if not compiling:
        return row
    start = clock()
    executable, _ = compiled(Compilable(program, mesh))
    row = f"{row}; compile {clock() - start:.1f} s, {program.plan.label} on {chips}"
    rows = beside_plan(program, executable, mesh)
    ratios = ", ".join(f"{each.what} {each.compiled / each.planned:.3f}" for each in rows)
    return "\n    ".join((row, f"compiled / planned: {ratios}", *differences(rows)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="library:model")
    parser.add_argument("--phase", choices=["decode", "prefill"], default="decode")
    parser.add_argument("--pipeline", default=PIPELINE)
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    unknown = [name for name in options.cases if name not in CASES]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; the cases are {', '.join(CASES)}")
    warnings.simplefilter("ignore", DeprecationWarning)  # the libraries' own
    for name in options.cases:
        try:
            row = measure(name, options.phase, options.pipeline, not options.no_compile)
        except ShardwrightError as error:
            row = f"{name} {options.phase}: {error}"
        print(row, flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
