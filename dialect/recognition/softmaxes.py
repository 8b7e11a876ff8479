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
from rewrite.signature import Array, Signature


class Exponent(NamedTuple):
    """exp(x), or, where a mask makes it zero, exp(-infinity)."""

    x: Value
    mask: Value | None = None

    @property
    def value(self) -> Value:
        """What the softmax is of, without a mask that is applied twice."""
        if self.mask is None:
            return self.x
        masked = number_where_false(self.x.op)
        again = [x for _, x, keep in masked if keep and self.x.op.args[0] == self.mask]
        kept = again[0] if again else self.x
        return make("select_n", self.mask, splat(-math.inf, kept.type), kept)


def _exponent(value: Value) -> Exponent | None:
    """Of what the value is the exponential."""
    value = unrounded(value)
    if value.op.name == "exp":
        return Exponent(value.op.args[0])
    for zero, kept, keep in number_where_false(value.op):
        inner, mask = unrounded(kept).op, value.op.args[0]
        if zero == 0 and inner.name == "exp" and mask.type.shape == value.type.shape:
            return Exponent(inner.args[0], mask if keep else make("not", mask))
    return None


# Statistics along an axis, in whatever layout they meet what they are of.


def _axes(value: Value) -> Array:
    return named(value, tuple((f"x{d}",) for d in range(value.type.rank))).axes


def _behind(value: Value, like: Value) -> Operand | None:
    """A value that broadcasts against another, without its layout, in the axes of that."""
    return _plain(value, _axes(like))


def _plain(value: Value, axes: Array) -> Operand | None:
    """A value with these axes, where it is no 1, as it was before its layout and its rounding."""
    if value.type.rank != len(axes):
        return None
    found = bare(named(value, axes), {})
    while (inner := unrounded(found.value)) != found.value:
        found = bare(Operand(inner, found.axes), {})
    return found


def _is_statistic(found: Operand, name: str, x: Value, axis: int) -> bool:
    """Whether it is the sum, or the maximum, of x over this one axis."""
    op = found.value.op
    if op.name != name or len(op["axes"]) != 1 or op.args[0].type.size != x.type.size:
        return False
    (at,), axes = op["axes"], _axes(x)
    if op.args[0].type.shape[at] != x.type.shape[axis]:
        return False
    whole = (*found.axes[:at], axes[axis], *found.axes[at:])
    return _plain(op.args[0], whole) == _plain(x, axes)


def _summed_axis(found: Operand | None, weights: Value) -> int | None:
    """The axis where it is the sum of the weights over that axis."""
    if found is None or found.value.op.name != "reduce_sum":
        return None
    axes = (d for d in range(weights.type.rank) if _is_statistic(found, "reduce_sum", weights, d))
    return next(axes, None)


def _kept(value: Value, axis: int) -> tuple[int, ...]:
    return tuple(1 if i == axis else size for i, size in enumerate(value.type.shape))


# What is subtracted.


def _largest(shift: Value, x: Exponent, axis: int) -> bool | None:
    """Whether a shift is the maximum of x, and then whether only where that is finite."""
    found = _behind(shift, x.x)
    if found is None:
        return None
    op = found.value.op
    for lowest, top, _ in number_where_false(op):
        test = op.args[0].op
        if test.name == "is_finite" and math.isfinite(lowest) and top == op.args[2]:
            maximum = _is_maximum(Operand(top, found.axes), x, axis)
            same = unrounded(test.args[0], "reshape") == unrounded(top, "reshape")
            return True if maximum and same else None
    return False if _is_maximum(found, x, axis) else None


