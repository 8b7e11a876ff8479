"""A decoder's step on the device at hand, after one pass more in every row, beside `jax.jit`.

    python benchmarks/device.py          # Llama-3-8B on the first GPU or TPU; without one it ends
    python benchmarks/device.py --cpu    # the toy Llama on the CPU: whether it runs

Every row is timed in turn with `jax.jit` of the decoder as it is, whose time is the unit. Memory is
what the compiler needs; `model` is the time that the plan predicts, for figures of
dialect/machine/chips.py. On a GPU attention alone is timed beside cuDNN's, too.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp

from dialect.display.quantities import size
from dialect.machine.mesh import here
from examples import llama
from rewrite import ShardwrightError, auto_shard

PASSES = (
    "normalize, recognize",
    "carry_cache",
    "merge_dots",
    "fold_scales",
    "flash",
    "quantize{weights=int8}",
    "quantize{weights=none, cache=int8}",
)
BEHIND = "plan, shard, stage, lower"
WARM_UP = 3


def main() -> None:
    asked = arguments()
    device = jax.devices("cpu" if asked.cpu else None)[0]
    if device.platform == "cpu" and not asked.cpu:
        print("no GPU and no TPU is here: nothing is measured (--cpu tries it on the CPU)")
        return
    jax.config.update("jax_default_device", device)
    config = llama.CONFIGS[asked.config or ("toy" if asked.cpu else "8b")]
    print(f"{device.device_kind}, {asked.batch} sequences, context {asked.context}")
    print(f"{'after':38} {'ms':>9} {'jax.jit':>9} {'ratio':>6} {'memory':>11} {'model ms':>9}")
    step = Step(config, asked)
    for count in range(1, len(PASSES) + 1):
        step.row(", ".join(PASSES[:count]), PASSES[count - 1])
    if device.platform == "gpu":
        attention(asked)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--cpu", action="store_true", help="on the CPU, with the toy")
    add("--config", metavar="NAME", help="of examples/llama.py (8b; toy on the CPU)")
    add("--batch", type=int, default=16, metavar="N", help="sequences (16)")
    add("--context", type=int, default=1024, metavar="N", help="positions of the cache (1024)")
    add("--calls", type=int, default=30, metavar="N", help="that are timed of each (30)")
    return parser.parse_args()


class Step:
    """The decoder, and what it is called with."""

    def __init__(self, config: Any, asked: argparse.Namespace) -> None:
        self.function, self.calls = partial(llama.decode_step, config), asked.calls
        self.params = jax.jit(partial(llama.init_params, config))(jax.random.key(0))
        self.init = jax.jit(partial(llama.init_cache, config, asked.batch, asked.context))
        self.tokens = jnp.zeros(asked.batch, jnp.int32)
        self.plain = jax.jit(self.function, donate_argnums=1)
        compiled = self.plain.lower(self.params, self.init(), self.tokens).compile()
        print(f"{'nothing':38} {'':9} {'':9} {'1':>6} {memory(compiled):>11}")

    def row(self, passes: str, last: str) -> None:
        """The step after these passes: measured, and as the plan has it."""
        step = auto_shard(self.function, here_or_cpu(), pipeline=f"{passes}, {BEHIND}")
        packed = step.prepare(self.params, self.init(), self.tokens)
        rewritten, plain = in_turn(
            (lambda state: step(packed, state, self.tokens), step.adapt(self.init())),
            (lambda cache: self.plain(self.params, cache, self.tokens), self.init()),
            self.calls,
        )
        compiled = step.lower(self.params, self.init(), self.tokens).compile()
        predicted = f"{step.plan().predicted.time_s * 1e3:9.3f}"
        times = f"{rewritten * 1e3:9.3f} {plain * 1e3:9.3f} {rewritten / plain:6.2f}"
        print(f"{'+ ' + last:38} {times} {memory(compiled):>11} {predicted}")


def here_or_cpu() -> str:
    """The machine of the default device, one chip of it."""
    device = jax.config.jax_default_device
    return "cpu:1" if device.platform == "cpu" else f"{here().partition(':')[0]}:1"


def memory(compiled: Any) -> str:
    """What an executable needs on a chip."""
    needs = compiled.memory_analysis()
    results = needs.output_size_in_bytes - needs.alias_size_in_bytes
    return size(needs.argument_size_in_bytes + needs.temp_size_in_bytes + results)


Looped = tuple[Callable[[Any], tuple[Any, Any]], Any]  # state -> (logits, state), and a first state


def in_turn(one: Looped, other: Looped, calls: int) -> list[float]:
    """Median seconds of a call of each, called in turn and waited for."""
    states, times = [one[1], other[1]], ([], [])
    for number in range(WARM_UP + calls):
        for which, (call, _) in enumerate((one, other)):
            started = time.perf_counter()
            logits, states[which] = call(states[which])
            jax.block_until_ready(logits)
            if number >= WARM_UP:
                times[which].append(time.perf_counter() - started)
    return [statistics.median(each) for each in times]


def attention(asked: argparse.Namespace) -> None:
    """Attention alone over a prompt, as the formula, rewritten, and by cuDNN."""
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (asked.batch, asked.context, 32, 128)
    q, k, v = (jax.random.normal(key, shape, jnp.bfloat16) for key in keys)

    def formula(k: Any, q: Any, v: Any) -> Any:
        scores = jnp.einsum("bthd,bshd->bhts", q, k, preferred_element_type=jnp.float32) / 128**0.5
        seen = jnp.tril(jnp.ones((asked.context, asked.context), bool))
        weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf)).astype(v.dtype)
        return jnp.einsum("bhts,bshd->bthd", weights, v)

    library = jax.nn.dot_product_attention
    ways = {
        "the formula": jax.jit(formula),
        "flash": auto_shard(formula, here_or_cpu()),
        "cuDNN": jax.jit(lambda k, q, v: library(q, k, v, is_causal=True, implementation="cudnn")),
    }
    print(f"attention alone, {asked.context} tokens of {asked.batch} sequences, 32 heads of 128")
    for name, way in ways.items():
        try:
            seconds, unit = in_turn(
                (lambda _, way=way: (way(k, q, v), None), None),
                (lambda _: (ways["the formula"](k, q, v), None), None),
                asked.calls,
            )
        except (RuntimeError, ValueError, ShardwrightError) as error:
            print(f"  {name:12} refused: {str(error).splitlines()[0][:90]}")
            continue
        print(f"  {name:12} {seconds * 1e3:9.3f} ms  {seconds / unit:6.2f} of the formula's time")


if __name__ == "__main__":
    main()
