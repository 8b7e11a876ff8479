"""Positions that a program counts itself, and what its values are of them.

    position + 1 leaves the step, where position entered it

Such a position is below the context in every step, and the next one is the next. So what a value is
of it (a place that is written, the first and the last position of a mask, however clipped, wrapped
or sliced) is a table: it is computed for all positions of the context.
"""

from __future__ import annotations

from collections.abc import Sequence
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


class Table(NamedTuple):
    """A value for all positions of the context: `values` [context, ..] for `positions`
    [context, rows].

    state: the position's number among the inputs; layers: whether each layer has one of its own.
    """

    state: int
    layers: bool
    positions: np.ndarray
    values: np.ndarray

    @property
    def by_row(self) -> bool:
        """Whether there is one value for each of several rows, and not one for all."""
        return self.values[0].size > 1

    @property
    def kind(self) -> tuple[int, bool, bool]:
        """What tables of one position have in common."""
        return self.state, self.layers, self.by_row

    @property
    def is_position(self) -> bool:
        """Whether the value is the position itself."""
        return self._differs_by(0)

    @property
    def is_next(self) -> bool:
        """Whether the value is one more."""
        return self._differs_by(1)

    def last_places(self) -> int:
        """How many places there are from the value up to the position, where these are as many for
        every position, but for those before the first; 0 where they are not."""
        count = 1 + int(self.positions[-1, 0]) - int(self.values[-1].flat[0])
        first = np.maximum(self._position() - (count - 1), 0)
        return count if count > 0 and np.array_equal(np.maximum(self.values, 0), first) else 0

    def _differs_by(self, step: int) -> bool:
        return np.array_equal(self.values - step, self._position())

    def _position(self) -> np.ndarray | None:
        """The position in the shape of the value: that of the first row, or of each row."""
        size = self.values[0].size
        if size not in (1, self.positions.shape[1]):
            return None
        return self.positions[:, :size].reshape(self.values.shape)


class CountedPositions:
    """The positions that a program with these forms of its states counts, below a context."""

    def __init__(self, forms: Forms, context: int) -> None:
        self.context = context
        states = {
            number: form
            for number, form in forms.items()
            if form[0].type.dtype in INTEGERS and form[0].type.rank <= 2
        }
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
        self.counted = {
            number for number, (_, leaving) in states.items() if self._advances(leaving)
        }

    def of(self, value: Value, parents: Sequence[Op]) -> Table | None:
        """The table of a value in the body of these loops; None where it is no function of one
        position alone that is counted."""
        table = self._table(value, parents)
        return table if table is not None and table.state in self.counted else None

    def _advances(self, leaving: Value) -> bool:
        """Whether what leaves the step is one more than what entered it."""
        parents: tuple[Op, ...] = ()
        if leaving.op.regions and leaving.op.get("carry") is not None:
            parents, leaving = (leaving.op,), leaving.op.regions[0].outputs[leaving.index]
        table = self._table(leaving, parents)
        return table is not None and table.is_next

    def _table(self, value: Value, parents: Sequence[Op]) -> Table | None:
        outside = self._outside(value, parents)
        for source, (number, layers) in self.inputs.items():
            zero = in_shape(
                make("const", value=0, type=Type(source.type.dtype, ())), source.type.shape
            )
            if is_known(replace_values(Graph((), (outside,)), {source: zero}).outputs[0]):
                return self._tabulated(outside, source, number, layers)
        return None

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

    def _tabulated(self, value: Value, source: Value, number: int, layers: bool) -> Table:
        fresh, shape = new_input(source.type), source.type.shape
        graph = replace_values(Graph((), (value,)), {source: fresh})
        graph = Graph((fresh,), graph.outputs)
        # Positions that differ from row to row, so that it shows of which row a value is.
        rows = np.arange(self.context)[:, None] + np.arange(max(1, source.type.size))
        positions = rows % self.context
        with jax.ensure_compile_time_eval():
            given = jnp.asarray(positions.reshape(-1, *shape), dtype_of(source.type.dtype))
            values = jax.vmap(lambda position: evaluate(graph, [position])[0])(given)
        return Table(number, layers, positions, np.asarray(values).astype(np.int64))
