"""What `prepare` is made of: parts that have no work in common, in an order that saves memory.

    prepare(originals) -> packed      =      part(some originals) -> some packed, one after another

A loop over layers becomes one loop for each weight that it packs, and a large one is a part that
runs layer by layer, on the layer's own rows of the originals.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from dialect.matching.values import reshaped
from dialect.ops.control import remade_scan, scan_parts
from rewrite import opdef
from rewrite.dataflow import dependents, rebuilt
from rewrite.ir import Graph, Op, Type, Value, new_input, replace_values
from rewrite.opdef import make, with_args
from rewrite.program import Program

GRAIN_BYTES = 32 << 20  # parts below this are run together: compiling costs more than they hold
_LIGHT = 16  # an op that reads so much less than the outputs which share it is done again


@dataclass(frozen=True)
class Read:
    """What is read of an original: all of it, or rows of its first axis (from, up to)."""

    number: int
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class Part:
    """Some packed parameters, `makes` by number, from some originals.

    `graph` takes what `fixed` reads. Where there are `layers`, it is the work of one layer: it
    takes what that layer reads as well, and gives that layer of each result.
    """

    graph: Graph
    makes: tuple[int, ...]
    fixed: tuple[Read, ...]
    layers: tuple[tuple[Read, ...], ...] = ()

    @property
    def units(self) -> int:
        """In how many steps it runs."""
        return len(self.layers) or 1

    def reads(self, unit: int) -> tuple[Read, ...]:
        """What step number `unit` reads, in the order of the graph's inputs."""
        return (*self.fixed, *self.layers[unit]) if self.layers else self.fixed

    @property
    def numbers(self) -> frozenset[int]:
        """The originals that it reads."""
        return frozenset(each.number for unit in range(self.units) for each in self.reads(unit))

    @property
    def made_bytes(self) -> int:
        """Bytes of all that the part makes."""
        return self.units * sum(value.type.bytes for value in self.graph.outputs)

    @property
    def step_bytes(self) -> int:
        """Bytes that one step holds beside the results."""
        return sum(value.type.bytes for value in self.graph.inputs)


def prepare_of(program: Program) -> Graph:
    """Originals -> packed parameters; of a program that is not staged they are the same."""
    values = tuple(program.values("param"))
    return program.stages.prepare if program.stages else Graph(values, values)


def parts(prepare: Graph, grain_bytes: int = GRAIN_BYTES) -> list[Part]:
    """The parts of a `prepare`. Small ones are joined until they hold `grain_bytes`."""
    graph = loosened(prepare)
    found, small = [], []
    for numbers in shared_work(graph):
        if _bytes(graph, numbers) >= grain_bytes:
            found.append(_in_layers(_part(graph, numbers)))
            continue
        small += numbers
        if _bytes(graph, small) >= grain_bytes:
            found.append(_part(graph, small))
            small = []
    return found + ([_part(graph, small)] if small else [])


def in_order(found: Sequence[Part], freed_bytes: Sequence[int]) -> list[Part]:
    """The parts in an order in which the largest amount held at any time is small.

    `freed_bytes` says what each original gives back after its last reader. Parts that read the
    same originals stay together. What gives back more than it makes comes first, the cheapest
    ahead; then the others, the largest excess ahead (Abdel-Wahab and Kameda 1978).
    """

    def urgency(together: list[Part]) -> tuple[int, int]:
        read = frozenset().union(*(part.numbers for part in together))
        gained = sum(part.made_bytes for part in together) - sum(freed_bytes[n] for n in read)
        peak = max(part.step_bytes + part.made_bytes for part in together)
        return (0, peak) if gained < 0 else (1, gained - peak)

    groups = sorted(_by_originals(found), key=urgency)
    # Last what passes an original on: until then it can be read by others.
    return [p for group in groups for p in sorted(group, key=lambda part: not part.graph.ops)]


def loosened(graph: Graph) -> Graph:
    """`graph` with less that only looks like work in common.

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
    """The results of a loop that carries nothing, from a loop for each group that shares work."""
    body = loosened(op.regions[0])
    consts, _, xs = (op.args[part] for part in scan_parts(op))
    results: dict[int, Value] = {}
    for numbers in shared_work(body):
        own = Graph(body.inputs, tuple(body.outputs[n] for n in numbers))
        results.update(zip(numbers, remade_scan(op, own, consts, (), xs).results))
    return [results[number] for number in range(len(body.outputs))]


def shared_work(graph: Graph) -> list[list[int]]:
    """The numbers of the outputs, in groups that have no work in common.

    An op that depends on no input, or reads little beside what shares it, counts as none.
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
    return min(read, sum(each.bytes for each in op.types)) if moves else read


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
        first, *others = sorted({self.find(number) for number in numbers})
        for other in others:
            self.parent[other] = first
            self.bytes[first] += self.bytes[other]
        return first

    def members(self) -> list[list[int]]:
        found: dict[int, list[int]] = {}
        for number in range(len(self.parent)):
            found.setdefault(self.find(number), []).append(number)
        return list(found.values())


