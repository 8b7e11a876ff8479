"""The normal form keeps the numbers of programs that its rules were not written for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.extend.core.primitives import add_jaxvals_p

from dialect.arrays.evaluate import evaluate
from dialect.checked.compared import difference
from dialect.jaxprs import framework  # noqa: F401  (registers)
from dialect.jaxprs.jaxpr import trace_graph
from dialect.normal.mask_rules import broadcast_outward
from dialect.normal.normal_form import normal_form
from rewrite.driver import Report
from rewrite.driver import rewrite as apply_rules
from rewrite.errors import InvalidProgram
from rewrite.opdef import make
from rewrite.rules import local
from rewrite.verify import verify
from tests.kit import run


def kept(function: Callable[..., Any], *args: Any, keeps: str = "bits") -> Report:
    """Asserts that the normal form of a function gives what the function gives."""
    graph, report = trace_graph(lambda *arrays: jax.tree.leaves(function(*arrays)), *args), Report()
    made = normal_form(graph, report)
    verify(made)
    expected, got = (run(lambda *a, g=g: evaluate(g, a), *args) for g in (graph, made))
    assert difference(expected, got, keeps, 0.0 if keeps == "bits" else 1e-5) is None
    return report


TALL = jnp.arange(4.0)[:, None]
WIDE = jnp.arange(12.0).reshape(4, 3) - 5
SQUARE = jnp.arange(16.0).reshape(4, 4) ** 2
SIGNED_ZEROS = jnp.array([0.0, -0.0, 1.0, -1.0, jnp.inf, -jnp.inf, jnp.nan])
SMALLEST = jnp.array([-128, 127, -1, 3], jnp.int8)
BYTES = jnp.array([1, 2, 200, 255], jnp.uint8)

KEPT: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "a power of a broadcast": (
        lambda x: jnp.broadcast_to(x, (4, 3)) ** jnp.float32(2),
        (TALL,),
    ),
    "a root of a broadcast": (
        lambda x: jnp.square(jnp.broadcast_to(x, (4, 3))) ** 0.5,
        (TALL,),
    ),
    "a part of a broadcast complex": (
        lambda x, y: jnp.real(lax.complex(jnp.broadcast_to(x, (4, 3)), y)),
        (TALL, WIDE),
    ),
    "a part of a product of broadcasts": (
        lambda x, y: jnp.imag(lax.complex(jnp.broadcast_to(x, (4, 3)), y) * lax.complex(y, y)),
        (TALL, WIDE),
    ),
    "a reshape in another order": (
        lambda x: lax.reshape(x, (4, 4), dimensions=(1, 0)),
        (SQUARE,),
    ),
    "a barrier of broadcasts": (
        lambda x, y: lax.optimization_barrier((jnp.broadcast_to(x, (4, 3)), y)),
        (TALL, WIDE),
    ),
    "an array repeated no times": (lambda x: jnp.tile(x, (0, 2)), (WIDE,)),
    "a sum of gradients of broadcasts": (
        lambda x, y: jax.grad(lambda x: jnp.sum(jnp.broadcast_to(x, (4, 3)) * y * jnp.sum(x)))(x),
        (TALL, WIDE),
    ),
    "-x // y of bytes": (lambda x: lax.div(-x, x[::-1]), (BYTES,)),
    "x // -y of bytes": (lambda x: lax.div(x, -x[::-1]), (BYTES,)),
    "x // -y of the smallest integer": (lambda x: lax.div(x, -x), (SMALLEST,)),
    "-x * y of integers": (lambda x: -x * x[::-1], (SMALLEST,)),
    "-x / y": (lambda x: -x / x[::-1], (SIGNED_ZEROS,)),
    "x - -y": (lambda x: x - -x[::-1], (SIGNED_ZEROS,)),
    "1 / (x + 0)": (lambda x: 1 / (x + 0.0), (SIGNED_ZEROS,)),
    "1 / (x - 0)": (lambda x: 1 / (x - 0.0), (SIGNED_ZEROS,)),
    "1 / max(x, 0) of halves": (
        lambda x: 1 / jnp.maximum(jnp.maximum(x, -0.0) * 0.5, 0.0),
        (SIGNED_ZEROS,),
    ),
    "a root of any number": (lambda x: (x**0.5, x**-0.5), (SIGNED_ZEROS,)),
    "x / sqrt(y)": (lambda x: x[:, None] / jnp.sqrt(x), (jnp.abs(SIGNED_ZEROS),)),
    "a maximum of wrapped squares": (
        lambda x: jnp.maximum(lax.div(jnp.sum(x * x, dtype="int8"), jnp.int8(4)), 0),
        (SMALLEST,),
    ),
    "a choice beyond the last": (
        lambda x: (lax.select_n(jnp.int32(9), x, -x), lax.select_n(jnp.int32(-1), x, -x)),
        (WIDE,),
    ),
    "a mean of integers": (
        lambda x: lax.div(jnp.sum(x * x), 4) - lax.div(jnp.sum(x), 4) ** 2,
        (jnp.arange(4) - 7,),
    ),
    "means over different axes": (
        lambda x: jnp.mean(x * x, 0) - jnp.mean(x, 1) ** 2,
        (SQUARE,),
    ),
    "means of rows less means of columns": (
        lambda x: jnp.mean(x * x, 1, keepdims=True) - jnp.mean(x, 1) ** 2,
        (SQUARE,),
    ),
    "siblings with a number each": (
        lambda x, w, s: jnp.stack([x @ w[0] * s[0], x @ w[1] * s[1]]),
        (WIDE, jnp.arange(12.0).reshape(2, 3, 2), jnp.array([2.0, 3.0])),
    ),
    "siblings chosen by a number each": (
        lambda x, w, s: jnp.stack([jnp.where(s[i] > 2.5, x @ w[i], 0.0) for i in (0, 1)]),
        (WIDE, jnp.arange(12.0).reshape(2, 3, 2), jnp.array([2.0, 3.0])),
    ),
    "siblings that differ in their axes": (
        lambda x, w: jnp.stack([x @ jnp.unstack(w, axis=0)[0], x @ jnp.unstack(w, axis=1)[1]]),
        (jnp.arange(6.0).reshape(3, 2), jnp.arange(8.0).reshape(2, 2, 2)),
    ),
}


@pytest.mark.parametrize("function, args", KEPT.values(), ids=KEPT)
def test_every_bit_is_kept(function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    kept(function, *args)


@pytest.mark.parametrize("off", (-1, 1))
def test_a_sum_divided_by_another_number_is_no_mean(off: int) -> None:
    def variance(x: jax.Array) -> jax.Array:
        return jnp.sum(x * x) / (200 + off) - jnp.mean(x) ** 2

    report = kept(variance, jnp.arange(200.0))
    assert "variance" not in report.fired
    reason = report.misses["variance"][0].reason
    assert reason == f"it divides by {200.0 + off}, where 200 are summed"


@pytest.mark.parametrize("third, fires", ((1 / 3, True), (float(jnp.bfloat16(1 / 3)), False)))
def test_a_reciprocal_is_that_of_the_count_rounded_to_its_dtype(third: float, fires: bool) -> None:
    def variance(x: jax.Array) -> jax.Array:
        return jnp.sum(x * x, -1) * third - (jnp.sum(x, -1) * third) ** 2

    assert ("variance" in kept(variance, WIDE, keeps="reals").fired) == fires


def test_deep_siblings_are_left_alone() -> None:
    def deep(x: jax.Array) -> jax.Array:
        for _ in range(400):
            x = jnp.sin(x)
        return x @ x.T

    kept(lambda x, y: jnp.stack([deep(x), deep(y)]), WIDE, -WIDE)


def test_a_rule_that_changes_a_type_is_told_by_name() -> None:
    @local("sin", example=lambda x: jnp.sin(x), types=("f32[4]",))
    def halved(op):
        """sin(x)  ->  sin of half of it"""
        (size,) = op.types[0].shape
        limits = {"start_indices": (0,), "limit_indices": (size // 2,)}
        return make("sin", make("slice", op.args[0], **limits))

    graph = trace_graph(lambda x: [jnp.sin(x)], jnp.ones(4))
    with pytest.raises(
        InvalidProgram, match=r"halved would turn sin of type f32\[4\] into f32\[2\]"
    ):
        apply_rules(graph, [halved])


def test_broadcasts_before_a_gradients_sum_have_one_shape() -> None:
    """add_any takes no scalar beside an array, and crashed (seed 55 of the rule checker)."""

    def function(y: jax.Array) -> jax.Array:
        ones = lax.broadcast(jnp.float16(1), (4,))
        return add_jaxvals_p.bind(lax.broadcast(jnp.float16(1), (4,)) * y, ones)

    y = jnp.full(1, 2, "float16")
    made = apply_rules(trace_graph(function, y), [broadcast_outward])
    assert "add_any" in [op.name for op in made.ops]
    assert jnp.array_equal(evaluate(made, [y])[0], function(y))
