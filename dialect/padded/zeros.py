"""What becomes of the zeros that an axis is padded with, op by op.

A sum over a padded axis is what it was as long as it adds zeros. So for every value it is known
whether its padding is zero whatever the value holds. It no longer is behind most products: zero
times infinity is NaN. Then it is made zero again before it is summed.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from dialect.arrays.dtypes import dtype_of, is_dtype
from dialect.matching.proofs import is_finite, range_of
from dialect.matching.values import number
from dialect.ops.lax import MAPS
from rewrite import opdef
from rewrite.ir import Op, Value

# Zero where any argument is zero and the others are finite.
_PRODUCTS = frozenset("mul and contract dot_general rope".split())
# Zero where what they scale is: scales are finite, or all that they scale is NaN.
_SCALED = frozenset("quantize dequantize dequantize_tokens".split())
# What they give is what they are given, moved.
_MOVES = frozenset(
    """reshape transpose squeeze broadcast_in_dim slice concatenate stack unstack constrain
    optimization_barrier scatter dynamic_slice dynamic_update_slice cache_write cache_put cache_read
    padded unpadded""".split()
)
# They may also be asked what they make of zeros.
_EVALUATED = MAPS | frozenset(
    """activate gate layer_norm quantize_tokens reduce_max reduce_min reduce_sum rms_norm
    rounded softmax weight_scale""".split()
)
# Summed over, or otherwise read along the whole axis, zeros leave no trace in these.
NEUTRAL = frozenset("contract dot_general reduce_sum reduce_or rounded weight_scale".split())


def stays_zero(op: Op, zero: Sequence[bool | None], index: int = 0) -> bool:
    """Whether the padding of a result of `op` is zero.

    `zero` says of each argument whether its padding is; None where it lacks the axis.
    """
    pairs = list(zip(op.args, zero, strict=True))
    if op.name in _SCALED:
        return zero[0] is True
    if op.name in _PRODUCTS:
        rest = (arg for arg, each in pairs if not each)
        return True in zero and all(map(is_finite, rest))
    if op.name == "div":
        return zero[0] is True and zero[1] is None and _divides(op.args[1])
    if op.name == "select_n":
        pairs = pairs[1:]
    known = [number(arg) == 0 if each is None else each for arg, each in pairs]
    if op.name in _MOVES:
        return known[0] if set(zero) == {None} else False not in zero
    return all(known) and (op.name == "select_n" or _zero_at_zero(op, index))


def _divides(value: Value) -> bool:
    """Whether zero divided by it is zero: it is never zero itself, nor NaN."""
    proven = range_of(value)
    return not proven.nan and (proven.low > 0 or proven.high < 0)


def _zero_at_zero(op: Op, index: int) -> bool:
    """Whether an op makes zeros of zeros alone: one of its results."""
    if op.name not in _EVALUATED or not all(is_dtype(arg.type.dtype) for arg in op.args):
        return False
    with jax.ensure_compile_time_eval():
        zeros = [jnp.zeros((1,) * arg.type.rank, dtype_of(arg.type.dtype)) for arg in op.args]
        made = opdef.lookup(op.name).reference(*zeros, **dict(op.attrs))
        return not jnp.asarray(made[index] if isinstance(made, list) else made).any()
