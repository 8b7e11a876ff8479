"""What Shardwright does, on a machine that has no TPU (`make demo`).

a. Llama-3-8B's decode step, full size but only as shapes, is rewritten and compiled for eight
   chips of TPU v5e by libtpu's ahead-of-time compiler.
b. A small Llama with random weights runs on eight virtual CPU devices, through the same passes,
   beside the function that it was made from.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

from dialect.front.cli import main
from dialect.front.console import Screen
from dialect.machine.virtual_cpus import start

HERE = Path(os.path.relpath(Path(__file__).parent))
PIPELINE = HERE / "serve.pipeline"
SEQUENCES, NEW_TOKENS, SEED = 8, 32, 0


def compile_8b(screen: Screen) -> int:
    """Part a: what the command does, through the command itself."""
    command = ["compile", f"{HERE / 'llama.py'}:decode_step", "--pipeline", str(PIPELINE)]
    command += ["--config", "8b", "--batch", "64", "--context", "2048"]
    screen.heading("a. Llama-3-8B, one token for 64 sequences, compiled for 8 chips of TPU v5e")
    screen.show(f"$ shardwright {' '.join(command)}\n")
    return main(command)


def run_toy(screen: Screen) -> None:
    """Part b: the greedy tokens of three functions that all get the original's last token.

    So one close call between two tokens is counted once, and the logits stay comparable.
    """
    import jax
    import jax.numpy as jnp
    import llama

    from rewrite import auto_shard

    config = llama.CONFIGS["toy"]
    decode = partial(llama.decode_step, config)
    steps = {
        "original": jax.jit(decode),
        "sharded": auto_shard(decode, "cpu:8"),
        "sharded, int8, precomputed": auto_shard(decode, "cpu:8", pipeline=PIPELINE),
    }
    params = llama.init_params(config, jax.random.key(SEED))
    caches = {name: llama.init_cache(config, SEQUENCES, NEW_TOKENS) for name in steps}
    tokens = jnp.arange(SEQUENCES, dtype=jnp.int32)
    logits: dict[str, list[jax.Array]] = {name: [] for name in steps}
    for _ in range(NEW_TOKENS):
        for name, step in steps.items():
            new, caches[name] = step(params, caches[name], tokens)
            logits[name].append(new)
        tokens = logits["original"][-1].argmax(-1).astype(jnp.int32)

    expected = jnp.stack(logits["original"])
    greedy = expected.argmax(-1)
    rows = []
    screen.heading(f"b. {NEW_TOKENS} greedy tokens of a small Llama on 8 CPU devices")
    for name, each in logits.items():
        found = jnp.stack(each)
        same = int((found.argmax(-1) == greedy).sum())
        rows.append((name, f"{same} of {greedy.size}", f"{jnp.abs(found - expected).max():.2g}"))
        screen.show(f"\n{name}\n    " + " ".join(map(str, found.argmax(-1)[:, 0])))
    screen.show("")
    screen.table(("", ">tokens agree", ">largest logit difference"), rows)
    screen.show(
        f"\nShown is the first of {SEQUENCES} sequences. The weights are random, so the logits "
        f"(standard deviation {float(expected.std()):.2f})\nlie close together, and rounding the "
        "weights to int8 may turn a close call."
    )


if __name__ == "__main__":
    start("cpu:8")
    failed = compile_8b(Screen())
    if not failed:
        run_toy(Screen())
    sys.exit(failed)
