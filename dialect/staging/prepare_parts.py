"""`prepare` in independent parts, in an order that saves memory.

    prepare(originals) -> packed      =      part(some originals) -> some packed, one after another

A loop over layers becomes one loop for each weight that it packs, and a large one is a part that
runs layer by layer, on the layer's own rows of the originals.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from dialect.arrays.components import connected
from dialect.matching.values import reshaped
from dialect.ops.control import remade_scan, scan_parts
from rewrite import opdef
from rewrite.dataflow import dependents, rebuilt
from rewrite.ir import Graph, Op, Type, Value, new_input, replace_values
from rewrite.opdef import make, with_args
from rewrite.program import Program

GRAIN_BYTES = 32 << 20  # smaller parts are joined: compiling them costs more than their memory
_LIGHT = 16  # an op that reads this much less than the outputs that share it is duplicated


@dataclass(frozen=True)
class Read:
    """A read of an original: all of it, or rows of its first axis (from, up to)."""

    number: int
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class Part:
    """Some packed parameters, `makes` by number, computed from some originals.

    `graph` takes the reads of `fixed`. Where there are `layers`, it computes one layer: it also
    takes the reads of that layer, and gives that layer of each result.
    """

    graph: Graph
    makes: tuple[int, ...]
    fixed: tuple[Read, ...]
    layers: tuple[tuple[Read, ...], ...] = ()

    @property
    def units(self) -> int:
        """The number of steps that it runs in."""
        return len(self.layers) or 1

    def reads(self, unit: int) -> tuple[Read, ...]:
        """The reads of step number `unit`, in the order of the graph's inputs."""
        return (*self.fixed, *self.layers[unit]) if self.layers else self.fixed

    @property
    def numbers(self) -> frozenset[int]:
        """The originals that it reads."""
        return frozenset(read.number for unit in range(self.units) for read in self.reads(unit))

    @property
    def made_bytes(self) -> int:
        """Bytes of all results of the part."""
        return self.units * sum(value.type.bytes for value in self.graph.outputs)

    @property
    def step_bytes(self) -> int:
        """Bytes that one step holds besides the results."""
        return sum(value.type.bytes for value in self.graph.inputs)


def prepare_of(program: Program) -> Graph:
    """Originals -> packed parameters, which are the same in a program that is not staged."""
    values = tuple(program.values("param"))
    return program.stages.prepare if program.stages else Graph(values, values)


def parts(prepare: Graph, grain_bytes: int = GRAIN_BYTES) -> list[Part]:
    """The parts of a `prepare`. Small ones are joined until they hold `grain_bytes`."""
    graph = separated(prepare)
    large, small = [], []
    for numbers in independent_groups(graph):
        if _bytes(graph, numbers) >= grain_bytes:
            large.append(_in_layers(_part(graph, numbers)))
            continue
        small += numbers
        if _bytes(graph, small) >= grain_bytes:
            large.append(_part(graph, small))
            small = []
    return large + ([_part(graph, small)] if small else [])


def in_order(work: Sequence[Part], freed_bytes: Sequence[int]) -> list[Part]:
    """The parts in an order with a small peak of memory.

    `freed_bytes` are the bytes of each original, freed after its last reader. Parts that read the
    same originals stay together. Groups that free more than they make come first, by rising peak;
    then the others, by falling excess of their peak over their gain (Abdel-Wahab and Kameda 1978).
    """

    def urgency(together: list[Part]) -> tuple[int, int]:
        read = frozenset().union(*(part.numbers for part in together))
        gained = sum(part.made_bytes for part in together) - sum(freed_bytes[n] for n in read)
        peak = max(part.step_bytes + part.made_bytes for part in together)
        return (0, peak) if gained < 0 else (1, gained - peak)

    groups = sorted(_by_originals(work), key=urgency)
    # A part that passes an original on comes last: until then others can read it.
    return [p for group in groups for p in sorted(group, key=lambda part: not part.graph.ops)]


