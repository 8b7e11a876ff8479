"""Softmax in its spellings: by hand, masked, divided late, over any axis, with a sink beside it.

    exp(x - c) / sum(exp(x - c))  is  softmax(x)  for every c that is the same along the axis

Whatever stands there becomes `softmax` over the last axis, between the product that makes the
logits and the one that takes the values. An infinite c makes NaN of a row: so it is the maximum of
x, which the softmax subtracts itself, or proven to be finite, or it stays where it is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dialect.jaxprs.jaxpr import constant
from dialect.matching.operands import Operand, bare, laid_out, moved_ones, named, transposed
from dialect.matching.proofs import is_finite
from dialect.matching.values import REALS, in_dtype, in_shape, number, reshaped, through, unrounded
from dialect.normal.mask_rules import splat
from dialect.ops import nn  # noqa: F401  (defines softmax)
from dialect.recognition.logits import number_where_false
from rewrite.ir import Op, Type, Value
from rewrite.opdef import make
from rewrite.rules import Miss, Outcome, local
from rewrite.signature import Array, Signature, letters


class Exponent(NamedTuple):
    """exp(x), or, where a mask makes it zero, exp(-infinity)."""

    x: Value
    mask: Value | None = None


def _exponent(value: Value) -> Exponent | None:
    """Of what the value is the exponential."""
    value = unrounded(value)
    if value.op.name == "exp":
        return Exponent(value.op.args[0])
    for zero, kept, keep in number_where_false(value.op):
        inner, mask = unrounded(kept).op, value.op.args[0]
        if zero == 0 and inner.name == "exp":
            return Exponent(inner.args[0], mask if keep else make("not", mask))
    return None


def _masked(x: Exponent) -> Value:
    """What the softmax is of, without a mask that is applied twice."""
    if x.mask is None:
        return x.x
    kept = _unmasked(x.x, x.mask)
    return make("select_n", x.mask, splat(-math.inf, kept.type), kept)


def _unmasked(value: Value, mask: Value) -> Value:
    """x where the value is x where the mask is true, and elsewhere a number below infinity."""
    masked = number_where_false(value.op)
    kept = (x for fill, x, keep in masked if keep and fill < math.inf)
    return next(kept, value) if value.op.args[:1] == (mask,) else value


def _pairs(op: Op, name: str) -> tuple[tuple[Value, ...], ...]:
    """The two arguments of such an op in both orders; nothing of another."""
    return (op.args, op.args[::-1]) if op.name == name else ()


# Statistics along an axis, in whatever layout they meet what they are of.


def _axes(value: Value) -> Array:
    return named(value, tuple((f"x{d}",) for d in range(value.type.rank))).axes


def _behind(value: Value, like: Value) -> Operand:
    """A value that broadcasts against another, without its layout, in the axes of that."""
    return _plain(value, _axes(like))


def _plain(value: Value, axes: Array) -> Operand:
    """A value with these axes, where it is no 1, as it was before its layout and its rounding."""
    found = bare(named(value, axes), {})
    while (inner := unrounded(found.value)) != found.value:
        found = bare(Operand(inner, found.axes), {})
    return found


def _is_statistic(found: Operand, name: str, x: Value, axis: int) -> bool:
    """Whether it is the sum, or the maximum, of x over this one axis."""
    op = found.value.op
    if op.name != name or len(op["axes"]) != 1:
        return False
    (at,), axes = op["axes"], _axes(x)
    if op.args[0].type.shape[at] != x.type.shape[axis]:
        return False
    whole = (*found.axes[:at], axes[axis], *found.axes[at:])
    return _plain(op.args[0], whole) == _plain(x, axes)


def _summed_axis(found: Operand, weights: Value) -> int | None:
    """The axis where it is the sum of the weights over that axis."""
    axes = (d for d in range(weights.type.rank) if _is_statistic(found, "reduce_sum", weights, d))
    return next(axes, None)


def _along(found: Operand, axes: Array) -> Value:
    """An operand where an array has these axes: of size one where it lacks them."""
    sizes = dict(zip(found.axes, found.value.type.shape))
    own = tuple(axis if axis in sizes else () for axis in axes)
    return laid_out(found, own, tuple(sizes.get(axis, 1) for axis in own))


# What is subtracted.


def _is_maximum(found: Operand, x: Exponent, axis: int) -> bool:
    """Of x, or of a number and x: it may be finite where each x is -infinity."""
    of = x.x
    for one, other in _pairs(found.value.op, "max"):
        known = number(one)
        if known is not None and math.isfinite(known):
            found = _plain(other, found.axes)
    if x.mask is not None and found.value.op.name == "reduce_max":
        of = unrounded(found.value.op.args[0])
        kept = _unmasked(of, x.mask)
        if kept == of or kept != _unmasked(x.x, x.mask):
            return False
    return _is_statistic(found, "reduce_max", of, axis)


def _unshifted(x: Exponent, axis: int) -> tuple[Exponent, bool]:
    """The x of which the softmax is that of x - c, and whether it is `guarded`."""
    guarded = True
    while x.x.op.name == "sub" and x.x.op.args[0].type.shape == x.x.type.shape:
        inner, shift = x.x.op.args
        before, found = Exponent(inner, x.mask), _behind(shift, inner)
        if _is_maximum(found, before, axis):
            guarded = False
        elif f"x{axis}" in letters(found.axes) or not is_finite(shift):
            break
        x = before
    return x, guarded


def _softmax(x: Value, axis: int, guarded: bool, dtype: str) -> Value:
    """Softmax over any axis, in another dtype."""
    order = (*(i for i in range(x.type.rank) if i != axis), axis)
    made = make("softmax", transposed(x, order), **({"guarded": True} if guarded else {}))
    return in_dtype(transposed(made, [order.index(i) for i in range(len(order))]), dtype)


@local(
    "div",
    keeps="reals",
    example=lambda x: (y := jnp.exp(x - jnp.max(x))) / jnp.sum(y, axis=-1, keepdims=True),
    types=("f32[2,8]",),
)
def softmax_of_exp(op: Op) -> Outcome:
    """exp(x - c) / sum(exp(x - c))  ->  softmax(x), where c is the same along the axis"""
    weights, exponent = op.args[0], _exponent(op.args[0])
    if exponent is None or op.types[0].shape != weights.type.shape:
        return None
    axis = _summed_axis(_behind(op.args[1], weights), weights)
    if axis is None or op.types[0].dtype not in REALS:
        return None
    x, guarded = _unshifted(exponent, axis)
    return _softmax(_masked(x), axis, guarded, op.types[0].dtype)


@local(
    "div",
    keeps="reals",
    example=lambda x, s: jnp.exp(x) / (jnp.sum(jnp.exp(x), axis=-1, keepdims=True) + jnp.exp(s)),
    types=("f32[2,8]", "f32[2,1]"),
)
def sink_in_sum(op: Op) -> Outcome:
    """exp(x) / (sum(exp(x)) + exp(s))  ->  softmax(x beside s) without s"""
    weights = unrounded(op.args[0])
    if weights.op.name != "exp" or op.types[0].shape != weights.type.shape:
        return None
    found = _behind(op.args[1], weights)
    for one, other in _pairs(found.value.op, "add"):
        axis = _summed_axis(_plain(one, found.axes), weights)
        sink = _logarithm(other, found.axes)
        if axis is None or sink is None or op.types[0].dtype not in REALS:
            continue
        if f"x{axis}" in letters(sink.axes):
            return Miss("the sink is not the same along the axis", 3)
        shares = _beside(weights.op.args[0], sink, axis, op.types[0].dtype)
        start, stop = (0,) * weights.type.rank, weights.type.shape
        return make("slice", shares, start_indices=start, limit_indices=stop)
    return None


def _logarithm(value: Value, axes: Array) -> Operand | None:
    """x where the value is exp(x)."""
    known, found = number(value), _plain(value, axes)
    if known is not None and 0 < known < math.inf:
        return Operand(constant(math.log(known), Type(value.type.dtype, ())), ())
    if found.value.op.name != "exp":
        return None
    return _plain(found.value.op.args[0], found.axes)


def _beside(x: Value, sink: Operand, axis: int, dtype: str) -> Value:
    """The softmax of x beside a sink that is the same along the axis."""
    before = _before_shift(x, sink, axis)
    x, sink = before or (x, sink)
    shape = tuple(1 if i == axis else size for i, size in enumerate(x.type.shape))
    column = in_shape(in_dtype(_along(sink, _axes(x)), x.type.dtype), shape)
    both = make("concatenate", x, column, dimension=axis)
    return _softmax(both, axis, before is None, dtype)


def _before_shift(x: Value, sink: Operand, axis: int) -> tuple[Value, Operand] | None:
    """Logits and sink from both of which their maximum was subtracted."""
    if not x.op.name == sink.value.op.name == "sub" or x.op.args[0].type != x.type:
        return None
    logits, found = x.op.args[0], _behind(x.op.args[1], x)
    before, same = (_plain(arg, sink.axes) for arg in sink.value.op.args)
    if found != same:
        return None
    for one, other in _pairs(found.value.op, "max"):
        top = _plain(one, found.axes)
        if _plain(other, found.axes) == before and _is_statistic(top, "reduce_max", logits, axis):
            return logits, before
    return None


# Divided in another place.


def _quotient(weights: Operand, total: Operand) -> Op:
    """The weights divided by their total."""
    below = in_dtype(_along(total, weights.axes), weights.value.type.dtype)
    return make("div", weights.value, below).op


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
    result = moved_ones(named(product, spec.outputs[0]), op.results[0])
    if result is None:
        return None
    total = bare(named(op.args[1], result.axes), {})
    for i, (arg, axes) in enumerate(zip(product.op.args, spec.inputs)):
        weights = named(unrounded(arg), axes)
        if set(letters(total.axes)) - set(letters(weights.axes)) or not arg.type.size:
            continue
        if arg.type.dtype not in REALS:
            continue
        for rule in (softmax_of_exp, sink_in_sum):
            share = rule.apply(_quotient(weights, total))
            if isinstance(share, Value):
                args = list(product.op.args)
                args[i] = in_dtype(share, arg.type.dtype)
                made = make("contract", *args, **dict(product.op.attrs))
                return in_dtype(reshaped(made, op.types[0].shape), op.types[0].dtype)
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
    found = _behind(shift, op.results[0])
    for terms in _pairs(found.value.op, "add") or [(found.value,)]:
        log, *shifts = (_plain(term, found.axes) for term in terms)
        weights, total = _summed_in_log(log)
        if weights is None or _before_shifts(weights.op.args[0], shifts) != unrounded(x):
            continue
        share = softmax_of_exp.apply(_quotient(Operand(weights, _axes(weights)), total))
        if share is not None and share.type.shape == op.types[0].shape:
            return in_dtype(share, op.types[0].dtype)
    return None


def _summed_in_log(log: Operand) -> tuple[Value | None, Operand]:
    """exp(x) and its sum where the value is log(sum(exp(x)))."""
    if log.value.op.name != "log":
        return None, log
    total = _plain(unrounded(log.value.op.args[0], "abs"), log.axes)
    weights = unrounded(through(total.value, "reduce_sum"))
    return (weights if weights.op.name == "exp" else None), total


def _before_shifts(x: Value, shifts: list[Operand]) -> Value | None:
    """What these were subtracted from."""
    for shift in shifts:
        if x.op.name != "sub" or _behind(x.op.args[1], x) != shift:
            return None
        x = x.op.args[0]
    return unrounded(x)
