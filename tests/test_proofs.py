"""What is proven of a value holds for every number that is put in."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialect.evaluate import evaluate
from dialect.jaxpr import trace_graph
from dialect.proofs import Range, beside_parameters, is_bounded, is_finite, is_within, range_of
from dialect.values import reshaped

EXTREMES = [0.0, -0.0, 1.0, -2.5, 3e38, -3e38, math.inf, -math.inf, math.nan, 1e-45]
FORMULAS = {
    "clip": lambda x: jnp.clip(x, -10, 10) * 3,
    "logistic": lambda x: jax.nn.sigmoid(x) - 2,
    "wave": lambda x: jnp.sin(jnp.where(jnp.isnan(x), 1.0, x)),
    "chosen": lambda x: jnp.where(x > 0, 2.0, jnp.exp(x)),
    "squared": lambda x: jnp.square(jnp.minimum(x, 7)),
    "half": lambda x: (jnp.arange(10) * 70000).astype(jnp.float16) + 0 * x.astype(jnp.float16),
    "place": lambda x: jnp.clip(x.astype(jnp.int32), 0, 9) % 4,
}


@pytest.mark.parametrize("formula", FORMULAS.values(), ids=FORMULAS)
def test_every_element_is_in_its_range(formula) -> None:
    x = jnp.array(EXTREMES)
    graph = trace_graph(lambda x: [formula(x)], x)
    low, high, nan = range_of(graph.outputs[0])
    numbers = np.asarray(evaluate(graph, [x])[0], np.float64)
    assert nan or not np.isnan(numbers).any()
    real = numbers[~np.isnan(numbers)]
    assert low <= real.min() and real.max() <= high


def test_proofs_are_as_narrow_as_expected() -> None:
    graph = trace_graph(
        lambda x, i: [jnp.clip(i, 0, 9), jnp.where(x > 0, 1.0, 0.0), jnp.arange(5), x + 1, -i],
        jnp.ones(3),
        jnp.arange(3),
    )
    place, mask, counter, free, negated = graph.outputs
    assert is_within(place, 0, 9) and is_within(counter, 0, 4)
    assert range_of(mask) == Range(0, 1) and is_finite(mask)
    assert not is_finite(free)
    assert range_of(negated) == Range(-(2**31), 2**31 - 1)  # the smallest integer wraps


def test_parameters_may_be_taken_to_be_finite() -> None:
    graph = trace_graph(lambda w, x: [w * 2 + 1, w * x], jnp.ones(3), jnp.ones(3))
    scaled, mixed = graph.outputs
    with beside_parameters(graph.inputs[:1]):
        assert not is_bounded(scaled, finite_parameters=True)  # the largest number times two
        assert is_bounded(graph.inputs[0], finite_parameters=True)
        assert is_finite(reshaped(graph.inputs[0], (3, 1)), finite_parameters=True)
        assert not is_finite(graph.inputs[0]) and not is_bounded(mixed, finite_parameters=True)
    assert not is_finite(graph.inputs[0], finite_parameters=True)
