"""A parser for HLO text: parameters, aliases, collectives and trip counts of an executable.

Reads what `compiled.as_text()` prints for CPU and TPU. A computation is parsed once, on first use;
layouts and tilings are ignored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from dialect.arrays.components import connected
from dialect.arrays.expected_trips import expected_trips

COLLECTIVES = {
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
}
# The TPU compiler writes a reduce-scatter as a computation of this name: all-reduce and slice.
_REDUCE_SCATTER = "all-reduce-scatter"

_ALIAS = re.compile(r"\{(\d*)\}: \((\d+), \{\}, \w+-alias\)")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_ASIDE = re.compile(r"\{[^{}]*\}|/\*.*?\*/")  # layouts, and the numbers of tuple elements
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CALLEES = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([\w\-]+)\(([^()]*)\)")
_LOOP = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclass(frozen=True)
class Instruction:
    """`name = type opcode(operands)`. The operand of a constant is its value, as text."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    line: str

    def attribute(self, pattern: str) -> str:
        """The first group of `pattern` in the line, or ""."""
        match = re.search(pattern, self.line)
        return match[1] if match else ""

    @property
    def is_root(self) -> bool:
        """Whether it is the result of its computation."""
        return self.line.lstrip().startswith("ROOT ")

    @property
    def source(self) -> str:
        """The name of the JAX operation that it implements."""
        return self.attribute(r'op_name="([^"]*)"')


@dataclass(frozen=True)
class CollectiveInstruction:
    """A collective; `trips` is the number of its executions, None if that is not a constant."""

    kind: str
    type: str
    line: str
    trips: float | None
    source: str

    @property
    def channel(self) -> str:
        """The channel id, which the parts of an asynchronous collective share; "" without one."""
        match = re.search(r"channel_id=(\d+)", self.line)
        return match[1] if match else ""


class Module:
    """An HLO module: computations as dicts of instructions by name."""

    def __init__(self, text: str) -> None:
        self.header, *lines = text.splitlines()
        sizes = re.findall(r"(?:num_partitions|replica_count)=(\d+)", self.header)
        self.chips = math.prod(map(int, sizes))
        self.entry = ""
        self._lines: dict[str, list[str]] = {}
        self._parsed: dict[str, dict[str, Instruction]] = {}
        body: list[str] = []
        for line in lines:
            start = None if line[:1].isspace() else _COMPUTATION.match(line)
            if start is None:
                body.append(line)
                continue
            body = self._lines[start[2]] = []
            self.entry = start[2] if start[1] else self.entry

    def computation(self, name: str) -> dict[str, Instruction]:
        """The instructions of a computation by name, in the order of the text."""
        if name not in self._parsed:
            parsed = map(_instruction, self._lines[name])
            self._parsed[name] = {op.name: op for op in parsed if op is not None}
        return self._parsed[name]

    def root(self, name: str) -> Instruction:
        """The root instruction of a computation: its result."""
        return next(op for op in self.computation(name).values() if op.is_root)

    def parameters(self) -> list[tuple[str, tuple[int, ...]]]:
        """(dtype, shape) of the shard of every entry parameter."""
        layout = self.header.partition("entry_computation_layout={(")[2].partition(")->")[0]
        return arrays(_ASIDE.sub("", layout))

    def aliases(self) -> list[tuple[int, int]]:
        """(parameter, output) for every output that aliases a parameter."""
        pairs = _ALIAS.findall(self.header)
        return [(int(parameter), int(output or 0)) for output, parameter in pairs]


def module_of(compiled: Any) -> Module:
    """The program of a `jax.stages.Compiled`."""
    return _module(compiled.as_text())


@lru_cache(maxsize=1)  # every report about one executable reads it
def _module(text: str) -> Module:
    return Module(text)


def _instruction(line: str) -> Instruction | None:
    head = line.partition(", metadata=")[0].partition(", backend_config=")[0]
    match = _INSTRUCTION.match(_ASIDE.sub("", head))
    if match is None:
        return None
    name, type_, opcode, inside = match.groups()
    return Instruction(name, type_, opcode, tuple(_NAME.findall(inside)) or (inside,), line)


def arrays(type_: str) -> list[tuple[str, tuple[int, ...]]]:
    """ "(bf16[64,512], u32[])" -> [("bf16", (64, 512)), ("u32", ())]"""
    return [(dtype, _ints(dims)) for dtype, dims in _ARRAY.findall(type_)]


def array_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """("bf16", (64, 512)) -> 65536. Unpadded; types below a byte are packed."""
    width = re.search(r"\d+", dtype)
    bits = int(width[0]) if width else 8 if dtype == "pred" else 0
    return -(-math.prod(shape) * bits // 8)


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)


