"""Products of integers that are scaled afterwards, as libraries write them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import jax.numpy as jnp

from dialect.matching.operands import Operand, bare, laid_out, named
from dialect.matching.values import REALS, number, through
from dialect.ops.quant import LONGEST_SUM
from rewrite.ir import Op, Symbol, Value
from rewrite.opdef import build, make
from rewrite.rules import Miss, Outcome, local
from rewrite.signature import Array, Signature, letters

_TO_EVEN = Symbol("RoundingMethod.TO_NEAREST_EVEN")


def _product(x: Any, w: Any, s: Any) -> Any:
    """A product as Qwix computes it: one scale per row of x, one per column of w."""
    scale = jnp.max(jnp.abs(x), axis=1, keepdims=True) / jnp.asarray(127.5, x.dtype)
    scale = jnp.where(scale < 1e-19, jnp.ones((), x.dtype), scale)
    q = jnp.round(x / scale).astype(jnp.int8)
    return jnp.dot(q, w, preferred_element_type=jnp.int32).astype(x.dtype) * s * scale


@local(
    "mul",
    keeps="reals",
    needs=("finite parameters", "finite activations"),
    example=_product,
    types=("f32[2,3]", "i8[3,4]", "f32[1,4]"),
)
def product_of_integers(op: Op) -> Outcome:
    """convert(contract(q, r)) * s * t  ->  contract(q * s, r * t)"""
    scales, value = [], op.results[0]
    while value.op.name == "mul":
        wide = [arg for arg in value.op.args if arg.type.shape == op.types[0].shape]
        inner = next((arg for arg in wide if _scaled(arg)), None)
        if inner is None:
            return None
        scales += [arg for arg in value.op.args if arg != inner]
        value = inner
    product = value.op.args[0].op
    spec, dtype = Signature.parse(product["spec"]), op.types[0].dtype
    sizes = sizes_of(product, spec)
    if prod(sizes[x] for x in spec.summed) > LONGEST_SUM:
        return Miss("its sum may overflow 32 bits", 4)
    args: list[Value | None] = [None, None]
    for scale in scales:
        operand = bare(named(scale, spec.outputs[0]), sizes)
        free = (i for i in (0, 1) if args[i] is None)
        place = next((i for i in free if _is_of(product, spec, i, operand)), None)
        if place is None:
            return Miss("a scale belongs to neither operand", 4)
        args[place] = _dequantized(product.args[place], spec.inputs[place], operand, dtype)
    if None in args:
        return Miss("an operand has no scale", 4)
    return make("contract", *args, **{**dict(product.attrs), "dtype": Symbol(dtype)})


def _scaled(value: Value) -> bool:
    """Whether a value is a product of integers converted to floats, or a multiple of one."""
    if value.op.name == "mul":
        return any(map(_scaled, value.op.args))
    if value.op.name != "convert_element_type" or value.type.dtype not in REALS:
        return False
    product = value.op.args[0]
    integers = product.op.name == "contract" and product.type.dtype == "i32"
    return integers and all(arg.type.dtype == "i8" for arg in product.op.args)


def sizes_of(product: Op, spec: Signature) -> dict[str, int]:
    """The size of each letter."""
    pairs = zip(spec.inputs, product.args)
    return {x: size for axes, arg in pairs for x, size in zip(letters(axes), arg.type.shape)}


@dataclass(frozen=True)
class _Steps:
    """How integers were quantised: x, its scale, and the options of the rounding."""

    x: Value
    scale: Value
    axes: tuple[int, ...]
    largest: float
    least: float


def _steps_of(q: Value) -> _Steps | None:
    """How q was quantised, if by the greatest magnitude of some x along some axes."""
    round_op = q.op.args[0].op if q.op.name == "convert_element_type" else q.op
    if round_op.name != "round" or round_op["rounding_method"] != _TO_EVEN:
        return None
    if round_op.args[0].op.name != "div":
        return None
    x, wide = round_op.args[0].op.args
    scale = through(wide, "reshape")
    if scale.op.name != "select_n" or number(scale.op.args[2]) != 1:
        return None
    small, share = scale.op.args[0].op, scale.op.args[1]
    if small.name != "lt" or small.args[0] != share or share.op.name != "div":
        return None
    top, largest, least = share.op.args[0].op, number(share.op.args[1]), number(small.args[1])
    if top.name != "reduce_max" or top.args[0].op.name != "abs" or top.args[0].op.args[0] != x:
        return None
    scale_shape = tuple(1 if d in top["axes"] else size for d, size in enumerate(x.type.shape))
    if wide.type.shape != scale_shape or not largest or not least:
        return None
    return _Steps(x, scale, top["axes"], float(largest), float(least))


def _is_of(product: Op, spec: Signature, place: int, scale: Operand) -> bool:
    """Whether a scale belongs to an operand: that of its rounding, or one of its channels."""
    q, q_letters = product.args[place], [x for (x,) in spec.inputs[place]]
    used = [x for (x,) in filter(None, scale.axes)]
    dynamic = _steps_of(q)
    if dynamic is None:
        return set(used) <= set(q_letters)
    rows = [x for d, x in enumerate(q_letters) if d not in dynamic.axes and q.type.shape[d] > 1]
    return used == rows and scale.value == dynamic.scale


def _dequantized(q: Value, axes: Array, scale: Operand, dtype: str) -> Value:
    steps = _steps_of(q)
    if steps is not None:
        how = {"largest": steps.largest, "least": steps.least, "lowest": -128}  # as it converts
        parts = build("quantize", steps.x, axes=steps.axes, form="int8", **how).results
        return make("dequantize", *parts, axes=steps.axes, dtype=Symbol(dtype))
    return with_scale(q, axes, scale, dtype)


def with_scale(q: Value, axes: Array, scale: Operand, dtype: str) -> Value:
    """dequantize(q, scale): `axes` are the letters of q, of which the scale has some."""
    kept = tuple(axis for axis in axes if axis in scale.axes)
    sizes = dict(zip(axes, q.type.shape))
    aligned = laid_out(scale, kept, tuple(sizes[axis] for axis in kept))
    shared = tuple(d for d, axis in enumerate(axes) if axis not in kept)
    return make("dequantize", q, aligned, axes=shared, dtype=Symbol(dtype))
