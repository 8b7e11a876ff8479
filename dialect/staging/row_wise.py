"""Row-wise functions of a lookup: row i of the result depends on row i of the table alone.

If f in f(take(table, ids)) is row-wise, f may be applied to the table instead. A token may look up
rows of several tables, such as integers and their scales.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dialect.jaxprs.jaxpr import constant
from dialect.matching.values import in_dtype
from dialect.ops.lookups import CLIP, PROMISED
from rewrite import opdef
from rewrite.ir import Graph, Op, Type, Value, bits
from rewrite.opdef import make
from rewrite.signature import Array, letters

Places = tuple[int, ...]  # the dimensions of a value that number its rows, in the order of the ids


@dataclass(frozen=True)
class Lookup:
    """Rows taken from one or several tables by the same ids."""

    takes: tuple[Op, ...]

    @property
    def ids(self) -> Value:
        """The ids that are looked up."""
        return self.takes[0].args[1]

    @property
    def vocab(self) -> int:
        """The number of rows of the tables."""
        return self.takes[0].args[0].type.shape[0]

    @property
    def rows(self) -> int:
        """The number of ids."""
        return self.ids.type.size

    @property
    def fills(self) -> bool:
        """Whether an id out of bounds gives a fill value, which is no row of the table."""
        return self.takes[0]["mode"] not in (CLIP, PROMISED)

    def width(self, take: Op) -> int:
        """The number of elements of a row."""
        return take.types[0].size // self.rows

    def of(self, tables: Sequence[Value], beyond: Sequence[Value] | None) -> list[Value]:
        """The same rows of other tables; those of `beyond` where an id is out of bounds."""
        if beyond is None:
            mode = self.takes[0]["mode"]
            return [make("take", table, self.ids, mode=mode) for table in tables]
        inside = self.inside()
        return [
            _selected(inside, make("take", table, self.ids, mode=CLIP), fill)
            for table, fill in zip(tables, beyond)
        ]

    def inside(self) -> Value:
        """Which ids are in bounds."""
        ids = self.ids
        if bits(ids.type.dtype) < 32:  # they may not hold the number of rows
            ids = in_dtype(ids, "i32")
        least, most = (constant(bound, Type(ids.type.dtype, ())) for bound in (0, self.vocab))
        return make("and", make("ge", ids, least), make("lt", ids, most))


def _selected(inside: Value, row: Value, fill: Value) -> Value:
    """`row` where an id is in bounds, else `fill`, which is the same for all ids."""
    shape, rank = row.type.shape, inside.type.rank
    chosen = make("broadcast_in_dim", inside, shape=shape, broadcast_dimensions=tuple(range(rank)))
    row_dims = tuple(range(rank, len(shape)))
    fill = make("broadcast_in_dim", fill, shape=shape, broadcast_dimensions=row_dims)
    return make("select_n", chosen, fill, row)


def row_wise(graph: Graph, lookup: Lookup, static: frozenset[Value]) -> dict[Value, Places]:
    """Values that are row-wise functions of the taken rows and static values, with the dimensions
    that number their rows."""
    region = {take.results[0]: tuple(range(lookup.ids.type.rank)) for take in lookup.takes}
    for op in graph.ops:
        if op in lookup.takes or not any(arg in region for arg in op.args):
            continue
        if all(arg in region or arg in static for arg in op.args):
            places = _rows_after(op, region)
            if places is not None:
                region.update(zip(op.results, places))
    return region


def rows_lead(places: Places) -> bool:
    """Whether the rows are the leading dimensions, in order, as a lookup gives them."""
    return places == tuple(range(len(places)))


def _rows_after(op: Op, region: dict[Value, Places]) -> list[Places] | None:
    """The dimensions of each result that number its rows; None where rows mix, split or vanish."""
    if op.regions:
        return None
    signature = opdef.signature(op)
    rows: tuple[str, ...] = ()
    for arg, array in zip(op.args, signature.inputs):
        if arg in region:
            row_letters = _letters_at(array, region[arg])
            other_dims = [d for d in range(len(array)) if d not in region[arg]]
            rows = rows or row_letters
            if row_letters != rows or set(row_letters) & set(_letters_at(array, other_dims)):
                return None
    for arg, array in zip(op.args, signature.inputs):
        wide = tuple(axes for axes, size in zip(array, arg.type.shape) if size > 1)
        if arg not in region and set(rows) & set(letters(wide)):
            return None
    if set(rows) & set(signature.need):
        return None
    results = []
    for array in signature.outputs:
        holding = [d for d, axes in enumerate(array) if set(rows) & set(axes)]
        places = sorted(holding, key=lambda d: min(map(rows.index, set(rows) & set(array[d]))))
        if _letters_at(array, places) != rows:
            return None
        results.append(tuple(places))
    return results


def _letters_at(array: Array, places: Iterable[int]) -> tuple[str, ...]:
    return letters(tuple(array[d] for d in places))
