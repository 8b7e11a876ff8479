"""Attention over a context that is kept in several arrays: none of them is copied.

A concatenation of caches would be as long as all of them, and made anew in every step. The logits
are small beside it: each part has its own, and the softmax is over all.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, chain, pairwise

import jax.numpy as jnp

from dialect.arrays.dtypes import struct_of
from dialect.jaxprs.jaxpr import trace_graph
from dialect.matching.values import REALS, cut, parts_along
from dialect.ops.attend import attend
from dialect.ops.nn import Traced
from dialect.ops.scores import CONTEXT
from rewrite.ir import Graph, Op, Type, Value
from rewrite.opdef import substitute
from rewrite.rules import Outcome, local
from rewrite.signature import Array, Signature


@local(
    "attend",
    keeps="reals",
    example=lambda q, k, j, v, w: Traced["attend"](
        q, jnp.concatenate([k, j]), jnp.concatenate([v, w]), axes="t k, s k, s v -> t v"
    ),
    types=("f32[3,4]", "f32[5,4]", "f32[2,4]", "f32[5,6]", "f32[2,6]"),
)
def attend_to_parts(op: Op) -> Outcome:
    """attend(q, concat(k_1, k_2), concat(v_1, v_2))  ->  attention over both, uncopied"""
    arrays = Signature.parse(op["axes"]).inputs
    key, value = (_lengths(arg, axes) for arg, axes in zip(op.args[1:3], arrays[1:]))
    whole = op.get("rounds") is not None or op.get("blocks") is not None
    if len(key) < 2 or key != value or whole or op.types[0].dtype not in REALS:
        return None
    parts = (_parts(arg, axes, key) for arg, axes in zip(op.args[1:], arrays[1:]))
    given = [op.args[0], *chain(*parts)]
    graph = _traced(len(key), tuple(arg.type for arg in given), op.attrs)
    return substitute(graph, given, origin=op.origin)


def _lengths(value: Value, axes: Array) -> tuple[int, ...]:
    """How long the parts are that a value holds one after another along the context."""
    if CONTEXT not in axes:
        return ()
    place = axes.index(CONTEXT)
    return tuple(part.type.shape[place] for part in parts_along(value, place))


def _parts(value: Value, axes: Array, lengths: Sequence[int]) -> Sequence[Value]:
    """The parts of an operand that belong to these parts of the context."""
    if CONTEXT not in axes:
        return [value] * len(lengths)
    if _lengths(value, axes) == lengths:
        return value.op.args
    places = pairwise(accumulate(lengths, initial=0))
    return [cut(value, axes.index(CONTEXT), *place) for place in places]


@lru_cache(maxsize=4096)
def _traced(count: int, types: tuple[Type, ...], attrs: tuple) -> Graph:
    """Attention over so many parts, in lax."""

    def traced(query: object, *arrays: object) -> list[object]:
        operands = [arrays[at : at + count] for at in range(0, len(arrays), count)]
        return [attend(query, *operands, **dict(attrs))]

    return trace_graph(traced, *map(struct_of, types))
