"""SmolLM2 served on the CPU: prompts in flight beside one after another, and the engine's overhead.

    python benchmarks/smollm2.py [--prompts 16] [--new 32] [--rounds 3]

In every round the prompts are answered together by the engine, one after another by the engine, and
one after another by the decoder itself, whose step takes one token of one sequence. Tokens are
compared. Ratios are medians over rounds, of the wall clock and of the time of the processor, which
others who use the machine hardly change. The engine's overhead is a decode step of all prompts in
the engine beside its executable, called again and again with the results read one step later; and
the time of the processor that the engine's thread takes for a step.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import jax
import jax.numpy as jnp
import numpy as np
import smollm2

from dialect.serving.shapes import rows_alone
from dialect.token_rows import packing
from dialect.token_rows.packing import Packed
from rewrite import Engine

CONTEXT = 256
TEXTS = ("The capital of France is", "Once upon a time", "def fibonacci(n):", "Water boils at")


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """(result, seconds of the wall clock, seconds of the processor)."""
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - processor


def alone(step: Any, params: Any, cache: Any, prompt: list[int], count: int) -> list[int]:
    """The greedy answer of the decoder itself."""
    cache, tokens = jax.tree.map(jnp.array, cache), list(prompt)
    for at in range(len(prompt) + count - 1):
        logits, cache = step(params, cache, jnp.asarray(tokens[at : at + 1], jnp.int32))
        if at + 1 >= len(prompt):
            tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]


def overhead(engine: Engine, prompts: list[list[int]], count: int) -> tuple[float, float]:
    """(a decode step in the engine over a bare one, seconds of the engine's thread for a step)."""
    executables, params = engine.built.executables, engine.built.params
    run, shape, full = executables.run, rows_alone(engine.built.sizes.rows), list[Packed]()
    starts: list[tuple[float, float]] = []

    def noted(params: Any, step: Packed) -> Any:
        starts.append((time.perf_counter(), time.thread_time()))
        full[:] = [step] if step.shape == shape else full
        return run(params, step)

    executables.run = noted
    engine.generate(prompts, max_new_tokens=count)
    executables.run = run
    served, thread = np.diff(starts, axis=0)[4:-2].T
    (step,) = full
    step.rows[:, packing.SOURCE] = -1
    bare, last = [], None
    for _ in range(len(served) + 1):
        bare.append(time.perf_counter())
        now = run(params, step)
        if last is not None:
            np.asarray(last)
        last = now
    return float(np.median(served) / np.median(np.diff(bare))), float(np.median(thread))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    config = smollm2.CONFIGS["135m"]
    step, init_cache = (partial(f, config) for f in (smollm2.decode_step, smollm2.init_cache))
    params = smollm2.trained_params(config)
    engine = Engine(step, params, init_cache, "cpu:1", max_context=CONTEXT, rows=asked.prompts)
    print("\n".join(engine.explain().split("\n")[:2]))
    texts = [f"{TEXTS[at % len(TEXTS)]}{' ' * (at // len(TEXTS))}" for at in range(asked.prompts)]
    prompts = [smollm2.tokenizer().encode(text).ids for text in texts]
    jitted, cache = jax.jit(step, donate_argnums=1), init_cache(1, CONTEXT)
    ways = {
        "together": lambda: engine.generate(prompts, max_new_tokens=asked.new),
        "engine, one after another": lambda: [
            engine.generate([prompt], max_new_tokens=asked.new)[0] for prompt in prompts
        ],
        "decoder, one after another": lambda: [
            alone(jitted, params, cache, prompt, asked.new) for prompt in prompts
        ],
    }
    alone(jitted, params, cache, prompts[0], 1)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    overheads, answers = [], []
    for _ in range(asked.rounds):
        for name, work in ways.items():
            tokens, wall, processor = timed(work)
            answers.append(tokens)
            times[name].append((wall, processor))
        overheads.append(overhead(engine, prompts, asked.new))
    print(f"same tokens: {all(tokens == answers[0] for tokens in answers)}")
    count = asked.prompts * asked.new
    for name, pairs in times.items():
        wall, processor = (statistics.median(column) for column in zip(*pairs))
        slower = [
            statistics.median(own[n] / first[n] for own, first in zip(pairs, times["together"]))
            for n in (0, 1)
        ]
        print(
            f"{name}: {count / wall:.1f} tokens/s, {slower[0]:.2f}x the time of together"
            f" ({slower[1]:.2f}x that of the processor)"
        )
    ratio, thread_s = (statistics.median(column) for column in zip(*overheads))
    print(
        f"a step in the engine: {ratio:.2f}x its executable, {1e3 * thread_s:.2f} ms of its thread"
    )
    print(f"compiled since the engine is there: {engine.compilations.count} (the decoder's own)")


if __name__ == "__main__":
    main()
