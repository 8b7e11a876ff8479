"""first_layer: row-wise functions of an embedding row are looked up, not computed.

f(take(table, ids))  ->  take(f(table), ids)        for every row-wise f

(Graef 2024, "Transformer tricks: precomputing the first layer".) `f(table)` is parameter-only, so
`stage` computes it once. How far f reaches is a minimum cut: each step reads either a row of a
table or the weights that compute it, whichever is fewer bytes at this batch. A serial block with
rotary positions looks up q, k, v and the embedding itself, 2(d + e) values per row. A parallel
block adds its feed-forward result to the embedding's row, whatever the order of the sum in the
block. That reorders a sum; all else is bit-exact.

A token may look up rows of several tables, such as integers and their scales: f is a function of
all these rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Any, ClassVar

from dialect.jaxprs.jaxpr import constant
from dialect.layered.loops import peeled
from dialect.matching.addends import addends
from dialect.normal.normal_form import normal_form, reshaped
from dialect.ops.control import scan_parts
from dialect.reports.first_layer_figures import Figures
from dialect.staging.binding import stored_bytes
from dialect.staging.mincut import WHOLE, Network
from dialect.staging.row_wise import Lookup, Places, row_wise, rows_lead
from rewrite.dataflow import bound_values, dependents, known_values, rebuilt
from rewrite.ir import Graph, Op, Symbol, Type, Value, new_input, replace_values
from rewrite.opdef import build, make, with_args
from rewrite.passbase import Pass
from rewrite.program import NOT_DONE, Program, Remark, Step, remarks
from rewrite.target import Target


@dataclass(frozen=True)
class FirstLayer(Pass):
    """Replaces the row-wise start of the first layer by lookups.

    Declines where the tables would take more than `budget` (a fraction) of the parameters' bytes.
    """

    budget: float = 0.05

    keeps: ClassVar[str] = "reals"

    def run(self, program: Program, target: Target) -> Program:
        params = program.values("param")
        graph, keeps = program.graph, "bits"
        notes: list[str | Remark] = []
        for lookup in _embeddings(program, params):
            choice = _cheapest(graph, lookup, params)
            declined = self.declined(choice, params)
            if declined:
                notes.append(Remark(declined, kind=NOT_DONE))
                continue
            graph, keeps = choice.looked_up(), "reals" if choice.reordered else keeps
            notes += choice.figures(graph, params).lines()
        if not notes:
            reason = "declined: tokens look up no parameter"
            notes = [Remark(reason, kind=NOT_DONE)]
        if graph is not program.graph:
            graph = normal_form(graph)
        step = Step(str(self), keeps, remarks(notes))
        return replace(program.with_graph(graph), history=(*program.history, step))

    def declined(self, choice: _Choice, params: list[Value]) -> str | None:
        """The reason to look nothing up, or None."""
        if not choice.cut or not choice.eliminated:
            return f"declined: {_why_not(choice)}"
        vocab, rows = choice.lookup.vocab, choice.lookup.rows
        size = sum(value.type.bytes // rows * vocab for value in choice.cut)
        total = sum(value.type.bytes for value in params)
        if size <= self.budget * total:
            return None
        return (
            f"declined: the tables take {size:,} bytes, {size / total:.1%} of the parameters; "
            f"first_layer{{budget={ceil(100 * size / total)}%}} allows it"
        )


@dataclass(frozen=True)
class _Choice:
    """The row-wise region after a lookup, and the cheapest cut of it.

    `read_bytes` are the bytes that a step reads of the cut, less those of weights that it no longer
    reads; `reordered` if a sum was reordered, so that its row-wise addends are one table.
    """

    graph: Graph
    lookup: Lookup
    bound: frozenset[Value]
    region: dict[Value, Places]
    cut: list[Value]
    eliminated: list[Value]
    read_bytes: int
    reordered: bool

    def looked_up(self) -> Graph:
        """The graph with the values of the cut read from tables."""
        rows = self.lookup.of(*_tabulated(self.lookup, self.cut, self.bound))
        replacements = {
            value: reshaped(row, value.type.shape) for value, row in zip(self.cut, rows)
        }
        return replace_values(self.graph, replacements)

    def figures(self, looked_up: Graph, params: list[Value]) -> Figures:
        lookup = self.lookup
        width = {take: lookup.width(take) for take in lookup.takes}
        stored = sum(value.type.size // lookup.rows for value in self.cut)
        still_read = [take for take in lookup.takes if take in looked_up.ops]
        dropped = [
            take
            for take in lookup.takes
            if take not in still_read and self.only_taken(take.args[0])
        ]
        return Figures(
            eliminated=sum(value.type.size for value in self.eliminated),
            width=sum(width.values()),
            row=stored + sum(width[take] for take in still_read),
            stored=stored,
            vocab=lookup.vocab,
            tokens=lookup.rows,
            dropped=sum(width[take] for take in dropped),
            parameters=sum(value.type.size for value in params),
        )

    def only_taken(self, table: Value) -> bool:
        """Whether all readers of a table, and of values computed from it, are these lookups."""
        readers = [op for op, _ in self.graph.users.get(table, ())]
        return table not in self.graph.outputs and all(
            op in self.lookup.takes
            or (op.results[0] in self.bound and all(map(self.only_taken, op.results)))
            for op in readers
        )


def _cheapest(graph: Graph, lookup: Lookup, params: list[Value]) -> _Choice:
    """The cheapest choice after `lookup`: with its sums as they are, or row-wise addends first."""
    peeled_graph = _peel_loops_after(graph, lookup, params)
    plain = _choice(peeled_graph, lookup, params, reordered=False)
    moved = _row_wise_first(peeled_graph, plain.region)
    if moved is peeled_graph:
        return plain
    return min(plain, _choice(moved, lookup, params, reordered=True), key=lambda x: x.read_bytes)


def _choice(graph: Graph, lookup: Lookup, params: list[Value], reordered: bool) -> _Choice:
    bound = bound_values(graph, params)
    region = row_wise(graph, lookup, known_values(graph, params))
    cut, eliminated = _cheapest_cut(graph, lookup, region, bound)
    read_bytes = sum(v.type.bytes for v in cut) - sum(stored_bytes(v) for v in eliminated)
    cut = [value for value in cut if value.op not in lookup.takes]  # these are tables already
    return _Choice(graph, lookup, bound, region, cut, eliminated, read_bytes, reordered)


def _row_wise_first(graph: Graph, region: dict[Value, Places]) -> Graph:
    """x + a + f(x)  ->  (x + f(x)) + a, where a is not row-wise: in a parallel block, attention."""
    moved = {}
    for op, terms in addends(graph, leaves=region).items():
        rows = [term for term in terms if term in region and term.type == op.types[0]]
        other_terms = [term for term in terms if term not in rows]
        if len(rows) > 1 and other_terms and terms[: len(rows)] != rows:
            total = rows[0]
            for term in (*rows[1:], *other_terms):
                total = make("add", total, term, origin=op.origin)
            moved[op.results[0]] = total
    return replace_values(graph, moved) if moved else graph


def _embeddings(program: Program, params: list[Value]) -> list[Lookup]:
    """The lookups of parameters by arguments of the step: by tokens, not by positions."""
    graph = program.graph
    from_arguments = dependents(graph, program.values("arg"))
    bound = bound_values(graph, params)
    by_ids: dict[tuple[Any, ...], list[Op]] = {}
    for op in graph.ops:
        if op.name != "take" or op.args[0] not in bound:
            continue
        table, ids = op.args
        if ids in from_arguments and ids.type.size and op.types[0].size:
            by_ids.setdefault((ids, op["mode"], table.type.shape[0]), []).append(op)
    return [Lookup(tuple(takes)) for takes in by_ids.values()]


def _peel_loops_after(graph: Graph, lookup: Lookup, params: list[Value]) -> Graph:
    """The graph with the first iteration of every loop that starts from row-wise values peeled."""
    region = row_wise(graph, lookup, known_values(graph, params))

    def visit(op: Op, args: tuple[Value, ...]) -> Sequence[Value]:
        moved = with_args(op, args)
        if op.name == "scan" and not op["reverse"] and op["length"] > 1:
            if any(arg in region for arg in op.args[scan_parts(op)[1]]):
                return peeled(moved)[0]
        return moved.results

    return rebuilt(graph, visit)


def _cheapest_cut(
    graph: Graph, lookup: Lookup, region: dict[Value, Places], bound: frozenset[Value]
) -> tuple[list[Value], list[Value]]:
    """The row-wise values to look up, and the parameters that the step then no longer reads.

    The step either reads the rows of a value that it needs, or computes it: then it reads the op's
    parameters, and needs the op's operands. Tables cost nothing. The cheapest division is a minimum
    cut.
    """
    ops = list(dict.fromkeys(value.op for value in region))
    network = Network()
    for op in ops:
        if op in lookup.takes:
            network.edge("source", op)
        else:
            weights = sum(stored_bytes(arg) for arg in dict.fromkeys(op.args) if arg in bound)
            network.edge("source", op, weights)
        for value in op.results:
            readable = rows_lead(region[value])  # as a lookup gives them
            network.edge(op, value, max(1, value.type.bytes) if readable else WHOLE)
            for reader, _ in graph.users.get(value, ()):
                if reader in region or reader.results[0] in region:
                    network.edge(value, reader)
                else:
                    network.edge(value, "sink")
            if value in graph.outputs:
                network.edge(value, "sink")
    tables = network.source_side()
    cut = [value for value in region if value.op in tables and value not in tables]
    tabled = [op for op in ops if op in tables and op not in lookup.takes]
    readers = {op for op in ops if op not in tables}
    weights = {
        arg: None
        for op in tabled
        for arg in op.args
        if op.name == "contract" and arg in bound
        if not any(user in readers for user, _ in graph.users[arg])
    }
    return cut, list(weights)


def _tabulated(
    lookup: Lookup, cut: list[Value], bound: frozenset[Value]
) -> tuple[list[Value], list[Value] | None]:
    """For each value of the cut its table [v, ...]: the step's ops, run over all ids in batches.

    The ops have the shapes of the step, so the rows are bit-exact. Where ids out of bounds have a
    fill value, one more id is run, whose row [...] is the second result.
    """
    rows, count = lookup.rows, lookup.vocab + lookup.fills
    batches = ceil(count / rows)
    takes, used = _read_for(cut, lookup, bound)
    chunk = new_input(Type("i32", lookup.ids.type.shape))
    inside = {value: new_input(value.type) for value in used}
    starts = {
        take.results[0]: make("take", inside[take.args[0]], chunk, **dict(take.attrs))
        for take in takes
    }
    shell = replace_values(Graph((), tuple(cut)), inside | starts)
    body = Graph((*inside.values(), chunk), shell.outputs)
    last = make("iota", dtype=Symbol("i32"), shape=(batches * rows,), dimension=0)
    last = make("rem", last, constant(count, Type("i32", ())))
    loop = build(
        "scan",
        *used,
        reshaped(last, (batches, *lookup.ids.type.shape)),
        regions=(body,),
        origin=takes[0].origin.then("first_layer"),
        consts=len(used),
        carry=0,
        length=batches,
        reverse=False,
        unroll=1,
    )
    by_id = [_by_id(result, value, rows) for result, value in zip(loop.results, cut)]
    tables = [_rows(table, 0, lookup.vocab) for table in by_id]
    if not lookup.fills:
        return tables, None
    beyond = (_rows(table, lookup.vocab, count) for table in by_id)
    return tables, [reshaped(row, row.type.shape[1:]) for row in beyond]


def _by_id(result: Value, value: Value, rows: int) -> Value:
    """[batches, rows..., rest...] -> [ids, rest...]"""
    row_shape = _rest_shape(value, rows)
    return reshaped(result, (result.type.size // max(1, prod(row_shape)), *row_shape))


def _rows(value: Value, start: int, stop: int) -> Value:
    """Rows `start` to `stop` of an array."""
    row_shape = value.type.shape[1:]
    starts, limits = (start, *(0 for _ in row_shape)), (stop, *row_shape)
    return make("slice", value, start_indices=starts, limit_indices=limits)


def _rest_shape(value: Value, rows: int) -> tuple[int, ...]:
    """The shape of one row of a row-wise value."""
    shape, count = value.type.shape, 0
    while prod(shape[:count]) < rows:
        count += 1
    while count < len(shape) and shape[count] == 1:
        count += 1
    return shape[count:]


def _read_for(
    cut: list[Value], lookup: Lookup, bound: frozenset[Value]
) -> tuple[list[Op], list[Value]]:
    """The lookups that `cut` is computed from, and the parameters that it reads, tables first."""
    takes: dict[Op, None] = {}
    read: dict[Value, None] = {}
    stack, seen = [value.op for value in cut], set()
    while stack:
        op = stack.pop()
        if op in seen:
            continue
        seen.add(op)
        if op in lookup.takes:
            takes[op] = None
            continue
        for arg in op.args:
            if arg in bound:
                read[arg] = None
            else:
                stack.append(arg.op)
    tables = dict.fromkeys(take.args[0] for take in takes)
    return list(takes), list(tables | read)


def _why_not(choice: _Choice) -> str:
    """The reason for an empty cut: an op that is not row-wise, or weights cheaper than rows."""
    region = choice.region
    if not any(value.op.name == "contract" for value in region):
        for op in choice.graph.ops:
            if op.results[0] not in region and any(arg in region for arg in op.args):
                return f"{op.told} mixes rows of the embedding with other values"
    return f"at {choice.lookup.rows} tokens a step, reading the weights is fewer bytes"
