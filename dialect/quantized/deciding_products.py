"""Products that decide what is chosen: routers of experts.

top_k(softmax(contract(x, router)))  ->  {contract(x, router)}

Rounding such a weight does not move a number by a little: it may take another expert.
"""

from __future__ import annotations

from dialect.naming.axis_names import CHOOSE
from rewrite.ir import Graph, Op, Value

_CHOICES = {*CHOOSE, "sort"}
_PRODUCTS = {"contract", "ragged_dot_general"}


def deciding_products(graph: Graph) -> dict[Op, Op]:
    """{product: the choice that is made by its result}, of the ops of one graph.

    Between them may stand anything but another product, or a loop.
    """
    deciding: dict[Op, Op] = {}
    for choice in (op for op in graph.ops if op.name in _CHOICES):
        seen: set[Value] = set()
        reached = list(choice.args)
        while reached:
            value = reached.pop()
            if value in seen or value in graph.inputs:
                continue
            seen.add(value)
            if value.op.name in _PRODUCTS:
                deciding.setdefault(value.op, choice)
            elif not value.op.regions:
                reached += value.op.args
    return deciding