def _is_maximum(found: Operand, x: Exponent, axis: int) -> bool:
    """Of x, or of a number and x: it may be finite where each x is -infinity."""
    op = found.value.op
    if op.name == "max":
        for one, other in (op.args, op.args[::-1]):
            if math.isfinite(number(one) if number(one) is not None else math.inf):
                found = Operand(other, found.axes)
    found = bare(found, {})
    found = Operand(unrounded(found.value), found.axes)
    if x.mask is not None and found.value.op.name == "reduce_max":
        of = unrounded(found.value.op.args[0])
        masked = any(
            fill < math.inf and keep and kept == x.x and of.op.args[0] == x.mask
            for fill, kept, keep in number_where_false(of.op)
        )
        return masked and _is_statistic(found, "reduce_max", of, axis)
    return _is_statistic(found, "reduce_max", x.x, axis)


def _unshifted(x: Exponent, axis: int) -> tuple[Exponent, bool]:
    """The x of which the softmax is that of x - c, and whether it is `guarded`."""
    guarded = True
    while x.x.op.name == "sub" and x.x.op.args[0].type.shape == x.x.type.shape:
        inner, shift = x.x.op.args
        largest = _largest(shift, Exponent(inner, x.mask), axis)
        alike = not shift.type.shape or shift.type.shape[axis] == 1
        if largest is None and not (alike and is_finite(shift)):
            break
        guarded = guarded and largest is not False
        x = Exponent(inner, x.mask)
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
    if op.types[0].dtype not in REALS:
        return None
    axis = _summed_axis(_behind(op.args[1], weights), weights)
    if axis is None:
        return None
    x, guarded = _unshifted(exponent, axis)
    return _softmax(x.value, axis, guarded, op.types[0].dtype)


@local(
    "div",
    keeps="reals",
    example=lambda x, v: (jnp.exp(x) @ v) / jnp.sum(jnp.exp(x), axis=-1, keepdims=True),
    types=("f32[2,8]", "f32[8,3]"),
)
def division_before_product(op: Op) -> Outcome:
    """(exp(x) . v) / sum(exp(x))  ->  (exp(x) / sum(exp(x))) . v"""
    product, total = unrounded(op.args[0], "reshape"), op.args[1]
    if product.op.name != "contract" or op.types[0].dtype not in REALS:
        return None
    spec = Signature.parse(product.op["spec"])
    result = moved_ones(named(product, spec.outputs[0]), op.results[0])
    for i, (arg, axes) in enumerate(zip(product.op.args, spec.inputs)):
        weights = unrounded(arg)
        if result is None or _exponent(weights) is None or not weights.type.size:
            continue
        found = bare(named(total, result.axes), {})
        summed = unrounded(found.value).op
        if summed.name != "reduce_sum" or unrounded(summed.args[0]) != weights:
            return Miss("it is divided by something else than its weights' sum", 3)
        own = named(weights, axes).axes
        rest = [axis for d, axis in enumerate(own) if axis and d not in summed["axes"]]
        if rest != [axis for axis in found.axes if axis] or len(summed["axes"]) != 1:
            return Miss("the sum's axes are not those of the weights", 4)
        kept = reshaped(found.value, _kept(weights, *summed["axes"]))
        share = make("div", weights, in_dtype(kept, weights.type.dtype))
        args = list(product.op.args)
        args[i] = in_dtype(share, arg.type.dtype)
        made = reshaped(make("contract", *args, **dict(product.op.attrs)), op.types[0].shape)
        return in_dtype(made, op.types[0].dtype)
    return None


