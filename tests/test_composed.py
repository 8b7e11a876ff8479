"""A step inside functions that JAX transforms: `jit`, `scan`, `vmap`, `grad`, `eval_shape`."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import llama
from rewrite import auto_shard
from tests.kit import arrays_of, assert_close

CONFIG = llama.CONFIGS["toy"]
STEPS = 3
# The cache is kept with its axes in another order.
PASSES = "normalize, recognize, carry_cache, cache_layout, plan{ffn=ws1d}, shard, stage, lower"


@pytest.fixture(scope="module")
def args() -> Any:
    return arrays_of(llama, CONFIG, 8, 32)


@pytest.fixture(scope="module")
def step() -> Any:
    return auto_shard(partial(llama.decode_step, CONFIG), "cpu:8", pipeline=PASSES)


def generated(step: Any, params: Any, cache: Any, tokens: jax.Array) -> Any:
    """Everybody's loop: the most likely token is the next."""

    def body(carry: Any, _: None) -> Any:
        cache, token = carry
        logits, cache = step(params, cache, token)
        token = jnp.argmax(logits, -1).astype(token.dtype)
        return (cache, token), token

    (cache, _), made = jax.lax.scan(body, (cache, tokens), None, length=STEPS)
    return made, cache


def test_jit(step: Any, args: Any) -> None:
    expected, kept = llama.decode_step(CONFIG, *args)
    logits, cache = jax.jit(lambda *given: step(*given))(*args)
    assert_close(logits, expected)
    assert_close(cache["k"], kept["k"])


@pytest.mark.parametrize("outside", ["scan", "jit"])
def test_a_loop_over_tokens(step: Any, args: Any, outside: str) -> None:
    expected, kept = generated(partial(llama.decode_step, CONFIG), *args)
    run = partial(generated, step)
    made, cache = (jax.jit(run) if outside == "jit" else run)(*args)
    np.testing.assert_array_equal(made, expected)
    assert_close(cache["v"], kept["v"])


def test_packed_parameters_and_an_adapted_state(step: Any, args: Any) -> None:
    params, cache, tokens = args
    packed = step.prepare(params, cache, tokens)
    expected, kept = generated(partial(llama.decode_step, CONFIG), *args)
    made, state = jax.jit(partial(generated, step))(packed, step.adapt(cache), tokens)
    np.testing.assert_array_equal(made, expected)
    assert_close(step.restore(state)["k"], kept["k"])


def test_packed_parameters_that_are_closed_over(step: Any, args: Any) -> None:
    params, cache, tokens = args
    packed = step.prepare(params, cache, tokens)
    expected, _ = generated(partial(llama.decode_step, CONFIG), *args)
    made, _ = jax.jit(lambda cache, tokens: generated(step, packed, cache, tokens))(cache, tokens)
    np.testing.assert_array_equal(made, expected)


def test_vmap(step: Any, args: Any) -> None:
    params, cache, tokens = args
    several = jnp.stack([tokens, tokens[::-1]])
    plain = jax.vmap(lambda each: llama.decode_step(CONFIG, params, cache, each)[0])(several)
    assert_close(jax.vmap(lambda each: step(params, cache, each)[0])(several), plain)


def test_grad(step: Any, args: Any) -> None:
    params, cache, tokens = args

    def loss(step: Any, params: Any) -> jax.Array:
        return jnp.mean(step(params, cache, tokens)[0] ** 2)

    expected = jax.grad(partial(loss, partial(llama.decode_step, CONFIG)))(params)
    found = jax.grad(partial(loss, step))(params)
    assert_close(found["layers"]["w_up"], expected["layers"]["w_up"])
    assert_close(found["embedding"], expected["embedding"])


def test_eval_shape(step: Any, args: Any) -> None:
    logits, cache = jax.eval_shape(step, *args)
    assert (logits.shape, logits.dtype) == ((8, CONFIG.vocab), np.float32)
    assert cache["k"].shape == args[1]["k"].shape
