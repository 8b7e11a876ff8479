"""Weights that a library has quantised already, recognised by their dequantisation."""

from __future__ import annotations

from dialect.matching.values import REALS, number, reshaped
from dialect.normal.cuts import cut_inside, cuts
from dialect.ops import quant  # noqa: F401  (defines dequantize)
from rewrite.ir import Op, Symbol, Value, bits
from rewrite.opdef import make
from rewrite.rules import Outcome, local


@local(
    "mul",
    example=lambda q, s: q.astype("float32") * s,
    types=("i8[4,6]", "f32[1,6]"),
    keeps="reals",
)
def dequantized(op: Op) -> Outcome:
    """convert(q: integers) * scale  ->  dequantize(q, scale)"""
    if op.types[0].dtype not in REALS:
        return None
    for weight, scale in (op.args, op.args[::-1]):
        q = weight.op.args[0] if weight.op.name == "convert_element_type" else None
        if q is None or not q.type.dtype.startswith("i") or bits(q.type.dtype) > 8:
            continue
        same_shape = q.type.shape == op.types[0].shape and scale.type.rank == q.type.rank
        if same_shape and number(scale) is None and scale.type.size < q.type.size:
            return _scaled(q, scale, op.types[0].dtype)
    return None


def _scaled(q: Value, scale: Value, dtype: str) -> Value:
    """q * scale, of size one where the same scale is for all."""
    sizes = tuple(enumerate(zip(q.type.shape, scale.type.shape)))
    axes = tuple(d for d, (size, scales) in sizes if scales != size)
    shape = tuple(size for d, (size, _) in sizes if d not in axes)
    return make("dequantize", q, reshaped(scale, shape), axes=axes, dtype=Symbol(dtype))


@local(
    "reshape",
    example=lambda q, s: (q.astype("float32") * s).reshape(4, 2, 3),
    types=("i8[4,6]", "f32[1,6]"),
)
def cut_of_dequantized(op: Op) -> Outcome:
    """reshape(dequantize(q, s)) that cuts axes apart  ->  dequantize(reshape(q), reshape(s))"""
    inner = op.args[0].op
    if inner.name != "dequantize" or not cuts(op):
        return None
    return cut_inside(op)
