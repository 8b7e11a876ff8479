"""Positions that a program counts itself, and what its values are of them.

    position + n leaves the step that writes n places, where position entered it

Such a position is below the context in every step, and the next one follows. So what a value is
of it (a place that is written, the first and the last position of a mask, however clipped, wrapped
or sliced) is a table: it is computed for all positions of the context.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dialect.arrays.dtypes import dtype_of
from dialect.arrays.evaluate import evaluate
from dialect.caching.state_forms import Forms
from dialect.matching.mask_regions import INTEGERS, is_known
from dialect.matching.values import in_shape
from dialect.ops.control import scan_parts
from rewrite.ir import Graph, Op, Type, Value, new_input, replace_values
from rewrite.opdef import make


class Counter(NamedTuple):
    """What a position is counted by: the number of an input; whether each layer has one of its own,
    and each row."""

    source: int
    by_layer: bool
    by_row: bool


class Table(NamedTuple):
    """A value for all positions of the context: `values` [positions, ..] for `positions`
    [positions, rows].

    source: the position's number among the inputs; by_layer: whether each layer has one of its own.
    """

    source: int
    by_layer: bool
    positions: np.ndarray
    values: np.ndarray

    def counter(self, count: int) -> Counter | None:
        """Whose position the value is, with the `count` - 1 that follow; None where it is
        another."""
        for rows in dict.fromkeys((1, self.positions.shape[1])):
            wanted = self.positions[:, :rows, None] + np.arange(count)
            if np.array_equal(
                self.values.reshape(len(wanted), -1), wanted.reshape(len(wanted), -1)
            ):
                return Counter(self.source, self.by_layer, rows > 1)
        return None

    def of_queries(self, count: int) -> Counter | None:
        """Whose positions the value has, where these are an array of `count` in each row."""
        return self.counter(1) if self.values[0].size % count == 0 else None

    @property
    def step(self) -> int:
        """How far the value is ahead of the position, where it is as far for every position; 0
        where it is not."""
        ahead = self.values.reshape(self.positions.shape) - self.positions
        return int(ahead.flat[0]) if (ahead == ahead.flat[0]).all() else 0

    def places_up_to(self, last: Table) -> int:
        """How many places there are from the value up to another, where these are as many for every
        position, but for those before the first; 0 where they are not."""
        rank = max(self.values.ndim, last.values.ndim)
        first, end = (_of_rank(table.values, rank) for table in (self, last))
        count = 1 + int(end[-1].flat[0]) - int(first[-1].flat[0])
        is_alike = np.maximum(first, 0) == np.maximum(end - (count - 1), 0)
        return count if count > 0 and is_alike.all() else 0


class CountedPositions:
    """The positions that a program with these forms of its states counts, below a context, in steps
    of `count`; those of `given`, inputs by their number, are its caller's."""

    def __init__(
        self, forms: Forms, given: Mapping[int, Value], context: int, count: int = 1
    ) -> None:
        self.context, self.count = context, count
        states = {number: form for number, form in forms.items() if _may_be_position(form[0])}
        # A loop over layers sees a row of a stack of positions at a time.
        self.rows = {
            entering: new_input(Type(entering.type.dtype, entering.type.shape[1:]))
            for entering, _ in states.values()
            if entering.type.rank
        }
        self.inputs: dict[Value, tuple[int, bool]] = {}
        for number, (entering, _) in sorted(states.items(), reverse=True):
            self.inputs[entering] = (number, False)
            if entering in self.rows:
                self.inputs[self.rows[entering]] = (number, True)
        for number, value in given.items():
            if _may_be_position(value):
                self.inputs[value] = (number, False)
        self.steps = {number: self._step(leaving) for number, (_, leaving) in states.items()}

    def is_counted(self, counter: Counter) -> bool:
        """Whether a step adds to a position as many as it writes."""
        return self.steps.get(counter.source) == self.count

    def of(self, value: Value, parents: Sequence[Op]) -> Table | None:
        """The table of a value in the body of these loops; None where it is no function of one
        position alone."""
        outside = self._outside(value, parents)
        for source, (number, by_layer) in self.inputs.items():
            zero = in_shape(
                make("const", value=0, type=Type(source.type.dtype, ())), source.type.shape
            )
            if is_known(replace_values(Graph((), (outside,)), {source: zero}).outputs[0]):
                return self._tabulated(outside, source, number, by_layer)
        return None

    def _step(self, leaving: Value) -> int:
        """How much more leaves the step than entered it."""
        parents: tuple[Op, ...] = ()
        if leaving.op.regions and leaving.op.get("carry") is not None:
            parents, leaving = (leaving.op,), leaving.op.regions[0].outputs[leaving.index]
        table = self.of(leaving, parents)
        return 0 if table is None or table.values.size != table.positions.size else table.step

    def _outside(self, value: Value, parents: Sequence[Op]) -> Value:
        """A value of a loop's body, of what the loop is given."""
        for loop in reversed(parents):
            if loop.get("carry") is None or len(loop.regions) > 1:
                return value
            (body,), (fixed, _, xs) = loop.regions, scan_parts(loop)
            known = dict(zip(body.inputs[fixed], loop.args[fixed]))
            pairs = zip(body.inputs[xs], loop.args[xs])
            known |= {x: self.rows[stack] for x, stack in pairs if stack in self.rows}
            value = replace_values(Graph((), (value,)), known).outputs[0]
        return value

    def _tabulated(self, value: Value, source: Value, number: int, by_layer: bool) -> Table:
        fresh, shape = new_input(source.type), source.type.shape
        graph = replace_values(Graph((), (value,)), {source: fresh})
        graph = Graph((fresh,), graph.outputs)
        # Positions that differ from row to row, the other way than those of a chunk do.
        most = max(1, self.context - self.count + 1)
        positions = (np.arange(most)[:, None] - np.arange(max(1, source.type.size))) % most
        with jax.ensure_compile_time_eval():
            given = jnp.asarray(positions.reshape(-1, *shape), dtype_of(source.type.dtype))
            values = jax.vmap(lambda position: evaluate(graph, [position])[0])(given)
        return Table(number, by_layer, positions, np.asarray(values).astype(np.int64))


def _of_rank(values: np.ndarray, rank: int) -> np.ndarray:
    """An array [positions, ..] of this rank, with axes of one behind its first."""
    positions, *rest = values.shape
    return values.reshape(positions, *[1] * (rank - values.ndim), *rest)


def _may_be_position(value: Value) -> bool:
    return value.type.dtype in INTEGERS and value.type.rank <= 2
