"""Marks that show rules which values are parameter-only, and which have several readers.

A rule sees one op and its operands. It cannot see whether a factor can be computed in advance, nor
whether a product has other readers; so `marked` writes both into the graph, rules match on the
marks, and `unmarked` removes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from dialect.ops.vocabulary import elementwise, word
from dialect.staging.binding import region_bound
from rewrite.dataflow import bound_values, rebuilt
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import Traits, make, with_args


def known(x: Any, *, alone: bool) -> Any:
    """x, which is parameter-only; `alone` if this is its only reader."""
    return x


def shared(x: Any) -> Any:
    """x, which has several readers."""
    return x


_VIEW = Traits(moves=True, view=True, linear="all")
word(known, elementwise, ("alone",), traits=_VIEW)
word(shared, elementwise, traits=_VIEW)
_MARKS = ("known", "shared")


def marked(graph: Graph, params: Iterable[Value]) -> Graph:
    """`graph` with the arguments of its ops marked, in the bodies of its loops too."""
    bound = bound_values(graph, params)
    results = set(graph.outputs)

    def mark(value: Value, new: Value) -> Value:
        several = len(graph.users[value]) > 1 or value in results
        if value in bound:
            return make("known", new, alone=not several)
        plain = value.op.name in ("input", "const") or not several
        return new if plain else make("shared", new)

    def visit(op: Op, args: tuple[Value, ...]) -> Sequence[Value]:
        if op.results[0] not in bound and not op.regions:
            args = tuple(map(mark, op.args, args))
        inner = region_bound(op, bound)
        return with_args(op, args, tuple(marked(region, inner) for region in op.regions)).results

    return rebuilt(graph, visit)


def unmarked(graph: Graph) -> Graph:
    """`graph` without its marks."""

    def visit(op: Op, args: tuple[Value, ...]) -> Sequence[Value]:
        regions = tuple(map(unmarked, op.regions))
        return args if op.name in _MARKS else with_args(op, args, regions).results

    return rebuilt(graph, visit)
