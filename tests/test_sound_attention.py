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
