"""A chunk of a prompt beside rows that decode: in one step and apart, by the compiled schedule.

    pip install "shardwright[tpu]"
    python benchmarks/chunks.py [--rows 64] [--chunk 512 ..] [--verify 4 ..] [--layers N]
        [--slice v5e:2x4]

Llama-3-8B with a context of 2,048, its pages in a pool for as many tokens as the rows may have.
Everything is the engine's step on token rows (`dialect.token_rows.decoder`), under the plan of the
rows that decode, for both have one form of the weights: a chunk takes a row for every token, which
reads its pages by itself or in a group (`dialect.ops.attend_together`). With `--verify` every row
has several tokens, a token and its drafts.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax

from dialect.compiled.compiling import Compilable, compiled
from dialect.compiled.resolved import resolve
from dialect.compiled.schedule import schedule
from dialect.display.tables import Table, as_text
from dialect.machine.mesh import Topology
from dialect.serving.shapes import rows_alone
from dialect.token_rows.decoder import PASSES, Decoder
from dialect.token_rows.states import States
from examples import llama
from rewrite import Pipeline, Program

CONTEXT, PAGE, GROUP = 2048, 128, 64


def maker(asked: argparse.Namespace, target: Any) -> Callable[..., Program]:
    """The engine's step: of the rows of a shape, under a plan."""
    config = llama.CONFIGS["8b"]
    config = replace(config, layers=asked.layers or config.layers)
    step = partial(llama.decode_step, config)
    init = partial(llama.init_cache, config, context=CONTEXT)
    params = jax.eval_shape(partial(llama.init_params, config), jax.random.key(0))
    decoder = Decoder(step, init, params, States.of(step, params, lambda: init(1), CONTEXT))
    how = {"passes": Pipeline.parse(PASSES.format(page=PAGE)).passes(), "target": target}
    return partial(decoder.program, pages=asked.rows * CONTEXT // PAGE, **how)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--chunk", type=int, nargs="+", default=[512])
    parser.add_argument("--verify", type=int, nargs="+", default=[], help="tokens of every row")
    parser.add_argument("--layers", type=int, default=0, help="of the decoder, if not all")
    parser.add_argument("--slice", default="v5e:2x4")
    asked = parser.parse_args()
    mesh, target = resolve(asked.slice, None, Pipeline(()))
    make, rows, lines = maker(asked, target), asked.rows, list[tuple[str, ...]]()

    def time_ms(name: str, program: Program, apart_ms: float | None = None) -> float:
        run = schedule(compiled(Compilable(program, mesh))[0], Topology.parse(asked.slice), mesh)
        parts = (run.time_s, run.compute_s, run.hbm_s, run.link_s)
        ratio = f"{apart_ms / run.time_s / 1e3:.2f}" if apart_ms else ""
        figures = (*(f"{1e3 * part:.2f}" for part in parts), f"{run.hbm_bytes / 1e9:.2f}", ratio)
        lines.append((name, *figures))
        return 1e3 * run.time_s

    first = make(rows_alone(rows))
    planned = partial(make, plan=first.plan)
    rows_ms = time_ms(f"{rows} rows", first)
    for chunk in asked.chunk:
        apart_ms = rows_ms + time_ms(f"a chunk of {chunk}", planned(((1, chunk),)))
        ways = {
            "the chunk a group": ((rows, 1), (1, chunk)),
            f"groups of {GROUP}": ((rows, 1), (chunk // GROUP, GROUP)),
            "every token by itself": rows_alone(rows + chunk),
        }
        for how, shape in ways.items():
            time_ms(f"both, {how}", planned(shape), apart_ms)
    for count in asked.verify:
        for how, shape in (("a group", ((rows, count),)), ("by itself", rows_alone(rows * count))):
            ratio = time_ms(f"{count} tokens of every row, {how}", planned(shape)) / rows_ms
            print(f"{count} tokens of every row, {how}: {ratio:.2f} of the step of one")
    columns = ("step", ">ms", ">products", ">HBM", ">links", ">GB of HBM traffic", ">apart / this")
    print(as_text([Table("a step, by the compiled schedule", columns, tuple(lines))]))


if __name__ == "__main__":
    main()
