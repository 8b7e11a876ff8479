"""shard: the plan becomes constraints.

product(x, w)  ->  constrain{layout}(product(x, w))

Products are constrained to the sharding of their weights; what attention owns
otherwise is resharded in a second constraint behind the first, and what is added to the residual
stream is pinned as partial sums, each on its chip, before it is added up. A pair of constraints
tells the compiler the collective; a single one leaves it to guess, and it guesses badly.

What the program constrains itself is left alone, and so are products with weights that it lays out.
"""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass
from typing import ClassVar

from dialect.compiled.compilers import compiler_for, hides_reading, windowed_axes
from dialect.machine.topology import Topology
from dialect.matching.values import reshaped, through
from dialect.naming.axes import Axes
from dialect.normal.row_products import leading, row_layout, row_product
from dialect.ops import sharding  # noqa: F401  (defines constrain)
from dialect.ops.sharding import show_layout
from dialect.planning.fallback_plans import planned_axes
from dialect.planning.layouts import (
    CACHE_WRITES,
    OF_HEADS,
    activation_group,
    hidden_layout,
    layout_of,
    pinned_values,
    product_layout,
    with_input_layouts,
)
from dialect.planning.partial_sums import (
    added,
    is_residual_add,
    partial_product,
    partial_sum_axes,
    reduce_partial_sums,
    summed_together,
)
from dialect.planning.plan import Plan
from dialect.planning.split_heads import split_heads
from dialect.staging.binding import region_bound
from rewrite.dataflow import bound_values
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import make, with_args
from rewrite.passbase import Pass
from rewrite.program import Layout, Program
from rewrite.target import Target

_CUTS = ("slice", "unstack")
_HIDDEN = {"d_ff", "d_ff_per_head"}


@dataclass(frozen=True)
class Shard(Pass):
    """Pins products, the residual stream and attention to the layouts of the plan."""

    keeps: ClassVar[str] = "reals"

    def run(self, program: Program, target: Target) -> Program:
        if program.plan is None:
            return self.recorded(program, "no plan, so nothing is constrained: run `plan` first")
        program = program.with_graph(split_heads(program.graph, program.plan))
        params = frozenset(program.values("param"))
        axes = planned_axes(program, program.plan.mesh)
        emitted = _Constraints(program.plan, axes, pinned_values(program))
        graph = emitted.graph(program.graph, params)
        outputs = tuple(map(emitted.output, program.graph.outputs, graph.outputs))
        placed = with_input_layouts(program.with_graph(Graph(graph.inputs, outputs)))
        return self.recorded(placed, *emitted.lines())


