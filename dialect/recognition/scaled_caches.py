"""Caches of integers whose scales a library applies to the logits and to the weights of attention.

A key's scale is the same along its row, so that `q . (k * s) = (q . k) * s`, and a value's is the
same for all weights of its position. Libraries take the cheap side of both; attention reads keys
and values, so here the scales go back to these.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dialect.matching.operands import Operand, bare, named
from dialect.matching.values import REALS, through, unrounded
from dialect.quantized.integer_products import sizes_of, with_scale
from dialect.recognition.attention import is_softmax
from dialect.recognition.softmaxes import exponent_of
from rewrite.ir import Op, Symbol, Value, bits
from rewrite.opdef import make, traits
from rewrite.rules import Outcome, local
from rewrite.signature import Signature, letters


@local(
    "mul",
    keeps="reals",
    needs=("finite parameters", "finite activations"),
    example=lambda q, k, s: jnp.dot(q, k.astype("float32")) * s,
    types=("f32[2,3]", "i8[3,4]", "f32[1,4]"),
)
def scale_behind_integers(op: Op) -> Outcome:
    """contract(q, k: integers) * s  ->  contract(q, dequantize(k, s))"""
    if op.types[0].dtype not in REALS:
        return None
    for scaled, scale in (op.args, op.args[::-1]):
        product = unrounded(scaled).op
        if product.name != "contract" or scaled.type.shape != op.types[0].shape:
            continue
        spec = Signature.parse(product["spec"])
        args = _with_scale(product, spec, named(scale, spec.outputs[0]), op.types[0].dtype)
        if args:
            attributes = dict(product.attrs) | {"dtype": Symbol(op.types[0].dtype)}
            return make("contract", *args, **attributes)
    return None


@local(
    "contract",
    keeps="reals",
    needs=("finite parameters", "finite activations"),
    example=lambda w, v, s: jnp.dot(jax.nn.softmax(w) * s, v.astype("float32")),
    types=("f32[2,3]", "i8[3,4]", "f32[1,3]"),
)
def scale_before_integers(op: Op) -> Outcome:
    """contract(w * s, v: integers)  ->  contract(w, dequantize(v, s)), where w are the weights of
    attention"""
    spec = Signature.parse(op["spec"])
    for place, arg in enumerate(op.args):
        scaled = unrounded(arg).op
        for weights, scale in (scaled.args, scaled.args[::-1]) if scaled.name == "mul" else ():
            if weights.type.shape != arg.type.shape or not _are_weights(weights):
                continue
            args = _with_scale(op, spec, named(scale, spec.inputs[place]), weights.type.dtype)
            if args:
                return make(
                    "contract", *args[:place], weights, *args[place + 1 :], **dict(op.attrs)
                )
    return None


def _are_weights(value: Value) -> bool:
    """Whether these are a softmax, or exponentials that are to be divided by a sum."""
    layout = ("reshape", "transpose", "convert_element_type")
    return is_softmax(value) or exponent_of(through(value, *layout)) is not None


def _with_scale(product: Op, spec: Signature, scale: Operand, dtype: str) -> list[Value] | None:
    """The factors of a product, the one of integers with the scale; None if none has its axes."""
    operand = bare(scale, sizes_of(product, spec))
    for place, (arg, axes) in enumerate(zip(product.args, spec.inputs)):
        wide = unrounded(arg)
        is_converted = traits(wide.op).converts and wide.type.dtype in REALS
        q = wide.op.args[0] if is_converted else wide
        is_narrow = q.type.dtype.startswith("i") and bits(q.type.dtype) <= 8
        used = set(letters(operand.axes))
        if is_narrow and used and used < set(letters(axes)):
            args = list(product.args)
            args[place] = with_scale(q, axes, operand, dtype)
            return args
    return None
