"""What is a function of the rows that are looked up, and of nothing else that changes.

f(take(table, ids)) is row-wise where row i of it follows from row i of the table: such an f may be
moved to the table. What one token looks up may lie in several tables, such as integers and their
scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rewrite import opdef
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import make
from rewrite.signature import letters


@dataclass(frozen=True)
class Lookup:
    """Rows that are taken of one table, or of several, by the same ids."""

    takes: tuple[Op, ...]

    @property
    def ids(self) -> Value:
        return self.takes[0].args[1]

    @property
    def vocab(self) -> int:
        return self.takes[0].args[0].type.shape[0]

    @property
    def rows(self) -> int:
        return self.ids.type.size

    def width(self, take: Op) -> int:
        """The values of a row."""
        return take.types[0].size // self.rows

    def of(self, tables: Sequence[Value]) -> list[Value]:
        """The same rows of other tables."""
        mode = self.takes[0]["mode"]
        return [make("take", each, self.ids, mode=mode) for each in tables]


def row_wise(graph: Graph, lookup: Lookup, known: frozenset[Value]) -> dict[Value, int]:
    """Values that are a function of the taken rows alone, with how many leading axes are rows."""
    region = {take.results[0]: lookup.ids.type.rank for take in lookup.takes}
    for op in graph.ops:
        if op in lookup.takes or not any(arg in region for arg in op.args):
            continue
        if all(arg in region or arg in known for arg in op.args):
            rows = _rows_after(op, region)
            if rows is not None:
                region.update(zip(op.results, rows))
    return region


def _rows_after(op: Op, region: dict[Value, int]) -> list[int] | None:
    """The number of leading row axes of each result, or None where rows are mixed or moved."""
    if op.regions:
        return None
    signature = opdef.signature(op)
    row_letters: tuple[str, ...] = ()
    for arg, array in zip(op.args, signature.inputs):
        if arg in region:
            own = letters(array[: region[arg]])
            row_letters = row_letters or own
            if own != row_letters or any(x in letters(array[region[arg] :]) for x in own):
                return None
    for arg, array in zip(op.args, signature.inputs):
        wide = [axes for axes, size in zip(array, arg.type.shape) if size > 1]
        if arg not in region and any(x in row_letters for x in letters(tuple(wide))):
            return None
    if any(x in signature.need for x in row_letters):
        return None
    counts = []
    for array in signature.outputs:
        count = 0
        while len(letters(array[:count])) < len(row_letters) and count < len(array):
            count += 1
        if letters(array[:count]) != row_letters or any(
            x in row_letters for x in letters(array[count:])
        ):
            return None
        counts.append(count)
    return counts