@local(
    "exp",
    keeps="reals",
    example=lambda x: jnp.exp(jax.nn.log_softmax(x)),
    types=("f32[2,8]",),
)
def exp_of_log_sum(op: Op) -> Outcome:
    """exp(x - (log(sum(exp(x - c))) + c))  ->  exp(x - c) / sum(exp(x - c))"""
    if op.args[0].op.name != "sub" or op.types[0].dtype not in REALS:
        return None
    x, shift = op.args[0].op.args
    inner = through(shift, "reshape")
    terms = inner.op.args if inner.op.name == "add" else (inner,)
    logs = [unrounded(term, "reshape").op for term in terms]
    at = next((i for i, log in enumerate(logs) if log.name == "log"), None)
    if at is None or any(term.type.size != shift.type.size for term in terms):
        return None
    total = unrounded(logs[at].args[0], "reshape", "abs")
    weights = unrounded(total.op.args[0]) if total.op.name == "reduce_sum" else total
    if weights.op.name != "exp" or weights.type.shape != op.types[0].shape:
        return None
    of = weights.op.args[0]
    for term in terms[:at] + terms[at + 1 :]:
        if of.op.name != "sub" or of.op.args[1].type.shape != shift.type.shape:
            return None
        if through(of.op.args[1], "reshape") != through(term, "reshape"):
            return None
        of = of.op.args[0]
    kept = in_dtype(reshaped(total, shift.type.shape), weights.type.dtype)
    if unrounded(of) != unrounded(x) or _summed_axis(_behind(kept, weights), weights) is None:
        return Miss("the logarithm is that of another sum", 3)
    return in_dtype(make("div", weights, kept), op.types[0].dtype)


@local(
    "div",
    keeps="reals",
    example=lambda x, s: jnp.exp(x) / (jnp.sum(jnp.exp(x), axis=-1, keepdims=True) + jnp.exp(s)),
    types=("f32[2,8]", "f32[2,1]"),
)
def sink_in_sum(op: Op) -> Outcome:
    """exp(x) / (sum(exp(x)) + exp(s))  ->  softmax(x beside s) without s"""
    weights, inner = op.args[0], _behind(op.args[1], op.args[0])
    if weights.op.name != "exp" or inner is None or inner.value.op.name != "add":
        return None
    if op.types[0].shape != weights.type.shape or op.types[0].dtype not in REALS:
        return None
    for one, other in (inner.value.op.args, inner.value.op.args[::-1]):
        axis, sink = _summed_axis(_plain(one, inner.axes), weights), _logarithm(other, inner.axes)
        if axis is None or sink is None:
            continue
        if _axes(weights)[axis] in sink.axes:
            return Miss("the sink is not the same along the axis", 3)
        x, guarded = weights.op.args[0], True
        if (both := _before_shift(x, sink, axis)) is not None:
            (x, sink), guarded = both, False
        column = _column(sink, x, axis)
        shares = make("concatenate", x, in_dtype(column, x.type.dtype), dimension=axis)
        shares = _softmax(shares, axis, guarded, op.types[0].dtype)
        start = (0,) * x.type.rank
        return make("slice", shares, start_indices=start, limit_indices=x.type.shape)
    return None


def _logarithm(value: Value, axes: Array) -> Operand | None:
    """x where the value is exp(x)."""
    known, found = number(value), _plain(value, axes)
    if known is not None and 0 < known < math.inf:
        return Operand(constant(math.log(known), Type(value.type.dtype, ())), ())
    if found is None or found.value.op.name != "exp":
        return None
    return _plain(found.value.op.args[0], found.axes)


def _before_shift(x: Value, sink: Operand, axis: int) -> tuple[Value, Operand] | None:
    """Logits and sink from both of which their maximum was subtracted."""
    if not x.op.name == sink.value.op.name == "sub" or x.op.args[0].type != x.type:
        return None
    logits, shift = x.op.args[0], _behind(x.op.args[1], x)
    before, same = (_plain(arg, sink.axes) for arg in sink.value.op.args)
    if shift is None or shift != same or shift.value.op.name != "max":
        return None
    pairs = (shift.value.op.args, shift.value.op.args[::-1])
    for one, other in ([_plain(each, shift.axes) for each in pair] for pair in pairs):
        if one and other == before and _is_statistic(one, "reduce_max", logits, axis):
            return logits, before
    return None


def _column(sink: Operand, x: Value, axis: int) -> Value:
    """The sink beside x: size one along the axis, and x's sizes elsewhere."""
    shape, axes = _kept(x, axis), tuple(a for a in _axes(x) if a in sink.axes)
    sizes = (size if a in axes else 1 for size, a in zip(shape, _axes(x)))
    return in_shape(laid_out(sink, axes, tuple(sizes)), shape)
