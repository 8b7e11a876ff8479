"""Arithmetic in one spelling, and constants folded."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from dialect import lax
from dialect.jaxpr import constant
from dialect.values import is_splat
from rewrite import runtime
from rewrite.ir import Graph, Op
from rewrite.opdef import make
from rewrite.rules import Outcome, local

_LARGEST_FOLDED = 64  # elements; larger constants would not be printed


@local("max", example=lambda x: jnp.maximum(x, -jnp.inf), types=("f32[4]",))
def max_with_minus_infinity(op: Op) -> Outcome:
    """max(x, -inf)  ->  x"""
    for one, other in (op.args, op.args[::-1]):
        if is_splat(one) and one.op["value"] == -math.inf and other.type.shape == op.types[0].shape:
            return other
    return None


@local("mul", example=lambda x: x * x, types=("f32[4]",))
def mul_by_itself(op: Op) -> Outcome:
    """x * x  ->  square(x)"""
    return make("square", op.args[0]) if op.args[0] == op.args[1] else None


@local("integer_pow", example=lambda x: x**2, types=("f32[4]",))
def second_power(op: Op) -> Outcome:
    """x ** 2  ->  square(x)"""
    return make("square", op.args[0]) if op["y"] == 2 else None


_FOLDED = lax.ELEMENTWISE - {"sharding_constraint", "optimization_barrier"}


@local(
    *_FOLDED,
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


