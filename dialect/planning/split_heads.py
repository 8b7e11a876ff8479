"""Splits the head axis into (kv_heads, q_per_kv) if a plan shards the queries of every KV head.

If they stay one axis, the queries of a shard are not contiguous, and the projection is followed
by an all-to-all. The weights are reshaped once, in `prepare`.
"""

from __future__ import annotations

from dialect.normal.contract_rules import split_of_contract
from dialect.normal.cuts import cut_inside, cuts
from dialect.normal.layout_rules import cut_inward, cut_towards, reshape_of_reshape
from dialect.ops.vocabulary import Traced
from dialect.planning.plan import Plan
from dialect.quantized.dequantized import cut_of_dequantized
from rewrite.driver import rewrite
from rewrite.ir import Graph, Op
from rewrite.rules import Outcome, local


@local(
    "reshape",
    example=lambda x, cos, sin: Traced["rope"](x, cos, sin).reshape(2, 2, 3, 8),
    types=("f32[2,6,8]", "f32[2,1,4]", "f32[2,1,4]"),
)
def cut_of_rope(op: Op) -> Outcome:
    """reshape(rope(x, cos, sin)) that splits heads  ->  rope(reshape(x), cos, sin split alike)"""
    inner, size = op.args[0].op, op.types[0].shape[-1:]
    if inner.name != "rope" or not cuts(op) or op.args[0].type.shape[-1:] != size:
        return None
    return cut_inside(op)


@local(
    "reshape",
    example=lambda x, cos, sin: (1 + Traced["rope"](x, cos, sin)).reshape(2, 2, 3, 8),
    types=("f32[2,6,8]", "f32[2,1,4]", "f32[2,1,4]"),
)
def cut_towards_rope(op: Op) -> Outcome:
    """reshape(f(rope(x))) that splits heads  ->  f(reshape(rope(x)))"""
    return cut_towards(op, "rope")


RULES = (
    *(cut_of_rope, cut_towards_rope, cut_inward),
    *(reshape_of_reshape, split_of_contract, cut_of_dequantized),
)


def split_heads(graph: Graph, plan: Plan) -> Graph:
    """`graph` with heads as two axes, if the plan shards the second.

    A graph that already reshapes a dequantized weight is returned unchanged: one more reshape could
    materialise the floats instead of the integers.
    """
    if not plan.split("attention").get("q_per_kv") or any(
        _reshapes_dequantized(op) for op, _ in graph.walk()
    ):
        return graph
    return rewrite(graph, RULES)


def _reshapes_dequantized(op: Op) -> bool:
    return op.name == "reshape" and op.args[0].op.name == "dequantize"
