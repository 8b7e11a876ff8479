"""Exchanges as XLA must be told them: in constraints, most of them in pairs.

exchange "A -> B" (x)  ->  constrain{B}(constrain{A}(x))

A single constraint leaves the compiler to guess the collective, and it guesses badly. The rules
came from compiling many variants (docs/design.md, "Constraints come in pairs"):

- What a product, a lookup or attention gives is pinned where it leaves them. What only passes on
  what is pinned already (a part of a product, a weight) is not.
- Between heads and batch, mesh axes change sides in one all-to-all, and only then are axes split or
  gathered. Asked for both at once the compiler makes all of it whole first.
- Partial sums are reduce-scattered as a matrix, over its rows: with three axes, even of size 1, the
  compiler emits an all-reduce. Asked for at once they are exchanged in windows, which pays where
  computing hides the reading of the weights.
- Partial sums that are added to the residual stream are an axis of their own, and stay on their
  chips until they are added up. The compiler would gather the weights first, or reduce in windows,
  or reduce those of a parallel block apart. Those of a matrix it reduces as asked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dialect.compiled.compilers import hides_reading
from dialect.machine.chips import Chip
from dialect.matching.values import reshaped, through
from dialect.normal.row_products import (
    leading,
    partial_product,
    partial_sum_axes,
    row_layout,
    row_product,
)
from dialect.ops.sharding import Sides, laid_out, sides
from rewrite.driver import rewrite
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import make
from rewrite.program import Layout
from rewrite.rules import Rule
from rewrite.signature import Signature


def constrained(graph: Graph, mesh: Mapping[str, int], chip: Chip | None) -> Graph:
    """`graph` with its exchanges expanded, for a mesh of these sizes, of this chip."""

    def expand(op: Op) -> Value:
        return _Exchange(op, sides(op["layouts"]), mesh, chip).expanded()

    doc = "exchange(x)  ->  constrain(constrain(x))"
    rule = Rule("expand_exchange", doc, frozenset({"exchange"}), expand, "reals")
    return rewrite(graph, [rule])


@dataclass(frozen=True)
class _Exchange:
    op: Op
    sides: Sides
    mesh: Mapping[str, int]
    chip: Chip | None

    @property
    def sums(self) -> tuple[str, ...]:
        return self.op.get("sums") or ()

    def expanded(self) -> Value:
        """The constrained value."""
        value, of, (_, given, wanted) = self.op.args[0], self.op["of"], self.sides
        products = value.op.args if value.op.name == "add" else (value,)
        is_partial = self.sums and all(product.op.name == "contract" for product in products)
        if is_partial and of == "residual":
            return self.pinned(self.parts_added_up(products, value), wanted)
        rows = None
        if is_partial and value.op.name == "contract":
            rows = {"hidden": wanted, "heads": self.rows_kept()}.get(of)
        if rows is not None:
            value = self.scattered(value.op, rows)
        elif value.op.name in ("contract", "take", "attend", "dequantize"):
            value = self.pinned(value, given)
        if of == "heads":
            value = self.pinned(value, self.halfway())
        return value if rows == wanted else self.pinned(value, wanted)

    def pinned(self, value: Value, layout: Layout) -> Value:
        """value  ->  constrain(value), unless it is constrained so."""
        if value.op.name == "constrain" and value.op["layout"] == layout:
            return value
        why = f"{self.op['of']}: {self.op.get('by') or 'stays'}"
        return make("constrain", value, layout=layout, why=why, origin=self.op.origin)

    def ways(self, *dimensions: tuple[str, ...]) -> int:
        """Over how many chips dimensions of these mesh axes are sharded."""
        return math.prod(self.mesh.get(axis, 1) for axes in dimensions for axis in axes)

    def parts_added_up(self, products: Sequence[Value], value: Value) -> Value:
        """product  ->  sum of its parts, each on its chip; of two products that are added, one sum
        where they have as many"""
        terms = [self.in_parts(product.op) for product in products]
        if len({term.type for term in terms}) > 1:
            terms = [_added_up(term, value) for term in terms]
        total = make("add", *terms, origin=value.op.origin) if len(terms) > 1 else terms[0]
        return _added_up(total, value)

    def in_parts(self, product: Op) -> Value:
        """product  ->  its partial sums, each on its chip; a matrix stays as it is, and what sums
        several axes of which it is not known which one is split"""
        number, front = _rows(product)
        rows, layout = product.types[0].shape[:front], laid_out(product.args[number])
        over = partial_sum_axes(product, number, layout) if layout else self.sums
        unknown = layout is None and len(Signature.parse(product["spec"]).summed) > 1
        if sum(size > 1 for size in rows) < 2 or not over or unknown:
            return product.results[0]
        kept = (tuple(axis for axis in axes if axis not in over) for axes in self.sides.wanted)
        return self.pinned(partial_product(product, self.ways(over)), (over, *kept))

    def scattered(self, product: Op, wanted: Layout) -> Value:
        """product  ->  product with its partial sums scattered over rows"""
        given, type_ = self.sides.given, product.types[0]
        number, front = _rows(product)
        if self.op["of"] == "hidden" and self.in_windows(product, number, front):
            return self.pinned(product.results[0], wanted)
        sizes, before, after = self.row_layouts(wanted, front, type_.shape)
        rows = row_product(product, product.args, number, front, sizes)
        rows = self.pinned(rows, (*before, *given[front:]))
        rows = self.pinned(rows, (*after, *wanted[front:]))
        return reshaped(rows, type_.shape)

    def in_windows(self, product: Op, number: int, front: int) -> bool:
        """Whether computing a window hides reading its weights."""
        shape, given = product.types[0].shape, self.sides.given
        count = math.prod(shape[:front]) / self.ways(*given[:front])
        weight = through(product.args[1 - number], "dequantize").type
        return self.chip is not None and hides_reading(count, weight.bytes / weight.size, self.chip)

    def row_layouts(
        self, scattered: Layout, front: int, shape: tuple[int, ...]
    ) -> tuple[tuple[int, ...], Layout, Layout]:
        """The rows of a product with partial sums: how many, and their sharding before and after
        the reduce-scatter. Of copies that attention shards, a chip computes its part alone."""
        given, count = self.sides.given, math.prod(shape[:front])
        before, after, owned = (
            row_layout(layout, front)[0] for layout in (given, scattered, self.sides.wanted)
        )
        copies = owned[len(after) :]
        taken = {axis for dimension in (*given, *scattered) for axis in dimension}
        if before or not copies or owned[: len(after)] != after or taken & set(copies):
            return (count,), (before,), (after,)
        ways, of = self.ways(after), self.ways(copies)
        return (ways, of, count // (ways * of)), ((), copies, ()), (after, copies, ())

    def rows_kept(self) -> Layout | None:
        """Where partial sums are scattered to before heads move, if attention owns those rows."""
        names, given, wanted = self.sides
        batch = next((i for i, name in enumerate(names) if _is_batch(name)), None)
        if batch is None or not {*given[batch], *self.sums} <= {*wanted[batch]}:
            return None
        return (*given[:batch], (*given[batch], *self.sums), *given[batch + 1 :])

    def halfway(self) -> Layout:
        """Between attention and the products around it: mesh axes have changed from batch to heads,
        or back, and none is split or gathered yet."""
        names, given, wanted = self.sides
        comes = self.op.args[0].op.name == "attend"
        product, owned = (wanted, given) if comes else (given, wanted)
        inner = {x for name, axes in zip(names, product) if not _is_batch(name) for x in axes}
        return tuple(
            tuple(axis for axis in owner if axis not in inner) if _is_batch(name) else over
            for name, owner, over in zip(names, owned, product)
        )


def _is_batch(name: str) -> bool:
    return "batch" in name.split(".")


def _rows(product: Op) -> tuple[int, int]:
    """The argument whose axes lead the result of a product, and how many do."""
    return max(((i, leading(product, i)) for i in range(2)), key=lambda place: place[1])


def _added_up(value: Value, like: Value) -> Value:
    """The sum over an axis of parts, where `value` has one."""
    if value.type.rank == like.type.rank:
        return value
    return make("reduce_sum", value, axes=(0,), out_sharding=None, origin=value.op.origin)
