"""Which parameters a weight comes from, by their paths: in a program and in its loops."""

from __future__ import annotations

from dialect.binding import bound_values, region_bound
from rewrite.ir import Graph, Value
from rewrite.program import Program

Paths = dict[Value, frozenset[str]]


def parameter_paths(program: Program) -> Paths:
    """Every value that depends on parameters and constants alone, with the paths it comes from.

    The slices that a loop over layers takes of its stacked weights are among them.
    """
    declared = zip(program.graph.inputs, program.step_inputs)
    found: Paths = {v: frozenset({each.name}) for v, each in declared if each.role == "param"}
    _follow(program.graph, found)
    return found


def _follow(graph: Graph, paths: Paths) -> None:
    own = [value for value in graph.inputs if value in paths]
    bound = bound_values(graph, own)
    for op in graph.ops:
        if op.results[0] in bound:
            whole = frozenset().union(*(paths.get(arg, frozenset()) for arg in op.args))
            paths.update(dict.fromkeys(op.results, whole))
        if op.name == "scan":
            outer = dict(zip(op.regions[0].inputs, op.args))
            paths.update((v, paths[outer[v]]) for v in region_bound(op, bound))
            _follow(op.regions[0], paths)


def shown(paths: frozenset[str]) -> str:
    """`params/layers/wk, params/layers/wq`"""
    return ", ".join(sorted(paths))
