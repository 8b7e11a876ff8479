"""Norms, found by their factors.

A product is flattened into its factors; where x and rsqrt(mean(x²) + epsilon) are among them, in
whatever order the library multiplied, they are one `rms_norm`. Scales and biases stay outside.
"""

from __future__ import annotations

from functools import partial, reduce

import jax
import jax.numpy as jnp

from dialect.matching.averages import average_of, mean_of
from dialect.matching.proofs import is_bounded
from dialect.matching.values import in_dtype, number, reshaped, through, unrounded
from dialect.normal.normal_form import normal_form
from dialect.ops import nn  # noqa: F401  (defines the norms)
from dialect.ops.vocabulary import Traced
from rewrite.ir import Op, Value
from rewrite.opdef import make
from rewrite.rules import Miss, Outcome, local, pattern


@local(
    "mul",
    example=lambda x, w: w * x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5),
    types=("f32[2,8]", "f32[2,8]"),
    keeps="reals",
)
def rms_norm(op: Op) -> Outcome:
    """x * rsqrt(mean(x²) + epsilon) * ...  ->  rms_norm(x) * ..."""
    for root in _factors(op.results[0]):
        found = _normalised(root)
        if found is None:
            continue
        if isinstance(found, Miss):
            return found
        source, axis, epsilon = found
        rest = _factors(op.results[0], source)
        at = next((i for i, each in enumerate(rest) if _is_of(each, source, axis)), None)
        if at is None or root.type.shape != (*rest[at].type.shape[:-1], 1):
            return Miss("what is normalised is not, over its last axis, what is averaged", 6)
        whole, dtype = rest.pop(at), op.types[0].dtype
        rest.remove(root)
        made = make("rms_norm", in_dtype(unrounded(whole), source.type.dtype), epsilon=epsilon)
        factors = (in_dtype(each, dtype) for each in (made, *rest))
        return reduce(partial(make, "mul"), factors)
    return None


def _factors(value: Value, whole: Value | None = None) -> list[Value]:
    """What a product multiplies: its arguments, those of the products among them, and so on.

    `whole` is taken as one factor, even if it is a product.
    """
    inner = unrounded(value)
    if whole not in (value, inner) and inner.op.name == "mul":
        return [each for arg in inner.op.args for each in _factors(arg, whole)]
    return [value]


def _normalised(root: Value) -> tuple[Value, int, float] | Miss | None:
    """(x, axis, epsilon) where the value is rsqrt(mean(x²) + epsilon) over one axis."""
    inner = unrounded(root, "reshape")
    if inner.op.name != "rsqrt":
        return None
    mean, epsilon = unrounded(inner.op.args[0], "reshape"), 0.0
    if mean.op.name == "add":
        left, right = mean.op.args
        left, right = (right, left) if number(left) is not None else (left, right)
        if number(right) is None:
            return Miss("what is added to the mean is no constant", 4)
        mean, epsilon = left, float(number(right))
    average = average_of(mean)
    if average is None:
        return None
    square = average.source.op
    if not average.is_mean:
        return Miss("the sum is not divided by the number of its terms", 5)
    if square.name != "square":
        return Miss(f"the mean is of {square.name}, not of squares", 4)
    if len(average.axes) != 1:
        return Miss(f"its statistics are over axes {average.axes}, not over one", 5)
    return square.args[0], average.axes[0], epsilon


def _is_of(value: Value, source: Value, axis: int) -> bool:
    """Whether `value` is `source` with this axis last and the others as they are."""
    value, source = unrounded(value), unrounded(source)
    if value == source:
        return axis == source.type.rank - 1
    moved = (*(d for d in range(source.type.rank) if d != axis), axis)
    at = value.op
    return at.name == "transpose" and unrounded(at.args[0]) == source and at["permutation"] == moved


@local(
    "add",
    "sub",
    example=lambda x, w, b: x * (w := jnp.tanh(w)) + (b - jnp.mean(x, -1, keepdims=True) * w),
    types=("f32[2,8]", "f32[8]", "f32[8]"),
    keeps="reals",
    needs=("bounded",),
)
def centred(op: Op) -> Outcome:
    """x * w - mean(x) * w + ...  ->  (x - mean(x)) * w + ..., where no w is infinite"""
    terms = _terms(op.results[0])
    for i, (sign, less) in enumerate(terms):
        for mean in less:
            source = mean_of(mean)
            if source is None:
                continue
            for j, (other, whole) in enumerate(terms):
                scale = _without(whole, source)
                if other != -sign or not scale or scale != _without(less, mean):
                    continue
                if not all(is_bounded(each, finite_parameters=True) for each in scale):
                    return Miss("the scale may be infinite", 4)
                centre = make("sub", source, mean)
                kept = [term for n, term in enumerate(terms) if n not in (i, j)]
                return _summed([(other, [centre, *scale]), *kept])
    return None


Term = tuple[int, list[Value]]  # 1 or -1, and factors


_DEEPEST_SUM = 4  # a norm adds three terms; the residual stream behind it adds one a layer


def _terms(value: Value, sign: int = 1, deepest: int = _DEEPEST_SUM) -> list[Term]:
    """What a sum adds, each flattened into its factors."""
    if value.op.name in ("add", "sub") and deepest:
        left, right = value.op.args
        other = sign if value.op.name == "add" else -sign
        return _terms(left, sign, deepest - 1) + _terms(right, other, deepest - 1)
    factors = []
    for each in _factors(value):
        factor = in_dtype(each, value.type.dtype)
        inner = through(factor, "reshape").op
        sign = -sign if inner.name == "neg" else sign
        plain = inner.name != "neg"
        factors.append(factor if plain else reshaped(inner.args[0], factor.type.shape))
    return [(sign, factors)]


def _without(factors: list[Value], value: Value) -> list[Value] | None:
    at = factors.index(value) if value in factors else None
    return None if at is None else factors[:at] + factors[at + 1 :]


def _summed(terms: list[Term]) -> Value:
    products = [(sign, reduce(partial(make, "mul"), factors)) for sign, factors in terms]
    (sign, made), *rest = products
    made = made if sign > 0 else make("neg", made)
    for sign, product in rest:
        made = make("add" if sign > 0 else "sub", made, product)
    return made


layer = pattern(
    "layer_norm",
    "rms_norm(x - mean(x))  ->  layer_norm(x)",
    before=lambda x, *, epsilon: Traced["rms_norm"](
        x - jnp.mean(x, axis=-1, keepdims=True), epsilon=epsilon
    ),
    after=Traced["layer_norm"],
    example=("f32[2,8]",),
    constants={"epsilon": 1e-5},
    normal=normal_form,
)
