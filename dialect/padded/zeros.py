"""What becomes of the zeros that an axis is padded with, op by op.

A sum over a padded axis is what it was as long as it adds zeros. So for every value it is known
what its padding is: zero, some finite number (the softmax of zero logits), or anything (a
logarithm of zero), which a zero can no longer cancel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum

import jax
import jax.numpy as jnp

from dialect.dtypes import dtype_of
from dialect.lax import MAPS
from dialect.values import number
from rewrite import opdef
from rewrite.ir import Op, Value


class Padding(IntEnum):
    """What stands in the padding of a value, the worst last."""

    ZERO = 0
    FINITE = 1  # as finite as what is not padding
    ANYTHING = 2


# Zero where any argument is zero and the others are finite.
_PRODUCTS = frozenset("mul and contract dot_general dequantize dequantize_tokens quantize".split())
# What they give is no more than what they are given, moved; a rope only mixes it.
_MOVES = frozenset(
    """reshape transpose squeeze broadcast_in_dim slice concatenate stack unstack take constrain
    optimization_barrier scatter dynamic_slice dynamic_update_slice cache_write cache_put cache_read
    rope padded unpadded""".split()
)
# Finite wherever their arguments are, if they are for zeros.
_TOTAL = frozenset(
    """abs activate add add_any and ceil clamp convert_element_type copy cos eq erf erfc exp exp2
    expm1 floor gate ge gt is_finite layer_norm le logistic lt max min mul name ne neg not or
    quantize_tokens reduce_max reduce_min reduce_sum reduce_precision rms_norm round rounded
    select_n sign sin softmax square stop_gradient sub tanh weight_scale xor""".split()
)
_EVALUATED = MAPS | _TOTAL
# Summed over, or otherwise read along the whole axis, zeros leave no trace in these.
_NEUTRAL = frozenset("contract dot_general reduce_sum reduce_or rounded weight_scale".split())


def harmless(op: Op, given: Sequence[Padding | None]) -> bool:
    """Whether the padding of an axis that `op` reads as a whole changes nothing it gives."""
    return op.name in _NEUTRAL and _product_or_sum(op, given) is Padding.ZERO


def _product_or_sum(op: Op, given: Sequence[Padding | None]) -> Padding:
    return made_by(op, given) if op.name in _PRODUCTS else max(x for x in given if x is not None)


def made_by(op: Op, given: Sequence[Padding | None], index: int = 0) -> Padding:
    """The padding of a result of `op`. `given`: that of each argument, None where it has none."""
    if Padding.ANYTHING in given:
        return Padding.ANYTHING
    known = [
        _alone(arg) if each is None else each for arg, each in zip(op.args, given, strict=True)
    ]
    if op.name == "attend":
        return _attended(op, known, given)
    if op.name == "div":
        return known[0] if given[1] is None else Padding.ANYTHING  # by what may be zero
    if op.name in _PRODUCTS:
        return Padding.ANYTHING if any(map(_infinite, op.args)) else min(known)
    if op.name in _MOVES:
        return max((x for x in given if x is not None), default=known[0])
    if op.name == "select_n":
        return max(known[1:])
    at_zero = _at_zero(op, index)
    if max(known, default=Padding.FINITE) is Padding.ZERO:
        return at_zero
    return Padding.FINITE if op.name in _TOTAL and at_zero < 2 else Padding.ANYTHING


def _alone(value: Value) -> Padding:
    """Of a value without the axis, which meets the padding of another."""
    return Padding.ZERO if number(value) == 0 else Padding.FINITE


def _infinite(value: Value) -> bool:
    return not math.isfinite(number(value) or 0)


def _attended(op: Op, known: Sequence[Padding], given: Sequence[Padding | None]) -> Padding:
    """Weights are finite where a key is kept; a mask that is padded keeps none."""
    beside = dict(zip(op.get("given", "").split(), given[3:]))
    if beside.get("mask") is Padding.ZERO:
        return Padding.ANYTHING
    return known[2] if given[2] is not None else Padding.FINITE


def _at_zero(op: Op, index: int) -> Padding:
    """What an op makes of zeros alone: one of its results."""
    if op.name not in _EVALUATED:
        return Padding.ANYTHING
    with jax.ensure_compile_time_eval():
        zeros = [jnp.zeros((1,) * arg.type.rank, dtype_of(arg.type.dtype)) for arg in op.args]
        made = opdef.lookup(op.name).reference(*zeros, **dict(op.attrs))
        found = jnp.asarray(made[index] if isinstance(made, list) else made)
        if not found.any():
            return Padding.ZERO
        return Padding.FINITE if bool(jnp.isfinite(found).all()) else Padding.ANYTHING
