"""A graph in which equal values are one value, so that a listing has every value once."""

from __future__ import annotations

from rewrite.ir import Graph, Op, Value
from rewrite.program import Program


def with_equal_values_once(program: Program) -> Program:
    """The same program; of ops that compute the same of the same arguments the first stands."""
    return program.with_graph(_merged(program.graph))


def _merged(graph: Graph) -> Graph:
    first: dict[object, Op] = {}
    instead: dict[Value, Value] = {}
    for op in graph.ops:
        args = tuple(instead.get(arg, arg) for arg in op.args)
        key = (op.name, args, op.attrs, op.types)
        kept = first.get(key) if not op.regions else None
        if kept is None:
            same = args == op.args
            kept = op if same else Op(op.name, args, op.attrs, op.types, op.regions, op.origin)
            if not op.regions:
                first[key] = kept
        if kept is not op:
            instead |= zip(op.results, kept.results)
    return Graph(graph.inputs, tuple(instead.get(value, value) for value in graph.outputs))
