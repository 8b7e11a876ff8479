"""Arithmetic in one spelling, and constants folded.

Signs go outward, a division by a root is a product with `rsqrt`, a variance is the mean of the
squared distance from the mean. Rules that reorder a sum or a product keep `reals`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from dialect.arrays import dtypes
from dialect.jaxprs.jaxpr import constant
from dialect.matching.averages import average_of
from dialect.matching.proofs import has_no_sign, is_never_minus_zero, range_of
from dialect.matching.values import REALS, in_shape, number, reshaped, through, unrounded
from dialect.ops import lax
from rewrite import runtime
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import make
from rewrite.rules import Miss, Outcome, local

_LARGEST_FOLDED = 64  # elements; larger constants would not be printed


def _has_sign(op: Op) -> bool:
    """Whether a sign may move outward: not from a complex product, whose zeros get their signs from
    a difference, nor in a format of powers of two, which has none."""
    return op.types[0].dtype not in ("c64", "c128", "f8_e8m0fnu")


def _whole(value: Value, op: Op) -> bool:
    """Whether an argument of an elementwise op has the shape of the result."""
    return value.type.shape == op.types[0].shape


@local(
    "max",
    example=lambda x: jnp.maximum(jnp.mean(x * x), 0.0),
    types=("f32[4]",),
    needs=("no less",),
)
def max_of_more(op: Op) -> Outcome:
    """max(x, y)  ->  x, where no x is less than a y:  max(x, -inf), max(mean(x²), 0)"""
    for smaller, larger in (op.args, op.args[::-1]):
        least, most = range_of(larger).low, range_of(smaller).high
        if range_of(smaller).nan or least < most or not _whole(larger, op):
            continue
        if most != 0 or is_never_minus_zero(larger):
            return larger
    return None


@local(
    "add_any",
    example=lambda x: jax.grad(lambda x: jnp.sum(x * jnp.sin(x)))(x),
    types=("f32[4]",),
)
def sum_of_gradients(op: Op) -> Outcome:
    """add_any(x, y)  ->  x + y"""
    return make("add", *op.args)


@local(
    "scatter-add",
    example=lambda x, y: x.at[:].add(y),
    types=("f32[4]", "f32[4]"),
)
def sum_of_scatter(op: Op) -> Outcome:
    """scatter-add of one window as large as x, at no index  ->  x + window"""
    x, indices, window = op.args
    if indices.type.shape != (0,) or window.type.shape != x.type.shape:
        return None
    return make("add", x, window)


@local("mul", example=lambda x: x * x, types=("f32[4]",))
def mul_by_itself(op: Op) -> Outcome:
    """x * x  ->  square(x)"""
    left, right = op.args
    return make("square", left) if left == right else None


@local("integer_pow", example=lambda x: x**2, types=("f32[4]",))
def second_power(op: Op) -> Outcome:
    """x ** 2  ->  square(x), the exponent a number

    A complex square is rounded otherwise than a product.
    """
    if op["y"] != 2 or dtypes.is_complex(op.types[0].dtype):
        return None
    return make("square", op.args[0])


@local("pow", example=lambda x: x ** jnp.float32(2), types=("f32[4]",), keeps="reals")
def power_of_two(op: Op) -> Outcome:
    """x ** 2  ->  square(x), the exponent an array"""
    base, exponent = op.args
    if number(exponent) != 2 or base.type.dtype not in REALS:
        return None
    return in_shape(make("square", base), op.types[0].shape)


@local(
    "pow",
    example=lambda x: jnp.square(x) ** -0.5,
    types=("f32[4]",),
    keeps="reals",
    needs=("no sign",),
)
def power_to_root(op: Op) -> Outcome:
    """x ** -0.5  ->  rsqrt(x),  x ** 0.5  ->  sqrt(x)"""
    base, exponent = op.args
    name = {-0.5: "rsqrt", 0.5: "sqrt"}.get(number(exponent))
    if name is None or base.type.dtype not in REALS:
        return None
    if not has_no_sign(base):
        return Miss("its base may be -infinity or -0.0, whose powers are no roots", 2)
    return in_shape(make(name, base), op.types[0].shape)


@local(
    "integer_pow",
    example=lambda x: jnp.reciprocal(jnp.sqrt(jnp.square(x))),
    types=("f32[4]",),
    keeps="reals",
)
def reciprocal_of_root(op: Op) -> Outcome:
    """sqrt(x) ** -1  ->  rsqrt(x)"""
    root = op.args[0].op
    if op["y"] != -1 or root.name != "sqrt" or op.types[0].dtype not in REALS:
        return None
    return make("rsqrt", *root.args)


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
    if inner.op.name != "sqrt" or op.types[0].dtype not in REALS:
        return None
    root = reshaped(make("rsqrt", inner.op.args[0]), divisor.type.shape)
    return make("mul", dividend, root)


@local("mul", "div", "sub", example=lambda x: x * 1.0 - 0.0, types=("f32[4]",))
def neutral(op: Op) -> Outcome:
    """x * 1, x / 1, x - 0  ->  x"""
    nothing = 0 if op.name == "sub" else 1
    pairs = (op.args, op.args[::-1]) if op.name == "mul" else (op.args,)
    for left, right in pairs:
        if number(right) == nothing and _whole(left, op):
            return left
    return None


@local("add", example=lambda x: jnp.square(x) + 0.0, types=("f32[4]",), needs=("never -0.0",))
def neutral_sum(op: Op) -> Outcome:
    """x + 0  ->  x, where no x is -0.0: the sum would be 0.0"""
    for left, right in (op.args, op.args[::-1]):
        if number(right) == 0 and _whole(left, op):
            return left if is_never_minus_zero(left) else Miss("an element may be -0.0")
    return None


@local("mul", "div", example=lambda x, y: -x * y, types=("f32[4]", "f32[4]"))
def sign_outward(op: Op) -> Outcome:
    """(-x) * y  ->  -(x * y),  and so for the quotient of floats"""
    if not _has_sign(op) or (op.name == "div" and op.types[0].dtype[0] in "iu"):
        return None
    for i, arg in enumerate(op.args):
        if arg.op.name == "neg":
            args = [*op.args[:i], arg.op.args[0], *op.args[i + 1 :]]
            return make("neg", make(op.name, *args))
    return None


@local("mul", example=lambda x: x * -1.0, types=("f32[4]",))
def mul_by_minus_one(op: Op) -> Outcome:
    """x * -1  ->  -x"""
    for factor, value in (op.args, op.args[::-1]):
        if number(factor) == -1 and _whole(value, op):
            return make("neg", value)
    return None


@local("neg", example=lambda x: -(-x), types=("f32[4]",))
def sign_of_sign(op: Op) -> Outcome:
    """-(-x)  ->  x"""
    if not _has_sign(op):
        return None
    return op.args[0].op.args[0] if op.args[0].op.name == "neg" else None


@local("add", "sub", example=lambda x, y: x + -y, types=("f32[4]", "f32[4]"))
def add_of_sign(op: Op) -> Outcome:
    """x + (-y)  ->  x - y,  x - (-y)  ->  x + y"""
    left, right = op.args
    if not _has_sign(op):
        return None
    if right.op.name == "neg":
        return make("sub" if op.name == "add" else "add", left, right.op.args[0])
    if op.name == "add" and left.op.name == "neg":
        return make("sub", right, left.op.args[0])
    return None


@local("select_n", example=lambda x, y: jax.lax.select_n(True, x, y), types=("f32[4]", "f32[4]"))
def known_choice(op: Op) -> Outcome:
    """select(constant, x, y, ..)  ->  the operand of that number, or the nearest"""
    chosen = number(op.args[0])
    if chosen is None:
        return None
    return op.args[1 + min(max(0, int(chosen)), len(op.args) - 2)]


@local(
    "sub",
    example=lambda x: jnp.mean(x * x, -1, keepdims=True) - jnp.mean(x, -1, keepdims=True) ** 2,
    types=("f32[2,4]",),
    keeps="reals",
)
def variance(op: Op) -> Outcome:
    """mean(x²) - mean(x)²  ->  mean((x - mean(x))²)"""
    squares, square = average_of(op.args[0]), op.args[1]
    if squares is None or {squares.total.args[0].op.name, square.op.name} != {"square"}:
        return None
    source, mean = squares.total.args[0].op.args[0], square.op.args[0]
    averaged = average_of(mean)
    if averaged is None or averaged.source != unrounded(source) or averaged.axes != squares.axes:
        return None
    same_shape = all(_whole(arg, op) for arg in op.args)
    if not same_shape or mean.type.dtype != source.type.dtype:
        return None
    for average in (squares, averaged):
        if not average.is_mean:
            return Miss(average.miss, 5)
    sizes = (1 if i in squares.axes else size for i, size in enumerate(source.type.shape))
    distance = make("square", make("sub", source, reshaped(mean, tuple(sizes))))
    total = make("reduce_sum", distance, **dict(squares.total.attrs))
    result = make(squares.quotient, total, squares.scalar)
    return reshaped(result, op.types[0].shape)


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
    if any(arg.op.name != "const" for arg in op.args):
        return None
    if op.name == "broadcast_in_dim" and not op.args[0].type.shape:
        return None  # rules read the scalar
    if op.types[0].size > _LARGEST_FOLDED or op.types[0].dtype.startswith("key"):
        return None
    with jax.ensure_compile_time_eval():
        (folded,) = runtime.framework().evaluate(Graph((), op.results), [])
    return constant(np.asarray(folded), op.types[0])
