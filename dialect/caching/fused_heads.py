"""Products that hold queries, keys and values at once, taken apart where some of these are merged.

    merge_heads(unstack(contract(x, w))[i])  ->  merge_heads(contract(x, unstack(w)[i]))

The weights of keys and values are then merged by themselves, in `prepare`; what is left of the
product computes only what is still read of it, and its weights stay integers where they are.
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

_BY_PART = frozenset({"contract", "add", "sub", "dequantize"})


def one_part(value: Value, axis: int, index: int) -> Value:
    """`value` at one index of an axis, made of the parts of what it is made of."""
    own = opdef.signature(value.op).outputs[0][axis] if value.op.name in _BY_PART else ()
    if len(own) != 1:
        return build("unstack", value, axis=axis).results[index]
    return cut(value.op, {own: ()}, change=partial(one_part, index=index)).results[0]


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
    cut, index = op.args[0]
    if cut.name != "unstack":
        return None
    made = one_part(cut.args[0], cut["axis"], index)
    return None if made.op.name == "unstack" else merged(made, **dict(op.attrs))[0]


def without_unread_parts(graph: Graph) -> Graph:
    """Products of which only some parts are read, cut to these; in loops too."""
    read = {value for op in graph.ops for value in op.args} | set(graph.outputs)
    memo: dict[Value, Value] = {value: value for value in graph.inputs}
    for op in graph.ops:
        args = tuple(memo[arg] for arg in op.args)
        regions = tuple(map(without_unread_parts, op.regions))
        memo |= zip(op.results, with_args(op, args, regions).results)
        left = [each for each in op.results if each in read]
        if op.name == "unstack" and len(left) < len(op.results):
            parts = {each: one_part(args[0], op["axis"], each.index) for each in left}
            memo |= {each: part for each, part in parts.items() if part.op.name != "unstack"}
    outputs = tuple(memo[value] for value in graph.outputs)
    return graph if outputs == graph.outputs else Graph(graph.inputs, outputs)