def _by_originals(found: Sequence[Part]) -> list[list[Part]]:
    """The parts in groups that read no original in common."""
    groups = _Groups(part.made_bytes for part in found)
    readers: dict[int, list[int]] = {}
    for place, part in enumerate(found):
        for number in part.numbers:
            readers.setdefault(number, []).append(place)
    for places in readers.values():
        groups.join(places)
    return [[found[place] for place in places] for places in groups.members()]


def alone(graph: Graph, numbers: Sequence[int]) -> tuple[Graph, list[int]]:
    """The graph of some outputs, and the numbers of the inputs that it reads."""
    outputs = tuple(graph.outputs[number] for number in numbers)
    read = Graph(graph.inputs, outputs)
    used = [n for n, v in enumerate(graph.inputs) if v in read.users or v in outputs]
    return Graph(tuple(graph.inputs[n] for n in used), outputs), used


def _bytes(graph: Graph, numbers: Sequence[int]) -> int:
    own, _ = alone(graph, numbers)
    return sum(value.type.bytes for value in (*own.inputs, *own.outputs))


def _part(graph: Graph, numbers: Sequence[int]) -> Part:
    """What makes these outputs. Of an original that is only cut into rows, the rows are read."""
    own, used = alone(graph, numbers)
    reads: dict[Value, Read] = {}
    rows: dict[Value, Value] = {}
    for value, number in zip(own.inputs, used):
        users = [op for op, _ in own.users.get(value, ())]
        if value in own.outputs or not all(map(_is_rows, users)):
            reads[value] = Read(number)
            continue
        for op in users:
            (result,) = op.results
            rows[result] = new_input(result.type)
            start = op["start_indices"][0]
            reads[rows[result]] = Read(number, (start, start + result.type.shape[0]))
    outputs = replace_values(own, rows).outputs
    return Part(Graph(tuple(reads), outputs), tuple(numbers), tuple(reads.values()))


def _is_rows(op: Op) -> bool:
    """Whether an op takes some neighbouring rows of an array, and all of each row."""
    if op.name != "slice" or not all(stride == 1 for stride in op.get("strides") or ()):
        return False
    some = op.types[0].shape[:1] not in ((), (0,))
    return some and op.types[0].shape[1:] == op.args[0].type.shape[1:]


def _in_layers(part: Part) -> Part:
    """The part as the work of one layer, where it is a loop over layers of the originals.

    A stack of originals is such a loop too, one that changes nothing.
    """
    graph, reads = part.graph, dict(zip(part.graph.inputs, part.fixed))
    ops = {value.op for value in graph.outputs}
    (op,) = ops if len(ops) == 1 else (None,)
    if op is None or op.name not in ("scan", "stack") or set(op.results) != set(graph.outputs):
        return part
    if op.name == "stack":
        (whole,), inside = graph.outputs, new_input(op.args[0].type)
        body, consts, xs = Graph((inside,), (inside,)), (), (whole,)
    else:
        body, (consts, _, xs) = op.regions[0], (op.args[each] for each in scan_parts(op))
    rows = [_rows_of(value, reads) for value in xs]
    bound = dependents(graph, graph.inputs)
    if not rows or not all(rows) or any(v in bound and v not in reads for v in consts):
        return part
    held = dict(zip(body.inputs, consts))
    entering = []
    for inside, value in zip(body.inputs[len(consts) :], xs):
        row = new_input(_of_rows(value.type, 1) if value in reads else inside.type)
        held[inside] = reshaped(row, inside.type.shape) if value in reads else row
        entering.append(row)
    fixed = tuple(dict.fromkeys(value for value in consts if value in reads))
    order = {value: number for value, number in zip(graph.outputs, part.makes)}
    return Part(
        Graph((*fixed, *entering), replace_values(body, held).outputs),
        tuple(order[value] for value in op.results),
        tuple(reads[value] for value in fixed),
        tuple(zip(*rows)),
    )


def _rows_of(value: Value, reads: dict[Value, Read]) -> list[Read]:
    """What is read for each row of a value that is an original or a stack of them; else nothing."""
    if value in reads:
        read, count = reads[value], value.type.shape[0]
        first = read.rows[0] if read.rows else 0
        return [Read(read.number, (first + i, first + i + 1)) for i in range(count)]
    if _is_stack(value) and all(arg in reads for arg in value.op.args):
        return [reads[arg] for arg in value.op.args]
    return []


def _is_stack(value: Value) -> bool:
    return value.op.name == "stack" and value.op["axis"] == 0


def _of_rows(whole: Type, count: int) -> Type:
    return replace(whole, shape=(count, *whole.shape[1:]))
