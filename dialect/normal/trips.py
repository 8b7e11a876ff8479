"""The counters of a loop, and the row of a stack that each trip reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import jax.numpy as jnp
import numpy as np

from dialect.arrays.dtypes import dtype_of
from dialect.arrays.evaluate import evaluate
from dialect.matching.mask_regions import COMPARED
from dialect.matching.values import number
from dialect.ops.control import given_inside, scan_parts
from rewrite.dataflow import known_values
from rewrite.ir import Graph, Op, Value

_MOST_TRIPS = 1024  # each of them is evaluated


def row_read(op: Op) -> tuple[Value | None, Value | None]:
    """(stack, index) of an op that reads one row of a stack along its first axis."""
    if op.name == "take" and op.args[1].type.size == 1:
        return op.args
    if op.name != "dynamic_slice" or op["slice_sizes"] != (1, *op.args[0].type.shape[1:]):
        return None, None
    return op.args[:2]


def most_trips(op: Op) -> int | None:
    """How often the regions of an op run: the length of a `scan`; of a `while` as often as a
    counter in its condition allows at most, None if none does; once, of any other."""
    if op.get("cond_consts") is None:
        return op.get("length", 1)
    (test,) = op.regions[0].outputs
    bounds = [_bound(op, value.op) for value in _all_of(test)]
    return min((bound for bound in bounds if bound is not None), default=None)


def _all_of(test: Value) -> Iterator[Value]:
    """a & b & c  ->  a, b, c"""
    if test.op.name != "and":
        yield test
        return
    for arg in test.op.args:
        yield from _all_of(arg)


def _bound(op: Op, test: Op) -> int | None:
    """How often counter < limit holds at most, for numbers that are known."""
    _, bounds = COMPARED.get(test.name, ("", ()))
    if len(bounds) != 1:
        return None
    ((beyond, is_lowest),) = bounds
    counter, limit = test.args[::-1] if is_lowest else test.args
    inside, for_test = op.regions[1], given_inside(op)[0]
    start, is_carried = for_test.get(counter, (counter, False))
    last, may_change = for_test.get(limit, (limit, False))
    if not is_carried or may_change:
        return None
    at = op.regions[0].inputs.index(counter) - op["cond_consts"]
    first, most = number(start), number(last)
    step = _step(inside.inputs[op["body_consts"] + at], inside.outputs[at])
    if not all(isinstance(known, int) for known in (first, most, step)) or step <= 0:
        return None
    allowed = most - beyond if is_lowest else most + beyond
    return max(0, (allowed - first) // step + 1)


class Places:
    """The numbers, in every trip of a loop, of values that depend on its counters alone."""

    def __init__(self, op: Op) -> None:
        (self.body,), self.length = op.regions, op["length"]
        self.reverse = op["reverse"]
        self.counters = dict(counters_of(op))
        self.known = known_values(self.body, self.counters)
        self.first = cache(self._first)

    def _first(self, index: Value) -> int | None:
        """The first of the consecutive numbers of an index, in the order of the scanned rows; None
        if they are not consecutive."""
        if index not in self.known or not 0 < self.length <= _MOST_TRIPS:
            return None
        if index.type.dtype[0] not in "iu":
            return None
        order = range(self.length)
        values = [self.at(index, trip) for trip in (order[::-1] if self.reverse else order)]
        first = values[0]
        return first if first >= 0 and values == list(range(first, first + self.length)) else None

    def at(self, index: Value, trip: int) -> int:
        """The value of an index in one trip."""
        graph = Graph(tuple(self.counters), (index,))
        (value,) = evaluate(graph, [counts[trip] for counts in self.counters.values()])
        return int(np.ravel(value)[0])


def counters_of(op: Op) -> Sequence[tuple[Value, np.ndarray]]:
    """The counters of a loop: carries that start at a number and grow by one, with their values."""
    (body,), (_, carry, _) = op.regions, scan_parts(op)
    counters = []
    for inside, start, after in zip(body.inputs[carry], op.args[carry], body.outputs):
        first, step = number(start), _step(inside, after)
        if isinstance(first, int) and isinstance(step, int) and inside.type.dtype[0] in "iu":
            counts = first + step * np.arange(op["length"], dtype=object)
            limits = jnp.iinfo(dtype_of(inside.type.dtype))
            if all(limits.min <= count <= limits.max for count in counts):
                counters.append((inside, counts.astype(dtype_of(inside.type.dtype))))
    return counters


def _step(inside: Value, after: Value) -> object:
    """The number that a carry grows by in every trip; None if it is not known."""
    if after.op.name != "add" or inside not in after.op.args:
        return None
    left, right = after.op.args
    return number(right if left == inside else left)
