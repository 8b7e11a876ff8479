"""Partial sums: where products leave them, and sums that are reduced once."""

from __future__ import annotations

from collections.abc import Sequence

from dialect.naming.axes import Axes
from dialect.planning.layouts import activation_group
from rewrite.dataflow import rebuilt
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import make, with_args


def added_first(graph: Graph, axes: Axes) -> Graph:
    """(x + a) + b  ->  x + (a + b) with products a and b, as in parallel blocks: their partial sums
    are then reduced once."""
    last: set[Op] = set()

    def visit(op: Op, args: tuple[Value, ...]) -> Sequence[Value]:
        regions = tuple(added_first(region, axes) for region in op.regions)
        found = _sum_and_product(graph, op, axes)
        if found is None or op.args[found[0]].op in last:  # whose two products are taken already
            return with_args(op, args, regions).results
        last.add(op)
        place, inner = found
        sum_, other = args[place].op.args, args[1 - place]
        products = make("add", sum_[inner], other, origin=op.origin)
        return [make("add", sum_[1 - inner], products, origin=op.origin)]

    return rebuilt(graph, visit)


def _sum_and_product(graph: Graph, op: Op, axes: Axes) -> tuple[int, int] | None:
    """Where (x + a) stands in (x + a) + b, and a in it; None for any other op."""
    for place in (0, 1) if is_residual_add(op, axes) else ():
        sum_, other = op.args[place], op.args[1 - place]
        if not is_residual_add(sum_.op, axes) or not _read_once(graph, sum_):
            continue
        for inner in (0, 1):
            product, stream = sum_.op.args[inner], sum_.op.args[1 - inner]
            if adds_products(graph, (product, other)) and stream.op.name != "contract":
                return place, inner
    return None


def adds_products(graph: Graph, terms: tuple[Value, ...]) -> bool:
    """Whether all terms are products that nothing else reads."""
    return all(term.op.name == "contract" and _read_once(graph, term) for term in terms)


def _read_once(graph: Graph, value: Value) -> bool:
    return len(graph.users[value]) + graph.outputs.count(value) == 1


def is_residual_add(op: Op, axes: Axes) -> bool:
    """Whether an op is x + f(x) over d_model, without broadcasting."""
    if op.name != "add" or any(arg.type.shape != op.types[0].shape for arg in op.args):
        return False
    return activation_group(axes.of(op.results[0])) == "residual"
