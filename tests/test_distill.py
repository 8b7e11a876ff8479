"""A rewritten decoder learns to predict what it predicted before."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialect.measured.accuracy import accuracy
from dialect.ops.quant import rounded
from examples.tiny import model
from rewrite import Pipeline, distill, trace
from rewrite.errors import PipelineError
from tests.kit import assert_close

FOUND = "normalize, recognize, "
CONFIG = model.CONFIGS["mha"]
STEP = partial(model.prefill, CONFIG)
ROWS, LENGTH = 4, 32


def arguments() -> tuple[Any, Any, Any]:
    """The trained parameters, an empty cache, and tokens of the decoder's own source."""
    text = np.frombuffer(b"    def forward(self, x):\n        return self.layer(x)\n" * 8, np.uint8)
    tokens = jnp.asarray(text[: ROWS * LENGTH].reshape(ROWS, LENGTH), jnp.int32)
    return model.trained_params(CONFIG), model.init_cache(CONFIG, ROWS, LENGTH), tokens


def test_the_loss_is_the_distance_that_eval_measures() -> None:
    params, cache, tokens = arguments()
    passes = FOUND + "prune{d_ff=192}"
    found = distill(STEP, passes)(params, params, cache, tokens)
    pruned = Pipeline.parse(passes).run(trace(STEP, params, cache, tokens))
    logits = [np.asarray(each(params, cache, tokens)[0])[None] for each in (pruned, STEP)]
    measured = accuracy(*logits, np.zeros((1, ROWS, LENGTH), int), 1.0)
    assert float(found) == pytest.approx(measured.kl_nats_per_byte, rel=1e-4)
    assert float(found) > 0.1


def test_a_few_steps_lower_it() -> None:
    """By gradient descent, on the parameters of the decoder as it was written."""
    originals, cache, tokens = arguments()
    loss = jax.jit(jax.value_and_grad(distill(STEP, FOUND + "prune{d_ff=192}")))
    params, losses = originals, []
    for _ in range(6):
        nats, gradients = loss(params, originals, cache, tokens)
        params = jax.tree.map(lambda x, slope: x - 0.02 * slope, params, gradients)
        losses.append(float(nats))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.7 * losses[0]


def test_nothing_is_to_be_learned_where_numbers_are_the_same() -> None:
    params, cache, tokens = arguments()
    assert float(distill(STEP, FOUND + "roll")(params, params, cache, tokens)) < 1e-9


# A decoder without layers: everything can be worked out.


def bigram(params: Any, seen: Any, tokens: Any) -> tuple[Any, Any]:
    return (jax.nn.relu(params["in"][tokens] @ params["up"])) @ params["down"], seen + 1


def of_bigram() -> tuple[Any, Any, Any]:
    keys = jax.random.split(jax.random.key(0), 3)
    sizes = {"in": (8, 4), "up": (4, 6), "down": (6, 8)}
    params = {name: jax.random.normal(key, sizes[name]) for key, name in zip(keys, sizes)}
    return params, jnp.zeros(3), jnp.asarray([1, 4, 6])


def test_what_is_rounded_passes_its_gradient_on() -> None:
    """The slope at a rounded weight is that at the number to which it is rounded."""
    params, seen, tokens = of_bigram()
    other = jax.tree.map(lambda x: 1.5 * x, params)
    slopes = jax.grad(distill(bigram, FOUND + "quantize{weights=int8}"))
    found = slopes(params, other, seen, tokens)
    near = {"up": rounded(params["up"], axes=(0,), form="int8")}  # the other is over a vocabulary
    plain = jax.grad(distill(bigram, "normalize"))(params | near, other, seen, tokens)
    assert_close(found, plain, rtol=1e-3, atol=1e-6)
    assert all(np.any(np.asarray(each)) for each in jax.tree.leaves(found))


def test_what_an_original_masks_out_is_not_learned() -> None:
    def masked(params: Any, seen: Any, tokens: Any) -> tuple[Any, Any]:
        logits, seen = bigram(params, seen, tokens)
        return jnp.where(jnp.arange(8) < 5, logits, -jnp.inf), seen

    params, seen, tokens = of_bigram()
    loss = jax.value_and_grad(distill(masked, "normalize"))
    nats, slopes = loss(params, jax.tree.map(lambda x: 2 * x, params), seen, tokens)
    assert np.isfinite(nats) and nats > 0
    assert all(np.all(np.isfinite(each)) for each in jax.tree.leaves(slopes))


@pytest.mark.parametrize(
    ("function", "passes", "told"),
    [
        (bigram, "normalize, prune{d_ff=64}", "no weight has more than 64 of it"),
        (bigram, "normalize, stage", "packed parameters are not those that are learned"),
        (lambda w, seen, ids: seen + 1, "normalize", "is to return logits, and returns a state"),
        (lambda w, seen, ids: (ids, ids, seen), "normalize", "is to return logits, and returns"),
    ],
)
def test_what_cannot_be_learned_is_refused(function: Any, passes: str, told: str) -> None:
    params, seen, tokens = of_bigram()
    with pytest.raises(PipelineError, match=told):
        distill(function, passes)(params, params, seen, tokens)
