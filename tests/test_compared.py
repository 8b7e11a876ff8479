"""What counts as a difference, and what graphs are in the reals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialect.checked.compared import difference
from dialect.checked.evaluated import evaluated, means_nothing
from dialect.checked.lifted import NotLiftable, lifted
from dialect.checked.precision import step_of_new_constants
from dialect.jaxprs.jaxpr import trace_graph
from dialect.ops import nn  # noqa: F401  (defines rms_norm)
from dialect.ops.vocabulary import Traced

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "one, two, keeps",
    [
        ([1.0, NAN], [1.0, -NAN], "bits"),
        ([1.0, INF], [1.0 + 1e-12, INF], "reals"),
        ([0.0], [-0.0], "reals"),
        ([], [], "bits"),
    ],
)
def test_equal_in_its_class(one, two, keeps) -> None:
    assert difference([np.array(one)], [np.array(two)], keeps, 1e-9) is None


@pytest.mark.parametrize(
    "one, two, keeps",
    [
        ([0.0], [-0.0], "bits"),
        ([1.0], [1.0 + 1e-12], "bits"),
        ([INF], [-INF], "reals"),
        ([INF], [1e308], "reals"),
        ([NAN], [0.0], "reals"),
        ([1.0], [1.001], "reals"),
    ],
)
def test_different_in_its_class(one, two, keeps) -> None:
    found = difference([np.array(one)], [np.array(two)], keeps, 1e-9)
    assert found is not None and found.output == 0 and found.place == (0,)


def test_integers_and_types_are_exact() -> None:
    assert difference([np.int32(7)], [np.int32(8)], "reals", 1.0) is not None
    assert difference([np.int32(7)], [np.int64(7)], "reals", 1.0).what == "type"
    assert difference([np.float32(7)], [np.float32([7])], "reals", 1.0).what == "type"


def test_a_narrow_float_is_a_real_number_once_lifted() -> None:
    x = jnp.array([1.0, 3.0])
    graph = trace_graph(lambda x: [(x / 3).astype(jnp.bfloat16).astype(jnp.float32) * 3], x)
    with jax.enable_x64(True):
        (result,), largest = evaluated(lifted(graph), [np.array([1.0, 3.0])])
    np.testing.assert_allclose(np.asarray(result), [1.0, 3.0], rtol=1e-15)
    assert largest == 3.0


def test_a_loop_is_lifted_with_its_body() -> None:
    def total(x):
        return jax.lax.scan(lambda c, y: (c + y.astype(jnp.bfloat16), c), jnp.bfloat16(0), x)

    graph = trace_graph(lambda x: jax.tree.leaves(total(x)), jnp.ones(3))
    with jax.enable_x64(True):
        (last, before), _ = evaluated(lifted(graph), [np.full(3, 0.1)])
    assert float(last) == pytest.approx(0.3, rel=1e-15) and before.dtype == np.float64


def test_an_integer_beside_lifted_floats_stays_as_wide_as_it_was() -> None:
    graph = trace_graph(lambda x: [jnp.where(x > 1, x, 7)], jnp.arange(3))
    with jax.enable_x64(True):
        (result,), _ = evaluated(lifted(graph), [np.arange(3, dtype=np.int32)])
    assert result.dtype == np.int32 and result.tolist() == [7, 7, 2]


def test_bits_of_a_float_are_not_lifted() -> None:
    graph = trace_graph(lambda x: [jax.lax.bitcast_convert_type(x, jnp.int32)], jnp.ones(3))
    with jax.enable_x64(True), pytest.raises(NotLiftable, match="bitcast_convert_type"):
        lifted(graph)


def test_exponentials_that_all_vanish_say_nothing() -> None:
    """Those that a mask keeps: another shift would show them."""
    function = trace_graph(
        lambda x, m: [jnp.where(m, jnp.exp(x), 0.0)], jnp.ones(2), jnp.ones(2, bool)
    )
    exponents = np.array([1.0, -1e9])
    for mask, nothing in (([False, True], True), ([True, True], False), ([True, False], False)):
        assert means_nothing(function, [exponents, np.array(mask)]) is nothing


@pytest.mark.parametrize(
    ("number", "dtype", "step"),
    [(1 / 3, jnp.float32, 2.0**-23), (1 / 3, jnp.bfloat16, 2.0**-7), (0.25, jnp.bfloat16, 0.0)],
)
def test_a_number_that_an_op_rounds_is_a_new_constant(number: float, dtype, step: float) -> None:
    x = jnp.ones((2, 3), dtype)
    before, after = (
        trace_graph(lambda x, epsilon=epsilon: [Traced["rms_norm"](x, epsilon=epsilon)], x)
        for epsilon in (0.5, number)
    )
    assert step_of_new_constants(before, after) == step
    assert step_of_new_constants(after, after) == 0
