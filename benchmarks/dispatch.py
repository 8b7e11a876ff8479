"""What a call costs beyond the computation: a sharded step beside `jax.jit` of the same function.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python benchmarks/dispatch.py

Times calls of the toy Llama on one CPU device, in turn, and prints medians and their ratio.
"""

from __future__ import annotations

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

from examples import llama
from rewrite import auto_shard

CALLS = 300


def seconds(call: Callable[[Any], Any], cache: Any) -> tuple[float, Any]:
    """Seconds of one call, waited for, and the cache it returns."""
    start = time.perf_counter()
    logits, cache = call(cache)
    jax.block_until_ready(logits)
    return time.perf_counter() - start, cache


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


if __name__ == "__main__":
    main()
