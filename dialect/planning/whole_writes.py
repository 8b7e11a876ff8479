"""Caches that a step writes whole: what a step moves of them beside what attention reads.

    cache + one_hot(position) * new                  read, and written in place
    concatenate(cache[1:], new), roll(cache)         read, written, and copied to where it was

Such a write cannot be of a place alone: where `new` is infinite, the first is NaN at all places.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dialect.matching.values import through
from dialect.naming.axes import Axes
from dialect.normal.trips import most_trips
from dialect.ops.control import given_inside
from dialect.planning.blocks import is_attention
from dialect.staging.stored_states import StoredState
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import traits
from rewrite.program import Program

# What the compiler reads and writes for one element, in place or shifted (of a layer of a loop, cut
# out and put back besides), by `benchmarks/whole_writes.py`.
_IN_PLACE, _SHIFTED, _SHIFTED_IN_LOOP = 2, 4, 6


@dataclass(frozen=True)
class WholeWrite:
    """A write of all places of a cache, or of a layer of it in every trip of a loop.

    `op` computes what is written; `elements` are those of all trips; `moves` is how often each is
    read or written; `is_shifted`: the places change, so that it is held beside what was.
    """

    op: Op
    elements: int
    moves: int
    is_shifted: bool


def written_whole(
    program: Program, states: Iterable[StoredState], axes: Axes
) -> Iterator[tuple[StoredState, WholeWrite]]:
    """The states that a step writes whole, with every such write."""
    for state in states:
        for write in _writes(program.graph, state.entering, state.leaving, axes, 1):
            yield state, write


def _writes(
    graph: Graph, entering: Value, leaving: Value, axes: Axes, trips: int
) -> Iterator[WholeWrite]:
    value = leaving
    while value != entering:
        op = value.op
        facts = traits(op)
        if op.regions:
            given = given_inside(op)[-1]
            carried = [inner for inner, (_, is_carried) in given.items() if is_carried]
            body, number = op.regions[-1], value.index
            if number >= len(carried) or number >= len(body.outputs):
                return
            inner, often = carried[number], trips * (most_trips(op) or 1)
            yield from _writes(body, inner, body.outputs[number], axes, often)
            value = given[inner][0]
            continue
        written = op.args[facts.writes] if facts.writes else value
        read = _read_for(written, axes)
        if any(source == entering or _is_read_of(source) for source in read):
            is_shifted = any(source.type.size != written.type.size for source in read)
            moves = (_SHIFTED if trips == 1 else _SHIFTED_IN_LOOP) if is_shifted else _IN_PLACE
            source = through(written, "reshape").op
            yield WholeWrite(source, written.type.size * trips, moves, is_shifted)
        if not facts.writes:
            return
        value = op.args[0]


def _read_for(written: Value, axes: Axes) -> set[Value]:
    """What is about as large as the array that is written, and computed into it place by place."""
    read, waiting = set(), [written]
    while waiting:
        value = waiting.pop()
        read.add(value)
        reduces = traits(value.op).skips_zeros or is_attention(axes, value.op)
        if _is_read_of(value) or reduces:
            continue
        size = written.type.size
        alike = (arg for arg in value.op.args if size <= 2 * arg.type.size <= 4 * size)
        waiting += [arg for arg in alike if arg not in read]
    return read


def _is_read_of(value: Value) -> bool:
    """Whether a value is a layer that is read of a cache."""
    facts = traits(value.op)
    return facts.of_cache and facts.picks
