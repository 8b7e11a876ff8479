"""Random schedules on an engine: every request gets the tokens that it gets alone.

    python -m tests.fuzz.engine --seed 0 --count 10000 [--together]

Whatever arrives, ends or waits, nothing is compiled once the engine is there: that fails too.
With --together tokens of prompts and drafts have groups, which read their pages together.

One small Llama is served, by one engine; every schedule has another policy, other prompts, other
drafts, and other moments at which requests come and are cancelled. A seed says all but what the
clock does: which step it is at these moments. Nothing is asked whose answer hangs on rounding, as
steps of several sizes round logits alike only as far as floats do.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import cache, partial
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from dialect.compiled.compilations import Compilations
from dialect.serving.policy import VICTIMS, Policy
from dialect.serving.scheduler import Scheduler
from dialect.serving.shapes import Shape
from examples import llama
from rewrite import Engine
from tests.fake_step import Guesses

CONTEXT, PAGE, ROWS, CHUNK, PAGES = 32, 4, 4, 8, 40
CONFIG = replace(llama.CONFIGS["toy"], layers=2, d_model=32, heads=4, kv_heads=2, d_ff=64)
TIE = 1e-4  # between the two most likely tokens
ENDS = ("length", "stop", "cancelled", "deadline", "refused: its deadline has passed")


@cache
def params() -> Any:
    """The decoder's parameters."""
    return llama.init_params(CONFIG, jax.random.key(3))


@jax.jit
def greedy(params: Any, prompt: Any, asked: Any) -> Any:
    """i32[CONTEXT], f32[CONTEXT]: a prompt of `asked` tokens and the decoder's own answer, token by
    token; how far the most likely next token is before the second."""

    def step(state: Any, at: Any) -> Any:
        cache, last = state
        token = jnp.where(at < asked, prompt[at], last)
        logits, cache = llama.decode_step(CONFIG, params, cache, token[None])
        (first, second), (likely, _) = jax.lax.top_k(logits[0], 2)
        return (cache, likely), (token, first - second)

    first = llama.init_cache(CONFIG, 1, CONTEXT), jnp.int32(0)
    return jax.lax.scan(step, first, jnp.arange(CONTEXT))[1]


def alone(prompt: list[int], count: int) -> tuple[list[int], float]:
    """The greedy answer of the decoder itself, and the least that decides one of its tokens."""
    padded, ends = np.zeros(CONTEXT, np.int32), len(prompt) + count
    padded[: len(prompt)] = prompt
    tokens, apart = map(np.asarray, greedy(params(), padded, len(prompt)))
    return tokens[len(prompt) : ends].tolist(), float(apart[len(prompt) - 1 : ends - 1].min())


def served(together: bool = False) -> Engine:
    """An engine whose policy a schedule replaces, its drafts too."""
    init_cache = partial(llama.init_cache, CONFIG)
    sizes = {"max_context": CONTEXT, "page": PAGE, "rows": ROWS, "max_pages": PAGES}
    more = {"chunk": 3 * CHUNK if together else CHUNK, "draft": "ngram", "draft_length": 3}
    step = partial(llama.decode_step, CONFIG)
    engine = Engine(step, params(), init_cache, "cpu:1", **sizes, **more)
    assert together == any(len(shape) > 1 for shape in engine.built.sizes.shapes)
    return engine


def random_policy(draw: random.Random, shapes: list[Shape]) -> Policy:
    """One that the compiled steps can follow."""
    timed, (*smaller, largest) = draw.choice([0.0, 1.0]), shapes
    some = [*draw.sample(smaller, draw.randint(0, len(smaller))), largest]
    return Policy(
        pages=draw.randint(CONTEXT // PAGE, draw.choice([CONTEXT // PAGE + 4, PAGES])),
        page=PAGE,
        rows=draw.randint(1, ROWS),
        shares=draw.random() < 0.8,
        victim=draw.choice(list(VICTIMS)),
        patience=draw.choice([0.0, 0.01, 30.0]),
        spare=draw.choice([0.0, 0.1]),
        drafts=draw.choice([0, 2, 8]),
        steps=tuple((shape, timed * draw.randint(1, 3)) for shape in some),
    )


def random_request(
    draw: random.Random, prefix: list[int]
) -> tuple[list[int], list[int], dict[str, Any]]:
    """A prompt, the answer of the decoder alone, and how it is asked for."""
    apart = 0.0
    while apart < TIE:
        own = draw.choice([0, 1, 3, 3])
        prompt = [*prefix[: draw.randint(1, 16)], *(draw.randrange(256) for _ in range(own))]
        count = draw.randint(1, CONTEXT - len(prompt))
        expected, apart = alone(prompt, count)
    stop = [draw.choice(expected)] if draw.random() < 0.2 else []
    about: dict[str, Any] = {"priority": draw.randrange(3), "user": draw.choice("ab")}
    if draw.random() < 0.05:
        about["deadline"] = time.monotonic() + draw.choice([0.01, 0.03])
    return prompt, expected, {"max_new_tokens": count, "stop": stop, **about}


def checked(engine: Engine, seed: int) -> Counter[str]:
    """Runs a schedule. Raises AssertionError, and PagesLost."""
    draw, driver = random.Random(seed), engine.driver
    engine.policy = random_policy(draw, engine.built.sizes.shapes)
    with driver.changed:
        driver.scheduler = Scheduler(engine.policy)
        driver.scheduler.told = driver._ended
    prefixes = [[draw.randrange(256) for _ in range(draw.randint(1, 16))] for _ in range(3)]
    asked = [random_request(draw, draw.choice(prefixes)) for _ in range(draw.randint(1, 12))]
    answers = []
    for prompt, expected, options in asked:
        answers.append((engine.submit(prompt, **options), expected))
        if engine.policy.drafts and draw.random() < 0.7:  # more of them right than the text has
            request = answers[-1][0].request
            guesses = Guesses(request, draw.choice([0.3, 0.8, 1.0]), expected)
            with driver.changed:
                request.drafts = guesses
        if draw.random() < 0.3:
            time.sleep(draw.random() * 0.004)
        if draw.random() < 0.1:
            draw.choice(answers)[0].cancel()
        engine.check()
    seen: Counter[str] = Counter(schedules=1)
    for answer, expected in answers:
        assert answer.ended.wait(60), "a request does not end"
        tokens = [token.number for token in answer.tokens]
        assert answer.why in ENDS, answer.why
        assert tokens == expected[: len(tokens)], (tokens, expected)
        assert answer.why != "length" or len(tokens) == len(expected)
        seen[answer.why.partition(":")[0]] += 1
    (group,) = driver.scheduler.groups
    engine.check()
    assert group.load == 0 and group.available == group.pages.count
    seen += Counter(accepted=group.accepted, wrong=group.verified - group.accepted)
    return seen + Counter(preemptions=group.preemptions, shared=group.cached_pages)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--together", action="store_true")
    args = parser.parse_args()
    seen: Counter[str] = Counter()
    with served(args.together) as engine:
        alone([1], 1)  # compiles the decoder that answers are compared with
        before = Compilations()
        for seed in range(args.seed, args.seed + args.count):
            try:
                seen += checked(engine, seed)
            except Exception as error:
                print(f"seed {seed}: {type(error).__name__}: {error}")
                return 1
        told = engine.figures()
    seen += Counter(steps=told["steps"], tokens=told["tokens"])
    print(", ".join(f"{count} {what}" for what, count in sorted(seen.items())))
    print(f"{before.count} programs compiled meanwhile")
    return int(before.count > 0)


if __name__ == "__main__":
    sys.exit(main())
