"""What a place of its own for every row costs, and pages: by the compiled schedule, in one run.

    pip install "shardwright[tpu]"
    python benchmarks/rows_and_pages.py [--decoder palm:540b] [--rows 64] [--layers N]
        [--slices v5e:2x4 ..] [--owner batch] [--passes "quantize{weights=int8, cache=int8}"]

A context of 2,048: the decoder's own step, whose rows share a position; the step of `per_row`; the
same with its caches in pages of 128 (`paged`), of groups where chips own rows; and with tokens
instead of logits (`sampled`): the most probable ones, or drawn by every option. Nothing is
allocated.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp

from dialect.compiled.compiling import Compilable, compiled
from dialect.compiled.schedule import schedule
from dialect.display.tables import Table, as_text
from dialect.machine.mesh import Topology
from examples import llama, palm
from rewrite import Sampling, auto_shard, per_row, sampled

CONTEXT = 2048
MODELS = {"llama": llama, "palm": palm}
FIRST = "retarget, normalize, recognize, roll, carry_cache"


def measured(step: Any, args: tuple[Any, ...], passes: str, slice_: str) -> list[Any]:
    """[milliseconds, GB of HBM traffic, MB of temporaries] of a step."""
    sharded = auto_shard(step, slice_, pipeline=passes)
    executable, _ = compiled(Compilable(sharded.program(*args), sharded.mesh))
    run = schedule(executable, Topology.parse(slice_), sharded.mesh)
    temporaries = executable.memory_analysis().temp_size_in_bytes
    return [1e3 * run.time_s, run.hbm_bytes / 1e9, temporaries / 1e6]


def every_option(rows: int, vocab: int) -> Sampling:
    """Sampling by all options, for every row."""
    share, count = jnp.ones(rows), jnp.ones(rows, jnp.int32)
    keys, tokens = jax.random.split(jax.random.key(0), rows), jnp.ones((rows, vocab), bool)
    return Sampling(keys, count, share, count, share, share, tokens, share, tokens)


def steps_of(asked: argparse.Namespace) -> dict[str, tuple[Any, tuple[Any, ...], str]]:
    """(step, its arguments, passes) of what is compared."""
    family, _, name = asked.decoder.partition(":")
    model = MODELS[family]
    config = model.CONFIGS[name]
    config = replace(config, layers=asked.layers or config.layers)
    together = partial(model.decode_step, config)
    rows = per_row(together, partial(model.init_cache, config, context=CONTEXT))
    params = jax.eval_shape(partial(model.init_params, config), jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((asked.rows,), jnp.int32)
    shared = jax.eval_shape(partial(model.init_cache, config, asked.rows, CONTEXT))
    own = jax.eval_shape(lambda: rows.init(asked.rows))
    options = jax.eval_shape(lambda: every_option(asked.rows, config.vocab))
    last = f"plan{{attention={asked.owner}}}, shard, stage, lower"
    groups = "{groups=true}" if asked.owner == "batch" else ""
    first = ", ".join([FIRST, *asked.passes])
    plain, paged = f"{first}, {last}", f"{first}, paged{groups}, {last}"
    return {
        "one place for all": (together, (params, shared, tokens), plain),
        "a place for every row": (rows, (params, own, tokens), plain),
        "in pages of 128": (rows, (params, own, tokens), paged),
        "in pages, tokens": (sampled(rows), (params, own, tokens, Sampling()), paged),
        "in pages, tokens drawn": (sampled(rows, top=5), (params, own, tokens, options), paged),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decoder", default="llama:8b")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--layers", type=int, default=0, help="of the decoder, if not all")
    parser.add_argument("--slices", nargs="+", default=["v5e:2x4"])
    parser.add_argument("--owner", default="heads", choices=["heads", "batch"])
    parser.add_argument("--passes", nargs="*", default=[], help="before pages and the plan")
    asked = parser.parse_args()
    steps = steps_of(asked)
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
