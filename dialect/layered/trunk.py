"""The trunk of a decoder: the values through which everything from the embedding on passes.

They are the residual stream between two additions, whatever its library calls it: the
post-dominators of the op where the stream begins (on a graph without cycles one sweep finds them,
cf. Cooper, Harvey and Kennedy 2001). What goes past them is what layers share: masks, angles.
"""

from __future__ import annotations

from rewrite.dataflow import dependents, known_values
from rewrite.ir import Op, Value
from rewrite.program import Program
from rewrite.rules import FLOATS


def find_trunk(program: Program) -> list[Value]:
    """The trunk from where the stream begins to the result, which is the output farthest away.

    Empty where no output depends on both parameters and arguments. Linear in the program's size.
    """
    graph = program.graph
    result = _farthest(program)
    if result is None:
        return []
    params = program.values("param")
    known, with_params = known_values(graph, params), dependents(graph, params)
    weights, stream = known & with_params, with_params - known
    after: dict[Op, Op | None] = {result: None}  # the next op that everything from here passes
    depth = {result: 0}  # how many of those there are
    read_after = {result: 0}  # ops that read parameters, on the way behind it with the most
    # Its part of the trunk, in steps from floats to floats of their type that read parameters.
    steps = {result: 0}

    def reads(op: Op) -> bool:
        return any(arg in weights for arg in op.args)

    def meet(one: Op, other: Op) -> Op:
        while one is not other:
            one, other = (one, other) if depth[one] >= depth[other] else (other, one)
            one = after[one]
        return one

    beginnings = []
    inputs = [*program.values("arg"), *program.values("state")]
    for op in (*reversed(graph.ops), *(value.op for value in inputs)):
        readers = [u for value in op.results for u, _ in graph.users.get(value, ()) if u in depth]
        if op is result or op.results[0] in known or not readers:
            continue
        at = readers[0]
        for reader in readers[1:]:
            at = meet(at, reader)
        after[op], depth[op] = at, depth[at] + 1
        read_after[op] = max(read_after[reader] + reads(reader) for reader in readers)
        alike = op.types == at.types and op.types[0].dtype in FLOATS
        steps[op] = steps[at] + (alike and read_after[op] > read_after[at])
        first = op.results[0] in stream and not any(arg in stream for arg in op.args)
        if first or op.name == "input":
            beginnings.append(op)
    # A table of angles begins a stream too, but goes past the trunk; a cache joins it later.
    at = max(beginnings, key=lambda op: (steps[op], op.name == "input"), default=None)
    trunk: list[Value] = []
    while at is not None:
        trunk += at.results if len(at.types) == 1 else ()
        at = after[at]
    return trunk


def _farthest(program: Program) -> Op | None:
    """The output that is the most ops away from the inputs: the logits, or what is made of them."""
    steps: dict[Op, int] = {}
    for op in program.graph.ops:
        steps[op] = 1 + max((steps.get(arg.op, 0) for arg in op.args), default=0)
    outputs = [value.op for value in program.graph.outputs if value.op in steps]
    return max(outputs, key=steps.__getitem__, default=None)
