"""Softmax in parts: each part of the context has its own shift and sum, by which they are merged.

    sum_p exp(c_p - m) (exp(x_p - c_p) . v_p) / sum_p exp(c_p - m) sum(exp(x_p - c_p))
      ->  softmax(concat(x_1, x_2, ...)) . concat(v_1, v_2, ...)

Flash attention (Dao et al. 2022) and ring attention (Liu et al. 2023) do so, and decoders that keep
the keys of the prompt apart from those of the answer. The factors are spelled in many ways: with
maxima, with running maxima, with logarithms of sums. Here each is read as a power of e, and each
sum as terms exp(l) sum(exp(x)). What all terms of a fraction share cancels, whatever it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from dialect.matching.operands import Operand, arranged, bare, laid_out, named, regrouped
from dialect.matching.proofs import holds_no_number, is_finite
from dialect.matching.values import in_dtype, in_shape, number, through
from dialect.ops import lax
from dialect.recognition.shifted_sums import (
    CONTEXT,
    DEEPEST,
    PRODUCTS,
    Log,
    Part,
    Reader,
    Total,
    size_along,
)
from dialect.recognition.softmaxes import exponent_of, softmax_along
from rewrite.ir import Op, Value
from rewrite.opdef import make, traits
from rewrite.rules import Miss, Outcome, local
from rewrite.signature import Array, Signature, letters


def _example(x: Any, y: Any, v: Any, w: Any) -> Any:
    pairs = ((x, v), (y, w))
    maxima = [jnp.max(logits, axis=-1, keepdims=True) for logits, _ in pairs]
    factors = [jnp.exp(logits - jnp.maximum(*maxima)) for logits in maxima]
    weights = [jnp.exp(logits - top) for (logits, _), top in zip(pairs, maxima)]
    sums = [jnp.sum(part, axis=-1, keepdims=True) for part in weights]
    total = sum(factor * part for factor, part in zip(factors, sums))
    results = zip(factors, weights, pairs)
    return sum(factor / total * (part @ value) for factor, part, (_, value) in results)


@local(
    "add",
    "mul",
    "div",
    keeps="reals",
    example=_example,
    types=("f32[2,8]", "f32[2,5]", "f32[8,3]", "f32[5,3]"),
    needs=("finite activations",),
)
def softmax_in_parts(op: Op) -> Outcome:
    """sum_p f_p (exp(x_p - c_p) . v_p)  ->  softmax(concat(x_1, ..)) . concat(v_1, ..)

    where f_p = exp(c_p) / sum_q exp(c_q) sum(exp(x_q - c_q)). A part whose logits are all infinite
    would be NaN: its activations are assumed to be finite, its masks not to be infinite.
    """
    first = _first_product(op.results[0])
    if first is None:
        return None
    axes, sizes = first
    reader = Reader(sizes)
    terms = reader.terms(Operand(op.results[0], axes), PRODUCTS)
    if terms is None or len(terms) < 2:
        return None
    parts = [part for part, _ in terms]
    whole = Total.of((part.x, Log()) for part in parts)
    if any(log != Log([(whole, -1)]) for _, log in terms):
        return Miss("the parts are not divided by the sum of all their weights", 4)
    masked = any(_may_be_minus_infinity(part.x.value) for part in parts)
    if masked and not reader.shifts_are_finite(whole):
        return Miss("where a part keeps no key it is NaN", 4)
    merged = _merged(parts, sizes)
    if isinstance(merged, Miss):
        return merged
    return in_dtype(laid_out(merged, axes, op.types[0].shape), op.types[0].dtype)


# Where the letters come from: the first product, followed to the result.

Followed = tuple[
    Array, dict[str, int]
]  # the axes of a value in the letters of a product, and sizes


def _first_product(value: Value, steps: int = DEEPEST) -> Followed | None:
    """The axes of a value that a product with exponentials is a term of."""
    name = value.op.name
    if not steps:
        return None
    return _of_product(value) if name in PRODUCTS else _passed_on(value, steps)


def _of_product(value: Value) -> Followed | None:
    """A product with exponentials names its own axes."""
    op, spec = value.op, Signature.parse(value.op["spec"])
    layout = ("reshape", "transpose", "convert_element_type")
    if not any(exponent_of(through(arg, *layout)) for arg in op.args):
        return None
    arrays = zip(op.args, spec.inputs)
    sizes = {x: size for arg, axes in arrays for (x,), size in zip(axes, arg.type.shape)}
    return named(value, spec.outputs[0]).axes, sizes


def _passed_on(value: Value, steps: int) -> Followed | None:
    """Through elementwise ops and layout."""
    op = value.op
    for arg in op.args:
        product = _first_product(arg, steps - 1) if arg.type.size == value.type.size else None
        if product is None:
            continue
        axes, sizes = product
        order = op.get(traits(op).order, range(len(axes)))
        ordered = tuple(axes[place] for place in order)
        laid = regrouped(Operand(arg, ordered), value, sizes)
        return None if laid is None else (laid.axes, sizes)
    return None


# Ops that are infinite where an argument of theirs, the one of this number, has a certain value.
_POLES: dict[str, int] = {"log": 0, "log1p": 0, "rsqrt": 0, "atanh": 0, "integer_pow": 0, "div": 1}


def _may_be_minus_infinity(value: Value, steps: int = DEEPEST) -> bool:
    """Whether a value may be minus infinity though all activations are finite."""
    op = value.op
    if is_finite(value):
        return False
    argument = _POLES.get(op.name)
    if argument is not None and not number(op.args[argument]):
        return True
    if holds_no_number(value) or not steps:
        return True
    inside = op.name in lax.MAPS or traits(op).moves
    return inside and any(_may_be_minus_infinity(arg, steps - 1) for arg in op.args)


# The parts as one.


def _merged(parts: list[Part], sizes: Mapping[str, int]) -> Operand | Miss:
    """softmax(concat(x_p)) . concat(v_p), laid out as the first part is."""
    first, *_ = parts
    if len({_said(part) for part in parts}) != 1:
        return Miss("the products of its parts differ", 4)
    xs, values = [part.x for part in parts], [part.v for part in parts]
    args, weights_at = list(first.product.args), first.position
    for operands, axes in ((xs, first.weights), (values, first.v.axes)):
        if any(set(letters(operand.axes)) != set(letters(axes)) for operand in operands):
            return Miss("its parts have different axes", 4)
    weights, axis = args[weights_at].type.dtype, first.weights.index((CONTEXT,))
    args[weights_at] = softmax_along(_joined(xs, first.weights, sizes), axis, False, weights)
    args[1 - weights_at] = _joined(values, first.v.axes, sizes)
    return Operand(make("contract", *args, **dict(first.product.attrs)), first.result)


def _said(part: Part) -> tuple[Any, ...]:
    """What the products of all parts have in common: all but their axes."""
    attrs = (attr for attr in part.product.attrs if attr[0] != "spec")
    return (*attrs, part.x.value.type.dtype, *(arg.type.dtype for arg in part.product.args))


def _joined(operands: list[Operand], axes: Array, sizes: Mapping[str, int]) -> Value:
    """Operands in the same axes, one after another along the context."""
    laid = []
    for operand in operands:
        known = {**sizes, CONTEXT: size_along(operand, CONTEXT)}
        held = letters(axes)
        value = arranged(bare(operand, known), held)  # of size one where it is the same
        whole = in_shape(value, tuple(known[x] for x in held))
        shape = tuple(known[axis[0]] if axis else 1 for axis in axes)
        laid.append(laid_out(Operand(whole, tuple((x,) for x in held)), axes, shape))
    return make("concatenate", *laid, dimension=axes.index((CONTEXT,)))
