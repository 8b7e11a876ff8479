"""Ragged products: rows of tokens in order of their expert, each multiplied by its matrix.

    ragged_dot(x: [t, d], w: [e, d, f], counts: [e]) -> [t, f]

The scales of quantised experts are applied after the product, as those of any other weight, one per
expert and output channel; the counts give the expert of each row. So are the scales of rows that
are rounded to eight bits, one per row.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from dialect.arrays.dtypes import struct_of
from dialect.jaxprs.jaxpr import trace_graph
from dialect.matching.values import REALS, in_dtype
from dialect.ops.experts import summed_axis
from dialect.ops.nn import Traced
from dialect.ops.quant import LONGEST_SUM
from rewrite.ir import Graph, Op, Symbol, Type, Value
from rewrite.opdef import make, substitute
from rewrite.rules import Miss, Outcome, local

_quantize, _dequantize = Traced["quantize"], Traced["dequantize"]


@local(
    "ragged_dot_general",
    keeps="reals",
    needs=("finite parameters",),
    example=lambda x, q, s: jax.lax.ragged_dot(
        _dequantize(*_quantize(x, axes=(1,), form="int8"), axes=(1,), dtype=Symbol("f32")),
        _dequantize(q, s, axes=(1,), dtype=Symbol("f32")),
        jnp.asarray([4, 1], jnp.int32),
    ),
    types=("f32[6,3]", "i8[2,3,4]", "f32[2,4]"),
)
def ragged_integers_multiplied(op: Op) -> Outcome:
    """ragged_dot(r * t, dequantize(q, s), n)  ->  ragged_dot(r, q, n) * s of each row's expert * t
    of integers r and q"""
    rows, weight = op.args[0].op, op.args[1].op
    both = rows.name == weight.name == "dequantize"
    if not both or {dequantized.args[0].type.dtype for dequantized in (rows, weight)} != {"i8"}:
        return None
    if rows["axes"] != (1,):
        return None
    numbers, scale = rows.args
    return _scaled_behind(op, numbers, "i32", scale)


@local(
    "ragged_dot_general",
    keeps="reals",
    needs=("finite parameters",),
    example=lambda x, q, s: jax.lax.ragged_dot(
        x, _dequantize(q, s, axes=(1,), dtype=Symbol("f32")), jnp.asarray([4, 1], jnp.int32)
    ),
    types=("f32[6,3]", "i8[2,3,4]", "f32[2,4]"),
)
def scale_behind_ragged_product(op: Op) -> Outcome:
    """ragged_dot(x, dequantize(q, s), n)  ->  ragged_dot(x, q, n) * s of each row's expert

    The integers are not converted: a kernel reads arrays from memory, and would read wide ones."""
    dtype = op.types[0].dtype
    if op.args[0].type.dtype not in REALS:
        return Miss("the dtype of its rows does not hold all 8-bit integers", 2)
    return _scaled_behind(op, op.args[0], "f32" if dtype == "f16" else dtype)


def _scaled_behind(op: Op, rows: Value, dtype: str, row_scale: Value | None = None) -> Outcome:
    """The product of rows with a weight's numbers, summed in `dtype`, the scales behind it."""
    weight, axis = op.args[1].op, summed_axis(op)
    if weight.name != "dequantize":
        return None
    q, scale = weight.args
    if weight["axes"] != (axis,):
        return Miss("its scales are not one per expert and output channel", 2)
    if 0 in q.type.shape:
        return Miss("there are no weights", 2)
    if op.types[0].dtype not in REALS:
        return Miss("its result is not of floats", 2)
    if dtype == "i32" and q.type.shape[axis] > LONGEST_SUM:
        return Miss("its sum may overflow 32 bits", 2)
    attrs = {**dict(op.attrs), "preferred_element_type": Symbol(dtype)}
    product = make("ragged_dot_general", rows, q, op.args[2], **attrs)
    args = (product, scale, op.args[2], *filter(None, [row_scale]))
    graph = _scaled(tuple(arg.type for arg in args))
    (result,) = substitute(graph, args, origin=op.origin)
    return in_dtype(result, op.types[0].dtype)


@lru_cache(maxsize=256)
def _scaled(types: tuple[Type, ...]) -> Graph:
    return trace_graph(_times_scales, *map(struct_of, types))


def _times_scales(product: Any, scale: Any, counts: Any, row_scale: Any = None) -> list[Any]:
    """[t, f]: each row times the scales of its expert, and times its own scale.

    Rows after the last expert's are zero, and remain so. Every integer is one of 32 bits, whether
    or not JAX has 64: it is traced once.
    """
    ends = jnp.cumsum(counts, dtype=jnp.int32)
    rows = jnp.arange(len(product), dtype=jnp.int32)
    expert = jnp.sum(rows[:, None] >= ends, axis=1, dtype=jnp.int32)
    row_scales = scale[jnp.minimum(expert, jnp.int32(len(counts) - 1))]
    scaled = product.astype(jnp.promote_types(product.dtype, jnp.float32)) * row_scales
    scaled = scaled if row_scale is None else scaled * row_scale[:, None]
    return [jnp.where((expert < len(counts))[:, None], scaled, jnp.zeros((), scaled.dtype))]
