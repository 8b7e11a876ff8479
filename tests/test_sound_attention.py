"""Attention over arrays that no decoder has: it is left alone, or keeps its numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialect.front import api
from rewrite.pipeline import Pipeline


@pytest.mark.parametrize("shape", [(3, 2), (0, 3), (2, 0), (1, 1)], ids=str)
@pytest.mark.parametrize("constant", [True, False])
def test_an_array_that_attends_to_itself_keeps_its_numbers(shape, constant) -> None:
    def attention(x):
        x = jnp.ones(shape) if constant else x
        return jax.nn.softmax((x @ x.T) * 1e-8, -1) @ x

    x = jnp.arange(float(np.prod(shape))).reshape(shape)
    recognised = Pipeline.parse("normalize, recognize").run(api.trace(attention, x))
    np.testing.assert_allclose(recognised(x), attention(x), rtol=1e-6)


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("is_added", [True, False])
def test_a_mask_of_one_number_keeps_all_logits_or_none(keeps: bool, is_added: bool) -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)), jnp.float32)

    def attention(x: jax.Array, keep: jax.Array) -> jax.Array:
        logits, low = x @ (256 * x).T, jnp.full((3, 3), -1e9)
        if is_added:
            logits = logits + jax.lax.select_n(keep, low, jnp.zeros((3, 3)))
        else:
            logits = jax.lax.select_n(keep, low, logits)
        return jax.nn.softmax(logits) @ x

    keep = jnp.asarray(keeps)
    program = Pipeline.parse("normalize, recognize").run(api.trace(attention, x, keep))
    assert "attend" in [op.name for op, _ in program.graph.walk()]
    np.testing.assert_allclose(program(x, keep), attention(x, keep), rtol=1e-5)
