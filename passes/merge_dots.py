"""merge_dots: products that share an input become one, and products that are summed become one.

contract(x, w), contract(x, v)   ->  parts of contract(x, [w v])
contract(x, w) + contract(y, v)  ->  contract([x y], [w v])

Query, key and value; gate and up; in a parallel block the query with the feed-forward input, and
both outputs (Pope et al. 2022, section 3.4). The weights are joined once, in `prepare`. They are
joined *behind* the axis that a mesh splits (heads, d_ff), the parts of a chip side by side, so
the joined weight splits as its parts did; where that is not possible they are left apart.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from dialect.matching.addends import addends
from dialect.matching.operands import transposed
from dialect.matching.values import reshaped, through
from dialect.naming.axes import Axes, infer_axes
from dialect.normal.normal_form import normal_form
from dialect.staging.parameter_paths import Paths, parameter_paths, paths_in, paths_inside, shown
from rewrite.dataflow import known_values
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import build, make, with_args
from rewrite.passbase import Pass
from rewrite.program import Program
from rewrite.signature import Signature, letters
from rewrite.target import Target

SPLIT = {"heads", "kv_heads", "d_ff"}  # what a mesh shards of a weight besides d_model
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_QUANTISED = "its weights are integers, which joining would make floats: merge before quantizing"


@dataclass(frozen=True)
class MergeDots(Pass):
    """Joins the weights of products that share their input, or whose results are summed."""

    keeps: ClassVar[str] = "reals"

    def run(self, program: Program, target: Target) -> Program:
        paths = paths_in(program.graph, parameter_paths(program))
        merger = _Merger(infer_axes(program), paths, max(1, target.chips), {})
        graph = merger.of(program.graph)
        if merger.notes:
            graph = normal_form(graph)
        notes = list(merger.notes) or ["no products share an input or are summed"]
        return self.recorded(program.with_graph(graph), *notes)


@dataclass(frozen=True)
class Product:
    """A product of an activation with a weight, `added` being the axes that only the weight has.

    `kept` and `summed` are places in the activation; `weight_order` puts the summed axes first.
    """

    op: Op
    x: Value
    weight: Value
    kept: tuple[int, ...]
    summed: tuple[int, ...]
    weight_order: tuple[int, ...]
    result_order: tuple[int, ...]

    @staticmethod
    def of(op: Op, bound: Container[Value]) -> Product | None:
        """The product that `op` is, or None: two weights, an axis that both share and keep, or
        nothing to multiply."""
        if op.name != "contract" or (op.args[0] in bound) == (op.args[1] in bound):
            return None
        if not all(arg.type.size for arg in op.args):
            return None
        side = 0 if op.args[0] in bound else 1
        spec = Signature.parse(op["spec"])
        if any(len(dimension) != 1 for array in spec.inputs for dimension in array):
            return None
        weight, x, out = (
            letters(a) for a in (spec.inputs[side], spec.inputs[1 - side], *spec.outputs)
        )
        summed = tuple(i for i, letter in enumerate(x) if letter not in out)
        added = [letter for letter in weight if letter in out]
        if any(x[i] not in weight for i in summed) or set(added) & set(x) or not added:
            return None
        kept = tuple(i for i, letter in enumerate(x) if letter in out)
        plain = [*(x[i] for i in kept), *added]
        return Product(
            op,
            op.args[1 - side],
            op.args[side],
            kept,
            summed,
            tuple(weight.index(x[i]) for i in summed) + tuple(map(weight.index, added)),
            tuple(plain.index(letter) for letter in out),
        )

    @property
    def is_quantised(self) -> bool:
        """Whether the weight is read through a dequantisation."""
        return through(self.weight, "reshape", "transpose").op.name == "dequantize"

    @property
    def rows(self) -> tuple[int, ...]:
        """Sizes of the axes of x that stay."""
        return tuple(self.x.type.shape[i] for i in self.kept)

    @property
    def depth(self) -> tuple[int, ...]:
        """Sizes of the axes that are summed."""
        return tuple(self.x.type.shape[i] for i in self.summed)

    @property
    def added(self) -> tuple[int, ...]:
        """The sizes of the axes that the weight adds."""
        return tuple(self.weight.type.shape[i] for i in self.weight_order[len(self.summed) :])

    @property
    def alike(self) -> Any:
        """How numbers are multiplied: the dtypes and the precision."""
        dtypes = (self.x.type.dtype, self.weight.type.dtype, self.op.types[0].dtype)
        return dtypes, tuple(attr for attr in self.op.attrs if attr[0] != "spec")

    @property
    def same_input(self) -> Any:
        """What products must have in common to be merged over their input."""
        return self.x, self.summed, self.alike

    @property
    def same_output(self) -> Any:
        """What products must have in common to be merged over their sum."""
        return self.rows, self.added, self.result_order, self.alike

    def plain_weight(self) -> Value:
        """The weight with the axes that are summed in front."""
        return transposed(self.weight, self.weight_order)


@dataclass(frozen=True)
class Family:
    """Products of one input. Joined behind `slots` parts of their first axis, or stacked."""

    products: tuple[Product, ...]
    slots: int | None = None

    def results(self, x: Value) -> Iterator[Value]:
        """The results of the products, cut from the one product of `x` with the joined weight."""
        first = self.products[0]
        weights = [product.plain_weight() for product in self.products]
        if self.slots is None:
            joined = make("stack", *weights, axis=len(first.depth))
        else:
            shape = (*first.depth, self.slots)
            parts = [
                reshaped(w, (*shape, math.prod(p.added) // self.slots))
                for w, p in zip(weights, self.products)
            ]
            joined = make("concatenate", *parts, dimension=len(shape))
        whole = _product(first, x, joined)
        parts = self.parts(whole, len(first.rows))
        for product, part in zip(self.products, parts):
            yield transposed(reshaped(part, (*product.rows, *product.added)), product.result_order)

    def parts(self, whole: Value, rows: int) -> Iterable[Value]:
        """The results of the products, cut from the one product of all."""
        if self.slots is None:
            return build("unstack", whole, axis=rows).results
        sizes = [math.prod(product.added) // self.slots for product in self.products]
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        return [_cut(whole, end - size, end) for size, end in zip(sizes, ends)]


@dataclass(frozen=True)
class _Merger:
    """Rebuilds a graph with its products merged, and notes what was and what was not.

    `paths` tells the graph's weights; the notes are those of all graphs of a program.
    """

    axes: Axes
    paths: Paths
    chips: int
    notes: dict[str, None]

    def of(self, graph: Graph) -> Graph:
        known = known_values(graph, (value for value in graph.inputs if value in self.paths))
        families = self.families(graph)
        summed = _sums(graph, self.paths)
        memo = {value: value for value in graph.inputs}
        # Weights first: a family is built where its first product stands.
        for op in sorted(graph.ops, key=lambda op: op.results[0] not in known):
            regions = op.regions
            if op.name == "scan":
                paths = paths_in(op.regions[0], paths_inside(op, self.paths))
                regions = (replace(self, paths=paths).of(op.regions[0]),)
            family = families.get(op)
            if op in summed:
                memo[op.results[0]] = self.summed(op, *summed[op], memo)
            elif family is None:
                moved = with_args(op, tuple(memo[arg] for arg in op.args), regions)
                memo.update(zip(op.results, moved.results))
            elif op.results[0] not in memo:
                results = family.results(memo[family.products[0].x])
                memo.update(
                    (product.op.results[0], value)
                    for product, value in zip(family.products, results)
                )
        return Graph(graph.inputs, tuple(memo[value] for value in graph.outputs))

    # Products of one input.

    def families(self, graph: Graph) -> dict[Op, Family]:
        siblings: dict[Any, list[Product]] = defaultdict(list)
        for op in graph.ops:
            product = Product.of(op, self.paths)
            if product is not None and product.is_quantised:
                self.left(product, _QUANTISED)
            elif product is not None:
                siblings[product.same_input].append(product)
        families = [f for group in siblings.values() if len(group) > 1 for f in self.divided(group)]
        return {product.op: family for family in families for product in family.products}

    def divided(self, products: list[Product]) -> Iterator[Family]:
        """Products of one input in families that can be joined."""
        joined = [product for product in products if self.splits(product)]
        while joined and math.gcd(*(product.added[0] for product in joined)) % self.chips:
            least = min(product.added[0] for product in joined)
            joined = [product for product in joined if product.added[0] > least]
        if len({product.added for product in joined}) > 1:
            yield self.noted(
                Family(tuple(joined), math.gcd(*(product.added[0] for product in joined)))
            )
            products = [product for product in products if product not in joined]
        alike: dict[tuple[int, ...], list[Product]] = defaultdict(list)
        for product in products:
            alike[product.added].append(product)
        for group in alike.values():
            if len(group) > 1:
                yield self.noted(Family(tuple(group)))
            else:
                self.left(group[0], "no other product of its input splits over the mesh as it does")

    def splits(self, product: Product) -> bool:
        """Whether the first axis that the weight adds is one that a mesh splits."""
        first = product.weight_order[len(product.summed)]
        return bool(SPLIT.intersection(self.axes.of(product.weight)[first]))

    def noted(self, family: Family) -> Family:
        names = [self.name(product) for product in family.products]
        how = "stacked" if family.slots is None else f"joined in {family.slots} slots"
        self.notes[f"{', '.join(names)}: one product of their input, {how}"] = None
        return family

    def left(self, product: Product, reason: str) -> None:
        self.notes[f"{self.name(product)} left apart: {reason}"] = None

    def name(self, product: Product) -> str:
        return shown(self.paths[product.weight])

    # Products that are summed.

    def summed(
        self, op: Op, terms: list[Value], products: list[Product], memo: dict[Value, Value]
    ) -> Value:
        """The sum of `terms` with its products merged, if they can be."""
        groups: dict[Any, list[Product]] = defaultdict(list)
        for product in products:
            groups[product.same_output].append(product)
        total = None
        merged: dict[Value, Value | None] = {}
        for group in groups.values():
            slots = math.gcd(*(product.depth[0] for product in group))
            if len(group) > 1 and slots % self.chips == 0:
                names = ", ".join(map(self.name, group))
                self.notes[f"{names}: one product into their sum, joined in {slots} slots"] = None
                sum_ = _summed(group, [memo[product.x] for product in group], slots)
                merged |= {product.op.results[0]: None for product in group}
                merged[group[-1].op.results[0]] = sum_
            elif len(group) > 1:
                self.left(group[0], f"{slots} slots do not split over {self.chips} chips")
        for term in terms:
            part = merged.get(term, memo[term])
            if part is not None:
                total = part if total is None else make("add", total, part, origin=op.origin)
        return total


def _sums(graph: Graph, bound: Container[Value]) -> dict[Op, tuple[list[Value], list[Product]]]:
    """The sums that hold several products which nobody else reads: their terms in order, and
    these products."""
    sums_of = {}
    for op, terms in addends(graph).items():
        alone = (Product.of(term.op, bound) for term in terms if len(graph.users[term]) == 1)
        products = [p for p in alone if p is not None and not p.is_quantised]
        if len(products) > 1:
            sums_of[op] = terms, products
    return sums_of


def _summed(products: list[Product], inputs: list[Value], slots: int) -> Value:
    """contract([x y], [w v])"""
    first = products[0]
    sizes = [math.prod(product.depth) // slots for product in products]
    x = [
        reshaped(transposed(value, (*product.kept, *product.summed)), (*product.rows, slots, size))
        for product, value, size in zip(products, inputs, sizes)
    ]
    weights = [
        reshaped(product.plain_weight(), (slots, size, *product.added))
        for product, size in zip(products, sizes)
    ]
    rows, added = len(first.rows), len(first.added)
    names = _LETTERS[: rows + 2 + added]
    kept, pair, added = names[:rows], names[rows : rows + 2], names[rows + 2 :]
    return transposed(
        make(
            "contract",
            make("concatenate", *x, dimension=rows + 1),
            make("concatenate", *weights, dimension=1),
            origin=first.op.origin,
            **{**dict(first.op.attrs), "spec": _spec(kept + pair, pair + added, kept + added)},
        ),
        first.result_order,
    )


def _product(first: Product, x: Value, weight: Value) -> Value:
    """The product of `x` with a weight whose summed axes stand in front."""
    names = _LETTERS[: x.type.rank]
    added = _LETTERS[x.type.rank :][: weight.type.rank - len(first.summed)]
    summed = "".join(names[i] for i in first.summed)
    kept = "".join(names[i] for i in first.kept)
    attrs = {**dict(first.op.attrs), "spec": _spec(names, summed + added, kept + added)}
    return make("contract", x, weight, origin=first.op.origin, **attrs)


def _spec(x: str, weight: str, out: str) -> str:
    return f"{' '.join(x)}, {' '.join(weight)} -> {' '.join(out)}"


def _cut(value: Value, start: int, stop: int) -> Value:
    """Places `start` to `stop` of the last axis."""
    lead = value.type.shape[:-1]
    starts, limits = (*(0 for _ in lead), start), (*lead, stop)
    return make("slice", value, start_indices=starts, limit_indices=limits)
