"""Binding-time analysis: which values depend on parameters alone, and where to cut them off.

A parameter-only value is computed once, in `prepare`. The cut between `prepare` and the step is a
minimum cut: the one with the fewest bytes for the step to read (cf. rematerialisation by min-cut in
PyTorch's AOTAutograd, and TVM Relax's LiftTransformParams, which cuts greedily). Only ops that a
compiler fuses into their reader may stay in the step: a dequantisation may, a product never.
"""

from __future__ import annotations

from collections.abc import Iterable

from dialect.arrays.components import connected
from dialect.ops.control import given_inside
from dialect.ops.lax import ELEMENTWISE
from dialect.staging.mincut import Network
from rewrite.dataflow import bound_values
from rewrite.ir import Graph, Op, Value


def fuses(op: Op) -> bool:
    """Whether a compiler computes `op` on the way into its reader, storing nothing."""
    if op.name == "reshape":
        before, after = op.args[0].type.shape, op.types[0].shape
        return [size for size in before if size > 1] == [size for size in after if size > 1]
    return op.name in ELEMENTWISE or op.name in (
        "broadcast_in_dim",
        "dequantize",
        "constrain",
        "exchange",
    )


def region_bound(op: Op, bound: frozenset[Value]) -> frozenset[Value]:
    """The parameter-only inputs of a loop's body: its constants and slices of xs that are so."""
    if op.name not in ("scan", "while"):
        return frozenset()
    return frozenset(
        inner
        for given in given_inside(op)
        for inner, (arg, is_carried) in given.items()
        if arg in bound and not is_carried
    )


def bytes_read(graph: Graph, value: Value) -> int:
    """Bytes that one step reads of `value`: of a lookup table, only the rows that are taken."""
    readers = graph.users.get(value, ())
    if readers and all(op.name == "take" and position == 0 for op, position in readers):
        rows = sum(op.args[1].type.size for op, _ in readers)
        return value.type.bytes * rows // max(1, value.type.shape[0])
    return value.type.bytes


def stored_bytes(value: Value) -> int:
    """Bytes that a parameter-only value is stored in: its integers, where it is dequantised."""
    memo: dict[Value, int] = {}

    def read(value: Value) -> int:
        if value not in memo:
            fused = fuses(value.op) and sum(map(read, dict.fromkeys(value.op.args)))
            memo[value] = min(value.type.bytes, fused or value.type.bytes)
        return memo[value]

    return read(value)


def frontier(graph: Graph, inputs: Iterable[Value]) -> tuple[Value, ...]:
    """The parameter-only values that the step reads, chosen for the fewest bytes per step.

    Of equal cuts the earliest is taken, so that the user's own arrays stay where they can. But
    arithmetic is done in `prepare` where the step reads no more for it.
    """
    bound = bound_values(graph, inputs)
    outputs = set(graph.outputs)
    needed = {
        value: _fused_ancestors(value, bound)
        for value in _in_order(graph)
        if value in bound
        and (
            value in outputs
            or any(op.results[0] not in bound for op, _ in graph.users.get(value, ()))
        )
    }
    # Values that share no ancestor are cuts of their own.
    groups = ([v for v in group if v in needed] for group in connected(needed.values()))
    cuts = (_cut(graph, group, bound) for group in groups)
    return tuple(dict.fromkeys(value for cut in cuts for value in cut))


def _in_order(graph: Graph) -> list[Value]:
    return [*graph.inputs, *(value for op in graph.ops for value in op.results)]


def _fused_ancestors(value: Value, bound: frozenset[Value]) -> list[Value]:
    """`value` and the values that it is computed from by ops that may stay in the step."""
    ancestors = {value: None}
    stack = [value]
    while stack:
        op = stack.pop().op
        if not fuses(op):
            continue
        for arg in op.args:
            if arg in bound and arg not in ancestors:
                ancestors[arg] = None
                stack.append(arg)
    return list(ancestors)


def _cut(graph: Graph, needed: list[Value], bound: frozenset[Value]) -> list[Value]:
    """The minimum vertex cut between values that only `prepare` computes and those needed."""
    nodes = dict.fromkeys(a for value in needed for a in _fused_ancestors(value, bound))
    if not any(arg in nodes for value in nodes for arg in value.op.args):
        return needed
    network = Network()
    for value in nodes:
        network.edge((value, "in"), (value, "out"), max(1, bytes_read(graph, value)))
        if not fuses(value.op):
            network.edge("source", (value, "in"))
            continue
        if value.op.name in ELEMENTWISE and value.op.name != "convert_element_type":
            network.edge("source", (value, "in"), 1)
        for arg in value.op.args:
            if arg in nodes:
                network.edge((arg, "out"), (value, "in"))
    for value in needed:
        network.edge((value, "out"), "sink")
    before = network.source_side()
    return [v for v in nodes if (v, "in") in before and (v, "out") not in before]