def separated(graph: Graph) -> Graph:
    """`graph` with work separated that outputs need not share.

    scan(w, v -> f(w), g(v))  ->  scan(w -> f(w)), scan(v -> g(v))
    stack(a, b, c)[1:]        ->  stack(b, c)
    """
    return rebuilt(graph, lambda op, args: _loose(with_args(op, args)))


def _loose(op: Op) -> Sequence[Value]:
    if op.name == "scan" and op["carry"] == 0:
        return _loops(op)
    if _is_rows(op) and _is_stack(op.args[0]):
        start = op["start_indices"][0]
        rows = op.args[0].op.args[start : start + op.types[0].shape[0]]
        return [make("stack", *rows, axis=0)]
    return op.results


def _loops(op: Op) -> list[Value]:
    """The results of a loop that carries nothing, from one loop for each independent group."""
    body = separated(op.regions[0])
    consts, _, xs = (op.args[part] for part in scan_parts(op))
    results: dict[int, Value] = {}
    for numbers in independent_groups(body):
        group = Graph(body.inputs, tuple(body.outputs[n] for n in numbers))
        results.update(zip(numbers, remade_scan(op, group, consts, (), xs).results))
    return [results[number] for number in range(len(body.outputs))]


def independent_groups(graph: Graph) -> list[list[int]]:
    """The numbers of the outputs, in groups that share no work.

    Ops that depend on no input, or read little compared with the outputs that share them, do not
    count.
    """
    bound = dependents(graph, graph.inputs)
    groups = _Groups(value.type.bytes for value in graph.outputs)
    needed: dict[Op, set[int]] = {}
    for number, value in enumerate(graph.outputs):
        needed.setdefault(value.op, set()).add(number)
    for op in reversed(graph.ops):
        owners = {groups.find(number) for number in needed.get(op, ())}
        if len(owners) > 1 and op.results[0] in bound:
            if _touched_bytes(op) * _LIGHT >= min(groups.bytes[owner] for owner in owners):
                owners = {groups.join(owners)}
        for arg in op.args:
            needed.setdefault(arg.op, set()).update(owners)
    return groups.members()


def _touched_bytes(op: Op) -> int:
    read = sum(arg.type.bytes for arg in op.args)
    moves = opdef.traits(op).moves or op.name == "convert_element_type"
    return min(read, sum(type_.bytes for type_ in op.types)) if moves else read


class _Groups:
    """Numbers in groups that can be joined, each with a weight in bytes."""

    def __init__(self, sizes: Iterable[int]) -> None:
        self.bytes = list(sizes)
        self.parent = list(range(len(self.bytes)))

    def find(self, number: int) -> int:
        while self.parent[number] != number:
            self.parent[number] = number = self.parent[self.parent[number]]
        return number

    def join(self, numbers: Iterable[int]) -> int:
        first, *merged = sorted({self.find(number) for number in numbers})
        for root in merged:
            self.parent[root] = first
            self.bytes[first] += self.bytes[root]
        return first

    def members(self) -> list[list[int]]:
        groups: dict[int, list[int]] = {}
        for number in range(len(self.parent)):
            groups.setdefault(self.find(number), []).append(number)
        return list(groups.values())


def _by_originals(work: Sequence[Part]) -> list[list[Part]]:
    """The parts in groups that read no original in common."""
    links = [(place, *((number,) for number in part.numbers)) for place, part in enumerate(work)]
    places = ([node for node in group if isinstance(node, int)] for group in connected(links))
    return [[work[place] for place in group] for group in places]


def subgraph(graph: Graph, numbers: Sequence[int]) -> tuple[Graph, list[int]]:
    """The graph of some outputs, and the numbers of the inputs that they depend on."""
    outputs = tuple(graph.outputs[number] for number in numbers)
    read = Graph(graph.inputs, outputs)
    used = [n for n, v in enumerate(graph.inputs) if v in read.users or v in outputs]
    return Graph(tuple(graph.inputs[n] for n in used), outputs), used


