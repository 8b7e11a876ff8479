"""Marks that make binding time visible to rules: what parameters make, and what several read.

A rule sees one op and what it is made of. Whether a factor can be computed in advance, or whether a
product has other readers, it cannot see; so `marked` writes both into the graph, rules match on
them, and `unmarked` takes them out again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dialect.ops.vocabulary import elementwise, word
from dialect.staging.binding import bound_values, region_bound
from rewrite.ir import Graph, Value
from rewrite.opdef import Traits, make, with_args


def known(x: Any, *, alone: bool) -> Any:
    """x, which depends on parameters alone; `alone` says that nobody else reads it."""
    return x


def shared(x: Any) -> Any:
    """x, which is read more than once."""
    return x


_VIEW = Traits(moves=True, view=True, linear="all")
word(known, elementwise, ("alone",), traits=_VIEW)
word(shared, elementwise, traits=_VIEW)
_MARKS = ("known", "shared")


def marked(graph: Graph, params: Iterable[Value]) -> Graph:
    """`graph` with the arguments of its ops marked, those of loops over layers too."""
    bound = bound_values(graph, params)
    memo = {value: value for value in graph.inputs}
    results = set(graph.outputs)

    def read(value: Value) -> Value:
        several = len(graph.users[value]) > 1 or value in results
        if value in bound:
            return make("known", memo[value], alone=not several)
        plain = value.op.name in ("input", "const") or not several
        return memo[value] if plain else make("shared", memo[value])

    for op in graph.ops:
        inside = op.results[0] in bound or op.regions
        args = tuple(memo[arg] if inside else read(arg) for arg in op.args)
        inner = region_bound(op, bound)
        regions = tuple(marked(region, inner) for region in op.regions)
        memo.update(zip(op.results, with_args(op, args, regions).results))
    return Graph(graph.inputs, tuple(memo[value] for value in graph.outputs))


def unmarked(graph: Graph) -> Graph:
    """`graph` without its marks."""
    memo = {value: value for value in graph.inputs}
    for op in graph.ops:
        if op.name in _MARKS:
            memo[op.results[0]] = memo[op.args[0]]
            continue
        regions = tuple(map(unmarked, op.regions))
        moved = with_args(op, tuple(memo[arg] for arg in op.args), regions)
        memo.update(zip(op.results, moved.results))
    return Graph(graph.inputs, tuple(memo[value] for value in graph.outputs))
