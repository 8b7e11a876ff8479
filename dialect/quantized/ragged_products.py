"""Ragged products: rows of tokens in order of their expert, each met by the expert's own matrix.

    ragged_dot(x: [t, d], w: [e, d, f], counts: [e]) -> [t, f]

The scales of quantised experts stand behind the product as those of any other weight, one per
expert and output channel; which row is whose follows from the counts. So do those of rows that are
rounded to eight bits, one per row.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from dialect import primitives
from dialect.dtypes import struct_of
from dialect.jaxpr import trace_graph
from dialect.nn import Traced
from dialect.ops.rounding import steps
from dialect.quant import dequantize
from dialect.values import in_dtype
from rewrite.ir import Graph, Op, Symbol, Type, Value
from rewrite.opdef import make, substitute
from rewrite.rules import Miss, Outcome, local

_dequantize = primitives.call("dequantize", dequantize)


def summed_axis(op: Op) -> int | None:
    """The axis of the experts' matrices that a ragged product sums, where rows are ragged, the
    experts come first and there is no batch; None elsewhere."""
    numbers = dict(op["ragged_dot_dimension_numbers"].fields)
    (_, summed), batch = numbers["dot_dimension_numbers"]
    rows, experts = numbers["lhs_ragged_dimensions"], numbers["rhs_group_dimensions"]
    plain = (tuple(rows), tuple(experts)) == ((0,), (0,)) and not any(batch)
    ranks = [arg.type.rank for arg in op.args[:2]]
    plain = plain and ranks == [2, 3] and len(op.args) == 3 and len(summed) == 1
    return summed[0] if plain and op.get("group_offset") is None else None


@local(
    "ragged_dot_general",
    keeps="reals",
    example=lambda x, q, s: jax.lax.ragged_dot(
        Traced["rounded"](x, axes=(1,), largest=127.5, least=1e-19),
        _dequantize(q, s, dtype=Symbol("f32")),
        jnp.asarray([4, 1], jnp.int32),
    ),
    types=("f32[6,3]", "i8[2,3,4]", "f32[2,1,4]"),
)
def ragged_integers_multiplied(op: Op) -> Outcome:
    """ragged_dot(r * t, dequantize(q, s), n)  ->  ragged_dot(r, q, n) * s of each row's expert * t
    of integers r and q"""
    rows, weight = op.args[0].op, op.args[1].op
    if rows.name != "rounded" or rows.get("form", "int8") != "int8" or rows["axes"] != (1,):
        return None
    if weight.name != "dequantize" or weight.args[0].type.dtype != "i8":
        return None
    graph = _steps(rows.args[0].type, rows.attrs)
    numbers, scale = substitute(graph, rows.args, origin=rows.origin)
    return _scaled_behind(op, numbers, "i32", scale)


@local(
    "ragged_dot_general",
    keeps="reals",
    example=lambda x, q, s: jax.lax.ragged_dot(
        x, _dequantize(q, s, dtype=Symbol("f32")), jnp.asarray([4, 1], jnp.int32)
    ),
    types=("f32[6,3]", "i8[2,3,4]", "f32[2,1,4]"),
)
def scale_behind_ragged_product(op: Op) -> Outcome:
    """ragged_dot(x, dequantize(q, s), n)  ->  ragged_dot(x, q, n) * s of each row's expert

    The integers go in as they are: a kernel takes whole arrays, and would find them widened."""
    return _scaled_behind(op, op.args[0], op.types[0].dtype)


def _scaled_behind(op: Op, rows: Value, dtype: str, row_scale: Value | None = None) -> Outcome:
    """The product of rows with a weight's numbers, summed in `dtype`, the scales behind it."""
    weight, axis = op.args[1].op, summed_axis(op)
    if weight.name != "dequantize" or axis is None:
        return None
    q, scale = weight.args
    if scale.type.shape[axis] > 1:
        return Miss("a scale varies along a summed axis", 2)
    attrs = {**dict(op.attrs), "preferred_element_type": Symbol(dtype)}
    product = make("ragged_dot_general", rows, q, op.args[2], **attrs)
    graph = _scales(rows.type.shape[0], scale.type, op.args[2].type)
    scales = substitute(graph, (scale, op.args[2]), origin=op.origin)
    result = in_dtype(product, "f32")
    for each in (*scales, *filter(None, [row_scale])):
        result = make("mul", result, each)
    return in_dtype(result, op.types[0].dtype)


@lru_cache(maxsize=256)
def _steps(rows: Type, attrs: tuple) -> Graph:
    return trace_graph(lambda x: steps(x, **dict(attrs)), struct_of(rows))


@lru_cache(maxsize=256)
def _scales(rows: int, scale: Type, counts: Type) -> Graph:
    return trace_graph(partial(_scale_of_rows, rows), struct_of(scale), struct_of(counts))


def _scale_of_rows(rows: int, scale: Any, counts: Any) -> list[Any]:
    """[t, f]: for each row the scales of the expert whose it is."""
    ends = jnp.cumsum(counts)
    expert = jnp.sum(jnp.arange(rows)[:, None] >= ends, axis=1)
    own = jnp.minimum(expert, counts.shape[0] - 1)  # rows behind the last expert's are zero
    return [scale.reshape(scale.shape[0], -1)[own]]
