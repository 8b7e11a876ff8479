"""What a place of its own for every row costs, and pages: by the compiled schedule, in one run.

    pip install "shardwright[tpu]"
    python benchmarks/rows_and_pages.py [--layers 32] [--slices v5e:2x4 ..]

Llama-3-8B, 64 rows, a context of 2,048: the decoder's own step, whose rows share a position; the
step of `per_row`; the same with its caches in pages of 128 (`paged`); and with tokens instead of
logits (`sampled`): the most probable ones, or drawn by every option. Nothing is allocated.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from functools import partial
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp

from dialect.compiled.compiling import Compilable, compiled
from dialect.compiled.schedule import schedule
from dialect.display.tables import Table, as_text
from dialect.machine.mesh import Topology
from examples import llama
from rewrite import Sampling, auto_shard, per_row, sampled

ROWS, CONTEXT = 64, 2048
FIRST = "retarget, normalize, recognize, roll, carry_cache"
LAST = "plan{attention=heads}, shard, stage, lower"


def measured(step: Any, args: tuple[Any, ...], passes: str, slice_: str) -> list[Any]:
    """[milliseconds, GB of HBM traffic, MB of temporaries] of a step."""
    sharded = auto_shard(step, slice_, pipeline=passes)
    executable, _ = compiled(Compilable(sharded.program(*args), sharded.mesh))
    run = schedule(executable, Topology.parse(slice_), sharded.mesh)
    temporaries = executable.memory_analysis().temp_size_in_bytes
    return [1e3 * run.time_s, run.hbm_bytes / 1e9, temporaries / 1e6]


def every_option(vocab: int) -> Sampling:
    """Sampling by all options, for every row."""
    share, count = jnp.ones(ROWS), jnp.ones(ROWS, jnp.int32)
    keys, tokens = jax.random.split(jax.random.key(0), ROWS), jnp.ones((ROWS, vocab), bool)
    return Sampling(keys, count, share, count, share, share, tokens, share, tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--slices", nargs="+", default=["v5e:2x4"])
    asked = parser.parse_args()
    config = replace(llama.CONFIGS["8b"], layers=asked.layers)
    together = partial(llama.decode_step, config)
    rows = per_row(together, partial(llama.init_cache, config, context=CONTEXT))
    params = jax.eval_shape(partial(llama.init_params, config), jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((ROWS,), jnp.int32)
    shared = jax.eval_shape(partial(llama.init_cache, config, ROWS, CONTEXT))
    own = jax.eval_shape(lambda: rows.init(ROWS))
    options, paged = jax.eval_shape(lambda: every_option(config.vocab)), f"{FIRST}, paged, {LAST}"
    steps = {
        "one place for all": (together, (params, shared, tokens), f"{FIRST}, {LAST}"),
        "a place for every row": (rows, (params, own, tokens), f"{FIRST}, {LAST}"),
        "in pages of 128": (rows, (params, own, tokens), paged),
        "in pages, tokens": (sampled(rows), (params, own, tokens, Sampling()), paged),
        "in pages, tokens drawn": (sampled(rows, top=5), (params, own, tokens, options), paged),
    }
    columns = (*("slice", "step"), *(">ms", ">GB of HBM traffic", ">MB of temporaries", ">ratio"))
    lines: list[tuple[str, ...]] = []
    for slice_ in asked.slices:
        times: list[float] = []
        for name, what in steps.items():
            time_ms, traffic, temporaries = measured(*what, slice_)
            times.append(time_ms)
            figures = (f"{time_ms:.2f}", f"{traffic:.2f}", f"{temporaries:.0f}")
            lines.append((slice_, name, *figures, f"{time_ms / times[0]:.3f}"))
    print(as_text([Table("a decode step, by the compiled schedule", columns, tuple(lines))]))


if __name__ == "__main__":
    main()
