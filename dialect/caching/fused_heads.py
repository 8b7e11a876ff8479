"""Fused projections of query, key and value, separated where the heads of some are merged.

    merge_heads(unstack(contract(x, w))[i])  ->  merge_heads(contract(x, unstack(w)[i]))

The weights of keys and values are then merged alone, in `prepare`. The rest of the product computes
only the parts that are still read, and quantised weights of it stay integers.
"""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp

from dialect.caching.head_rules import merged
from dialect.normal.cuts import cut
from dialect.ops.nn import Traced
from rewrite import opdef
from rewrite.ir import Graph, Op, Symbol, Value
from rewrite.opdef import build, with_args
from rewrite.rules import Outcome, local


def one_part(value: Value, axis: int, index: int) -> Value:
    """`value` at one index of an axis, computed from the parts of its arguments at that index."""
    if opdef.traits(value.op).batches:
        signature = opdef.signature(value.op)
        letters = signature.outputs[0][axis]
        if len(letters) == 1 and signature.kind(letters[0]) == "map":
            return cut(value.op, {letters: ()}, change=partial(one_part, index=index)).results[0]
    return build("unstack", value, axis=axis).results[index]


@local(
    "merge_heads",
    keeps="reals",
    example=lambda x, w: Traced["merge_heads"](
        jnp.unstack(
            Traced["contract"](x, w, spec="b d, d p h k -> b p h k", dtype=Symbol("f32")) + 1.0,
            axis=1,
        )[2],
        axis=1,
        count=2,
        by="mean",
    ),
    types=("f32[3,5]", "f32[5,3,4,2]"),
)
def merge_of_part(op: Op) -> Outcome:
    """merge_heads(unstack(f(x, w))[i])  ->  merge_heads(f(x, unstack(w)[i]))"""
    unstack, index = op.args[0]
    if unstack.name != "unstack":
        return None
    part = one_part(unstack.args[0], unstack["axis"], index)
    return None if part.op.name == "unstack" else merged(part, **dict(op.attrs))[0]


def without_unread_parts(graph: Graph) -> Graph:
    """The graph whose products compute only the parts that are read, in loops too."""
    read = {value for op in graph.ops for value in op.args} | set(graph.outputs)
    memo: dict[Value, Value] = {value: value for value in graph.inputs}
    for op in graph.ops:
        args = tuple(memo[arg] for arg in op.args)
        regions = tuple(map(without_unread_parts, op.regions))
        memo |= zip(op.results, with_args(op, args, regions).results)
        parts_read = [result for result in op.results if result in read]
        if op.name == "unstack" and len(parts_read) < len(op.results):
            parts = {result: one_part(args[0], op["axis"], result.index) for result in parts_read}
            memo |= {result: part for result, part in parts.items() if part.op.name != "unstack"}
    outputs = tuple(memo[value] for value in graph.outputs)
    return graph if outputs == graph.outputs else Graph(graph.inputs, outputs)
