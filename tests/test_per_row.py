"""Rows at places of their own: every row computes what its sequence does alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import gpt, llama, palm
from rewrite import auto_shard, per_row
from rewrite.errors import TraceError
from tests.fuzz import decoders
from tests.kit import assert_close

STARTS = (3, 0, 7, 1, 2, 5, 4, 6)  # how many tokens a row has read


def ragged(
    step: Callable[..., Any],
    init_cache: Callable[[int], Any],
    params: Any,
    read: Callable[[int, int], Any],
    starts: tuple[int, ...],
) -> tuple[Any, list[Any]]:
    """A cache of rows that have read so many tokens, and the caches of the sequences alone.

    `read(row, number)` gives a sequence's tokens, with its batch of one.
    """
    rows, alone = per_row(step, init_cache), []
    for row, count in enumerate(starts):
        cache = jax.tree.map(jnp.asarray, init_cache(1))
        for number in range(count):
            _, cache = step(params, cache, read(row, number))
        alone.append(cache)

    def together(at: Any, *leaves: Any) -> Any:
        return jnp.concatenate(leaves, at.axis) if at.is_batch else jnp.stack(leaves)

    return jax.tree.map(together, rows.cache_rows, *alone), alone


@pytest.mark.parametrize("mesh", ["cpu:1", "cpu:8"])
@pytest.mark.parametrize("model", [llama, palm, gpt])
def test_sixteen_tokens_of_every_row_are_those_of_its_sequence_alone(
    model: ModuleType, mesh: str
) -> None:
    config = model.CONFIGS["toy"]
    params = model.init_params(config, jax.random.key(0))
    step, init_cache = (
        jax.jit(partial(model.decode_step, config)),
        lambda batch: model.init_cache(config, batch, 32),
    )
    first = jnp.arange(5, 5 + len(STARTS), dtype=jnp.int32)
    cache, alone = ragged(
        step, init_cache, params, lambda row, number: first[row : row + 1] + number, STARTS
    )
    rows = auto_shard(per_row(partial(model.decode_step, config), init_cache), mesh)
    packed, state = rows.prepare(params, cache, first), rows.adapt(cache)
    tokens, wanted = first, [first[row : row + 1] for row in range(len(STARTS))]
    for _ in range(16):
        logits, state = rows(packed, state, tokens)
        tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        for row, (token, own) in enumerate(zip(wanted, alone)):
            logits, alone[row] = step(params, own, token)
            wanted[row] = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        np.testing.assert_array_equal(tokens, jnp.concatenate(wanted))


def test_a_row_whose_position_is_put_back_was_idle() -> None:
    """What it wrote is written over by its next token before that is read."""
    config = llama.CONFIGS["toy"]
    params = llama.init_params(config, jax.random.key(0))
    rows = per_row(partial(llama.decode_step, config), partial(llama.init_cache, config, context=8))
    step = jax.jit(rows)
    _, once = step(params, rows.init(2), jnp.asarray([3, 4], jnp.int32))
    _, state = step(params, once, jnp.asarray([5, 99], jnp.int32))
    paused = state | {"position": jnp.asarray([2, 1], jnp.int32)}
    logits, _ = step(params, paused, jnp.asarray([6, 7], jnp.int32))
    wanted, _ = step(params, once, jnp.asarray([6, 7], jnp.int32))
    np.testing.assert_array_equal(logits[1], wanted[1])


@pytest.mark.parametrize("seed", [1, 9, 12, 18, 21])
def test_what_is_recognised_of_a_random_decoder_is_recognised_of_its_rows(seed: int) -> None:
    decoder = replace(decoders.of_seed(seed), batch=1)
    params, starts = decoder.params(), (1, 0, 2)

    def read(row: int, number: int) -> Any:
        return replace(decoder, seed=seed + row).given(number)

    def init_cache(batch: int) -> Any:
        return replace(decoder, batch=batch).cache()

    cache, alone = ragged(jax.jit(decoder.step), init_cache, params, read, starts)
    tokens = jnp.concatenate([read(row, 9) for row in range(len(starts))])
    rows = per_row(decoder.step, init_cache)
    logits, _ = jax.jit(rows)(params, cache, tokens)
    for row, own in enumerate(alone):
        assert_close(logits[row : row + 1], jax.jit(decoder.step)(params, own, read(row, 9))[0])
    counts = [
        Counter(op.name for op, _ in program.graph.walk())
        for program in (
            auto_shard(step, "cpu:1", pipeline="normalize, recognize").program(params, *given)
            for step, given in ((rows, (cache, tokens)), (decoder.step, (alone[0], read(0, 0))))
        )
    ]
    words = ("attend", "rope", "rms_norm", "layer_norm", "ragged_dot_general", "scatter")
    assert [counts[0][word] for word in words] == [counts[1][word] for word in words]


def counter(params: Any, cache: Any, tokens: jax.Array, bias: Any = 0.0) -> Any:
    """A step with a random key and a position that its sequences share."""
    key, own = jax.random.split(cache["key"])
    noise = jax.random.uniform(own, tokens.shape)
    place = cache["position"]
    kept = jax.lax.dynamic_update_slice(cache["kept"], (params * tokens)[:, None], (0, place))
    result = kept.sum(axis=1) + noise + bias
    return result, {"key": key, "position": place + 1, "kept": kept}


def counters(batch: int) -> Any:
    zero = {"kept": jnp.zeros((batch, 4)), "position": jnp.int32(0)}
    return zero | {"key": jax.random.key(7)}


def test_shared_state_has_an_axis_of_rows_and_keys_are_split() -> None:
    cache = per_row(counter, counters).init(3)
    assert {name: leaf.shape for name, leaf in cache.items()} == {
        "kept": (3, 4),
        "position": (3,),
        "key": (3,),
    }
    assert len({tuple(data) for data in jax.random.key_data(cache["key"]).tolist()}) == 3


def test_an_argument_without_rows_is_shared_by_all() -> None:
    rows = per_row(counter, counters)
    cache, tokens = rows.init(3), jnp.arange(3.0)
    for bias in (jnp.float32(2.0), jnp.asarray([1.0, 2.0, 3.0])):
        results, state = rows(jnp.float32(2.0), cache, tokens, bias)
        for row in range(3):
            own = jax.tree.map(lambda leaf, row=row: leaf[row], cache)
            own["kept"] = own["kept"][None]
            shift = bias[row] if bias.ndim else bias
            alone, _ = counter(jnp.float32(2.0), own, tokens[row : row + 1], shift)
            assert_close(results[row : row + 1], alone)
        np.testing.assert_array_equal(state["position"], [1, 1, 1])


def test_a_cache_whose_axis_of_sequences_cannot_be_told_is_refused() -> None:
    rows = per_row(counter, lambda batch: counters(batch) | {"kept": jnp.zeros((2 * batch, 4))})
    with pytest.raises(TraceError, match=r"no axis of kept counts sequences: \[2, 4\] for one"):
        rows.init(3)
