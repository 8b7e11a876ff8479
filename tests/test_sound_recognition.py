"""What recognition finds has the values of what was there; what it would change it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dialect.arrays.evaluate import evaluate
from dialect.jaxprs import framework  # noqa: F401  (registers JAX)
from dialect.jaxprs.jaxpr import trace_graph
from dialect.ops import rotary
from dialect.recognition.softmaxes import softmax_of_exp
from rewrite.driver import rewrite
from rewrite.ir import Graph
from tests.kit import graph_of, recognized_graph, run
from tests.scaled import in_steps

RANDOM = np.random.default_rng(11)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(RANDOM.standard_normal(shape), jnp.float32)


def assert_kept(function: Callable[..., Any], *args: Any) -> Graph:
    """In NumPy: XLA multiplies a mask with infinity otherwise than it says."""
    before = graph_of(function, *args)
    graph = recognized_graph(before)
    (expected,), (found,) = (run(each, *args) for each in (before, graph))
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    exact = not jnp.issubdtype(expected.dtype, jnp.floating)
    tolerance = 0 if exact else 1e-5
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    return graph


INF, NAN = jnp.inf, jnp.nan
X, SQUARE = normal(3, 8) * 3, normal(4, 4)
Q, K, V = normal(3, 8), normal(5, 8), normal(5, 6)
MASK = jnp.asarray([[True, False, True, True, False], [False] * 5, [False, True] * 2 + [False]])
OTHER = jnp.asarray([[True, True, False, True, False], [True] * 5, [False, True] * 2 + [True]])
WHOLE = jnp.asarray(RANDOM.integers(-4, 5, (3, 8)), jnp.int32)


def last(x: Any) -> Any:
    return jnp.sum(x, axis=-1, keepdims=True)


def root_mean_square(x: Any, epsilon: float = 1e-5) -> Any:
    return lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon)


def attention(q: Any, k: Any, v: Any, logits: Callable[[Any], Any] = lambda x: x) -> Any:
    return jax.nn.softmax(logits(q @ k.T * 0.3), axis=-1) @ v


def attended(logits: Callable[..., Any], *more: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    return lambda q, k, v, *rest: attention(q, k, v, lambda x: logits(x, *rest)), (Q, K, V, *more)


Case = tuple[Callable[..., Any], tuple[Any, ...]]

NORMS: dict[str, Case] = {
    "of whole numbers": (lambda x: x.astype(int).astype(x.dtype) * root_mean_square(x), (X,)),
    "statistics of whole numbers": (
        lambda x: x * root_mean_square(x.astype(int).astype(x.dtype)),
        (X,),
    ),
    "floored": (
        lambda x: x * lax.rsqrt(jnp.maximum(jnp.mean(x * x, -1, keepdims=True), 0.5)),
        (X / 9,),
    ),
    "by the root of the columns": (lambda x: x * root_mean_square(x).T, (SQUARE,)),
    "by the root twice": (lambda x: x * root_mean_square(x) * root_mean_square(x), (X,)),
    "squared": (lambda x: x * x * root_mean_square(x), (X,)),
    "of products of bytes": (
        lambda x, y: (x * y).astype(jnp.float32) * root_mean_square((x * y).astype(jnp.float32)),
        (WHOLE.astype(jnp.int8) * 30, WHOLE.astype(jnp.int8)),
    ),
    "centred by an infinite scale": (
        lambda x, w: x * w - jnp.mean(x, -1, keepdims=True) * w,
        (jnp.abs(X), jnp.full(8, INF)),
    ),
    "negative epsilon": (lambda x: x * root_mean_square(x, -0.5), (X,)),
}
SOFTMAXES: dict[str, Case] = {
    "of whole weights": (
        lambda x: (e := jnp.exp(x).astype(int).astype(x.dtype)) / last(e + 0.0),
        (X,),
    ),
    "whole above, not below": (
        lambda x: jnp.exp(x).astype(int).astype(x.dtype) / last(jnp.exp(x)),
        (X,),
    ),
    "by the sums of the columns": (
        lambda x: jnp.exp(x) / jnp.sum(jnp.exp(x), -1)[None, :],
        (SQUARE,),
    ),
    "shifted by an infinite mean": (
        lambda x: (e := jnp.exp(x - jnp.mean(x, -1, keepdims=True))) / last(e),
        (X.at[0, 1].set(-INF),),
    ),
    "shifted by the maximum of all rows": (
        lambda x: (e := jnp.exp(x - jnp.max(x))) / last(e),
        (X.at[0, 1].set(INF),),
    ),
    "not shifted": (lambda x: jnp.exp(x) / last(jnp.exp(x)), (X.at[0, 1].set(INF),)),
    "weights times a mask": (
        lambda x, m: (e := jnp.exp(x) * m) / last(e),
        (X.at[0, 1].set(INF), jnp.arange(8) > 3),
    ),
    "masked weights": (
        lambda x, m: (e := jnp.where(m, jnp.exp(x - 1), 0)) / last(e),
        (X.at[0, 1].set(INF), jnp.arange(8) > 3),
    ),
    "sum and a little": (lambda x: jnp.exp(x) / (last(jnp.exp(x)) + 1e-3), (X,)),
    "of another sum's logarithm": (lambda x: jnp.exp(x - jnp.log(last(jnp.exp(x / 2)))), (X,)),
    "of nothing": (lambda x: jax.nn.softmax(x[:, :1])[:, :0] * 1, (X,)),
    "of a sum over nothing": (
        lambda x, v: jnp.exp(x[:, :0]) @ v[:0] / last(jnp.exp(x[:, :0])),
        (X, normal(8, 3)),
    ),
    "dropped where nothing is kept": (
        lambda x, m: jnp.where(m, jax.nn.softmax(jnp.where(m, x, -1e9)), 0.0),
        (normal(3, 5), MASK),
    ),
    "a sink on another axis": (
        lambda x, s: jnp.exp(x) / (last(jnp.exp(x)) + jnp.exp(s)[None, :, None]),
        (normal(4, 4, 5), normal(4)),
    ),
    "an infinite sink": (
        lambda x, s: jnp.exp(x) / (last(jnp.exp(x)) + jnp.exp(s)),
        (X, jnp.asarray([[INF], [0.0], [-INF]])),
    ),
}
ATTENTION: dict[str, Case] = {
    "whole queries": (attention, (WHOLE, WHOLE[:, ::-1], normal(3, 6))),
    "whole keys": (attention, (Q, jnp.round(K * 2).astype(jnp.int32), V)),
    "whole logits": attended(lambda x: (x * 3).astype(jnp.int32).astype(x.dtype)),
    "whole weights": (
        lambda q, k, v: (jax.nn.softmax(q @ k.T) * 9).astype(jnp.int32).astype(v.dtype) @ v,
        (Q, K, V),
    ),
    "weights in floats of eight bits": (
        lambda q, k, v: in_steps(jax.nn.softmax(q @ k.T), form="fp8") @ v,
        (Q, K, V),
    ),
    "scaled nearly as usual": (
        lambda q, k, v: jax.nn.softmax(q @ k.T * 0.3526) @ v,
        tuple((each * 20).astype(jnp.bfloat16).astype(jnp.float32) for each in (Q, K, V)),
    ),
    "rows that keep nothing": attended(lambda x, m: jnp.where(m, x, -1e9), MASK),
    "rows that keep nothing of -infinity": attended(lambda x, m: jnp.where(m, x, -INF), MASK),
    "masked by a sum": attended(lambda x, m: x + jnp.where(m, 0.0, -1e9), MASK),
    "two masks added": attended(
        lambda x, m, n: x + jnp.where(m, 0.0, -2e9) + jnp.where(n, 0.0, -1e9), MASK, OTHER
    ),
    "two masks of other constants": attended(
        lambda x, m, n: jnp.where(m, jnp.where(n, x, -1e9), -2e9), MASK, OTHER
    ),
    "scaled behind the mask": attended(lambda x, m: jnp.where(m, x, -1e9) * 1e-8, MASK),
    "a mask in numbers, scaled": attended(lambda x, m: (x + jnp.where(m, 0, -1e9)) * 1e-8, MASK),
    "large logits": attended(lambda x, m: jnp.where(m, x * 1e10, -1e9), MASK),
    "weights dropped where nothing is kept": (
        lambda q, k, v, m: jnp.where(m, jax.nn.softmax(jnp.where(m, q @ k.T, -1e9)), 0.0) @ v,
        (Q, K, V, MASK),
    ),
    "weights dropped by another mask": (
        lambda q, k, v, m, n: jnp.where(n, jax.nn.softmax(jnp.where(m, q @ k.T, -1e9)), 0.0) @ v,
        (Q, K, V, MASK, OTHER),
    ),
    "biased behind the softmax": (
        lambda q, k, v, b: (jax.nn.softmax(q @ k.T) + b) @ v,
        (Q, K, V, normal(3, 5)),
    ),
    "biased behind the mask": attended(
        lambda x, m, b: jnp.where(m, x, -1e9) + b, MASK, normal(3, 5) * 1e9
    ),
    "capped by a clip": attended(lambda x: jnp.clip(x, -0.1, 0.1)),
    "infinitely hot": attended(lambda x: x / INF),
    "over the queries": (
        lambda q, k, v: jax.nn.softmax(q @ k.T, axis=0) @ v,
        (Q, K, V),
    ),
    "no key": (lambda q, k, v: attention(q, k[:0], v[:0]), (Q, K, V)),
    "no sequence": (
        lambda q, k, v: jax.vmap(attention)(q, k, v),
        (jnp.zeros((0, 3, 8)), jnp.zeros((0, 5, 8)), jnp.zeros((0, 5, 6))),
    ),
    "heads of nothing": (lambda q, k, v: attention(q[:, :0], k[:, :0], v), (Q, K, V)),
    "a factor of bytes": (
        lambda q, k, v: attention((q * jnp.int8(40)).astype(jnp.float32), k, v),
        (WHOLE.astype(jnp.int8), K, V),
    ),
}
MASKS: dict[str, Case] = {
    "a half as a whole number": (
        lambda m: jnp.where(m, 0.5, 0.0).astype(jnp.int32) != 0,
        (MASK,),
    ),
    "300 as a byte": (lambda m: jnp.where(m, 300, 0).astype(jnp.int8) > 100, (MASK,)),
    "times infinity": (lambda m: m.astype(jnp.float32) * INF, (MASK,)),
    "a product that wraps": (
        lambda m: (jnp.where(m, 100, 1).astype(jnp.int8) * jnp.int8(3)) > 0,
        (MASK,),
    ),
    "without a sign": (lambda m: jnp.uint8(0) - m.astype(jnp.uint8) > 3, (MASK,)),
    "an empty array laid out": (
        lambda x: jnp.broadcast_to(x[:, None], (0, 3)).reshape(3, 0),
        (jnp.zeros(0),),
    ),
}
INDICES: dict[str, Case] = {
    "a remainder under a condition": (
        lambda i, b: jnp.where(((r := lax.rem(i, 8)) < 0) & b, r + 8, r),
        (jnp.array([-3, 5, -9]), jnp.array([True, False, False])),
    ),
    "a remainder by a negative number": (
        lambda i: jnp.where((r := lax.rem(i, -8)) < 0, r + -8, r),
        (jnp.array([-3, 5, -9]),),
    ),
    "one-hot rows of infinities": (
        lambda t, i: jax.nn.one_hot(i, 3) @ t,
        (jnp.array([[1.0, INF], [NAN, 2.0], [3.0, 4.0]]), jnp.array([0, 2, 5, -1])),
    ),
    "one-hot rows, out of bounds": (
        lambda t, i: jax.nn.one_hot(i, 3) @ (t > 0).astype(jnp.float32),
        (normal(3, 2), jnp.array([0, 2, 5, -1])),
    ),
    "mapped slices that fill": (
        lambda t, i: lax.gather(
            t,
            i[:, None],
            lax.GatherDimensionNumbers((1, 2), (), (0,)),
            (1, 4),
            mode="fill",
            fill_value=-3.0,
        ),
        (normal(5, 4), jnp.array([1, 7])),
    ),
}
ROPES: dict[str, Case] = {
    "a part of a part": (
        lambda x, c, s: jnp.concatenate([rotary.rope(x[:, :6], c, s, turned=4), x[:, 6:]], -1),
        (X, normal(3, 2), normal(3, 2)),
    ),
    "every second value": (
        lambda x, c, s: jnp.concatenate([rotary.rope(x[:, 0:8:2], c, s), x[:, 4:]], -1),
        (X, normal(3, 2), normal(3, 2)),
    ),
    "tables of more rows": (
        lambda x, c, s: rotary.rope(x, c, s),
        (X[:1], normal(3, 4), normal(3, 4)),
    ),
    "one angle": (lambda x, c, s: rotary.rope(x, c, s), (X, normal(3, 1), normal(3, 1))),
    "scalars for tables": (
        lambda x, c, s: x * c + jnp.concatenate([-x[:, 4:], x[:, :4]], -1) * s,
        (X, jnp.float32(0.3), jnp.float32(0.4)),
    ),
    "the smallest byte turned": (
        lambda x: jnp.concatenate([-x[:, 4:], x[:, :4]], -1).astype(jnp.float32),
        (jnp.full((3, 8), -128, jnp.int8),),
    ),
}
ALL = {
    f"{group}: {name}": case
    for group, cases in {
        "norm": NORMS,
        "softmax": SOFTMAXES,
        "attention": ATTENTION,
        "mask": MASKS,
        "index": INDICES,
        "rope": ROPES,
    }.items()
    for name, case in cases.items()
}


@pytest.mark.parametrize("case", ALL)
def test_values_are_kept(case: str) -> None:
    function, args = ALL[case]
    assert_kept(function, *args)


def test_a_sum_over_an_axis_of_one_is_no_sum_over_another() -> None:
    """Alone, as the rule checker runs it: in a pipeline such sums are gone before."""
    x = jnp.array([[0.25], [-2.0]])
    graph = trace_graph(lambda x: [jnp.exp(x) / jnp.sum(jnp.exp(x), axis=1)[:, None]], x)
    (found,) = evaluate(rewrite(graph, [softmax_of_exp]), [x])
    np.testing.assert_allclose(found, jnp.ones((2, 1)))


def test_a_sum_of_other_rows_is_not_that_of_a_softmax() -> None:
    """The logarithms of the rows' sums lie across: the result has an axis that the weights lack."""

    def crossed(x: jax.Array) -> jax.Array:
        sums = jnp.log(jnp.sum(jnp.exp(x), axis=1, keepdims=True))
        return jnp.exp(x - sums.T)

    assert_kept(crossed, normal(2, 1))
    assert_kept(crossed, normal(3, 3))
