"""Whether the padding of a value is zero, op by op.

A sum over a padded axis does not change as long as the padding is zero, whatever else the value
holds. After most products that is not known, for zero times infinity is NaN: then the padding is
cleared before it is summed.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from dialect.arrays.dtypes import dtype_of, is_dtype
from dialect.matching.proofs import is_finite, range_of
from dialect.matching.values import number
from rewrite import opdef
from rewrite.ir import Op, Value


def stays_zero(op: Op, zero: Sequence[bool | None], index: int = 0) -> bool:
    """Whether the padding of a result of `op` is zero.

    `zero` is, for each argument, whether its padding is; None where it lacks the axis.
    """
    pairs, traits = list(zip(op.args, zero, strict=True)), opdef.traits(op)
    if op.name == "dequantize":  # its scale is finite, or all that it scales is NaN
        return zero[0] is True
    if op.name == "div":
        return zero[0] is True and zero[1] is None and _divides(op.args[1])
    if traits.linear in ("each", "first") or op.name == "and":
        rest = (arg for arg, is_zero in pairs if not is_zero)
        some = zero[:1] if traits.linear == "first" else zero
        return True in some and all(map(is_finite, rest))
    if op.name == "select_n":
        pairs = pairs[1:]
    zeros = [number(arg) == 0 if is_zero is None else is_zero for arg, is_zero in pairs]
    if traits.moves and op.args and not traits.fills:
        return zeros[0] if set(zero) == {None} else False not in zero
    return all(zeros) and (op.name == "select_n" or _zero_at_zero(op, index))


def _divides(value: Value) -> bool:
    """Whether zero divided by it is zero: it is never zero itself, nor NaN."""
    proven = range_of(value)
    return not proven.nan and (proven.low > 0 or proven.high < 0)


def _zero_at_zero(op: Op, index: int) -> bool:
    """Whether a result of an op is zero for zeros alone."""
    if not op.args or not all(is_dtype(arg.type.dtype) for arg in op.args):
        return False
    zeros = [jnp.zeros((1,) * arg.type.rank, dtype_of(arg.type.dtype)) for arg in op.args]
    try:
        with jax.ensure_compile_time_eval():
            results = opdef.lookup(op.name).reference(*zeros, **dict(op.attrs))
    except Exception:  # whatever it raises where its attributes are about larger arrays
        return False
    return not jnp.asarray(results[index] if isinstance(results, list) else results).any()
