"""Only what is an activation of every number is called one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dialect.arrays.evaluate import evaluate
from dialect.jaxprs import framework  # noqa: F401  (registers JAX)
from rewrite.ir import Graph
from tests.kit import graph_of, recognized_graph

sigmoid = jax.nn.sigmoid
ROOT = math.sqrt(2 / math.pi)
EXTREMES = [
    0.0,
    -0.0,
    0.3,
    -2.5,
    7.5,
    -12.0,
    50.0,
    300.0,
    1e4,
    -1e4,
    3e38,
    math.inf,
    -math.inf,
    math.nan,
]


def recognized(function: Callable[[Any], Any], dtype: str = "float32") -> Graph:
    return recognized_graph(graph_of(function, jax.ShapeDtypeStruct((2, 14), dtype)))


def kinds(graph: Graph) -> list[str]:
    return [op["kind"] for op in graph.ops if op.name == "activate"]


SPELLINGS = {
    "silu": (
        lambda x: x / (1 + jnp.exp(-x)),
        lambda x: 0.5 * x * (1 + jnp.tanh(x / 2)),
        lambda x: x * jnp.reciprocal(1 + jnp.exp(-x)),
    ),
    "gelu": (
        lambda x: 0.5 * x * (1 + jnp.tanh(ROOT * (x + 0.044715 * x**3))),
        lambda x: 0.5 * x * (1 + jnp.tanh(jnp.sqrt(2 / jnp.pi) * (x + 0.044715 * x**3.0))),
        lambda x: x * 0.5 * (1 + jnp.tanh(0.7978845608 * x + 0.035677408136 * x**3)),
        lambda x: x * sigmoid(1.5957691216 * (x + 0.044715 * x * x * x)),
    ),
    "gelu_exact": (
        lambda x: x * lax.erfc(-x * np.sqrt(0.5)) / 2,
        lambda x: x * jax.scipy.stats.norm.cdf(x),
        lambda x: x / 2 * (1 - lax.erf(-x / math.sqrt(2))),
    ),
    "gelu_quick": (lambda x: x / (1 + jnp.exp(-1.702 * x)),),
    "relu": (lambda x: jnp.maximum(0, x),),
}
CASES = [(kind, each) for kind, several in SPELLINGS.items() for each in several]


@pytest.mark.parametrize("kind, spelling", CASES)
def test_every_spelling_is_found(kind: str, spelling: Callable[[Any], Any]) -> None:
    assert kinds(recognized(spelling)) == [kind]


OTHERS = {
    "clipped": lambda x: jnp.clip(x, -10, 10) * sigmoid(x),
    "clipped above": lambda x: jnp.minimum(x, 7) * sigmoid(x),
    "with a little more": lambda x: x * (sigmoid(x) + 1e-9),
    "steeper": lambda x: x * sigmoid(1.0001 * x),
    "rounded": lambda x: x * jnp.floor(1 + sigmoid(x) * 1e9) / 1e9,
    "of whole numbers": lambda x: x.astype(jnp.int32).astype(x.dtype) * sigmoid(x),
    "zero where x is NaN": lambda x: jnp.where(x > 0, x, 0),
    "from a little above zero": lambda x: jnp.maximum(x, 1e-9),
    "NaN at a point": lambda x: x * (x - 50) / (x - 50) * sigmoid(x),
    "other constants": lambda x: 0.5 * x * (1 + jnp.tanh(0.79788 * x * (1 + 0.0447 * x * x))),
    "one more beyond a thousand": lambda x: jnp.where(x < 0, 0, x + jnp.tanh(jnp.exp(x - 1000))),
    "one more beyond three hundred": lambda x: jnp.where(x < 0, 0, x + jnp.tanh(jnp.exp(x - 290))),
    "a thousand further": lambda x: x * sigmoid(x + 1000),
    "nearly softplus": lambda x: jnp.where(x > 30, x, jnp.log(1 + jnp.exp(x))),
}


@pytest.mark.parametrize("function", OTHERS.values(), ids=OTHERS)
def test_what_is_nearly_an_activation_keeps_its_values(function: Callable[[Any], Any]) -> None:
    graph, x = recognized(function), jnp.array([EXTREMES] * 2)
    assert kinds(graph) == []
    np.testing.assert_allclose(evaluate(graph, [x])[0], function(x), rtol=1e-6, atol=1e-30)


def gelu(root: float) -> Callable[[Any], Any]:
    return lambda x: 0.5 * x * (1 + jnp.tanh(root * x * (1 + 0.044715 * x * x)))


def test_in_sixteen_bits_a_constant_is_another_one_step_away() -> None:
    assert kinds(recognized(gelu(0.7979), "bfloat16")) == ["gelu"]
    assert kinds(recognized(gelu(0.8), "bfloat16")) == []


def test_in_sixty_four_bits_ten_digits_are_another_constant() -> None:
    with jax.enable_x64(True):
        assert kinds(recognized(gelu(math.sqrt(2 / math.pi)), "float64")) == ["gelu"]
        assert kinds(recognized(gelu(0.7978845608), "float64")) == []


def test_a_constant_may_be_as_large_as_there_is() -> None:
    with jax.enable_x64(True):
        assert kinds(recognized(lambda x: jax.nn.relu(x) * 1.7e308, "float64")) == ["relu"]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jnp.logaddexp2(lax.complex(x, x), lax.complex(-x, x)).real,
        lambda x: jnp.unwrap(x),
        lambda x: jnp.spacing(x) * x,
        lambda x: jnp.maximum(x.astype(jnp.int32) >> 1, 1).astype(x.dtype) * x,
    ],
    ids=["complex numbers", "remainders", "bits", "integers"],
)
def test_a_chain_of_other_than_reals_is_no_activation(function) -> None:
    assert kinds(recognized(function)) == []


def test_the_least_number_of_a_mask_warns_of_nothing() -> None:
    """It is looked up among known numbers times powers of two, some of which are too large."""
    least = jnp.finfo(jnp.float32).min
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recognized_graph(graph_of(lambda x: jnp.where(x > 0, x, least), jnp.ones((3, 4))))
