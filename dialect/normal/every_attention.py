"""Every attention of a program, with the masks that a loop is given computed in its body."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from dialect.normal.masks_into_loops import masks_into_loop
from rewrite.dataflow import rebuilt
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import with_args


def with_attention(graph: Graph, change: Callable[[Op], Op]) -> Graph:
    """`graph` with every `attend` replaced by what `change` makes of it, in loops' bodies too."""

    def visit(op: Op, args: tuple[Value, ...]) -> Sequence[Value]:
        op = with_args(op, args)
        if _is_attention(op):
            return change(op).results
        inside = masks_into_loop(op)
        regions = tuple(with_attention(region, change) for region in inside.regions)
        is_same = all(new is old for new, old in zip(regions, inside.regions))
        return op.results if is_same else with_args(inside, inside.args, regions).results

    return rebuilt(graph, visit)


def attentions(graph: Graph) -> Iterator[tuple[Op, tuple[Op, ...]]]:
    """Every `attend` of `graph`, with the ops in whose bodies it is."""
    return (pair for pair in graph.walk() if _is_attention(pair[0]))


def _is_attention(op: Op) -> bool:
    return op.name == "attend"
