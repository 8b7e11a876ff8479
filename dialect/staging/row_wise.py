"""What is a function of the rows that are looked up, and of nothing else that changes.

f(take(table, ids)) is row-wise where row i of it follows from row i of the table: such an f may be
moved to the table. What one token looks up may lie in several tables, such as integers and their
scales.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dialect.jaxprs.jaxpr import constant
from dialect.matching.values import in_dtype
from rewrite import opdef
from rewrite.ir import Graph, Op, Symbol, Type, Value, bits
from rewrite.opdef import make
from rewrite.signature import Array, letters

CLIP, PROMISED = (Symbol(f"GatherScatterMode.{x}") for x in ("CLIP", "PROMISE_IN_BOUNDS"))
Places = tuple[int, ...]  # the axes of a value that are rows, in the order of the rows


@dataclass(frozen=True)
class Lookup:
    """Rows that are taken of one table, or of several, by the same ids."""

    takes: tuple[Op, ...]

    @property
    def ids(self) -> Value:
        """The ids that are looked up."""
        return self.takes[0].args[1]

    @property
    def vocab(self) -> int:
        """How many rows the tables have."""
        return self.takes[0].args[0].type.shape[0]

    @property
    def rows(self) -> int:
        """How many ids there are."""
        return self.ids.type.size

    @property
    def fills(self) -> bool:
        """Whether an id out of bounds gives what is no row of the table."""
        return self.takes[0]["mode"] not in (CLIP, PROMISED)

    def width(self, take: Op) -> int:
        """The values of a row."""
        return take.types[0].size // self.rows

    def of(self, tables: Sequence[Value], beyond: Sequence[Value] | None) -> list[Value]:
        """The same rows of other tables, and of `beyond` where an id is out of bounds."""
        if beyond is None:
            mode = self.takes[0]["mode"]
            return [make("take", each, self.ids, mode=mode) for each in tables]
        inside = self.inside()
        return [
            _selected(inside, make("take", each, self.ids, mode=CLIP), other)
            for each, other in zip(tables, beyond)
        ]

    def inside(self) -> Value:
        """Which ids are in bounds."""
        ids = self.ids
        if bits(ids.type.dtype) < 32:  # they may not hold the number of rows
            ids = in_dtype(ids, "i32")
        least, most = (constant(each, Type(ids.type.dtype, ())) for each in (0, self.vocab))
        return make("and", make("ge", ids, least), make("lt", ids, most))


def _selected(inside: Value, row: Value, other: Value) -> Value:
    """`row` where an id is in bounds, else `other`, which is the same for all ids."""
    shape, rank = row.type.shape, inside.type.rank
    chosen = make("broadcast_in_dim", inside, shape=shape, broadcast_dimensions=tuple(range(rank)))
    rest = tuple(range(rank, len(shape)))
    other = make("broadcast_in_dim", other, shape=shape, broadcast_dimensions=rest)
    return make("select_n", chosen, other, row)


def row_wise(graph: Graph, lookup: Lookup, known: frozenset[Value]) -> dict[Value, Places]:
    """Values that are a function of the taken rows alone, with the axes that are rows of each."""
    region = {take.results[0]: tuple(range(lookup.ids.type.rank)) for take in lookup.takes}
    for op in graph.ops:
        if op in lookup.takes or not any(arg in region for arg in op.args):
            continue
        if all(arg in region or arg in known for arg in op.args):
            places = _rows_after(op, region)
            if places is not None:
                region.update(zip(op.results, places))
    return region


def rows_lead(places: Places) -> bool:
    """Whether the rows come first, in their order, as they come out of a table."""
    return places == tuple(range(len(places)))


def _rows_after(op: Op, region: dict[Value, Places]) -> list[Places] | None:
    """Where each result has its rows, or None where they are mixed, torn or gone."""
    if op.regions:
        return None
    signature = opdef.signature(op)
    rows: tuple[str, ...] = ()
    for arg, array in zip(op.args, signature.inputs):
        if arg in region:
            own = _letters_at(array, region[arg])
            others = [d for d in range(len(array)) if d not in region[arg]]
            rows = rows or own
            if own != rows or set(own) & set(_letters_at(array, others)):
                return None
    for arg, array in zip(op.args, signature.inputs):
        wide = tuple(axes for axes, size in zip(array, arg.type.shape) if size > 1)
        if arg not in region and set(rows) & set(letters(wide)):
            return None
    if set(rows) & set(signature.need):
        return None
    found = []
    for array in signature.outputs:
        holding = [d for d, axes in enumerate(array) if set(rows) & set(axes)]
        places = sorted(holding, key=lambda d: min(map(rows.index, set(rows) & set(array[d]))))
        if _letters_at(array, places) != rows:
            return None
        found.append(tuple(places))
    return found


def _letters_at(array: Array, places: Iterable[int]) -> tuple[str, ...]:
    return letters(tuple(array[d] for d in places))
