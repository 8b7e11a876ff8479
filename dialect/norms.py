"""Norms, found by their factors.

A product is flattened into its factors; where x and rsqrt(mean(x²) + epsilon) are among them, in
whatever order the library multiplied, they are one `rms_norm`. Scales and biases stay outside.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dialect import nn  # noqa: F401  (defines the norms)
from dialect.normal_form import normal_form
from dialect.values import in_dtype, mean_of, number, through
from dialect.vocabulary import Traced
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
    if op.types[0].shape[-1:] in ((), (1,)):
        return None
    for root in _factors(op.results[0]):
        found = _normalised(root)
        if found is None:
            continue
        if isinstance(found, Miss):
            return found
        source, epsilon = found
        rest = _factors(op.results[0], source)
        at = next((i for i, each in enumerate(rest) if _same(each, source)), None)
        if at is None:
            return Miss("what is normalised is not what the statistics are of", 6)
        made = in_dtype(make("rms_norm", source, epsilon=epsilon), rest[at].type.dtype)
        for i, other in enumerate(rest):
            if i != at and other != root:
                made = make("mul", made, in_dtype(other, made.type.dtype))
        return in_dtype(made, op.types[0].dtype)
    return None


def _factors(value: Value, whole: Value | None = None) -> list[Value]:
    """What a product multiplies: its arguments, those of the products among them, and so on.

    `whole` is taken as one factor, even if it is a product.
    """
    if value.op.name != "mul" or value == whole:
        return [value]
    return [factor for arg in value.op.args for factor in _factors(arg, whole)]


def _normalised(root: Value) -> tuple[Value, float] | Miss | None:
    """(x, epsilon) where the value is rsqrt(mean(x²) + epsilon) over the last axis."""
    root = through(root, "reshape", "convert_element_type", "broadcast_in_dim")
    if root.op.name != "rsqrt":
        return None
    inner, epsilon = through(root.op.args[0], "reshape"), 0.0
    if inner.op.name in ("add", "max"):
        left, right = inner.op.args
        left, right = (right, left) if number(left) is not None else (left, right)
        if number(right) is None:
            return Miss("what is added to the mean is no constant", 4)
        inner, epsilon = left, float(number(right))
    total = through(inner, "reshape", "convert_element_type", "div", "mul").op
    if total.name != "reduce_sum":
        return None
    square = mean_of(inner)
    if square is None:
        return Miss("the sum is not divided by the number of its terms", 5)
    if square.op.name != "square":
        return Miss(f"the mean is of {square.op.name}, not of squares", 4)
    if total["axes"] != (square.type.rank - 1,):
        return Miss(f"its statistics are over axes {total['axes']}, not over the last", 5)
    return square.op.args[0], epsilon


def _same(value: Value, source: Value) -> bool:
    return through(value, "convert_element_type") == through(source, "convert_element_type")


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
