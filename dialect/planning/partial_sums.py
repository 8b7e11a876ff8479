"""Partial sums: where products leave them, and sums that are reduced once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce

from dialect.naming.axes import Axes
from dialect.planning.layouts import activation_group
from rewrite.dataflow import rebuilt
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import make, with_args


def added_first(graph: Graph, axes: Axes) -> Graph:
    """(x + a) + (b + c)  ->  x + (c + (a + b)) with products a and b, as in parallel blocks: their
    partial sums are then reduced once."""
    known: dict[Value, Value] = {}  # what the terms have become

    def visit(op: Op, args: tuple[Value, ...]) -> Sequence[Value]:
        regions = tuple(added_first(region, axes) for region in op.regions)
        results = with_args(op, args, regions).results
        terms = _terms(graph, op.results[0], axes) if _is_whole_sum(graph, op, axes) else []
        products = [term for term in terms if _is_partial(graph, term)]
        if len(products) > 1 and not any(adds_products(graph, addend.op.args) for addend in terms):
            add = partial(make, "add", origin=op.origin)
            summed = reduce(add, (known[term] for term in products))
            others = [known[term] for term in terms if term not in products]
            results = (reduce(lambda sum_, term: add(term, sum_), reversed(others), summed),)
        known.update(zip(op.results, results))
        return results

    known.update((value, value) for value in graph.inputs)
    return rebuilt(graph, visit)


def _is_whole_sum(graph: Graph, op: Op, axes: Axes) -> bool:
    """Whether an op adds to the residual stream what no further sum is a term of."""
    if not is_residual_add(op, axes):
        return False
    readers = [reader for reader, _ in graph.users.get(op.results[0], ())]
    return not _read_once(graph, op.results[0]) or not any(_adds(user, axes) for user in readers)


def _terms(graph: Graph, value: Value, axes: Axes) -> list[Value]:
    """What a sum of the residual stream adds up, biases included."""
    terms = []
    for arg in value.op.args:
        inside = _adds(arg.op, axes) and _read_once(graph, arg) and not _is_partial(graph, arg)
        terms += _terms(graph, arg, axes) if inside else [arg]
    return terms


def _adds(op: Op, axes: Axes) -> bool:
    return op.name == "add" and activation_group(axes.of(op.results[0])) == "residual"


def adds_products(graph: Graph, terms: Sequence[Value]) -> bool:
    """Whether all terms are products, or sums of products, that nothing else reads."""
    return len(terms) > 1 and all(_is_partial(graph, term) for term in terms)


def _is_partial(graph: Graph, term: Value) -> bool:
    is_sum = term.op.name == "add" and adds_products(graph, term.op.args)
    return (is_sum or term.op.name == "contract") and _read_once(graph, term)


def _read_once(graph: Graph, value: Value) -> bool:
    return len(graph.users.get(value, ())) + graph.outputs.count(value) == 1


def is_residual_add(op: Op, axes: Axes) -> bool:
    """Whether an op is x + f(x) over d_model, without broadcasting."""
    return _adds(op, axes) and all(arg.type.shape == op.types[0].shape for arg in op.args)
