"""Norms, recognised by their factors.

A product is flattened into its factors. If x and rsqrt(mean(x²) + epsilon) are among them, in any
order, the two become one `rms_norm`. Scales and biases stay outside.
"""

from __future__ import annotations

from functools import partial, reduce

import jax
import jax.numpy as jnp

from dialect.matching.averages import average_of, mean_of
from dialect.matching.proofs import is_bounded
from dialect.matching.values import in_dtype, number, reshaped, shaped, through, unrounded
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
        statistic = _statistic(root)
        if statistic is None:
            continue
        if isinstance(statistic, Miss):
            return statistic
        source, axis, added = statistic
        factors = _factors(op.results[0], source)
        place = next((i for i, x in enumerate(factors) if _is_source(x, source, axis)), None)
        if place is None or root.type.shape != (*factors[place].type.shape[:-1], 1):
            return Miss("no factor is the averaged array with the averaged axis last", 6)
        x, dtype = factors.pop(place), op.types[0].dtype
        factors.remove(root)
        x = in_dtype(unrounded(x), source.type.dtype)
        if isinstance(added, Value):
            norm = make("rms_norm", x, in_dtype(added, x.type.dtype))
        else:
            norm = make("rms_norm", x, epsilon=added)
        return reduce(partial(make, "mul"), (in_dtype(x, dtype) for x in (norm, *factors)))
    return None


def _factors(value: Value, leaf: Value | None = None) -> list[Value]:
    """The factors of a product, those of the products among them included.

    `leaf` is one factor, even if it is a product.
    """
    inner = unrounded(value)
    if leaf not in (value, inner) and inner.op.name == "mul":
        return [factor for arg in inner.op.args for factor in _factors(arg, leaf)]
    return [value]


def _statistic(root: Value) -> tuple[Value, int, float | Value] | Miss | None:
    """(x, axis, epsilon) where the value is rsqrt(mean(x²) + epsilon) over one axis."""
    inner = unrounded(root, "reshape")
    if inner.op.name != "rsqrt":
        return None
    mean, epsilon = unrounded(inner.op.args[0], "reshape"), 0.0
    if mean.op.name == "add":
        left, right = mean.op.args
        mean, added = (left, right) if average_of(left) is not None else (right, left)
        epsilon = _scalar(added)
    average = average_of(mean)
    if average is None:
        return None
    if epsilon is None:
        return Miss("what is added to the mean is not one number", 4)
    square = average.source.op
    if not average.is_mean:
        return Miss("the sum is not divided by the number of its terms", 5)
    if square.name != "square":
        return Miss(f"the mean is of {square.name}, not of squares", 4)
    if len(average.axes) != 1:
        return Miss(f"the mean is over axes {average.axes}, not over one", 5)
    return square.args[0], average.axes[0], epsilon


def _scalar(value: Value) -> float | Value | None:
    """A number; as a value where it is known only when the program runs."""
    if (constant := number(value)) is not None:
        return float(constant)
    return shaped(value, ()) if value.type.size == 1 else None


def _is_source(value: Value, source: Value, axis: int) -> bool:
    """Whether `value` is `source` with this axis last and the others in order."""
    value, source = unrounded(value), unrounded(source)
    if value == source:
        return axis == source.type.rank - 1
    order, op = (*(d for d in range(source.type.rank) if d != axis), axis), value.op
    return op.name == "transpose" and unrounded(op.args[0]) == source and op["permutation"] == order


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
    for i, (sign_of_mean, mean_factors) in enumerate(terms):
        for mean in mean_factors:
            source = mean_of(mean)
            if source is None:
                continue
            for j, (sign, factors) in enumerate(terms):
                scale = _without(factors, source)
                if sign != -sign_of_mean or not scale or scale != _without(mean_factors, mean):
                    continue
                if not all(is_bounded(factor, finite_parameters=True) for factor in scale):
                    return Miss("the scale may be infinite", 4)
                centred_source = make("sub", source, mean)
                others = [term for n, term in enumerate(terms) if n not in (i, j)]
                return _sum([(sign, [centred_source, *scale]), *others])
    return None


Term = tuple[int, list[Value]]  # its sign, 1 or -1, and its factors


_DEEPEST_SUM = 4  # a norm has three terms; the residual stream has one more with every layer


def _terms(value: Value, sign: int = 1, deepest: int = _DEEPEST_SUM) -> list[Term]:
    """The terms of a sum, each as a list of factors."""
    if value.op.name in ("add", "sub") and deepest:
        left, right = value.op.args
        sign_of_right = sign if value.op.name == "add" else -sign
        return _terms(left, sign, deepest - 1) + _terms(right, sign_of_right, deepest - 1)
    factors = []
    for factor in _factors(value):
        factor = in_dtype(factor, value.type.dtype)
        inner = through(factor, "reshape").op
        if inner.name == "neg":
            sign, factor = -sign, reshaped(inner.args[0], factor.type.shape)
        factors.append(factor)
    return [(sign, factors)]


def _without(factors: list[Value], value: Value) -> list[Value] | None:
    """The other factors; None if the value is not among them."""
    place = factors.index(value) if value in factors else None
    return None if place is None else factors[:place] + factors[place + 1 :]


def _sum(terms: list[Term]) -> Value:
    products = [(sign, reduce(partial(make, "mul"), factors)) for sign, factors in terms]
    (sign, total), *others = products
    total = total if sign > 0 else make("neg", total)
    for sign, product in others:
        total = make("add" if sign > 0 else "sub", total, product)
    return total


layer = pattern(
    "layer_norm",
    "rms_norm(x - mean(x))  ->  layer_norm(x)",
    before=lambda x, *, epsilon: Traced["rms_norm"](
        x - jnp.mean(x, axis=-1, keepdims=True), epsilon=epsilon
    ),
    after=Traced["layer_norm"],
    example=("f32[2,8]",),
    attributes={"epsilon": 1e-5},
    normal=normal_form,
)
layer_of_operand = pattern(
    "layer_norm_of_operand",
    "rms_norm(x - mean(x), epsilon)  ->  layer_norm(x, epsilon)",
    before=lambda x, epsilon: Traced["rms_norm"](x - jnp.mean(x, axis=-1, keepdims=True), epsilon),
    after=Traced["layer_norm"],
    example=("f32[2,8]", "f32[]"),
    normal=normal_form,
)
