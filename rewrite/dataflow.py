"""What flows through a graph: graphs built again op by op, and which values depend on which.

rebuilt(graph, visit)       visit(op, args) gives what stands for the results of `op`
known_values(graph, of)     what depends on these values and on constants, and on nothing else
dependents(graph, of)       what depends on any of them
bound_values(graph, of)     both
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rewrite.ir import Graph, Op, Value

Visit = Callable[[Op, tuple[Value, ...]], Sequence[Value]]


def rebuilt(graph: Graph, visit: Visit) -> Graph:
    """`graph` on the same inputs, built again; itself where nothing changed.

    `visit` gets an op of `graph` and its arguments as they have become.
    """
    memo: dict[Value, Value] = {value: value for value in graph.inputs}
    for op in graph.ops:
        results = visit(op, tuple(memo[arg] for arg in op.args))
        memo.update(zip(op.results, results, strict=True))
    outputs = tuple(memo[value] for value in graph.outputs)
    return graph if outputs == graph.outputs else Graph(graph.inputs, outputs)


def known_values(graph: Graph, of: Iterable[Value]) -> frozenset[Value]:
    """The values that depend on `of` and constants, or on constants alone."""
    known = set(of)
    for op in graph.ops:
        if all(arg in known for arg in op.args):
            known.update(op.results)
    return frozenset(known)


def dependents(graph: Graph, of: Iterable[Value]) -> frozenset[Value]:
    """The values that depend on any of these."""
    reached = set(of)
    for op in graph.ops:
        if any(arg in reached for arg in op.args):
            reached.update(op.results)
    return frozenset(reached)


def bound_values(graph: Graph, of: Iterable[Value]) -> frozenset[Value]:
    """The values that depend on these, and on nothing else but constants."""
    values = tuple(of)
    return known_values(graph, values) & dependents(graph, values)
