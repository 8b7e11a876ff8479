"""The spellings of softmax: by hand, masked, divided after the product, over any axis, with a sink.

    exp(x - c) / sum(exp(x - c))  is  softmax(x)  for every c that is the same along the axis

All of them become `softmax` over the last axis, between the product that computes the logits and
the one with the values. An infinite c would turn a row into NaN. So c has to be the maximum of x,
which the softmax subtracts itself, or to be proven finite; any other c stays.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dialect.jaxprs.jaxpr import constant
from dialect.matching.operands import (
    Operand,
    bare,
    laid_out,
    named,
    regrouped,
    transposed,
    unlaid,
)
from dialect.matching.proofs import is_finite
from dialect.matching.values import REALS, in_dtype, in_shape, number, reshaped, through, unrounded
from dialect.normal.mask_rules import splat
from dialect.ops import nn  # noqa: F401  (defines softmax)
from dialect.recognition.logits import number_where_false
from rewrite.ir import Op, Type, Value
from rewrite.opdef import make
from rewrite.rules import Miss, Outcome, local
from rewrite.signature import Array, Signature, letters, numbered


class Exponent(NamedTuple):
    """The x of exp(x), where the mask is true; elsewhere the exponential is zero."""

    x: Value
    mask: Value | None = None


def exponent_of(value: Value) -> Exponent | None:
    """The exponent where the value is an exponential, perhaps masked; else None."""
    value = unrounded(value)
    if value.op.name == "exp":
        return Exponent(value.op.args[0])
    for fill, masked, keep in number_where_false(value.op):
        inner, mask = unrounded(masked).op, value.op.args[0]
        if fill == 0 and inner.name == "exp":
            return Exponent(inner.args[0], mask if keep else make("not", mask))
    return None


def masked_once(exponent: Exponent) -> Value:
    """The argument of the softmax: x, masked once even if x was masked too."""
    x, mask = exponent
    if mask is None:
        return x
    x = _unmasked(x, mask)
    return make("select_n", mask, splat(-math.inf, x.type), x)


def _unmasked(value: Value, mask: Value) -> Value:
    """x where the value is select(mask, x, number), with a number below infinity."""
    candidates = number_where_false(value.op)
    unmasked = (x for fill, x, keep in candidates if keep and fill < math.inf)
    return next(unmasked, value) if value.op.args[:1] == (mask,) else value


def _both_orders(op: Op, name: str) -> tuple[tuple[Value, ...], ...]:
    """The two arguments of an op of this name in both orders; nothing for any other op."""
    return (op.args, op.args[::-1]) if op.name == name else ()


# Statistics along an axis: sums and maxima, in any layout.


def _axes(value: Value) -> Array:
    return named(value, numbered(value.type.rank)).axes


def _aligned(value: Value, like: Value) -> Operand:
    """A value that broadcasts against another, without its layout, in the axes of the other."""
    return _plain(value, _axes(like))


def _plain(value: Value, axes: Array) -> Operand:
    """A value with these axes, except those of size one, before its layout and its rounding."""
    operand = bare(named(value, axes), {})
    while (inner := unrounded(operand.value)) != operand.value:
        operand = bare(Operand(inner, operand.axes), {})
    return operand


def _is_statistic(operand: Operand, name: str, x: Value, axis: int) -> bool:
    """Whether the operand is the reduction of x over this axis by the op of this name."""
    op = operand.value.op
    if op.name != name or len(op["axes"]) != 1:
        return False
    (reduced,), axes = op["axes"], _axes(x)
    if op.args[0].type.shape[reduced] != x.type.shape[axis]:
        return False
    unreduced = (*operand.axes[:reduced], axes[axis], *operand.axes[reduced:])
    return _plain(op.args[0], unreduced) == _plain(x, axes)


def _summed_axis(operand: Operand, weights: Value) -> int | None:
    """The axis over which the operand is the sum of the weights; None if it is no such sum."""
    axes = (d for d in range(weights.type.rank) if _is_statistic(operand, "reduce_sum", weights, d))
    return next(axes, None)


def _along(operand: Operand, axes: Array) -> Value:
    """The operand as an array of these axes, of size one where it lacks them."""
    sizes = dict(zip(operand.axes, operand.value.type.shape))
    held_axes = tuple(axis if axis in sizes else () for axis in axes)
    return laid_out(operand, held_axes, tuple(sizes.get(axis, 1) for axis in held_axes))


# Shifts: the c of exp(x - c).


def _is_maximum(shift: Operand, exponent: Exponent, axis: int) -> bool:
    """Whether a shift is max(x), or max(number, x), which stays finite where x is -infinity."""
    x, mask = exponent
    for bound, statistic in _both_orders(shift.value.op, "max"):
        least = number(bound)
        if least is not None and math.isfinite(least):
            shift = _plain(statistic, shift.axes)
    if mask is not None and shift.value.op.name == "reduce_max":
        reduced = unrounded(shift.value.op.args[0])
        unmasked = _unmasked(reduced, mask)
        if unmasked == reduced or unmasked != _unmasked(x, mask):
            return False
        x = reduced
    return _is_statistic(shift, "reduce_max", x, axis)


def _unshifted(exponent: Exponent, axis: int) -> tuple[Exponent, bool]:
    """The exponent x where it is x - c with a c that softmax(x) does not depend on.

    The second result tells whether the softmax is to be `guarded`: no c was the maximum of x.
    """
    guarded = True
    while exponent.x.op.name == "sub" and exponent.x.op.args[0].type.shape == exponent.x.type.shape:
        x, shift = exponent.x.op.args
        unshifted, operand = Exponent(x, exponent.mask), _aligned(shift, x)
        if _is_maximum(operand, unshifted, axis):
            guarded = False
        elif f"x{axis}" in letters(operand.axes) or not is_finite(shift):
            break
        exponent = unshifted
    return exponent, guarded


def softmax_along(x: Value, axis: int, guarded: bool, dtype: str) -> Value:
    """The softmax of x over any axis, in this dtype."""
    order = (*(i for i in range(x.type.rank) if i != axis), axis)
    weights = make("softmax", transposed(x, order), **({"guarded": True} if guarded else {}))
    return in_dtype(transposed(weights, [order.index(i) for i in range(len(order))]), dtype)


@local(
    "div",
    keeps="reals",
    example=lambda x: (y := jnp.exp(x - jnp.max(x))) / jnp.sum(y, axis=-1, keepdims=True),
    types=("f32[2,8]",),
)
def softmax_of_exp(op: Op) -> Outcome:
    """exp(x - c) / sum(exp(x - c))  ->  softmax(x), where c is the same along the axis"""
    weights, exponent = op.args[0], exponent_of(op.args[0])
    if exponent is None or op.types[0].shape != weights.type.shape:
        return None
    axis = _summed_axis(_aligned(op.args[1], weights), weights)
    if axis is None or op.types[0].dtype not in REALS:
        return None
    x, guarded = _unshifted(exponent, axis)
    return softmax_along(masked_once(x), axis, guarded, op.types[0].dtype)


@local(
    "div",
    keeps="reals",
    example=lambda x, s: jnp.exp(x) / (jnp.sum(jnp.exp(x), axis=-1, keepdims=True) + jnp.exp(s)),
    types=("f32[2,8]", "f32[2,1]"),
)
def sink_in_sum(op: Op) -> Outcome:
    """exp(x) / (sum(exp(x)) + exp(s))  ->  softmax(concat(x, s))[..., :-1], the sink s dropped"""
    weights = unrounded(op.args[0])
    if weights.op.name != "exp" or op.types[0].shape != weights.type.shape:
        return None
    denominator = _aligned(op.args[1], weights)
    for total, addend in _both_orders(denominator.value.op, "add"):
        axis = _summed_axis(_plain(total, denominator.axes), weights)
        sink = _logarithm(addend, denominator.axes)
        if axis is None or sink is None or op.types[0].dtype not in REALS:
            continue
        if f"x{axis}" in letters(sink.axes):
            return Miss("the sink is not the same along the axis", 3)
        result = _softmax_with_sink(weights.op.args[0], sink, axis, op.types[0].dtype)
        start, stop = (0,) * weights.type.rank, weights.type.shape
        return make("slice", result, start_indices=start, limit_indices=stop)
    return None


def _logarithm(value: Value, axes: Array) -> Operand | None:
    """x where the value is exp(x); the logarithm of a positive number; else None."""
    scalar, operand = number(value), _plain(value, axes)
    if scalar is not None and 0 < scalar < math.inf:
        return Operand(constant(math.log(scalar), Type(value.type.dtype, ())), ())
    if operand.value.op.name != "exp":
        return None
    return _plain(operand.value.op.args[0], operand.axes)


def _softmax_with_sink(x: Value, sink: Operand, axis: int, dtype: str) -> Value:
    """The softmax of x and, in one more column at the end, a sink."""
    unshifted = _without_maximum(x, sink, axis)
    x, sink = unshifted or (x, sink)
    shape = tuple(1 if i == axis else size for i, size in enumerate(x.type.shape))
    column = in_shape(in_dtype(_along(sink, _axes(x)), x.type.dtype), shape)
    columns = make("concatenate", x, column, dimension=axis)
    return softmax_along(columns, axis, unshifted is None, dtype)


def _without_maximum(x: Value, sink: Operand, axis: int) -> tuple[Value, Operand] | None:
    """(logits, sink) where x and the sink are both shifted by max(logits, sink)."""
    if not x.op.name == sink.value.op.name == "sub" or x.op.args[0].type != x.type:
        return None
    logits, shift = x.op.args[0], _aligned(x.op.args[1], x)
    unshifted_sink, shift_of_sink = (_plain(arg, sink.axes) for arg in sink.value.op.args)
    if shift != shift_of_sink:
        return None
    for first, second in _both_orders(shift.value.op, "max"):
        maximum, other = (_plain(value, shift.axes) for value in (first, second))
        if other == unshifted_sink and _is_statistic(maximum, "reduce_max", logits, axis):
            return logits, unshifted_sink
    return None


# Divisions in another place.


def _quotient(weights: Operand, total: Operand) -> Op:
    """weights / total, whose dimensions are merged alike"""
    alone = {axis: (" ".join(axis),) if axis else () for axis in (*weights.axes, ())}
    total = Operand(total.value, tuple(alone[axis] for axis in total.axes))
    axes = tuple(alone[axis] for axis in weights.axes)
    denominator = in_dtype(_along(total, axes), weights.value.type.dtype)
    return make("div", weights.value, denominator).op


@local(
    "div",
    keeps="reals",
    example=lambda x, v: (jnp.exp(x) @ v) / jnp.sum(jnp.exp(x), axis=-1, keepdims=True),
    types=("f32[2,8]", "f32[8,3]"),
)
def division_before_product(op: Op) -> Outcome:
    """(exp(x) . v) / sum(exp(x))  ->  softmax(x) . v"""
    product = unrounded(op.args[0], "reshape")
    if product.op.name != "contract":
        return None
    spec = Signature.parse(product.op["spec"])
    sizes = {
        x: size
        for arg, axes in zip(product.op.args, spec.inputs)
        for (x,), size in zip(axes, arg.type.shape)
    }
    result = regrouped(named(product, spec.outputs[0]), op.results[0], sizes)
    if result is None:
        return None
    total = unlaid(named(op.args[1], result.axes), sizes)
    for i, (arg, axes) in enumerate(zip(product.op.args, spec.inputs)):
        weights = unlaid(named(unrounded(arg), axes), sizes)
        if set(total.axes) - set(weights.axes) - {()} or not arg.type.size:
            continue
        if arg.type.dtype not in REALS:
            continue
        for rule in (softmax_of_exp, sink_in_sum):
            softmax = rule.apply(_quotient(weights, total))
            if isinstance(softmax, Value):
                args = list(product.op.args)
                share = bare(Operand(softmax, weights.axes), sizes)
                share_axes = named(arg, axes).axes
                args[i] = in_dtype(laid_out(share, share_axes, arg.type.shape), arg.type.dtype)
                product = make("contract", *args, **dict(product.op.attrs))
                return in_dtype(reshaped(product, op.types[0].shape), op.types[0].dtype)
    return None


@local(
    "exp",
    keeps="reals",
    example=lambda x: jnp.exp(jax.nn.log_softmax(x)),
    types=("f32[2,8]",),
)
def exp_of_log_sum(op: Op) -> Outcome:
    """exp(x - (log(sum(exp(x - c))) + c))  ->  softmax(x)"""
    if op.args[0].op.name != "sub":
        return None
    x, shift = op.args[0].op.args
    log_sum = _aligned(shift, op.results[0])
    for terms in _both_orders(log_sum.value.op, "add") or [(log_sum.value,)]:
        log, *shifts = (_plain(term, log_sum.axes) for term in terms)
        weights, total = _summed_in_log(log)
        if weights is None or weights.type.shape != op.types[0].shape:
            continue
        if _without_shifts(weights.op.args[0], shifts) != unrounded(x):
            continue
        softmax = softmax_of_exp.apply(_quotient(Operand(weights, _axes(weights)), total))
        if softmax is not None and softmax.type.shape == op.types[0].shape:
            return in_dtype(softmax, op.types[0].dtype)
    return None


def _summed_in_log(log: Operand) -> tuple[Value | None, Operand]:
    """(exp(x), its sum) where the value is log(sum(exp(x))); (None, ...) if it is not."""
    if log.value.op.name != "log":
        return None, log
    total = _plain(unrounded(log.value.op.args[0], "abs"), log.axes)
    weights = unrounded(through(total.value, "reduce_sum"))
    return (weights if weights.op.name == "exp" else None), total


def _without_shifts(x: Value, shifts: list[Operand]) -> Value | None:
    """The minuend where x is a value minus these shifts; else None."""
    for shift in shifts:
        if x.op.name != "sub" or _aligned(x.op.args[1], x) != shift:
            return None
        x = x.op.args[0]
    return unrounded(x)
