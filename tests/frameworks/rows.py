"""Rows at places of their own: every row takes the tokens that its sequence takes alone."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from case import empty_cache
from harness import EXACT, SERVED, STEPS, built, positions, weights

from rewrite import auto_shard, per_row

STARTS = (3, 0, 7, 1, 2, 5, 4, 6)  # how many tokens a row has read
PAGED = EXACT.replace("flash", "paged{page=16}")


def assert_rows_are_alone(library: str, model: str, mesh: str, pipeline: str) -> Any:
    """Sixteen greedy tokens of every row, each with a history of another length."""
    caches, wanted = alone(library, model)
    rows = per_row(partial(step_of, library, model), partial(cache_of, library, model))

    def together(at: Any, *leaves: Any) -> Any:
        return jnp.concatenate(leaves, at.axis) if at.is_batch else jnp.stack(leaves)

    state = jax.tree.map(together, rows.cache_rows, *caches)
    step, params = auto_shard(rows, mesh, pipeline=pipeline), weights(library, model)
    given = arguments(library, model, jnp.asarray(wanted[:, 0]), jnp.asarray(STARTS))
    packed, state = step.prepare(params, state, *given), step.adapt(state)
    for number in range(STEPS):
        logits, state = step(packed, state, *given)
        tokens = jnp.argmax(logits[:, -1], axis=-1)
        np.testing.assert_array_equal(tokens, wanted[:, number + 1])
        given = arguments(library, model, tokens, jnp.asarray(STARTS) + number + 1)
    return step.program(params, rows.init(SERVED), *given)


@cache
def alone(library: str, model: str) -> tuple[list[Any], np.ndarray]:
    """The cache of every sequence after its first tokens, and the tokens [rows, 1 + STEPS] from the
    next one on."""
    step = jax.jit(partial(step_of, library, model))
    random = np.random.default_rng(2)
    vocab = built(library, model, "decode", batch=1).vocab
    caches, tokens = [], np.zeros((SERVED, 1 + STEPS), np.int32)
    for row, start in enumerate(STARTS):
        read, state = random.integers(0, vocab, start + 1), cache_of(library, model, 1)
        tokens[row, 0] = read[-1]
        for number in range(start + STEPS):
            if number == start:
                caches.append(state)
            token = read[number] if number <= start else tokens[row, number - start]
            at = arguments(library, model, jnp.asarray([token]), jnp.asarray([number]))
            logits, state = step(weights(library, model), state, *at)
            if number >= start:
                tokens[row, number - start + 1] = jnp.argmax(logits[0, -1])
    return caches, tokens


def step_of(library: str, model: str, *args: Any) -> Any:
    """The library's step, on as many sequences as there are tokens."""
    return built(library, model, "decode", batch=len(args[2])).function(*args)


def cache_of(library: str, model: str, batch: int) -> Any:
    return empty_cache(built(library, model, "decode", batch=batch))


def arguments(library: str, model: str, tokens: jax.Array, at: jax.Array) -> tuple[Any, ...]:
    case = built(library, model, "decode", batch=len(tokens))
    given = (tokens[:, None].astype(jnp.int32), at[:, None].astype(jnp.int32))
    return (given[0], *positions(case, given[1]))
