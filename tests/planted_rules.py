"""Wrong rules of different kinds, each of which fires in a decoder: what the checks must find."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from dialect.jaxprs.jaxpr import constant
from dialect.matching.values import number
from rewrite.ir import Op
from rewrite.opdef import make
from rewrite.rules import Outcome, Rule, local


@local("div", example=lambda x: x / 4.0, types=("f32[4]",), keeps="reals")
def planted_count(op: Op) -> Outcome:
    """x / n  ->  x * (1 / (n + 1)), which is another mean"""
    divisor = number(op.args[1])
    if divisor is None or not op.args[1].op.name == "const":
        return None
    return make("mul", op.args[0], constant(np.float32(1 / (divisor + 1)), op.args[1].type))


@local("transpose", example=lambda x: x.T, types=("f32[3,3]",))
def planted_lost_transpose(op: Op) -> Outcome:
    """transpose(x)  ->  reshape(x), which leaves the elements where they were"""
    return make("reshape", op.args[0], new_sizes=op.types[0].shape)


@local("sub", example=lambda x, y: x - y, types=("f32[4]", "f32[4]"))
def planted_sign(op: Op) -> Outcome:
    """x - y  ->  x + y"""
    return make("add", *op.args)


@local("exp", example=lambda x: jnp.exp(x), types=("f32[4]",), keeps="reals")
def planted_base(op: Op) -> Outcome:
    """exp(x)  ->  exp2(x)"""
    return make("exp2", op.args[0])


@local("select_n", example=lambda m, x: jnp.where(m, x, -1e9), types=("bool[4]", "f32[4]"))
def planted_no_mask(op: Op) -> Outcome:
    """where(mask, x, y)  ->  x"""
    same = [arg for arg in op.args[1:] if arg.op.name not in ("const", "broadcast_in_dim")]
    return same[0] if len(same) == 1 and same[0].type == op.types[0] else None


@local("cos", example=lambda x: jnp.cos(x), types=("f32[4]",), keeps="reals")
def planted_phase(op: Op) -> Outcome:
    """cos(x)  ->  sin(x)"""
    return make("sin", op.args[0])


@local("max", example=lambda x, y: jnp.maximum(x, y), types=("f32[4]", "f32[4]"))
def planted_flip(op: Op) -> Outcome:
    """max(x, y)  ->  min(x, y)"""
    return make("min", *op.args)


@local("lt", example=lambda x, y: x < y, types=("i32[4]", "i32[4]"))
def planted_bound(op: Op) -> Outcome:
    """x < y  ->  x <= y: off by one"""
    return make("le", *op.args)


@local("rsqrt", example=lambda x: jax.lax.rsqrt(x), types=("f32[4]",), keeps="reals")
def planted_power(op: Op) -> Outcome:
    """rsqrt(x)  ->  1 / x"""
    return make("integer_pow", op.args[0], y=-1)


@local("reduce_sum", example=lambda x: jnp.sum(x), types=("f32[4]",), keeps="reals")
def planted_reduction(op: Op) -> Outcome:
    """sum(x)  ->  max(x) over the same axes"""
    return make("reduce_max", op.args[0], axes=op["axes"]) if op.types[0].rank else None


RULES = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
