"""For softmaxes in parts, each with its own shift and sum, by which they are merged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from tests.more_examples.forms import Example, left_alone

_TYPES = ("f32[2,8]", "f32[2,5]", "f32[8,3]", "f32[5,3]")
_MASKS = ("bool[2,8]", "bool[2,5]")


def _most(x: Any, *_: Any) -> Any:
    return jnp.max(x, axis=-1, keepdims=True)


def _product(weights: Any, values: Any) -> Any:
    return weights @ values


def _of_numerators(
    *more: str,
    logits: Callable[..., Sequence[Any]] = lambda x, y: (x, y),
    shift: Callable[..., Any] = _most,
    product: Callable[[Any, Any], Any] = _product,
    late: Callable[[Any], Any] = lambda x: x,
    types: Sequence[str] = _TYPES,
) -> Example:
    """The parts' products, each times its share of the sum of all weights."""

    def example(x: Any, y: Any, v: Any, w: Any, *others: Any) -> Any:
        parts = logits(x, y, *others)
        shifts = [shift(part, *others) for part in parts]
        weights = [jnp.exp(part - below) for part, below in zip(parts, shifts)]
        top = jnp.maximum(*shifts)
        factors = [jnp.exp(below - top) for below in shifts]
        sums = [jnp.sum(part, axis=-1, keepdims=True) for part in weights]
        total = factors[0] * sums[0] + factors[1] * sums[1]
        results = [late(product(*each)) for each in zip(weights, (v, w))]
        return factors[0] / total * results[0] + factors[1] / total * results[1]

    return example, (*types, *more)


def _divided(
    *more: str,
    logits: Callable[..., Sequence[Any]] = lambda x, y, *_: (x, y),
    products: Sequence[Callable[[Any, Any], Any]] = (_product, _product),
    between: Callable[..., Any] = lambda result, *_: result,
    types: Sequence[str] = _TYPES,
    turned: bool = False,
) -> Example:
    """The sum of the parts' products over that of their weights, nothing subtracted."""

    def example(x: Any, y: Any, v: Any, w: Any, *others: Any) -> Any:
        weights = [jnp.exp(part) for part in logits(x, y, *others)]
        results = [product(*each) for product, each in zip(products, zip(weights, (v, w)))]
        sums = [jnp.sum(part, axis=-1, keepdims=True) for part in weights]
        total = sums[0] + sums[1]
        return between(results[0] + results[1], *others) / (total.T if turned else total)

    return example, (*types, *more)


def _masked(fill: float, then: Callable[[Any], Any] = lambda x: x) -> Callable[..., Sequence[Any]]:
    """Logits that are something else where a mask is false."""
    return lambda x, y, m, n: [then(jnp.where(m, x, fill)), then(jnp.where(n, y, fill))]


def _both(change: Callable[..., Any]) -> Callable[..., Sequence[Any]]:
    """Logits of which something is made."""
    return lambda x, y, *more: [change(x, *more), change(y, *more)]


def _finite(x: Any, *_: Any) -> Any:
    """The largest logits, or 0 where they are infinite."""
    most = _most(x)
    return jnp.where(jnp.isfinite(most), most, 0.0)


def _finite_log(x: Any) -> Any:
    return jnp.where(jnp.isfinite(jnp.log(x)), jnp.log(x), 0.0)


def _sines(count: int) -> Callable[..., Any]:
    """The sine of the sine .. of logits."""
    return lambda x: _sines(count - 1)(jnp.sin(x)) if count else x


def _there_and_back(pairs: int, both: bool) -> Callable[..., Any]:
    """A result after as many multiplications as divisions, and three more ops that cancel."""

    def between(result: Any, s: Any, t: Any) -> Any:
        once, again = jnp.exp(s), jnp.exp(t)
        for _ in range(pairs):
            result = result * once
        for _ in range(pairs):
            result = result / once
        return result * once * again / (once * again) if both else result

    return between


def _turned(weights: Any, values: Any) -> Any:
    return values.T @ weights.T


def _precise(weights: Any, values: Any) -> Any:
    return jnp.matmul(weights, values, precision="highest")


def _of_columns(weights: Any, values: Any) -> Any:
    return weights @ values.T