class _Constraints:
    def __init__(self, plan: Plan, axes: Axes, decided: frozenset[Value]) -> None:
        self.plan, self.axes, self.decided = plan, axes, decided
        self.chip = Topology.parse(plan.target).chip if plan.target else None
        self.reasons: dict[str, int] = {}
        self.gathers = plan.split("used") != plan.split("weights")
        windows = self.chip is not None and compiler_for(self.chip).gathers_in_windows
        self.in_windows = windows and bool(windowed_axes(plan.split))

    def ways(self, layout: Layout) -> int:
        """Over how many chips an array of this layout is sharded."""
        sizes = dict(self.plan.mesh)
        return math.prod(sizes[axis] for dimension in layout for axis in dimension)

    def lines(self) -> list[str]:
        """Each kind of constraint once, with its reason and how often it was set."""
        return [f"{text} ({count} times)" for text, count in self.reasons.items()]

    def graph(self, graph: Graph, params: frozenset[Value]) -> Graph:
        """`params` are the inputs of the graph that depend on parameters alone."""
        bound = bound_values(graph, params)
        together = summed_together(graph, self.axes)
        apart = {value for sum_ in together.values() for value in sum_[1:]}
        parts, fused = _parts(graph)
        inner = {arg.op for value in together for arg in value.op.args if arg not in apart}
        memo: dict[Value, Value] = {value: value for value in graph.inputs}
        for op in graph.ops:
            if op in inner:  # what it adds is added in the next
                continue
            if op.results[0] in together:
                before, one, other = (memo[value] for value in together[op.results[0]])
                sum_ = self.summed(added(one, other, op), op.results[0])
                sum_ = make("add", before, sum_, origin=op.origin)
                memo[op.results[0]] = self.product(op, sum_, fused)
                continue
            args = tuple(memo[arg] for arg in op.args)
            if op.results[0] in bound:  # done once, in `prepare`
                memo.update(zip(op.results, with_args(op, args).results))
                continue
            known = region_bound(op, bound)
            regions = tuple(self.graph(region, known) for region in op.regions)
            if op.name == "contract":
                args = tuple(
                    self.weight(known, arg) if known in bound else self.factor(op, known, arg)
                    for known, arg in zip(op.args, args)
                )
            elif op.name == "attend":
                args = self.attention_inputs(op, args)
            elif op.name in CACHE_WRITES:
                args = self.cache_update(op, args)
            results = with_args(op, args, regions).results
            partial = self.partial_sums(op, args, bound)
            scattered = self.scattered(op, args, bound, fused)
            if partial is not None:
                sum_ = partial if op.results[0] in apart else self.summed(partial, op.results[0])
                results = (sum_,)
            elif scattered is not None:
                results = (scattered,)
            elif op.name == "attend":
                results = (self.attention_output(op, results[0]),)
            elif op.results[0] in apart:
                pass
            elif op.name in ("contract", "take") or is_residual_add(op, self.axes):
                results = (self.product(op, results[0], fused),)
            elif op.name == "slice" and self.is_stream(op):
                why = "a slice of the residual stream is sharded as all of it"
                results = (self.constrain(results[0], op.results[0], "residual", why),)
            elif op in parts:
                results = tuple(map(self.part, op.results, results))
            memo.update(zip(op.results, results))
        return Graph(graph.inputs, tuple(memo[value] for value in graph.outputs))

    def output(self, known: Value, value: Value) -> Value:
        """An output over the vocabulary stays sharded."""
        if activation_group(self.axes.of(known)) != "logits":
            return value
        return self.constrain(value, known, "logits", "the step returns sharded logits")

    def is_stream(self, op: Op) -> bool:
        values = (*op.args, *op.results)
        return all(activation_group(self.axes.of(value)) == "residual" for value in values)

    def product(self, op: Op, value: Value, fused: Container[Value]) -> Value:
        """A product where its weights leave it, its partial sums scattered along an inner axis;
        rows and residual sums in the residual's."""
        names = self.axes.of(op.results[0])
        group = activation_group(names)
        if group is None:
            return value
        if op.name == "take" and group == "residual":
            value = self.constrain(
                value, op.results[0], "tables", "rows are sharded as their table"
            )
        if group == "residual":
            return self.constrain(value, op.results[0], "residual", f"{op.name} gives the residual")
        if group == "logits":
            value = self.as_weights(value, op.results[0], "the table gives it so")
            return self.constrain(value, op.results[0], "logits", "logits stay sharded")
        value = self.as_weights(value, op.results[0], f"{op.name} gives it sharded as its weights")
        if not any(set(dimension) & OF_HEADS for dimension in names) or op.results[0] in fused:
            return value
        return self.owned(value, op.results[0])

    def part(self, known: Value, value: Value) -> Value:
        """A part of a product: hidden values stay where they are, heads go to attention."""
        if activation_group(self.axes.of(known)) != "hidden":
            return value
        present = {name for dimension in self.axes.of(known) for name in dimension}
        if present & _HIDDEN:
            layout = hidden_layout(self.plan, self.axes, known)
            return self.constrained(value, known, layout, "a part is sharded as its product")
        return self.owned(value, known) if present & OF_HEADS else value

    def owned(self, value: Value, known: Value) -> Value:
        value = self.halfway(value, known, "heads are resharded for attention, one axis at a time")
        return self.constrain(value, known, "attention", "heads are sharded as attention is")

    def scattered(
        self,
        op: Op,
        args: tuple[Value, ...],
        bound: frozenset[Value],
        fused: dict[Value, list[Value]],
    ) -> Value | None:
        """What a product leaves as partial sums: pinned where it leaves them, and scattered over
        the rows, where the rows stay so split. None for any other op."""
        known = op.results[0]
        number = _activation(op, bound)
        if number is None or known in self.decided:
            return None
        hidden = hidden_layout(self.plan, self.axes, known)
        left = product_layout(self.plan, self.axes, known)
        front = leading(op, number)
        names = [self.axes.of(value) for value in (known, *fused.get(known, ()))]
        inner = any(_HIDDEN & set(dimension) for array in names for dimension in array)
        kept = self.rows_are_kept(known, hidden, left)
        if not (inner or kept) or hidden == left or front == 0:
            return None
        count = math.prod(known.type.shape[:front]) / self.ways(left[:front])
        weight = through(op.args[1 - number], "dequantize")
        stored = weight.type.bytes / weight.type.size
        if inner and self.chip and hides_reading(count, stored, self.chip):
            why = "partial sums are reduce-scattered"
            return self.constrained(with_args(op, args).results[0], known, hidden, why)
        sizes, before, after = self.rows(known, hidden, left, front)
        value = row_product(op, args, number, front, sizes)
        why = "the product gives it sharded as its weights"
        layout = (*before, *left[front:])
        value = make("constrain", value, layout=layout, why=why, origin=op.origin)
        why = "partial sums are reduce-scattered over the rows"
        layout = (*after, *hidden[front:])
        value = make("constrain", value, layout=layout, why=why, origin=op.origin)
        self.note(why, known, hidden)
        value = reshaped(value, known.type.shape)
        return value if inner else self.owned(value, known)

    def partial_sums(
        self, op: Op, args: tuple[Value, ...], bound: frozenset[Value]
    ) -> Value | None:
        """The partial sums that a product adds to the residual, on the chips that compute them; a
        matrix of them is scattered as it is. None for any other op."""
        known = op.results[0]
        number = _activation(op, bound)
        if number is None or known in self.decided:
            return None
        rows = known.type.shape[: leading(op, number)]
        is_matrix = sum(size > 1 for size in rows) < 2
        if is_matrix or activation_group(self.axes.of(known)) != "residual":
            return None
        factor = product_layout(self.plan, self.axes, op.args[number])
        over = partial_sum_axes(op, number, factor)
        parts = self.ways((over,))
        if parts == 1:
            return None
        value = partial_product(op, args, parts)
        whole = layout_of(self.plan, "residual", self.axes, known)
        rest = (tuple(axis for axis in dimension if axis not in over) for dimension in whole)
        why = "partial sums stay on their chips"
        return make("constrain", value, layout=(over, *rest), why=why, origin=op.origin)

    def summed(self, value: Value, known: Value) -> Value:
        value = reduce_partial_sums(value, known.type.rank)
        return self.constrain(value, known, "residual", "partial sums are all-reduced")

    def rows(
        self, known: Value, hidden: Layout, left: Layout, front: int
    ) -> tuple[tuple[int, ...], Layout, Layout]:
        """The rows of a product with partial sums: how many, and their sharding before and after
        the reduce-scatter. Of copies that attention shards, a chip computes its part alone."""
        count = math.prod(known.type.shape[:front])
        left_rows, hidden_rows = (row_layout(layout, front)[0] for layout in (left, hidden))
        owned = row_layout(layout_of(self.plan, "attention", self.axes, known), front)[0]
        copies = owned[len(hidden_rows) :]
        taken = {axis for dimension in (*left, *hidden) for axis in dimension}
        ways, of = self.ways((hidden_rows,)), self.ways((copies,))
        begins = owned[: len(hidden_rows)] == hidden_rows
        if left_rows or not copies or not begins or taken & set(copies):
            return (count,), (left_rows,), (hidden_rows,)
        sizes = (ways, of, count // (ways * of))
        return sizes, ((), copies, ()), (hidden_rows, copies, ())

    def rows_are_kept(self, known: Value, hidden: Layout, left: Layout) -> bool:
        """Whether attention owns the rows of a product so that they can be scattered to it."""
        names = self.axes.of(known)
        if not any(set(dimension) & OF_HEADS for dimension in names):
            return False
        owned = layout_of(self.plan, "attention", self.axes, known)
        return all(
            each == before or ("batch" in dimension and set(each) <= set(own))
            for dimension, each, before, own in zip(names, hidden, left, owned)
        )

    def factor(self, op: Op, known: Value, value: Value) -> Value:
        """An activation, sharded as the weights along the contracted axis."""
        group = activation_group(self.axes.of(known))
        over = activation_group(self.axes.of(op.results[0]))
        if group not in ("residual", "hidden") or over is None:
            return value
        heads = any(set(dimension) & OF_HEADS for dimension in self.axes.of(known))
        if known.op.name == "rounded" and not heads:  # so that its integers travel
            value = self.constrain(value, known, group, "activations travel in int8")
        if over == "logits":
            return self.constrain(
                value, known, "tables", "the product reads it sharded as its table"
            )
        return self.as_weights(value, known, "the product reads it sharded as its weights")

    def weight(self, known: Value, value: Value) -> Value:
        """A weight as its product reads it. Large ones may be gathered in pieces beside that, which
        a constraint would forbid; but not integers, which would travel as floats."""
        present = {name for dimension in self.axes.of(known) for name in dimension}
        in_windows = self.in_windows and known.op.name != "dequantize"
        left = "vocab" in present or (in_windows and "d_ff" in present)
        return self.gathered(known, value) if self.gathers and not left else value

    def gathered(self, known: Value, value: Value) -> Value:
        """A weight, gathered to the layout in which the product reads it; integers as integers."""
        why = "the product reads gathered weights"
        if known.op.name != "dequantize":
            return self.constrain(value, known, "used", why)
        stored = zip(value.op.args, known.op.args)
        args = tuple(self.constrain(arg, before, "used", why) for arg, before in stored)
        return with_args(value.op, args).results[0]

    def attention_inputs(self, op: Op, args: tuple[Value, ...]) -> tuple[Value, ...]:
        """The query, moved from where its product left it to where attention owns it."""
        query = self.constrain(
            args[0], op.args[0], "attention", "the query is resharded for attention"
        )
        return (query, *args[1:])

    def cache_update(self, op: Op, args: tuple[Value, ...]) -> tuple[Value, ...]:
        """New keys and values, moved to where the cache keeps them."""
        new = self.constrain(args[1], op.args[1], "cache", "new entries are resharded to the cache")
        return (args[0], new, *args[2:])

    def attention_output(self, op: Op, value: Value) -> Value:
        """Attention's result, resharded for the weights of the output product."""
        why = "the output of attention is resharded for its product"
        value = self.constrain(
            value, op.results[0], "attention", "attention gives it as it owns it"
        )
        return self.as_weights(self.halfway(value, op.results[0], why), op.results[0], why)

    def halfway(self, value: Value, known: Value, why: str) -> Value:
        """Between attention and the products around it: mesh axes change from batch to heads, or
        back, in one all-to-all, and only then are axes split or gathered. Asked for both at once
        the compiler makes all of it whole first."""
        heads = product_layout(self.plan, self.axes, known)
        owned = layout_of(self.plan, "attention", self.axes, known)
        names = self.axes.of(known)
        inner = (each for dimension, each in zip(names, heads) if "batch" not in dimension)
        taken = {axis for each in inner for axis in each}
        layout = tuple(
            tuple(axis for axis in own if axis not in taken) if "batch" in dimension else each
            for dimension, own, each in zip(names, owned, heads)
        )
        return self.constrained(value, known, layout, why)

    def note(self, why: str, known: Value, layout: Layout) -> None:
        text = f"{why}: {self.axes.show(known)} @ {show_layout(layout)}"
        self.reasons[text] = self.reasons.get(text, 0) + 1

    def as_weights(self, value: Value, known: Value, why: str) -> Value:
        layout = product_layout(self.plan, self.axes, known)
        return self.constrained(value, known, layout, why)

    def constrain(self, value: Value, known: Value, group: str, why: str) -> Value:
        """`known` is the value before rewriting, of which the axes are known."""
        layout = layout_of(self.plan, group, self.axes, known)
        return self.constrained(value, known, layout, why)

    def constrained(self, value: Value, known: Value, layout: Layout, why: str) -> Value:
        if known in self.decided:
            return value
        if value.op.name == "constrain" and value.op["layout"] == layout:
            return value
        self.note(why, known, layout)
        origin = known.op.origin or value.op.origin
        return make("constrain", value, layout=layout, why=why, origin=origin)


def _activation(op: Op, bound: Container[Value]) -> int | None:
    """Which argument of a product with weights is none; None for any other op."""
    activations = [i for i, arg in enumerate(op.args) if arg not in bound]
    return activations[0] if op.name == "contract" and len(activations) == 1 else None


def _parts(graph: Graph) -> tuple[set[Op], dict[Value, list[Value]]]:
    """The ops that cut a product in parts, and the parts of a product that is only cut."""
    parts: set[Op] = set()
    fused: dict[Value, list[Value]] = {}
    for op in graph.ops:
        cuts = list(dict.fromkeys(user for user, _ in graph.users.get(op.results[0], ())))
        if op.name == "contract" and cuts and all(cut.name in _CUTS for cut in cuts):
            parts.update(cuts)
            fused[op.results[0]] = [value for cut in cuts for value in cut.results]
    return parts, fused
