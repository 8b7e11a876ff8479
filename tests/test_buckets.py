"""Prompts padded to buckets: the results of the prompt alone, or a refusal with the reason."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import gpt, llama, palm
from rewrite import ShardwrightError, auto_shard
from tests.kit import arrays_of, assert_close, run

MODELS = {"llama": llama, "palm": palm, "gpt": gpt}
BATCH, CONTEXT, D, V = 4, 16, 8, 12
PASSES = "normalize, recognize, carry_cache, plan, shard, stage, lower"
bucketed = partial(auto_shard, mesh="cpu:4", pipeline=PASSES, buckets=(4, 8))


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_state_are_those_of_the_prompt_alone(name: str, rng: Any) -> None:
    """Of every length, at the beginning of a cache and at its end, where a window is clamped."""
    model, config = MODELS[name], MODELS[name].CONFIGS["toy"]
    params = model.init_params(config, jax.random.key(0))
    step = bucketed(partial(model.prefill, config))
    packed = None
    for length, position in ((1, 0), (3, 5), (4, 0), (5, 11), (8, 8), (3, 13), (2, 15)):
        tokens = jnp.asarray(rng.integers(0, config.vocab, (BATCH, length)), jnp.int32)
        cache = jax.tree.map(
            lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype),
            model.init_cache(config, BATCH, CONTEXT),
        )
        cache["position"] = jnp.asarray(position, jnp.int32)
        expected, kept = run(partial(model.prefill, config), params, cache, tokens)
        packed = packed or step.prepare(params, cache, tokens)
        logits, state = step(packed, step.adapt(cache), tokens)
        assert_close(logits, expected, 1e-4)
        assert_close(step.restore(state), kept, 1e-4)
    assert len(step._executables) == 2


def test_logits_of_all_tokens_are_cut_and_inside_a_jit_too(rng: Any) -> None:
    def scored(params: Any, cache: Any, tokens: Any) -> Any:
        x = params["table"][tokens]
        return jnp.tanh(x) @ params["head"], {"position": cache["position"] + tokens.shape[1]}

    params = {"table": rng.normal(size=(V, D)), "head": rng.normal(size=(D, V))}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    cache = {"position": jnp.zeros((), jnp.int32)}
    step = bucketed(scored)
    for length in (3, 6):
        tokens = jnp.asarray(rng.integers(0, V, (BATCH, length)), jnp.int32)
        expected, kept = scored(params, cache, tokens)
        for call in (step, jax.jit(lambda *given: step(*given))):
            logits, state = call(params, cache, tokens)
            assert_close(logits, expected, 1e-5)
            assert int(state["position"]) == int(kept["position"]) == length


def mean(x: jax.Array) -> jax.Array:
    return jnp.mean(x, axis=1)


def neighbours(x: jax.Array) -> jax.Array:
    return (x[:, 1:] - x[:, :-1])[:, -1]


def one_by_one(x: jax.Array) -> jax.Array:
    start = jnp.zeros((BATCH, D))
    return jax.lax.scan(lambda h, y: (jnp.tanh(h + y), None), start, x.swapaxes(0, 1))[0]


def among_themselves(x: jax.Array) -> jax.Array:
    scores = jnp.einsum("btd,bsd->bts", x, x)
    scores = jnp.where(jnp.tril(jnp.ones((x.shape[1],) * 2, bool)), scores, -1e30)
    return jnp.einsum("bts,bsd->btd", jax.nn.softmax(scores), x)[:, -1]


def halfway(x: jax.Array) -> jax.Array:
    return x[:, x.shape[1] // 2]


def scaled(x: jax.Array) -> jax.Array:
    return x[:, -1] / x.shape[1]


def sorted_(x: jax.Array) -> jax.Array:
    return jnp.sort(x, axis=1)[:, -1]


def first(x: jax.Array) -> jax.Array:
    return jnp.cumsum(x, axis=1)[:, -1]


REFUSED = {
    mean: "depends on the length of the prompt",
    neighbours: "is another for another length|depends on the length",
    one_by_one: "goes through the tokens one by one",
    among_themselves: "brings tokens of the prompt together",
    halfway: "reads tokens at fixed places",
    scaled: "depends on the length of the prompt",
    sorted_: "brings tokens of the prompt together",
    first: "brings tokens of the prompt together",
}


@pytest.mark.parametrize("mixed", REFUSED, ids=lambda mixed: mixed.__name__)
def test_what_brings_tokens_together_is_refused(mixed: Any) -> None:
    def function(params: Any, cache: Any, tokens: Any) -> Any:
        logits = mixed(params[tokens]) @ params.T
        return logits, {"position": cache["position"] + tokens.shape[1]}

    cache = {"position": jnp.zeros((), jnp.int32)}
    with pytest.raises(ShardwrightError, match=REFUSED[mixed]) as error:
        bucketed(function)(jnp.ones((V, D)), cache, jnp.zeros((BATCH, 3), jnp.int32))
    assert "prompts cannot be padded" in error.value.message
    assert error.value.where.startswith(__file__)
    assert "leave buckets= out" in error.value.hint


def test_a_length_that_is_halved_is_no_length() -> None:
    """Between a bucket and one token less it moves as the length does; the shortest tells."""

    def function(params: Any, cache: Any, tokens: Any) -> Any:
        logits = params[tokens][:, -1] @ params.T
        return logits, {"position": cache["position"] + tokens.shape[1] // 2}

    cache = {"position": jnp.zeros((), jnp.int32)}
    with pytest.raises(ShardwrightError, match="depends on the length"):
        bucketed(function)(jnp.ones((V, D)), cache, jnp.zeros((BATCH, 7), jnp.int32))


def test_lengths_and_arguments_that_do_not_fit() -> None:
    config = gpt.CONFIGS["toy"]
    params = gpt.init_params(config, jax.random.key(0))
    cache = gpt.init_cache(config, BATCH, CONTEXT)
    step = bucketed(partial(gpt.prefill, config))
    with pytest.raises(ShardwrightError, match="has 9 tokens, and the largest bucket 8"):
        step(params, cache, jnp.zeros((BATCH, 9), jnp.int32))
    with pytest.raises(ShardwrightError, match="one argument of tokens .* there are: none"):
        bucketed(partial(gpt.decode_step, config))(params, cache, np.zeros(BATCH, np.int32))
    with pytest.raises(ShardwrightError, match="are no lengths of prompts"):
        auto_shard(partial(gpt.prefill, config), "cpu:4", buckets=(1, 8))


def test_a_bucket_that_is_new_is_told(caplog: Any) -> None:
    """Without the advice to do what is done already."""
    config = gpt.CONFIGS["toy"]
    prefill = bucketed(partial(gpt.prefill, config))
    for length in (3, 4, 6):
        params, cache, tokens = arrays_of(gpt, config, 4, 16, prompt=length)
        with caplog.at_level(logging.WARNING, "shardwright"):
            prefill(params, cache, tokens)
    (told,) = [record.message for record in caplog.records]
    assert "tokens i32[4,4] -> i32[4,8]" in told
    assert "Every bucket (4, 8) is compiled once" in told
