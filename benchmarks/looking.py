"""How long it takes to look at a decoder of 80 unrolled layers, beside tracing it.

    python benchmarks/looking.py [--rounds 3]

Traces Llama-3-70B layer by layer, rewrites it as examples/serve.pipeline says, and times what
people look at: the folded listing, a difference, the page of `explain` and the HTML report. Prints
the best of the rounds in seconds of the processor, and as a part of what tracing takes.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp

from dialect.machine.mesh import Topology
from dialect.pages.gathered import Gathered, Stages
from dialect.pages.report import report
from dialect.printed.difference import difference
from dialect.printed.difference_lines import difference_lines
from dialect.printed.program_lines import program_lines
from dialect.printed.story import story
from dialect.printed.story_page import page
from dialect.printed.words import plain
from examples import llama
from rewrite import Pipeline, manager, trace

PIPELINE = Pipeline.load(Path(llama.__file__).with_name("serve.pipeline"))


def best(rounds: int, work: Callable[[], Any]) -> tuple[float, Any]:
    """(the least processor time in seconds, what comes of it)."""
    times, result = [], None
    for _ in range(rounds):
        started = time.process_time()
        result = work()
        times.append(time.process_time() - started)
    return min(times), result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    config = llama.CONFIGS["70b"]
    step = partial(llama.decode_step, config)

    def arguments() -> Any:
        params = llama.init_params(config, jax.random.key(0), unrolled=True)
        return params, llama.init_cache(config, 8, 2048, unrolled=True), jnp.zeros(8, jnp.int32)

    shapes = jax.eval_shape(arguments)
    traced_s, program = best(rounds, lambda: trace(step, *shapes))
    target, stages = PIPELINE.target(), Stages()
    done, _ = manager.run(program, PIPELINE.passes(), target, (stages,))
    topology = Topology.parse(target.topology)

    def gathered() -> Gathered:
        told = story(stages, done, target)
        return Gathered(told, program, tuple(stages.stages), topology)

    rows = {
        "the listing, folded": lambda: plain(program_lines(program)),
        "a difference, before and after all passes": lambda: plain(
            difference_lines(difference(replace(program), replace(done)))  # listed anew
        ),
        "the page of explain": lambda: page(story(stages, done, target)),
        "the report": lambda: report(gathered()),
    }
    print(f"{program.graph.op_count} ops, traced in {traced_s:.2f} s")
    for name, work in rows.items():
        seconds, text = best(rounds, work)
        size = f"{len(text.splitlines())} lines, {len(text.encode()):,} bytes"
        print(f"{name:45}{seconds:6.2f} s{seconds / traced_s:8.2f} of tracing   {size}")


if __name__ == "__main__":
    main()
