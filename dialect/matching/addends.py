"""Sums of several values, seen through the chain of additions that makes them."""

from __future__ import annotations

from collections.abc import Container

from rewrite.ir import Graph, Op, Value


def addends(graph: Graph, leaves: Container[Value] = ()) -> dict[Op, list[Value]]:
    """The last addition of each sum -> its addends, in order.

    An addition with other readers, or in `leaves`, is an addend itself; so is one of another shape,
    such as that of biases.
    """
    sums: dict[Op, list[Value]] = {}
    inner: set[Op] = set()
    results = set(graph.outputs)
    for op in reversed(graph.ops):
        if op.name != "add" or op in inner:
            continue
        terms: list[Value] = []
        stack = list(reversed(op.args))
        while stack:
            value = stack.pop()
            alone = len(graph.users[value]) == 1 and value not in results
            opened = value.op.name == "add" and alone and value not in leaves
            if opened and value.type == op.types[0]:
                inner.add(value.op)
                stack += reversed(value.op.args)
            else:
                terms.append(value)
        sums[op] = terms
    return sums