def _by_heads(weights: Any, values: Any) -> Any:
    """Heads that the weights have as one axis, and the product as two."""
    return jnp.einsum("ngts,ngsv->ngtv", weights.reshape(2, 2, 3, -1), values)


def _in_heads() -> Example:
    def example(x: Any, y: Any, v: Any, w: Any) -> Any:
        first, second = jnp.exp(x), jnp.exp(y)
        total = jnp.sum(first, -1) + jnp.sum(second, -1)
        return (_by_heads(first, v) + _by_heads(second, w)) / total.reshape(2, 2, 3, 1)

    return example, ("f32[4,3,8]", "f32[4,3,5]", "f32[2,2,8,2]", "f32[2,2,5,2]")


def _single(x: Any, v: Any) -> Any:
    """Softmax of a part that is all."""
    weights, below = jnp.exp(x - _most(x)), _most(x)
    factor = jnp.exp(below - jnp.maximum(below, 0.0))
    return factor / (factor * jnp.sum(weights, -1, keepdims=True)) * (weights @ v)


_EVERY, _DEEP = ("f32[2,1]", "f32[2,1]"), 24
_HALVES = ("f32[2,8]", "f32[2,5]", "bf16[8,3]", "bf16[5,3]")
_LATE = (
    lambda weights, values: weights.astype("bfloat16") @ values,
    lambda result: result.astype("float32"),
)

MORE: dict[str, list[Example]] = {
    "softmax_in_parts": [
        _divided(),
        _in_heads(),
        _divided(products=(_turned, _turned), turned=True),
        _divided(products=(_product, _of_columns), types=(*_TYPES[:3], "f32[3,5]")),
        _divided(types=("f32[1,8]", "f32[1,5]", *_TYPES[2:])),
        _of_numerators(types=("f32[1,8]", "f32[1,5]", *_TYPES[2:])),
        _of_numerators(product=_LATE[0], late=_LATE[1], types=_HALVES),
        # a product that cancels, and is of merged axes
        _of_numerators(
            *("f32[6,4]", "f32[4,1]"),
            logits=lambda x, y, *_: (x, y),
            shift=lambda x, q, k: jnp.sort(q @ k, axis=0).reshape(2, 3, 1),
            types=("f32[2,3,8]", "f32[2,3,5]", "f32[8,1]", "f32[5,1]"),
        ),
        # where a part keeps no key
        _of_numerators(*_MASKS, logits=_masked(-1e9)),
        _of_numerators(*_MASKS, logits=_masked(-jnp.inf), shift=_finite),
        _of_numerators(logits=_both(lambda x: x / 3)),
        _of_numerators(
            "f32[2,1]", logits=_both(lambda x, _: _finite_log(x)), shift=lambda x, shift: shift
        ),
        # a product with exponentials that cancels
        _of_numerators(
            *("f32[2,4]", "f32[4,1]"),
            logits=lambda x, y, *_: (x, y),
            shift=lambda x, q, k: jnp.exp(q) @ k,
        ),
        _of_numerators(logits=_both(_sines(_DEEP - 1))),
        _of_numerators(
            "f32[3,8]", "f32[3,5]", logits=lambda x, y, k, j: (x[:, :3] @ jnp.log(k), y)
        ),
        # as deep as it looks
        _divided(*_EVERY, between=_there_and_back(9, True)),
        # near misses
        *(
            (left_alone(example), types)
            for example, types in (
                (_single, ("f32[2,8]", "f32[8,3]")),
                _divided(*_EVERY, between=_there_and_back(11, False)),
                _divided(products=(_product, _precise)),
                _of_numerators(*_MASKS, logits=_masked(-jnp.inf)),
                _of_numerators(*_MASKS, logits=_masked(-jnp.inf, lambda x: jnp.sin(x.T).T)),
                _of_numerators(logits=_both(jnp.log)),
                _of_numerators(logits=_both(lambda x: x / 0.0)),
                _of_numerators("f32[2,1]", logits=_both(lambda x, y: x / y)),
                _of_numerators(logits=_both(_sines(_DEEP))),
                _divided(logits=lambda x, y: (x, jnp.broadcast_to(y[:1], (2, 5)))),
                _divided(logits=lambda x, y: (jnp.broadcast_to(x[:1], (2, 8)), y)),
            )
        ),
    ]
}
EQUAL: dict[str, dict[str, str]] = {}
