"""The trunk of a decoder: the residual stream between layers, found as a post-dominator chain.

The trunk is the chain of post-dominators of the op where the stream begins, in any library (in an
acyclic graph one sweep finds them, cf. Cooper, Harvey and Kennedy 2001). Values that bypass it are
shared by layers: masks, rotary angles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rewrite.dataflow import dependents, known_values
from rewrite.ir import Graph, Op, Value
from rewrite.program import Program
from rewrite.rules import FLOATS


def find_trunk(program: Program, through_loops: bool = False) -> list[Value]:
    """The trunk, from the beginning of the stream to the output that is the most ops away.

    It has no result of an op with several, or, `through_loops`, the one that is read on the way.
    Empty if no output depends on both parameters and arguments. Linear in the program's size.
    """
    graph = program.graph
    result = _farthest(program)
    if result is None:
        return []
    params = program.values("param")
    known, with_params = known_values(graph, params), dependents(graph, params)
    weights, stream = known & with_params, with_params - known
    paths = _Paths(result, weights)
    beginnings = []
    inputs = [*program.values("arg"), *program.values("state")]
    for op in (*reversed(graph.ops), *(value.op for value in inputs)):
        users = (user for value in op.results for user, _ in graph.users.get(value, ()))
        readers = [user for user in users if user in paths.next]
        if op is result or op.results[0] in known or not readers:
            continue
        paths.add(op, readers)
        is_first = op.results[0] in stream and not any(arg in stream for arg in op.args)
        if is_first or op.name == "input":
            beginnings.append(op)
    # A table of angles begins a stream too, but bypasses the trunk; a cache joins it later.
    start = max(beginnings, key=lambda op: (paths.steps[op], op.name == "input"), default=None)
    return list(paths.trunk(start, graph if through_loops else None))


class _Paths:
    """Immediate post-dominators of ops, towards `result`.

    next: the immediate post-dominator; depth: the number of post-dominators; reads: the most ops
    that read weights on any path to the result; steps: the number of post-dominators on floats of
    the same type as the op before, with weights read in between.
    """

    def __init__(self, result: Op, weights: frozenset[Value]) -> None:
        self.weights = weights
        self.next: dict[Op, Op | None] = {result: None}
        self.depth, self.reads, self.steps = {result: 0}, {result: 0}, {result: 0}

    def add(self, op: Op, readers: Sequence[Op]) -> None:
        """Adds an op, given those that read it and are on a path to the result."""
        after = readers[0]
        for reader in readers[1:]:
            after = self.meet(after, reader)
        self.next[op], self.depth[op] = after, self.depth[after] + 1
        self.reads[op] = max(
            self.reads[reader] + any(arg in self.weights for arg in reader.args)
            for reader in readers
        )
        is_alike = op.types[0] == after.types[0] and op.types[0].dtype in FLOATS
        self.steps[op] = self.steps[after] + (is_alike and self.reads[op] > self.reads[after])

    def meet(self, first: Op, second: Op) -> Op:
        """The nearest common post-dominator."""
        while first is not second:
            if self.depth[first] < self.depth[second]:
                first, second = second, first
            first = self.next[first]
        return first

    def trunk(self, start: Op | None, graph: Graph | None) -> Iterator[Value]:
        """The results of `start` and of its post-dominators, in order; where an op has several, the
        one that is read on the way, given a graph."""
        while start is not None:
            results = start.results
            if len(results) > 1 and graph is not None:
                results = tuple(value for value in results if self.is_read(value, graph))
            yield from results if len(results) == 1 else ()
            start = self.next[start]

    def is_read(self, value: Value, graph: Graph) -> bool:
        """Whether an op on a path to the result reads a value."""
        return any(user in self.next for user, _ in graph.users.get(value, ()))


def _farthest(program: Program) -> Op | None:
    """The output that is the most ops away from the inputs: the logits, or a function of them."""
    steps: dict[Op, int] = {}
    for op in program.graph.ops:
        steps[op] = 1 + max((steps.get(arg.op, 0) for arg in op.args), default=0)
    outputs = [value.op for value in program.graph.outputs if value.op in steps]
    return max(outputs, key=steps.__getitem__, default=None)
