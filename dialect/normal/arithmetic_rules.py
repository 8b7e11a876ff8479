"""Arithmetic in one spelling, and constants folded.

Signs go outward, a division by a root is a product with `rsqrt`, a variance is the mean of the
squared distance from the mean. What reorders a sum or a product says that it keeps `reals`.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from dialect import lax
from dialect.jaxpr import constant
from dialect.values import mean_of, number, reshaped, through
from rewrite import runtime
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import make
from rewrite.rules import Outcome, local

_LARGEST_FOLDED = 64  # elements; larger constants would not be printed


def _same_type(value: Value, op: Op) -> bool:
    return value.type.shape == op.types[0].shape and value.type.dtype == op.types[0].dtype


@local("max", example=lambda x: jnp.maximum(x, -jnp.inf), types=("f32[4]",))
def max_with_minus_infinity(op: Op) -> Outcome:
    """max(x, -inf)  ->  x"""
    for one, other in (op.args, op.args[::-1]):
        if number(one) == -math.inf and _same_type(other, op):
            return other
    return None


@local("max", example=lambda x: jnp.maximum(jnp.mean(x * x), 0.0), types=("f32[4]",))
def max_of_squares(op: Op) -> Outcome:
    """max(mean(x²), 0)  ->  mean(x²)"""
    for one, other in (op.args, op.args[::-1]):
        mean = mean_of(other)
        if number(one) == 0 and mean is not None and mean.op.name == "square":
            return other if _same_type(other, op) else None
    return None


@local("mul", example=lambda x: x * x, types=("f32[4]",))
def mul_by_itself(op: Op) -> Outcome:
    """x * x  ->  square(x)"""
    return make("square", op.args[0]) if op.args[0] == op.args[1] else None


@local("integer_pow", "pow", example=lambda x: x**2, types=("f32[4]",))
def second_power(op: Op) -> Outcome:
    """x ** 2  ->  square(x)"""
    exponent = op["y"] if op.name == "integer_pow" else number(op.args[1])
    return make("square", op.args[0]) if exponent == 2 else None


@local("pow", example=lambda x: jnp.square(x) ** -0.5, types=("f32[4]",), keeps="reals")
def power_to_root(op: Op) -> Outcome:
    """x ** -0.5  ->  rsqrt(x),  x ** 0.5  ->  sqrt(x)"""
    name = {-0.5: "rsqrt", 0.5: "sqrt"}.get(number(op.args[1]))
    return make(name, op.args[0]) if name else None


@local(
    "integer_pow",
    example=lambda x: jnp.reciprocal(jnp.sqrt(jnp.square(x))),
    types=("f32[4]",),
    keeps="reals",
)
def reciprocal_of_root(op: Op) -> Outcome:
    """sqrt(x) ** -1  ->  rsqrt(x)"""
    root = op.args[0].op
    return make("rsqrt", *root.args) if op["y"] == -1 and root.name == "sqrt" else None


@local(
    "div",
    example=lambda x, y: x / jnp.sqrt(jnp.exp(y)),
    types=("f32[4]", "f32[4]"),
    keeps="reals",
)
def div_by_root(op: Op) -> Outcome:
    """x / sqrt(y)  ->  x * rsqrt(y)"""
    dividend, divisor = op.args
    inner = through(divisor, "reshape")
    if inner.op.name != "sqrt":
        return None
    root = reshaped(make("rsqrt", inner.op.args[0]), divisor.type.shape)
    return root if number(dividend) == 1 and _same_type(root, op) else make("mul", dividend, root)


@local("mul", "div", "add", "sub", example=lambda x: x * 1.0 + 0.0, types=("f32[4]",))
def neutral(op: Op) -> Outcome:
    """x * 1, x / 1, x + 0, x - 0  ->  x"""
    nothing = 1 if op.name in ("mul", "div") else 0
    left, right = op.args
    if number(right) == nothing and _same_type(left, op):
        return left
    commutes = op.name in ("mul", "add")
    return right if commutes and number(left) == nothing and _same_type(right, op) else None


@local("mul", "div", example=lambda x, y: -x * y, types=("f32[4]", "f32[4]"))
def sign_outward(op: Op) -> Outcome:
    """(-x) * y  ->  -(x * y)"""
    for i, arg in enumerate(op.args):
        if arg.op.name == "neg":
            args = [*op.args[:i], arg.op.args[0], *op.args[i + 1 :]]
            return make("neg", make(op.name, *args))
    return None


@local("mul", example=lambda x: x * -1.0, types=("f32[4]",))
def mul_by_minus_one(op: Op) -> Outcome:
    """x * -1  ->  -x"""
    for one, other in (op.args, op.args[::-1]):
        if number(one) == -1 and _same_type(other, op):
            return make("neg", other)
    return None


@local("neg", example=lambda x: -(-x), types=("f32[4]",))
def sign_of_sign(op: Op) -> Outcome:
    """-(-x)  ->  x"""
    return op.args[0].op.args[0] if op.args[0].op.name == "neg" else None


@local("add", "sub", example=lambda x, y: x + -y, types=("f32[4]", "f32[4]"))
def add_of_sign(op: Op) -> Outcome:
    """x + (-y)  ->  x - y,  x - (-y)  ->  x + y"""
    left, right = op.args
    if right.op.name == "neg":
        return make("sub" if op.name == "add" else "add", left, right.op.args[0])
    if op.name == "add" and left.op.name == "neg":
        return make("sub", right, left.op.args[0])
    return None


@local(
    "real",
    "imag",
    example=lambda x, y: jnp.real(jax.lax.complex(x, y) * jax.lax.complex(y, x)),
    types=("f32[4]", "f32[4]"),
    keeps="reals",
)
def part_of_complex(op: Op) -> Outcome:
    """real((a + ib) * (c + id))  ->  a * c - b * d,  imag(..)  ->  a * d + b * c"""
    whole, first = op.args[0].op, op.name == "real"
    if whole.name == "complex":
        return whole.args[0 if first else 1]
    factors = [_parts_of_complex(arg) for arg in whole.args]
    if whole.name != "mul" or None in factors:
        return None
    (a, b), (c, d) = factors
    if first:
        return make("sub", make("mul", a, c), make("mul", b, d))
    return make("add", make("mul", a, d), make("mul", b, c))


def _parts_of_complex(value: Value) -> tuple[Value, ...] | None:
    whole = through(value, "reshape")
    if whole.op.name != "complex":
        return None
    return tuple(reshaped(part, value.type.shape) for part in whole.op.args)


@local("select_n", example=lambda x, y: jax.lax.select_n(True, x, y), types=("f32[4]", "f32[4]"))
def known_choice(op: Op) -> Outcome:
    """select(constant, x, y)  ->  the one that it chooses"""
    chosen = number(op.args[0])
    return op.args[1 + int(chosen)] if chosen is not None else None


@local(
    "sub",
    example=lambda x: jnp.mean(x * x, -1, keepdims=True) - jnp.mean(x, -1, keepdims=True) ** 2,
    types=("f32[2,4]",),
    keeps="reals",
)
def variance(op: Op) -> Outcome:
    """mean(x²) - mean(x)²  ->  mean((x - mean(x))²)"""
    squares, square = mean_of(op.args[0]), op.args[1]
    if squares is None or squares.op.name != "square" or square.op.name != "square":
        return None
    source, mean = squares.op.args[0], square.op.args[0]
    averaged = mean_of(mean)
    if averaged is None or averaged != through(source, "convert_element_type"):
        return None
    sum_op = through(op.args[0], "reshape", "div", "mul").op
    if sum_op.name != "reduce_sum" or sum_op.args[0] != squares:
        return None  # a conversion stands between
    if mean.type.dtype != source.type.dtype:
        return None
    axes = sum_op["axes"]
    kept = tuple(1 if i in axes else size for i, size in enumerate(source.type.shape))
    centre = make("reshape", mean, new_sizes=kept)
    distance = make("square", make("sub", source, centre))
    quotient = through(op.args[0], "reshape").op
    total = make("reduce_sum", distance, **dict(sum_op.attrs))
    found = make(quotient.name, total, quotient.args[1])
    return found if _same_type(found, op) else make("reshape", found, new_sizes=op.types[0].shape)


@local(
    *lax.MAPS,
    "broadcast_in_dim",
    "reshape",
    "transpose",
    "concatenate",
    example=lambda x: x + jnp.exp(jnp.float32(2.0)),
    types=("f32[4]",),
)
def constant_fold(op: Op) -> Outcome:
    """f(constants)  ->  a constant, where small enough to print"""
    if not op.args or any(arg.op.name != "const" for arg in op.args):
        return None
    if op.name == "broadcast_in_dim" and not op.args[0].type.shape:
        return None  # a splat says more than its elements do
    if (
        len(op.types) > 1
        or op.types[0].size > _LARGEST_FOLDED
        or op.types[0].dtype.startswith("key")
    ):
        return None
    with jax.ensure_compile_time_eval():
        (folded,) = runtime.framework().evaluate(Graph((), op.results), [])
    return constant(np.asarray(folded), op.types[0])
