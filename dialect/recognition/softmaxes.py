"""Softmax in its spellings: by hand, masked, divided late, over any axis, with a sink beside it.

    exp(x - c) / sum(exp(x - c))  is  softmax(x)  for every c that is the same along the axis

Whatever stands there becomes `softmax` over the last axis, between the product that makes the
logits and the one that takes the values.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from dialect import nn  # noqa: F401  (defines softmax)
from dialect.jaxpr import constant
from dialect.normal.mask_rules import splat
from dialect.operands import bare, moved_ones, named, transposed
from dialect.recognition.logits import says_nothing
from dialect.values import in_dtype, number, reshaped, through
from rewrite.ir import Op, Type, Value
from rewrite.opdef import make
from rewrite.rules import Miss, Outcome, local
from rewrite.signature import Signature

_CONVERT = "convert_element_type"


def _total(value: Value) -> tuple[Value, int] | None:
    """(x, axis) where the value is sum(x) over one axis, which it keeps as one of size one."""
    inner = through(value, "reshape", _CONVERT)
    if inner.op.name != "reduce_sum" or len(inner.op["axes"]) != 1:
        return None
    source, (axis,) = inner.op.args[0], inner.op["axes"]
    return (source, axis) if value.type.shape == _kept(source, axis) else None


def _kept(value: Value, axis: int) -> tuple[int, ...]:
    return tuple(1 if i == axis else size for i, size in enumerate(value.type.shape))


def _softmax(x: Value, axis: int, dtype: str) -> Value:
    """Softmax over any axis, in another dtype."""
    x = _unshifted(x, axis)
    order = (*(i for i in range(x.type.rank) if i != axis), axis)
    made = make("softmax", transposed(x, order))
    return in_dtype(transposed(made, [order.index(i) for i in range(len(order))]), dtype)


def _exponent(value: Value) -> Value | None:
    """x where the value is exp(x); where a mask makes it zero, x is -inf."""
    mask, weights = None, value
    if value.op.name == "select_n" and number(value.op.args[1]) == 0:
        mask, _, weights = value.op.args
    elif value.op.name == "mul":
        mask, weights = sorted(value.op.args, key=lambda arg: arg.op.name != _CONVERT)
        mask = mask.op.args[0] if mask.op.name == _CONVERT else mask
    if weights.op.name != "exp" or (mask is not None and mask.type.dtype != "bool"):
        return None
    x = weights.op.args[0]
    if mask is None:
        return x
    if mask.type.shape != x.type.shape:
        mask = make("broadcast_in_dim", mask, shape=x.type.shape, broadcast_dimensions=_every(x))
    return make("select_n", mask, splat(-math.inf, x.type), x)


def _unshifted(x: Value, axis: int) -> Value:
    """x where the value is x - c and c is the same along the axis."""
    while x.op.name == "sub" and x.op.args[0].type.shape == x.type.shape:
        shift = x.op.args[1].type.shape
        if shift and shift[axis] != 1:
            break
        x = x.op.args[0]
    return x


def _every(value: Value) -> tuple[int, ...]:
    return tuple(range(value.type.rank))


@local(
    "div",
    keeps="reals",
    example=lambda x: (y := jnp.exp(x - jnp.max(x))) / jnp.sum(y, axis=-1, keepdims=True),
    types=("f32[2,8]",),
)
def softmax_of_exp(op: Op) -> Outcome:
    """exp(x - c) / sum(exp(x - c))  ->  softmax(x), where c is the same along the axis"""
    found = _total(op.args[1])
    if found is None or through(op.args[0], _CONVERT) != through(found[0], _CONVERT):
        return None
    x = _exponent(through(found[0], _CONVERT))
    return None if x is None else _softmax(x, found[1], op.types[0].dtype)


@local(
    "div",
    keeps="reals",
    example=lambda x, v: (jnp.exp(x) @ v) / jnp.sum(jnp.exp(x), axis=-1, keepdims=True),
    types=("f32[2,8]", "f32[8,3]"),
)
def division_before_product(op: Op) -> Outcome:
    """(exp(x) . v) / sum(exp(x))  ->  (exp(x) / sum(exp(x))) . v"""
    product, total = through(op.args[0], _CONVERT, "reshape"), op.args[1]
    if product.op.name != "contract":
        return None
    spec = Signature.parse(product.op["spec"])
    result = moved_ones(named(product, spec.outputs[0]), op.results[0])
    for i, (arg, axes) in enumerate(zip(product.op.args, spec.inputs)):
        weights = through(arg, _CONVERT)
        if result is None or _exponent(weights) is None:
            continue
        found = bare(named(total, result.axes), {})
        summed = through(found.value, _CONVERT).op
        if summed.name != "reduce_sum" or through(summed.args[0], _CONVERT) != weights:
            return Miss("it is divided by something else than its weights' sum", 3)
        own = named(weights, axes).axes
        rest = [axis for d, axis in enumerate(own) if axis and d not in summed["axes"]]
        if rest != [axis for axis in found.axes if axis]:
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
    inner = op.args[0].op
    if inner.name != "sub":
        return None
    x, shift = inner.args
    kept = shift.type.shape
    terms = through(shift, "reshape")
    terms = terms.op.args if terms.op.name == "add" else (terms,)
    logs = [through(term, "reshape").op for term in terms]
    at = next((i for i, log in enumerate(logs) if log.name == "log"), None)
    if at is None:
        return None
    total = through(logs[at].args[0], "reshape", "abs")
    if total.op.name != "reduce_sum" or total.op.args[0].op.name != "exp":
        return None
    for term in terms[:at] + terms[at + 1 :]:
        x = make("sub", x, reshaped(term, kept))
    return make("div", make("exp", x), reshaped(total, kept))


@local(
    "div",
    keeps="reals",
    example=lambda x, s: jnp.exp(x) / (jnp.sum(jnp.exp(x), axis=-1, keepdims=True) + jnp.exp(s)),
    types=("f32[2,8]", "f32[2,1]"),
)
def sink_in_sum(op: Op) -> Outcome:
    """exp(x - c) / (sum(exp(x - c)) + exp(s - c))  ->  softmax(x beside s) without s"""
    weights, inner = op.args[0], through(op.args[1], "reshape").op
    if inner.name != "add" or weights.op.name != "exp":
        return None
    for one, other in (inner.args, inner.args[::-1]):
        total, sink = through(one, "reshape").op, _logarithm(other)
        if total.name != "reduce_sum" or total.args[0] != weights or sink is None:
            continue
        (axis,), x = total["axes"], weights.op.args[0]
        logits = _unshifted(x, axis)
        if logits != x:
            sink = _shifted_back(sink, x.op.args[1])
        if sink is None:
            return Miss("the sink is not shifted as the logits are", 4)
        column = _column(sink, _kept(x, axis), axis)
        shares = _softmax(make("concatenate", logits, column, dimension=axis), axis, x.type.dtype)
        start = (0,) * x.type.rank
        made = make("slice", shares, start_indices=start, limit_indices=x.type.shape)
        return in_dtype(made, op.types[0].dtype)
    return None


def _logarithm(value: Value) -> Value | None:
    """x where the value is exp(x)."""
    inner, known = through(value, "reshape", "broadcast_in_dim"), number(value)
    if isinstance(known, (int, float)) and known > 0:
        return constant(math.log(known), Type(value.type.dtype, ()))
    return inner.op.args[0] if inner.op.name == "exp" else None


def _shifted_back(value: Value, shift: Value) -> Value | None:
    """x where the value is x - shift, in whatever layout."""
    same = {"neg": 0, "sub": 1}.get(value.op.name)
    shift = through(shift, "reshape")
    if same is None or through(value.op.args[same], "reshape") != shift:
        return None
    return value.op.args[0] if same else constant(0.0, Type(value.type.dtype, ()))


def _column(value: Value, shape: tuple[int, ...], axis: int) -> Value:
    """The value in this shape, of which it may lack the axis."""
    if value.type.rank == len(shape) - 1:
        sizes = value.type.shape
        value = reshaped(value, (*sizes[:axis], 1, *sizes[axis:]))
    places = tuple(range(value.type.rank))
    return make("broadcast_in_dim", value, shape=shape, broadcast_dimensions=places)


def _but_the_lowest(x: jax.Array) -> jax.Array:
    kept = x > jnp.min(x, axis=-1, keepdims=True)
    return jnp.where(kept, jax.nn.softmax(jnp.where(kept, x, -1e9)), 0.0)


@local("select_n", keeps="reals", example=_but_the_lowest, types=("f32[2,8]",))
def zero_already(op: Op) -> Outcome:
    """select(m, softmax(select(m, x, -inf)), 0)  ->  softmax(select(m, x, -inf)), and exp alike

    Rows of which the mask keeps nothing mean nothing (see `attend`).
    """
    if len(op.args) != 3 or number(op.args[1]) != 0:
        return None
    inner = through(op.args[2], _CONVERT).op
    if inner.name not in ("softmax", "exp"):
        return None
    logits = through(inner.args[0], "sub", _CONVERT).op
    if logits.name != "select_n" or logits.args[0] != op.args[0]:
        return None
    fill = number(logits.args[1])
    dropped = says_nothing(fill, logits.types[0].dtype)
    return op.args[2] if dropped and (inner.name == "softmax" or fill == -math.inf) else None
