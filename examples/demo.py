"""What Shardwright does, on a machine that has no TPU (`make demo`).

a. Llama-3-8B's decode step, full size but only as shapes, is rewritten and compiled for eight
   chips of TPU v5e by libtpu's ahead-of-time compiler.
b. A small Llama with random weights runs on eight virtual CPU devices, through the same passes,
   beside the function that it was made from.
c. SmolLM2-135M, a model that people use, answers five questions at a time on the same devices:
   served by an engine, beside the plain decoder that takes them one by one.
"""

from __future__ import annotations

import asyncio
import os
import sys
from functools import partial
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

from dialect.front.cli import main
from dialect.front.console import Screen
from dialect.machine.virtual_cpus import start

HERE = Path(os.path.relpath(Path(__file__).parent))
PIPELINE = HERE / "serve.pipeline"
SEQUENCES, NEW_TOKENS, SEED = 8, 32, 0
QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "What is a compiler?",
    "Name three colours.",
    "How many legs has a spider?",
)
CONTEXT, ANSWER = 128, 40


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


def serve_smollm2(screen: Screen) -> None:
    """Part c: five streams of one engine, and the decoder that it was made from."""
    import jax
    import llama
    import smollm2

    from rewrite import Engine

    screen.heading("c. SmolLM2-135M on 8 CPU devices, five questions at a time")
    try:
        smollm2.weights()
    except PackageNotFoundError:
        screen.show("left out: its weights are a package that could not be installed here")
        return
    config, tokenizer = smollm2.CONFIGS["135m"], smollm2.tokenizer()
    params, stop = smollm2.trained_params(config), smollm2.stop_tokens()
    step, init_cache = partial(llama.decode_step, config), partial(llama.init_cache, config)
    asked = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    system = "<|im_start|>system\nYou are a helpful assistant. Answer in one sentence.<|im_end|>\n"
    prompts = [tokenizer.encode(system + asked.format(each)).ids for each in QUESTIONS]
    with screen.working("compiling"):
        engine = Engine(step, params, init_cache, "cpu:8", max_context=CONTEXT, rows=8)
    answers = [engine.submit(each, max_new_tokens=ANSWER, stop=stop) for each in prompts]
    with screen.growing() as show:
        asyncio.run(_shown(answers, tokenizer, show))
    engine.check()
    screen.show("")
    screen.lines(engine.explain().split("\n")[:5])
    step = jax.jit(step, donate_argnums=1)
    same = 0
    with screen.working("the plain decoder, one by one"):
        for prompt, answer in zip(prompts, answers):
            same += answer.numbers() == _alone(step, params, init_cache, prompt, stop)
    engine.close()
    screen.show(f"\n{same} of {len(prompts)} answers are, token by token, the plain decoder's.")


async def _shown(answers: Any, tokenizer: Any, show: Any) -> None:
    """Shows the texts of all answers as they come."""

    async def follow(answer: Any) -> None:
        async for _ in answer:
            texts = (tokenizer.decode([t.number for t in each.tokens]) for each in answers)
            show(f"{question} {text.strip()}" for question, text in zip(QUESTIONS, texts))

    await asyncio.gather(*map(follow, answers))


def _alone(
    step: Any, params: Any, init_cache: Any, prompt: list[int], stop: list[int]
) -> list[int]:
    """The greedy answer of a decoder that takes one token of one sequence at a time."""
    import jax.numpy as jnp

    cache, tokens = init_cache(1, CONTEXT), list(prompt)
    for at in range(len(prompt) + ANSWER - 1):
        logits, cache = step(params, cache, jnp.asarray(tokens[at : at + 1], jnp.int32))
        if at + 1 >= len(prompt):
            tokens.append(int(logits.argmax()))
        if tokens[-1] in stop and at + 1 >= len(prompt):
            break
    return tokens[len(prompt) :]


if __name__ == "__main__":
    start("cpu:8")
    failed = compile_8b(Screen())
    if not failed:
        run_toy(Screen())
        serve_smollm2(Screen())
    sys.exit(failed)
