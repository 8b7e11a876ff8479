"""How long the executables of an engine take to compile, for a machine that is not there.

    pip install "shardwright[tpu]"
    python benchmarks/executables.py [--config 8b] [--slice v5e:2x4] [--rows 64] [--chunk 512]
        [--drafts 3]

Llama-3 in pages of 128, rewritten once for every shape of step, compiled in parallel. Nothing is
allocated.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax

from dialect.compiled.resolved import resolve
from dialect.engine.executables import Executables
from dialect.engine.sizes import Sizes
from dialect.serving.shapes import rows_alone, told
from dialect.token_rows.decoder import PAGE_ON_TPU, PASSES, Decoder
from dialect.token_rows.states import States
from examples import llama
from rewrite import Pipeline

CONTEXT = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="8b")
    parser.add_argument("--slice", default="v5e:2x4")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--drafts", type=int, default=0, help="of a request that are verified")
    asked = parser.parse_args()
    config = llama.CONFIGS[asked.config]
    params = jax.eval_shape(partial(llama.init_params, config), jax.random.key(0))
    step, init_cache = (partial(f, config) for f in (llama.decode_step, llama.init_cache))
    sized = partial(init_cache, context=CONTEXT)
    room = asked.rows * CONTEXT
    how = {"rows": asked.rows, "chunk": asked.chunk, "drafts": asked.drafts}
    sizes = Sizes.of(PAGE_ON_TPU, lambda _: room, lambda: None, CONTEXT, together=True, **how)
    started, processor = time.perf_counter(), time.process_time()
    states = States.of(step, params, partial(sized, 1), CONTEXT)
    mesh, target = resolve(asked.slice, None, Pipeline(()))
    passes = Pipeline.parse(PASSES.format(page=PAGE_ON_TPU)).passes()
    decoder = Decoder(step, sized, params, states)
    make = partial(decoder.program, pages=sizes.pages, passes=passes, target=target)
    rows = rows_alone(sizes.rows)
    programs = {rows: (main_one := make(rows))}
    others = [shape for shape in sizes.shapes if shape != rows]
    programs |= {shape: make(shape, plan=main_one.plan) for shape in others}
    rewritten_s = time.perf_counter() - started
    built = Executables(programs, mesh, sizes.pages, states.tables, sizes.rows, sizes.choices)
    processor = time.process_time() - processor
    print(f"{main_one.plan.label}: rewritten in {rewritten_s:.1f} s, {built.count} executables")
    print(f"compiled in {built.compile_s:.1f} s; {processor:.1f} s of the processor in all")
    for shape, executable in built.steps.items():
        memory = executable.memory_analysis()
        print(f"{told(shape)} rows: {memory.temp_size_in_bytes / 1e6:.0f} MB of temporaries")


if __name__ == "__main__":
    main()
