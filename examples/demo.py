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

from rewrite.cli import main, start
from rewrite.console import Screen

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
    """Part b: greedy tokens of both functions, each step given the original's token.

    Both see the same tokens, so that one close call between two tokens is counted once and does
    not make everything behind it differ.
    """
    import jax
    import jax.numpy as jnp
    import llama

    from rewrite import auto_shard

    config = llama.CONFIGS["toy"]
    decode = partial(llama.decode_step, config)
    params = llama.init_params(config, jax.random.key(SEED))
    tokens = jnp.arange(SEQUENCES, dtype=jnp.int32)
    cache, other = (llama.init_cache(config, SEQUENCES, NEW_TOKENS) for _ in range(2))

    original = jax.jit(decode)
    step = auto_shard(decode, "cpu:8", pipeline=PIPELINE)
    packed, other = step.prepare(params, other, tokens), step.adapt(other)

    expected, found, errors, spread = [], [], [], []
    for _ in range(NEW_TOKENS):
        logits, cache = original(params, cache, tokens)
        ours, other = step(packed, other, tokens)
        errors.append(float(jnp.abs(ours - logits).max()))
        spread.append(float(logits.std()))
        tokens = logits.argmax(-1).astype(jnp.int32)
        expected.append(tokens)
        found.append(ours.argmax(-1))
    same = int((jnp.stack(expected) == jnp.stack(found)).sum())

    screen.heading(f"b. {NEW_TOKENS} greedy tokens of a small Llama on 8 CPU devices")
    screen.show(f"    original   {' '.join(str(each[0]) for each in expected)}")
    screen.show(f"    rewritten  {' '.join(str(each[0]) for each in found)}")
    screen.show(
        f"the first of {SEQUENCES} sequences; over all of them {same} of "
        f"{SEQUENCES * NEW_TOKENS} tokens agree\n"
        f"largest difference of a logit: {max(errors):.4f} (logits have a standard deviation of "
        f"{max(spread):.2f}; the weights were rounded to int8)"
    )


if __name__ == "__main__":
    start("cpu:8")
    failed = compile_8b(Screen())
    if not failed:
        run_toy(Screen())
    sys.exit(failed)
