"""A case of a library behind the serving engine."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from case import Case, empty_cache, random_params
from harness import built

from rewrite import Engine

CONTEXT = 32
SIZES = {"max_context": CONTEXT, "rows": 4, "chunk": 4, "max_pages": 20}


def decoder(library: str, model: str) -> tuple[Any, Any, Any]:
    """step(params, state, tokens), its parameters, and init_cache(batch, context)."""

    def case(batch: int) -> Case:
        return built(library, model, "decode", batch=batch, max_len=CONTEXT)

    def step(params: Any, state: Any, tokens: jax.Array) -> Any:
        of_batch, position = case(len(tokens)), state["position"]
        positions = jnp.broadcast_to(position, (len(tokens), 1))
        given = (tokens[:, None], positions)[: 1 + (of_batch.positions is not None)]
        logits, cache = of_batch.function(params, state["cache"], *given)
        return logits[:, -1], {"cache": cache, "position": position + 1}

    def init_cache(batch: int, context: int) -> Any:
        return {"cache": empty_cache(case(batch)), "position": jnp.int32(0)}

    return step, random_params(case(1)), init_cache


def wrong_answers(library: str, model: str, mesh: str, count: int) -> list[int]:
    """Which of so many requests, run together, get other tokens than each alone."""
    step, params, init_cache = decoder(library, model)
    chance, one = random.Random(0), jax.jit(step)
    begin = [chance.randrange(500) for _ in range(9)]
    prompts = [
        begin[: chance.choice((0, 5, 9))] + [chance.randrange(500) for _ in range(size)]
        for size in (chance.randint(1, 6) for _ in range(count))
    ]
    with Engine(step, params, init_cache, mesh, page=4, **SIZES) as engine:
        answers = engine.generate(prompts, max_new_tokens=6)
        engine.check()
    alone = partial(_alone, one, params, init_cache)
    return [at for at, prompt in enumerate(prompts) if answers[at] != alone(prompt, 6)]


def _alone(step: Any, params: Any, init_cache: Any, prompt: list[int], count: int) -> list[int]:
    state, tokens = init_cache(1, CONTEXT), list(prompt)
    for at in range(len(prompt) + count - 1):
        logits, state = step(params, state, jnp.asarray(tokens[at : at + 1], jnp.int32))
        if at + 1 >= len(prompt):
            tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]
