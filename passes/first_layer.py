"""first_layer: what the first layer does to an embedding row is looked up, not computed.

f(take(table, ids))  ->  take(f(table), ids)        for every row-wise f

(Graef 2024, "Transformer tricks: precomputing the first layer".) `f(table)` depends on parameters
alone, so `stage` computes it once. How far f reaches is a minimum cut: each step reads either a
row of a table or the weights that compute it, whichever is fewer bytes at this batch. For a serial
block with rotary positions that is q, k, v and the embedding itself, 2(d + e) values per row; for a
parallel one the feed-forward layer's result is added to the embedding's row, whichever comes first
in the sum of the block. That reorders a sum; all else keeps every bit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, prod
from typing import ClassVar

from dialect.control import scan_parts
from dialect.jaxpr import constant
from dialect.layered.loops import peeled
from dialect.normal.normal_form import normal_form, reshaped
from dialect.staging.binding import bound_values, dependents, known_values
from dialect.staging.first_layer_figures import Figures
from dialect.sums import sums
from rewrite import opdef
from rewrite.ir import Graph, Op, Symbol, Type, Value, new_input, replace_values
from rewrite.mincut import Network
from rewrite.opdef import build, make, with_args
from rewrite.passbase import Pass
from rewrite.program import Program, Step
from rewrite.signature import letters
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
        graph, notes, keeps = program.graph, [], "bits"
        for take in _embeddings(program, params):
            found = _cheapest(graph, take, params)
            declined = self.declined(found, params)
            if declined:
                notes.append(declined)
                continue
            graph, keeps = found.looked_up(), "reals" if found.reordered else keeps
            notes += found.figures(graph, params).lines()
        if not notes:
            notes = ["declined: no rows of a parameter are taken by the tokens"]
        if graph is not program.graph:
            graph = normal_form(graph)
        step = Step(str(self), keeps, tuple(notes))
        return replace(program.with_graph(graph), history=(*program.history, step))

    def declined(self, found: _Found, params: list[Value]) -> str | None:
        """Why nothing is looked up, or None."""
        if not found.cut or not found.eliminated:
            return f"declined: {_why_not(found.graph, found.take, found.region)}"
        vocab, rows = found.take.args[0].type.shape[0], found.rows
        size = sum(value.type.bytes // rows * vocab for value in found.cut)
        total = sum(value.type.bytes for value in params)
        if size <= self.budget * total:
            return None
        return (
            f"declined: the tables take {size:,} bytes, {size / total:.1%} of the parameters; "
            f"first_layer{{budget={ceil(100 * size / total)}%}} allows it"
        )


@dataclass(frozen=True)
class _Found:
    """What can be looked up: the row-wise region behind `take`, cut where that is cheapest.

    `read_bytes` is what a step reads for it, less what it reads no more of weights; `reordered`
    says that a sum was, so that all that is row-wise of it is one table.
    """

    graph: Graph
    take: Op
    bound: frozenset[Value]
    region: dict[Value, int]
    cut: list[Value]
    eliminated: list[Value]
    read_bytes: int
    reordered: bool

    @property
    def rows(self) -> int:
        return self.take.args[1].type.size

    def looked_up(self) -> Graph:
        """The graph with the values of the cut read from tables."""
        ids, mode = self.take.args[1], self.take["mode"]
        tables = _tabulated(self.take, self.cut, self.bound)
        rows = [make("take", each, ids, mode=mode) for each in tables]
        found = {value: reshaped(row, value.type.shape) for value, row in zip(self.cut, rows)}
        return replace_values(self.graph, found)

    def figures(self, looked_up: Graph, params: list[Value]) -> Figures:
        table = self.take.args[0]
        width = self.take.types[0].size // self.rows
        stored = sum(value.type.size // self.rows for value in self.cut)
        still_read = self.take in looked_up.ops
        alone = all(user is self.take for user, _ in self.graph.users[table])
        return Figures(
            eliminated=sum(value.type.size for value in self.eliminated),
            width=width,
            row=stored + (width if still_read else 0),
            stored=stored,
            vocab=table.type.shape[0],
            tokens=self.rows,
            drops_embedding=alone and not still_read,
            parameters=sum(value.type.size for value in params),
        )


def _cheapest(graph: Graph, take: Op, params: list[Value]) -> _Found:
    """What can be looked up behind `take`, its sums as they are or the row-wise terms first."""
    peeled_graph = _peel_loops_after(graph, take, params)
    plain = _found(peeled_graph, take, params, reordered=False)
    moved = _row_wise_first(peeled_graph, plain.region)
    if moved is peeled_graph:
        return plain
    return min(plain, _found(moved, take, params, reordered=True), key=lambda x: x.read_bytes)


def _found(graph: Graph, take: Op, params: list[Value], reordered: bool) -> _Found:
    bound = bound_values(graph, params)
    region = _row_wise(graph, take, known_values(graph, params))
    cut, eliminated = _cheapest_cut(graph, take, region, bound)
    read_bytes = sum(v.type.bytes for v in cut) - sum(v.type.bytes for v in eliminated)
    cut = [value for value in cut if value.op is not take]  # its rows are a table already
    return _Found(graph, take, bound, region, cut, eliminated, read_bytes, reordered)


def _row_wise_first(graph: Graph, region: dict[Value, int]) -> Graph:
    """x + a + f(x)  ->  (x + f(x)) + a, where a is not row-wise: in a parallel block, attention."""
    moved = {}
    for op, terms in sums(graph, whole=region).items():
        rows = [term for term in terms if term in region and term.type == op.types[0]]
        others = [term for term in terms if term not in rows]
        if len(rows) > 1 and others and terms[: len(rows)] != rows:
            total = rows[0]
            for term in (*rows[1:], *others):
                total = make("add", total, term, origin=op.origin)
            moved[op.results[0]] = total
    return replace_values(graph, moved) if moved else graph


def _embeddings(program: Program, params: list[Value]) -> list[Op]:
    """The takes of parameter rows by what the caller gives: by tokens, not by positions."""
    graph = program.graph
    given = dependents(graph, program.values("arg"))
    bound = bound_values(graph, params)
    return [
        op
        for op in graph.ops
        if op.name == "take"
        and op.args[0] in bound
        and op.args[1] in given
        and op.args[1].type.size
    ]


def _peel_loops_after(graph: Graph, take: Op, params: list[Value]) -> Graph:
    """The graph with the first iteration of every loop that starts from row-wise values peeled."""
    region = _row_wise(graph, take, known_values(graph, params))
    memo: dict[Value, Value] = {value: value for value in graph.inputs}
    for op in graph.ops:
        moved = with_args(op, tuple(memo[arg] for arg in op.args))
        results = moved.results
        if op.name == "scan" and not op["reverse"] and op["length"] > 1:
            if any(arg in region for arg in op.args[scan_parts(op)[1]]):
                results, _ = peeled(moved)
        memo.update(zip(op.results, results))
    return Graph(graph.inputs, tuple(memo[value] for value in graph.outputs))


def _row_wise(graph: Graph, take: Op, known: frozenset[Value]) -> dict[Value, int]:
    """Values that are a function of the taken row alone, with how many leading axes are rows."""
    region = {take.results[0]: take.args[1].type.rank}
    for op in graph.ops:
        if op is take or not any(arg in region for arg in op.args):
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


def _cheapest_cut(
    graph: Graph, take: Op, region: dict[Value, int], bound: frozenset[Value]
) -> tuple[list[Value], list[Value]]:
    """Which row-wise values to look up, and the parameters that the step then never reads.

    Every op is on the side of the tables, which is free, or of the step, which reads the op's
    parameters; a value that crosses is read, all its rows. The cheapest division is a minimum cut.
    """
    ops = list(dict.fromkeys(value.op for value in region))
    network = Network()
    network.edge("source", take)
    for op in ops:
        if op is not take:
            weights = sum(arg.type.bytes for arg in dict.fromkeys(op.args) if arg in bound)
            network.edge("source", op, weights)
        for value in op.results:
            network.edge(op, value, max(1, value.type.bytes))
            for reader, _ in graph.users.get(value, ()):
                if reader in region or reader.results[0] in region:
                    network.edge(value, reader)
                    network.edge(reader, op)
                else:
                    network.edge(value, "sink")
            if value in graph.outputs:
                network.edge(value, "sink")
    tables = network.source_side()
    cut = [value for value in region if value.op in tables and value not in tables]
    tabled = [op for op in ops if op in tables and op is not take]
    readers = {op for op in ops if op not in tables}
    weights = {
        arg: None
        for op in tabled
        for arg in op.args
        if op.name == "contract" and arg in bound
        if not any(user in readers for user, _ in graph.users[arg])
    }
    return cut, list(weights)


def _tabulated(take: Op, cut: list[Value], bound: frozenset[Value]) -> list[Value]:
    """For each cut value its table [v, ...]: the step's own ops, run over all ids in batches.

    The very ops of the step at the very shapes of the step, so the rows keep every bit.
    """
    table, ids = take.args
    vocab, rows = table.type.shape[0], ids.type.size
    batches = ceil(vocab / rows)
    used = _bound_arguments(cut, take, bound)
    chunk = new_input(Type("i32", ids.type.shape))
    inside = {value: new_input(value.type) for value in used}
    start = make("take", inside[table], chunk, mode=Symbol("GatherScatterMode.PROMISE_IN_BOUNDS"))
    shell = replace_values(Graph((), tuple(cut)), {**inside, take.results[0]: start})
    body = Graph((*inside.values(), chunk), shell.outputs)
    last = make("iota", dtype=Symbol("i32"), shape=(batches * rows,), dimension=0)
    last = make("rem", last, constant(vocab, Type("i32", ())))
    loop = build(
        "scan",
        *used,
        reshaped(last, (batches, *ids.type.shape)),
        regions=(body,),
        origin=take.origin.then("first_layer"),
        consts=len(used),
        carry=0,
        length=batches,
        reverse=False,
        unroll=1,
    )
    return [_table(result, value, vocab, rows) for result, value in zip(loop.results, cut)]


def _table(result: Value, value: Value, vocab: int, rows: int) -> Value:
    """[batches, rows..., rest...] -> [vocab, rest...]"""
    rest = _rest_shape(value, rows)
    flat = reshaped(result, (result.type.size // max(1, prod(rest)), *rest))
    return make(
        "slice",
        flat,
        start_indices=(0,) * flat.type.rank,
        limit_indices=(vocab, *rest),
    )


def _rest_shape(value: Value, rows: int) -> tuple[int, ...]:
    """The shape of one row of a row-wise value."""
    shape, count = value.type.shape, 0
    while prod(shape[:count]) < rows:
        count += 1
    while count < len(shape) and shape[count] == 1:
        count += 1
    return shape[count:]


def _bound_arguments(cut: list[Value], take: Op, bound: frozenset[Value]) -> list[Value]:
    """The parameters that computing `cut` reads, the table first."""
    found: dict[Value, None] = {take.args[0]: None}
    stack, seen = [value.op for value in cut], set()
    while stack:
        op = stack.pop()
        if op in seen or op is take:
            continue
        seen.add(op)
        for arg in op.args:
            if arg in bound:
                found[arg] = None
            else:
                stack.append(arg.op)
    return list(found)


def _why_not(graph: Graph, take: Op, region: dict[Value, int]) -> str:
    """The first reader that is not row-wise, or that its weights are cheaper than its rows."""
    readers = {reader for reader, _ in graph.users.get(take.results[0], ())}
    outside = [op for op in readers if op.results[0] not in region]
    if len(outside) == len(readers) and outside:
        where = f" at {outside[0].origin.source}" if outside[0].origin.source else ""
        return f"{outside[0].name}{where} mixes the embedding with something that is not its row"
    return f"at {take.args[1].type.size} tokens a step, reading the weights is fewer bytes"