def _bytes(graph: Graph, numbers: Sequence[int]) -> int:
    needed, _ = subgraph(graph, numbers)
    return sum(value.type.bytes for value in (*needed.inputs, *needed.outputs))


def _part(graph: Graph, numbers: Sequence[int]) -> Part:
    """The part with these outputs. Of an original that it only slices, it reads the slices."""
    needed, used = subgraph(graph, numbers)
    reads: dict[Value, Read] = {}
    rows: dict[Value, Value] = {}
    for value, number in zip(needed.inputs, used):
        users = [op for op, _ in needed.users.get(value, ())]
        if value in needed.outputs or not all(map(_is_rows, users)):
            reads[value] = Read(number)
            continue
        for op in users:
            (result,) = op.results
            rows[result] = new_input(result.type)
            start = op["start_indices"][0]
            reads[rows[result]] = Read(number, (start, start + result.type.shape[0]))
    outputs = replace_values(needed, rows).outputs
    return Part(Graph(tuple(reads), outputs), tuple(numbers), tuple(reads.values()))


def _is_rows(op: Op) -> bool:
    """Whether an op slices consecutive whole rows of an array."""
    if op.name != "slice" or not all(stride == 1 for stride in op.get("strides") or ()):
        return False
    some = op.types[0].shape[:1] not in ((), (0,))
    return some and op.types[0].shape[1:] == op.args[0].type.shape[1:]


def _in_layers(part: Part) -> Part:
    """The part as the work of one layer, where it is a loop over layers of the originals.

    A stack of originals is such a loop too, whose body is the identity.
    """
    graph, reads = part.graph, dict(zip(part.graph.inputs, part.fixed))
    ops = {value.op for value in graph.outputs}
    (op,) = ops if len(ops) == 1 else (None,)
    if op is None or op.name not in ("scan", "stack") or set(op.results) != set(graph.outputs):
        return part
    if op.name == "stack":
        (stacked,), inside = graph.outputs, new_input(op.args[0].type)
        body, consts, xs = Graph((inside,), (inside,)), (), (stacked,)
    else:
        body, (consts, _, xs) = op.regions[0], (op.args[part] for part in scan_parts(op))
    rows = [_rows_of(value, reads) for value in xs]
    bound = dependents(graph, graph.inputs)
    if not rows or not all(rows) or any(v in bound and v not in reads for v in consts):
        return part
    entered = dict(zip(body.inputs, consts))
    entering = []
    for inside, value in zip(body.inputs[len(consts) :], xs):
        row = new_input(_of_rows(value.type, 1) if value in reads else inside.type)
        entered[inside] = reshaped(row, inside.type.shape) if value in reads else row
        entering.append(row)
    fixed = tuple(dict.fromkeys(value for value in consts if value in reads))
    order = {value: number for value, number in zip(graph.outputs, part.makes)}
    return Part(
        Graph((*fixed, *entering), replace_values(body, entered).outputs),
        tuple(order[value] for value in op.results),
        tuple(reads[value] for value in fixed),
        tuple(zip(*rows)),
    )


def _rows_of(value: Value, reads: dict[Value, Read]) -> list[Read]:
    """The read for each row of a value that is an original or a stack of originals; else none."""
    if value in reads:
        read, count = reads[value], value.type.shape[0]
        first = read.rows[0] if read.rows else 0
        return [Read(read.number, (first + i, first + i + 1)) for i in range(count)]
    if _is_stack(value) and all(arg in reads for arg in value.op.args):
        return [reads[arg] for arg in value.op.args]
    return []


def _is_stack(value: Value) -> bool:
    return value.op.name == "stack" and value.op["axis"] == 0


def _of_rows(type_: Type, count: int) -> Type:
    return replace(type_, shape=(count, *type_.shape[1:]))
