"""Where a graph reads a value, and the graph with something else read or computed there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from rewrite.ir import Graph, Op, Value
from rewrite.opdef import with_args

Place = tuple[Op | None, int]  # an op's argument by its number; an output of the graph where None
_EVERYWHERE = 0.4  # how often all readers of a value are meant: a pattern may read it several times


@dataclass(frozen=True)
class Reads:
    """A value, and places that read it."""

    value: Value
    places: frozenset[Place]


def some_reads(graph: Graph, random: Random) -> Reads:
    """One place that reads a value, or all of its places."""
    places: list[Place] = [(op, i) for op in graph.ops for i in range(len(op.args))]
    places += [(None, i) for i in range(len(graph.outputs))]
    chosen = random.choice(places)
    value = _at(graph, chosen)
    if random.random() < _EVERYWHERE:
        return Reads(value, frozenset(place for place in places if _at(graph, place) == value))
    return Reads(value, frozenset([chosen]))


def _at(graph: Graph, place: Place) -> Value:
    op, number = place
    return graph.outputs[number] if op is None else op.args[number]


def with_read(graph: Graph, reads: Reads, value: Value, inputs: Sequence[Value] = ()) -> Graph:
    """The graph reading `value` there; `inputs` are new inputs that the value depends on."""

    def args(op: Op | None, operands: Sequence[Value]) -> tuple[Value, ...]:
        return tuple(value if (op, i) in reads.places else arg for i, arg in enumerate(operands))

    changed = rebuilt(graph, lambda op, operands: with_args(op, args(op, operands)))
    return Graph((*graph.inputs, *inputs), args(None, changed.outputs))


def replaced(graph: Graph, old: Op, new: Op, inputs: Sequence[Value] = ()) -> Graph:
    """The graph with an op replaced; `inputs` are new inputs that it reads."""
    changed = rebuilt(graph, lambda op, args: new if op is old else with_args(op, args))
    return Graph((*graph.inputs, *inputs), changed.outputs)


def rebuilt(graph: Graph, change: Callable[[Op, tuple[Value, ...]], Op]) -> Graph:
    """The graph with each op made again from its arguments; what stays is the same op."""
    memo: dict[Value, Value] = {}
    for op in graph.ops:
        changed = change(op, tuple(memo.get(arg, arg) for arg in op.args))
        if changed is not op:
            memo.update(zip(op.results, changed.results, strict=True))
    return Graph(graph.inputs, tuple(memo.get(value, value) for value in graph.outputs))


def first_reader(graph: Graph, reads: Reads) -> int:
    """The place in the order of ops of the first op that reads there."""
    readers = {op for op, _ in reads.places}
    return next((i for i, op in enumerate(graph.ops) if op in readers), len(graph.ops))
