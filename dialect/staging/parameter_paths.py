"""Which parameters a weight comes from, by their paths: in a graph, and in the loops inside it.

Equal loops share one body, so the paths of its inputs are asked for each loop.
"""

from __future__ import annotations

from dialect.ops.control import given_inside
from dialect.staging.binding import region_bound
from rewrite.dataflow import bound_values
from rewrite.ir import Graph, Op, Value
from rewrite.program import Program

Paths = dict[Value, frozenset[str]]


def parameter_paths(program: Program) -> Paths:
    """The paths of a program's parameters."""
    declared = zip(program.graph.inputs, program.step_inputs)
    return {value: frozenset({info.name}) for value, info in declared if info.role == "param"}


def paths_in(graph: Graph, inputs: Paths) -> Paths:
    """Every value of a graph that depends on these inputs and constants alone, with its paths."""
    bound, paths = bound_values(graph, inputs), dict(inputs)
    for op in graph.ops:
        if op.results[0] in bound:
            union = frozenset().union(*(paths.get(arg, frozenset()) for arg in op.args))
            paths.update(dict.fromkeys(op.results, union))
    return paths


def paths_inside(op: Op, paths: Paths) -> Paths:
    """The inputs of a loop's body that are among these values, or slices of them."""
    outer = {inner: arg for given in given_inside(op) for inner, (arg, _) in given.items()}
    return {value: paths[outer[value]] for value in region_bound(op, frozenset(paths))}


def shown(paths: frozenset[str]) -> str:
    """`params/layers/wk, params/layers/wq`"""
    return ", ".join(sorted(paths))