# Collectives and trip counts.


def scheduled(module: Module) -> Iterator[tuple[str, float | None]]:
    """Every computation that is scheduled by itself, and how often it runs: None if that is not a
    constant. All branches of conditionals count as taken."""
    waiting: list[tuple[str, float | None]] = [(module.entry, 1)]
    while waiting:
        name, trips = waiting.pop()
        yield name, trips
        body, inner = module.computation(name), []
        for op in body.values():
            if op.opcode == "while":
                loop_body, times = loop_of(module, op, body)
                inner.append((loop_body, None if trips is None or times is None else trips * times))
            elif op.opcode in ("call", "conditional"):
                inner += [(callee, trips) for callee in callees(op)]
        waiting += reversed(inner)


def collectives(module: Module) -> Iterator[CollectiveInstruction]:
    """Every collective that runs.

    An asynchronous one occurs in several fusions (start, overlapped work, end), which share a
    channel, and counts once.
    """
    for name, trips in scheduled(module):
        body = module.computation(name)
        seen: set[str] = set()
        for op in body.values():
            if op.opcode in ("while", "call", "conditional"):
                continue
            inside = list(collectives_of(module, body, op))
            if op.opcode == "fusion":
                inside = [part for part in inside if part.channel not in seen]
                seen |= {part.channel for part in inside} - {""}
            yield from (replace(collective, trips=trips) for collective in inside)


def collectives_of(
    module: Module, body: dict[str, Instruction], op: Instruction
) -> Iterator[CollectiveInstruction]:
    """The collectives that one instruction runs or starts, inside its fusion too."""
    kind = op.opcode.removesuffix("-start")
    if kind in COLLECTIVES:
        yield CollectiveInstruction(kind, _result_type(op, body), op.line, 1, source_near(op, body))
    elif not op.opcode.endswith(("-done", "-update")):
        for callee in callees(op):
            inside = module.computation(callee)
            for inner in inside.values():
                for part in collectives_of(module, inside, inner):
                    yield _scattered(op, part) if callee.startswith(_REDUCE_SCATTER) else part


def source_near(op: Instruction, body: dict[str, Instruction]) -> str:
    """The JAX operation of an instruction, or of the nearest operand that has one."""
    near = {op.name: op}
    for name in (names := [op.name]):
        if near[name].source:
            return near[name].source
        operands = [n for n in near[name].operands if n in body and n not in near]
        near |= {operand: body[operand] for operand in operands}
        names += operands
    return ""


def loop_of(
    module: Module, loop: Instruction, around: dict[str, Instruction]
) -> tuple[str, float | None]:
    """(body, trips) of a `while`; trips are None if they are not a constant."""
    condition, body = _LOOP.search(loop.line).groups()
    return body, _trip_count(module, loop, around, condition, body)


def _scattered(fusion: Instruction, collective: CollectiveInstruction) -> CollectiveInstruction:
    source = collective.source or fusion.source
    return replace(collective, kind="reduce-scatter", type=fusion.type, source=source)


def callees(op: Instruction) -> list[str]:
    """The computations that an instruction calls, except those of loops."""
    return _CALLEES.findall(op.line) + _NAME.findall(op.attribute(_BRANCHES.pattern))


def _result_type(op: Instruction, body: dict[str, Instruction]) -> str:
    """The type of a collective; for an asynchronous one that of its end, since the start's type
    includes the operands."""
    if not op.opcode.endswith("-start"):
        return op.type
    end = op.opcode.removesuffix("-start") + "-done"
    return next(b.type for b in body.values() if b.opcode == end and op.name in b.operands)


def _trip_count(
    module: Module, loop: Instruction, around: dict[str, Instruction], condition: str, body: str
) -> float | None:
    """The trip count of a loop: XLA's, or as its name expects, or computed if its condition is
    `counter < limit`; of several conditions the most trips that one of these allows."""
    known = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
    if known:
        return int(known)
    expected = expected_trips(loop.source)
    if expected is not None:
        return expected
    asked = module.computation(condition)
    before, after = around.get(loop.operands[0]), module.root(body)
    if before is None or {before.opcode, after.opcode} != {"tuple"}:
        return None
    counts = [
        _most_trips(asked, test, around, before, module.computation(body), after)
        for test in _conjuncts(asked, module.root(condition))
        if test.opcode == "compare" and "direction=LT" in test.line
    ]
    return min((count for count in counts if count is not None), default=None)


def _conjuncts(body: dict[str, Instruction], test: Instruction) -> Iterator[Instruction]:
    """and(a, and(b, c))  ->  a, b, c"""
    if test.opcode != "and":
        yield test
        return
    for operand in test.operands:
        yield from _conjuncts(body, body[operand])


