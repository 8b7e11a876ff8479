"""Which parameters a weight comes from, by their paths: in a graph, and in the loops inside it.

Loops that are alike share one body, so what its inputs come from is said of each loop by itself.
"""

from __future__ import annotations

from dialect.staging.binding import region_bound
from rewrite.dataflow import bound_values
from rewrite.ir import Graph, Op, Value
from rewrite.program import Program

Paths = dict[Value, frozenset[str]]


def parameter_paths(program: Program) -> Paths:
    """The paths of a program's parameters."""
    declared = zip(program.graph.inputs, program.step_inputs)
    return {value: frozenset({each.name}) for value, each in declared if each.role == "param"}


def paths_in(graph: Graph, inputs: Paths) -> Paths:
    """Every value of a graph that depends on these inputs and constants alone, with its paths."""
    bound, found = bound_values(graph, inputs), dict(inputs)
    for op in graph.ops:
        if op.results[0] in bound:
            whole = frozenset().union(*(found.get(arg, frozenset()) for arg in op.args))
            found.update(dict.fromkeys(op.results, whole))
    return found


def paths_inside(op: Op, paths: Paths) -> Paths:
    """The inputs of a loop's body that are such values, or slices of them."""
    outer = dict(zip(op.regions[0].inputs, op.args))
    return {value: paths[outer[value]] for value in region_bound(op, frozenset(paths))}


def shown(paths: frozenset[str]) -> str:
    """`params/layers/wk, params/layers/wq`"""
    return ", ".join(sorted(paths))
