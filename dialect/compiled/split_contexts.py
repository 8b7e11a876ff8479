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
from rewrite.rules import Miss, Outcome, local
from rewrite.signature import Array, Signature

_OF_THE_WHOLE = ("rounds", "blocks", "sparq")  # what is said of no part of a context


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
    query, *operands = op.args
    _, *arrays = Signature.parse(op["axes"]).inputs
    lengths, others, *_ = map(_lengths, operands, arrays)
    if not lengths or lengths != others or op.types[0].dtype not in REALS:
        return None
    if any(op.get(name) is not None for name in _OF_THE_WHOLE):
        return Miss("it is of the whole context", 3)
    parts = (_parts(*operand, lengths) for operand in zip(operands, arrays))
    given = [query, *chain(*parts)]
    graph = _traced(len(lengths), tuple(arg.type for arg in given), op.attrs)
    return substitute(graph, given, origin=op.origin)


def _lengths(value: Value, axes: Array) -> list[int]:
    """How long the parts are that a value holds one after another along the context."""
    if CONTEXT not in axes:
        return []
    place = axes.index(CONTEXT)
    return [part.type.shape[place] for part in parts_along(value, place)]


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