def _most_trips(
    asked: dict[str, Instruction],
    test: Instruction,
    around: dict[str, Instruction],
    before: Instruction,
    body: dict[str, Instruction],
    after: Instruction,
) -> int | None:
    """How often `counter + n < limit` holds at most; None if one of them is not known."""
    left, ahead = _behind_copies(asked, test.operands[0]), 0
    if left is not None and left.opcode == "add":
        left, ahead = asked[left.operands[0]], _constant(asked, left.operands[1])
    counter = left and _element(asked, left.name)
    limit = _element(asked, test.operands[1])
    if counter is None or ahead is None:
        return None
    first = _constant(around, before.operands[counter])
    step = _step(body, after.operands[counter], counter)
    last = _constant(asked, test.operands[1])
    if last is None and limit is not None:
        last = _constant(around, before.operands[limit])
    return None if first is None or last is None or not step else -(-(last - first - ahead) // step)


def _step(body: dict[str, Instruction], name: str, counter: int) -> int | None:
    """n, if a loop body adds n to element `counter` of its state."""
    sum_ = _behind_copies(body, name)
    if sum_ is None or sum_.opcode != "add" or _element(body, sum_.operands[0]) != counter:
        return None
    return _constant(body, sum_.operands[1])


def _element(body: dict[str, Instruction], name: str) -> int | None:
    """The index of a value in its computation's parameter, a tuple."""
    element = _behind_copies(body, name)
    if element is None or element.opcode != "get-tuple-element":
        return None
    state = body.get(element.operands[0])
    is_parameter = state is not None and state.opcode == "parameter"
    return int(element.attribute(r"index=(\d+)")) if is_parameter else None


def _constant(body: dict[str, Instruction], name: str) -> int | None:
    op = _behind_copies(body, name)
    is_constant = op is not None and op.opcode == "constant"
    return int(op.operands[0]) if is_constant and op.operands[0].isdigit() else None


def _behind_copies(body: dict[str, Instruction], name: str) -> Instruction | None:
    op = body.get(name)
    while op is not None and op.opcode in ("copy", "bitcast"):
        op = body.get(op.operands[0])
    return op


# Replica groups.


def chip_groups(line: str, chips: int) -> list[set[int]] | None:
    """The replica groups of a collective in any of XLA's notations; None if there are none."""
    pairs = permuted(line)
    if pairs:
        return [set(group) for group in connected(pairs)]
    listed = re.search(r"replica_groups=(\{\{.*?\}\}|\{\})", line)
    if listed:
        groups = re.findall(r"\{([\d,]+)\}", listed[1])
        return [set(_ints(group)) for group in groups] or [set(range(chips))]
    counted = re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", line)
    if counted:
        return [set(row) for row in _order(counted[2]).reshape(_ints(counted[1])).tolist()]
    by_axes = re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((\S+)\))? \{(.*?)\}", line)
    return _along_axes(*by_axes.groups()) if by_axes else None


def permuted(line: str) -> list[tuple[int, ...]]:
    """The pairs (source, target) of a collective-permute."""
    pairs = re.search(r"source_target_pairs=\{(.*?\})\}", line)
    return [_ints(pair) for pair in re.findall(r"\{([\d,]+)\}", pairs[1])] if pairs else []


def _order(text: str) -> np.ndarray:
    """Chip numbers: "[2,4]T(1,0)" is 0 to 7 in two rows of four, read column by column."""
    dims, _, axes = text.rstrip(")").partition("T(")
    if not dims.startswith("["):
        return np.array(_ints(dims))
    shape = _ints(dims.strip("[]"))
    return np.arange(math.prod(shape)).reshape(shape).transpose(_ints(axes) or None).ravel()


def _along_axes(mesh: str, order: str | None, axes: str) -> list[set[int]]:
    """Groups along mesh axes: "'x'=2,'y'=4" and "'y'", or "'y':(2)2" for a factor of y.

    The factor (2)2 of an axis of 8 is the second one of 2 x 2 x 2.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh)}
    parts = {
        name: (int(before or 1), int(part or sizes[name]))
        for name, before, part in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", axes)
    }
    chips = _order(order) if order else np.arange(math.prod(sizes.values()))
    groups: dict[tuple[int, ...], set[int]] = {}
    for chip, place in zip(chips.tolist(), np.ndindex(*sizes.values())):
        outside: list[int] = []
        for (name, size), at in zip(sizes.items(), place):
            before, part = parts.get(name, (size, 1))
            after = size // (before * part)
            outside += [at // (part * after), at % after]
        groups.setdefault(tuple(outside), set()).add(chip)
    return list(groups.values())
