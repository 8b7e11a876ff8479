"""What a call costs beyond the computation: a sharded step beside `jax.jit` of the same function,
and a step in the engine beside its executable.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python benchmarks/dispatch.py

Times calls of the toy Llama on one CPU device, in turn, and prints medians and their ratio. For the
engine a larger one answers 16 prompts; then the executables that it has called are called again, on
the same arrays in the same order, each read when the next is queued, as the engine does. The ratio
is that of whole rounds, one after the other, by the clock and in the time of the processor.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from dialect.engine.executables import Executables
from dialect.token_rows.packing import Packed
from examples import llama
from rewrite import Engine, auto_shard

CALLS = 300
ROWS, NEW, ROUNDS = 16, 100, 7


def seconds(call: Callable[[Any], Any], cache: Any) -> tuple[float, Any]:
    """Seconds of one call, waited for, and the cache it returns."""
    start = time.perf_counter()
    logits, cache = call(cache)
    jax.block_until_ready(logits)
    return time.perf_counter() - start, cache


class Recorded:
    """An engine's executables, and the steps that they are called for."""

    def __init__(self, executables: Executables) -> None:
        self.executables, self.run = executables, executables.run
        self.steps: list[Packed] = []

    def noted(self, params: Any, step: Packed) -> Any:
        """A step of the engine."""
        self.steps.append(step)
        return self.run(params, step)

    def again(self, params: Any) -> None:
        """All steps, without the engine."""
        last = None
        for step in self.steps:
            results = self.run(params, step)
            if last is not None:
                np.asarray(last)
            last = results
        np.asarray(last)


def spent(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of the clock, and of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def engine_beside_its_executables() -> None:
    """Prints the ratios of a step."""
    config = dataclasses.replace(
        llama.CONFIGS["toy"],
        **{"layers": 8, "d_model": 512, "heads": 8, "d_head": 64, "d_ff": 2048},
        dtype="float32",
    )
    params = llama.init_params(config, jax.random.key(0))
    step, init_cache = partial(llama.decode_step, config), partial(llama.init_cache, config)
    prompts = [[1, 2, 3 + at] for at in range(ROWS)]
    ratios, each_s = [], []
    with Engine(step, params, init_cache, "cpu:1", max_context=128, rows=ROWS) as engine:
        recorded = Recorded(engine.built.executables)
        engine.built.executables.run = recorded.noted
        for _ in range(ROUNDS + 1):
            recorded.steps.clear()
            served = spent(lambda: engine.generate(prompts, max_new_tokens=NEW))
            bare = spent(lambda: recorded.again(engine.built.params))
            ratios.append([one / other for one, other in zip(served, bare)])
            each_s.append(bare[0] / len(recorded.steps))
    wall, processor = (statistics.median(column) for column in zip(*ratios[1:]))
    print(
        f"a step of {1e3 * statistics.median(each_s):.1f} ms in the engine / its executable = "
        f"{wall:.3f} by the clock, {processor:.3f} of the processor (median of {ROUNDS} rounds)"
    )


def main() -> None:
    config = llama.CONFIGS["toy"]
    step = partial(llama.decode_step, config)
    params = llama.init_params(config, jax.random.key(0))
    tokens = jnp.zeros(8, jnp.int32)
    plain = jax.jit(step, donate_argnums=1)
    sharded = auto_shard(step, "cpu:1", pipeline="normalize, recognize, stage, lower")
    packed = sharded.prepare(params)
    calls = {
        "jax.jit": lambda cache: plain(params, cache, tokens),
        "auto_shard": lambda cache: sharded(packed, cache, tokens),
    }
    caches = {name: llama.init_cache(config, 8, 32) for name in calls}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(CALLS + 10):
        for name, call in calls.items():
            spent, caches[name] = seconds(call, caches[name])
            if number >= 10:
                times[name].append(spent)
    medians = {name: statistics.median(each) for name, each in times.items()}
    for name, median in medians.items():
        print(f"{name}: {1e6 * median:.0f} us a call (median of {CALLS})")
    ratio = medians["auto_shard"] / medians["jax.jit"]
    extra = 1e6 * (medians["auto_shard"] - medians["jax.jit"])
    print(f"auto_shard / jax.jit = {ratio:.2f}, {extra:.0f} us more")
    engine_beside_its_executables()


if __name__ == "__main__":
    main()
