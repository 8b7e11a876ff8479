"""shard: the plan becomes exchanges.

product(x, w)  ->  exchange "batch d_ff@x -> batch@x d_ff" (product(x, w))

Where the chips have a value otherwise than its place in the decoder or its reader wants it, an
exchange moves it: from the layout that follows from what made it, with partial sums over the mesh
axes that split what a product contracts, to the layout that the plan gives its group. Where both
are the same the value stays. `lower` tells the compiler (`dialect.compiled.constraints`).

What the program constrains itself is left alone, and so are products with weights that it lays out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from dialect.caching.parted_states import with_parted_states
from dialect.compiled.compilers import Compiler, compiler_for, windowed_axes
from dialect.machine.topology import Topology
from dialect.naming.axes import Axes
from dialect.normal.row_products import partial_sum_axes
from dialect.ops.sharding import Sides, laid_out
from dialect.planning.fallback_plans import planned_axes
from dialect.planning.layouts import (
    OF_HEADS,
    activation_group,
    hidden_layout,
    input_group,
    layout_of,
    pinned_values,
    product_layout,
    with_input_layouts,
)
from dialect.planning.mesh_roles import MeshAxes
from dialect.planning.partial_sums import (
    added_first,
    adds_products,
    is_residual_add,
)
from dialect.planning.plan import Plan
from dialect.planning.split_heads import split_heads
from dialect.staging.binding import region_bound
from rewrite.dataflow import bound_values, rebuilt
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import make, traits, with_args
from rewrite.passbase import Pass
from rewrite.program import Layout, Program
from rewrite.target import Target

_CUTS = ("slice", "unstack")
_HIDDEN = {"d_ff", "d_ff_per_head"}


@dataclass(frozen=True)
class Shard(Pass):
    """Moves every value of the decoder to where the plan wants it."""

    keeps: ClassVar[str] = "reals"

    def run(self, program: Program, target: Target) -> Program:
        if program.plan is None:
            return self.recorded(program, "run `plan` first: nothing is constrained")
        program = program.with_graph(split_heads(program.graph, program.plan))
        axes = planned_axes(program, program.plan.mesh)
        parted = with_parted_states(program, partial(_is_split, program.plan, axes))
        if parted is not program:
            program, axes = parted, planned_axes(parted, program.plan.mesh)
        summed = program.with_graph(added_first(program.graph, axes))
        if summed.graph is not program.graph:
            program, axes = summed, planned_axes(summed, program.plan.mesh)
        exchanges = _Exchanges(program.plan, axes, pinned_values(program))
        graph = exchanges.graph(program.graph, frozenset(program.values("param")))
        outputs = map(exchanges.output, program.graph.outputs, graph.outputs)
        placed = with_input_layouts(program.with_graph(Graph(graph.inputs, tuple(outputs))))
        return self.recorded(placed, *exchanges.lines())


class _Exchanges:
    def __init__(self, plan: Plan, axes: Axes, decided: frozenset[Value]) -> None:
        self.plan, self.axes, self.decided = plan, axes, decided
        self.bound: set[Value] = set()  # what depends on parameters alone
        self.parts: dict[Value, list[Value]] = {}  # of every product that is only cut
        self.terms: set[Value] = set()  # products of which the sum is exchanged
        self.counts: Counter[str] = Counter()
        self.gathers = plan.split("used") != plan.split("weights")
        compiler = compiler_for(Topology.parse(plan.target).chip) if plan.target else Compiler()
        self.in_windows = compiler.gathers_in_windows and bool(windowed_axes(plan.split))

    def lines(self) -> list[str]:
        """Each kind of exchange once, and how often there is one."""
        return [f"{text} ({count} times)" for text, count in self.counts.items()]

    def graph(self, graph: Graph, params: Iterable[Value]) -> Graph:
        """`params` are the inputs of the graph that depend on parameters alone."""
        self.bound |= bound_values(graph, params)
        self.parts |= _parts(graph)
        sums = (op for op in graph.ops if is_residual_add(op, self.axes))
        self.terms |= {arg for op in sums if adds_products(graph, op.args) for arg in op.args}

        def visit(op: Op, args: tuple[Value, ...]) -> Sequence[Value]:
            if op.results[0] in self.bound:  # done once, in `prepare`
                return with_args(op, args).results
            known = region_bound(op, self.bound)
            regions = tuple(self.graph(region, known) for region in op.regions)
            read = tuple(self.read(op, known, arg) for known, arg in zip(op.args, args))
            results = with_args(op, read, regions).results
            if op.results[0] in self.terms:
                return results
            return [self.made(known, value) for known, value in zip(op.results, results)]

        return rebuilt(graph, visit)

    def output(self, known: Value, value: Value) -> Value:
        """An output over the vocabulary stays sharded."""
        if self.group(known) != "logits":
            return value
        return self.moved(value, known, "logits", self.layout("logits", known))

    def group(self, value: Value) -> str | None:
        return activation_group(self.axes.of(value))

    def layout(self, group: str, value: Value) -> Layout:
        return layout_of(self.plan, group, self.axes, value)

    def product(self, value: Value) -> Layout:
        return product_layout(self.plan, self.axes, value)

    # What an op makes, moved to where the plan wants it.

    def made(self, known: Value, value: Value) -> Value:
        """A result of an op: of a product, of attention, or a part of either or of the stream."""
        op, group = known.op, self.group(known)
        if op.name == "attend":
            owned = self.layout("attention", known)
            return self.moved(value, known, "heads", self.product(known), owned)
        if op.name in _CUTS:
            whole = op.args[0]
            of_product = group == "hidden" and whole in self.parts
            is_placed = of_product or group == self.group(whole) == "residual"
        else:
            is_placed = op.name in ("contract", "take") or is_residual_add(op, self.axes)
        if not is_placed or group is None:
            return value
        if group == "logits":
            wanted, given = self.layout(group, known), self.product(known)
            return self.moved(value, known, group, wanted, given, self.sums(op))
        return self.residual(known, value) if group == "residual" else self.hidden(known, value)

    def residual(self, known: Value, value: Value) -> Value:
        """What is in the residual stream, or is added to it; rows as their table lies, of which
        chips that split the vocabulary find some each."""
        wanted, sums = self.layout("residual", known), self.sums(known.op)
        if known.op.name == "take":
            layout_of_table, *_ = self.layout("tables", known.op.args[0])
            return self.moved(
                value, known, "rows", wanted, self.layout("tables", known), layout_of_table
            )
        given = tuple(tuple(axis for axis in axes if axis not in sums) for axes in wanted)
        return self.moved(value, known, "residual", wanted, given, sums)

    def hidden(self, known: Value, value: Value) -> Value:
        """Hidden values: partial sums as rows, heads where attention owns them, all others, and
        heads that are still to be cut apart, where the weights leave them."""
        parts, sums, given = self.parts.get(known, []), self.sums(known.op), self.product(known)
        names = {name for array in (known, *parts) for over in self.axes.of(array) for name in over}
        if names & _HIDDEN:
            rows = hidden_layout(self.plan, self.axes, known)
            given = rows if known.op.name in _CUTS else given
            return self.moved(value, known, "hidden", rows if sums else given, given, sums)
        owned = self.layout("attention", known)
        batch = (axes for over, axes in zip(self.axes.of(known), owned) if "batch" in over)
        as_rows = sums and set(sums) <= {axis for axes in batch for axis in axes}
        if not names & OF_HEADS or (parts and not as_rows):
            return self.moved(value, known, "hidden", given)
        return self.moved(value, known, "heads", owned, given, sums)

    def sums(self, op: Op) -> MeshAxes:
        """The mesh axes over which a product with weights leaves partial sums, or a sum of such."""
        if op.args[0] in self.terms:
            return tuple(dict.fromkeys(axis for arg in op.args for axis in self.sums(arg.op)))
        activations = [i for i, arg in enumerate(op.args) if arg not in self.bound]
        if op.name != "contract" or len(activations) != 1:
            return ()
        (number,) = activations
        return partial_sum_axes(op, number, self.factor_layout(op, op.args[number]))

    def factor_layout(self, op: Op, known: Value) -> Layout:
        """An activation that a product reads, sharded as the weights along the contracted axis."""
        over_vocab = self.group(op.results[0]) == "logits"
        return self.layout("tables", known) if over_vocab else self.product(known)

    # What an op reads, moved to where it reads it.

    def read(self, op: Op, known: Value, value: Value) -> Value:
        """An argument of an op."""
        if op.name == "contract":
            is_weight = known in self.bound
            return self.weight(known, value) if is_weight else self.factor(op, known, value)
        if op.name == "attend" and known == op.args[0]:
            return self.moved(value, known, "heads", self.layout("attention", known))
        written = traits(op).writes if traits(op).of_cache else 0
        if written and known == op.args[written]:
            group = input_group("state", self.axes.of(op.args[0])) or "cache"
            return self.moved(value, known, "cache", self.layout(group, known))
        return value

    def factor(self, op: Op, known: Value, value: Value) -> Value:
        """An activation, as its product reads it."""
        group, over = self.group(known), self.group(op.results[0])
        if group not in ("residual", "hidden") or over is None:
            return value
        wanted = self.factor_layout(op, known)
        heads = any(set(dimension) & OF_HEADS for dimension in self.axes.of(known))
        given = wanted if heads else self.layout(group, known)
        return self.moved(value, known, "factor", wanted, given)

    def weight(self, known: Value, value: Value) -> Value:
        """A weight, gathered as its product reads it; integers as integers. Large ones may be
        gathered in windows, if nothing is said of them; not integers, which would travel as
        floats."""
        names = {name for dimension in self.axes.of(known) for name in dimension}
        is_integer = known.op.name == "dequantize"
        windowed = self.in_windows and "d_ff" in names and not is_integer
        if not self.gathers or windowed or "vocab" in names:
            return value
        if is_integer:
            args = map(self.gathered, known.op.args, value.op.args)
            return with_args(value.op, tuple(args)).results[0]
        return self.gathered(known, value)

    def gathered(self, known: Value, value: Value) -> Value:
        stored, used = self.layout("weights", known), self.layout("used", known)
        return self.moved(value, known, "weights", used, stored)

    def moved(
        self,
        value: Value,
        known: Value,
        of: str,
        wanted: Layout,
        given: Layout | None = None,
        sums: MeshAxes = (),
    ) -> Value:
        """value  ->  exchange(value); it stays where no other layout is given.

        `known` is the value before rewriting, of which the axes are known.
        """
        if known in self.decided or (not sums and laid_out(value) == wanted):
            return value
        names = tuple(".".join(dimension) or "1" for dimension in self.axes.of(known))
        sides = Sides(names, given or wanted, wanted)
        by = sides.collectives(sums)
        self.counts[f"{of}: {sides}{by and ', '}{by}"] += 1
        more = {name: its for name, its in (("sums", sums), ("by", by)) if its}
        origin = known.op.origin or value.op.origin
        return make("exchange", value, layouts=str(sides), of=of, **more, origin=origin)


def _is_split(plan: Plan, axes: Axes, value: Value, dimension: int) -> bool:
    """Whether the plan splits a hidden value along this dimension."""
    return bool(layout_of(plan, "hidden", axes, value)[dimension])


def _parts(graph: Graph) -> dict[Value, list[Value]]:
    """The parts of every product that is only cut."""
    parts = {}
    for op in graph.ops:
        cuts = list(dict.fromkeys(user for user, _ in graph.users.get(op.results[0], ())))
        if op.name == "contract" and cuts and all(cut.name in _CUTS for cut in cuts):
            parts[op.results[0]] = [value for cut in cuts for value in cut.results]
    return parts
