"""What is proven of a value holds for every number that is put in."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialect.arrays.evaluate import evaluate
from dialect.jaxprs.jaxpr import trace_graph
from dialect.matching.proofs import (
    Range,
    beside_parameters,
    has_no_sign,
    is_bounded,
    is_finite,
    is_never_minus_zero,
    is_within,
    range_of,
)
from dialect.matching.values import reshaped

EXTREMES = [0.0, -0.0, 1.0, -2.5, 3e38, -3e38, math.inf, -math.inf, math.nan, 1e-45]
FORMULAS = {
    "clip": lambda x: jnp.clip(x, -10, 10) * 3,
    "logistic": lambda x: jax.nn.sigmoid(x) - 2,
    "wave": lambda x: jnp.sin(jnp.where(jnp.isnan(x), 1.0, x)),
    "chosen": lambda x: jnp.where(x > 0, 2.0, jnp.exp(x)),
    "squared": lambda x: jnp.square(jnp.minimum(x, 7)),
    "half": lambda x: (jnp.arange(10) * 70000).astype(jnp.float16) + 0 * x.astype(jnp.float16),
    "place": lambda x: jnp.clip(x.astype(jnp.int32), 0, 9) % 4,
    "truth": lambda x: jnp.clip(x, 0.25, 0.5).astype(bool),
    "mean of squares": lambda x: jnp.mean(jnp.square(jnp.minimum(x, 7)), keepdims=True) + 1e-3,
    "root": lambda x: jnp.sqrt(jnp.clip(x, -1, 4)) / jnp.where(x > 0, 2.0, 3.0),
    "reciprocal root": lambda x: jax.lax.rsqrt(x * 0),
    "sum of extremes": lambda x: jnp.sum(jnp.clip(x, -3e38, 3e38), keepdims=True),
    "rounded counter": lambda x: jax.lax.iota(jnp.bfloat16, 258) + x[:1].astype(jnp.bfloat16) * 0,
    "eight bits": lambda x: jnp.clip(x, 0, 1e4).astype(jnp.float8_e4m3fn).astype(jnp.float32),
    "finite": lambda x: jnp.where(jnp.isfinite(x), x, 0.0),
    "finite or not": lambda x: jnp.where(jnp.isfinite(x), x, jnp.inf),
    "not finite": lambda x: jnp.where(jnp.isfinite(x), 0.0, x),
    "where another is finite": lambda x: jnp.where(jnp.isfinite(x[::-1]), x, 0.0),
    "limits that cross": lambda x: jax.lax.clamp(jnp.float32(5), x, jnp.float32(-5)),
}


@pytest.mark.parametrize("formula", FORMULAS.values(), ids=FORMULAS)
def test_every_element_is_in_its_range(formula) -> None:
    x = jnp.array(EXTREMES)
    graph = trace_graph(lambda x: [formula(x)], x)
    low, high, nan = range_of(graph.outputs[0])
    numbers = np.asarray(evaluate(graph, [x])[0], np.float64)
    assert nan or not np.isnan(numbers).any()
    real = numbers[~np.isnan(numbers)]
    assert low <= real.min(initial=high) and real.max(initial=low) <= high


def test_proofs_are_as_narrow_as_expected() -> None:
    graph = trace_graph(
        lambda x, i: [
            jnp.clip(i, 0, 9),
            jnp.where(x > 0, 1.0, 0.0),
            jnp.arange(5),
            x + 1,
            -i,
            jnp.where(jnp.isfinite(x), x, 0.0),
        ],
        jnp.ones(3),
        jnp.arange(3),
    )
    place, mask, counter, free, negated, finite = graph.outputs
    assert is_within(place, 0, 9) and is_within(counter, 0, 4)
    assert range_of(mask) == Range(0, 1) and is_finite(mask)
    assert is_finite(finite) and not is_finite(free)
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


def test_what_may_be_minus_zero() -> None:
    def function(x: jax.Array, i: jax.Array) -> list[jax.Array]:
        square = jnp.square(x)
        never = [square, jnp.exp(x) - 0.0, x + 0.0, i.astype(x.dtype), jnp.sum(square) / 3, -i]
        # A product of numbers of either sign, and what is too small for its dtype, may be.
        return [*never, x, -square, x * 0.5, square - x, jnp.float32(-0.0) + 0 * x]

    graph = trace_graph(function, jnp.ones(3), jnp.arange(3))
    proven = [is_never_minus_zero(value) for value in graph.outputs]
    assert proven == [True] * 6 + [False, False, False, True, False]
    assert [has_no_sign(value) for value in graph.outputs[:3]] == [True, True, False]


def test_a_value_that_is_read_twice_is_looked_at_once() -> None:
    """Forty doublings would be 2 ** 40 looks at the input."""

    def doubled(x: jax.Array) -> jax.Array:
        for _ in range(40):
            x = x + x
        return x

    graph = trace_graph(doubled, jax.ShapeDtypeStruct((4,), "float32"))
    assert not is_never_minus_zero(graph.outputs[0])
    assert not is_finite(graph.outputs[0])
