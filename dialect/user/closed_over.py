"""Weights that a function closes over: constants of its program, which nothing packs or shards."""

from __future__ import annotations

from collections.abc import Sequence

from dialect.display.quantities import size
from rewrite.errors import TraceError
from rewrite.ir import Graph, Op, Value
from rewrite.rules import FLOATS

_LARGE_BYTES = 1 << 20
_SHOWN = 3


def must_be_given(graph: Graph, params: Sequence[Value], name: str, returned: bool) -> None:
    """Raises TraceError for a function whose weights are no argument of it.

    That is taken to be so where it closes over matrices that have more bytes than its parameters,
    and one MiB; or over any matrix, where its parameters come back updated as a state does.

    params: the inputs that are taken for the parameters; name: their argument.
    """
    matrices = [
        (op, users)
        for op, users in _constants(graph)
        if op.types[0].rank > 1 and op.types[0].dtype in FLOATS
    ]
    total = sum(op.types[0].bytes for op, _ in matrices)
    given = sum(value.type.bytes for value in params)
    if not matrices or not (returned or total > max(given, _LARGE_BYTES)):
        return
    largest = sorted(matrices, key=lambda pair: -pair[0].types[0].bytes)
    shown = ", ".join(str(op.types[0]) for op, _ in largest[:_SHOWN])
    shown += f" and {len(largest) - _SHOWN} more" if len(largest) > _SHOWN else ""
    taken = f"; {name} is taken for its parameters" + (", and comes back" if returned else "")
    raise TraceError(
        f"the function closes over its weights: {shown}, {size(total)} of constants{taken}",
        where=next((user.origin.source for user in largest[0][1] if user.origin.source), ""),
        hint="pass them as an argument, step(params, cache, tokens); params= says which one it is",
    )


def _constants(graph: Graph) -> list[tuple[Op, list[Op]]]:
    """Every constant of a graph and of the regions in it, with the ops that read it."""
    constants = []
    for op in graph.ops:
        if op.name == "const":
            constants.append((op, [user for user, _ in graph.users.get(op.results[0], ())]))
        for region in op.regions:
            constants += _constants(region)
    return constants
