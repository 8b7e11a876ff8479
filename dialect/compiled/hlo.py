"""HLO text, read: what an executable takes, the collectives in it, and how often they run.

The text is what `compiled.as_text()` gives for CPU and TPU. Each computation is parsed once, when
something in it is asked for; layouts and tilings are left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

COLLECTIVES = {
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
}
# The TPU compiler writes a reduce-scatter as an all-reduce and a slice in a computation so named.
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
        """The first group of `pattern` in the whole line, or nothing."""
        found = re.search(pattern, self.line)
        return found[1] if found else ""

    @property
    def is_root(self) -> bool:
        return self.line.lstrip().startswith("ROOT ")

    @property
    def source(self) -> str:
        """The JAX operation that it was made for."""
        return self.attribute(r'op_name="([^"]*)"')


@dataclass(frozen=True)
class Found:
    """A collective; `trips` is how often it runs, None where that is not known."""

    kind: str
    type: str
    line: str
    trips: int | None
    source: str

    @property
    def channel(self) -> str:
        """What the parts of one collective have in common, empty where it has no other parts."""
        found = re.search(r"channel_id=(\d+)", self.line)
        return found[1] if found else ""


class Module:
    """The text of an HLO module, cut into computations: each a dict of instructions by name."""

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
        if name not in self._parsed:
            found = map(_instruction, self._lines[name])
            self._parsed[name] = {each.name: each for each in found if each is not None}
        return self._parsed[name]

    def root(self, name: str) -> Instruction:
        """The instruction that gives a computation's result."""
        return next(each for each in self.computation(name).values() if each.is_root)

    def parameters(self) -> list[tuple[str, tuple[int, ...]]]:
        """(dtype, shape) of every entry parameter: the part of it on one chip."""
        layout = self.header.partition("entry_computation_layout={(")[2].partition(")->")[0]
        return arrays(_ASIDE.sub("", layout))

    def aliases(self) -> list[tuple[int, int]]:
        """(parameter, output) for every output that is written over a parameter."""
        found = _ALIAS.findall(self.header)
        return [(int(parameter), int(output or 0)) for output, parameter in found]


def _instruction(line: str) -> Instruction | None:
    head = line.partition(", metadata=")[0].partition(", backend_config=")[0]
    found = _INSTRUCTION.match(_ASIDE.sub("", head))
    if found is None:
        return None
    name, type_, opcode, inside = found.groups()
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
    return tuple(int(each) for each in text.split(",") if each)


# Which collectives run, and how often.


def collectives(module: Module) -> Iterator[Found]:
    """Every collective; of an asynchronous pair the one, and a conditional's branches all."""
    yield from _walk(module, module.entry, 1)


def _walk(module: Module, name: str, trips: int | None) -> Iterator[Found]:
    """Those below a computation that runs `trips` times.

    A collective that runs alongside other work shows in several fusions: where it starts, what it
    runs along, where it ends. They share a channel.
    """
    body = module.computation(name)
    met: set[str] = set()
    for each in body.values():
        if each.opcode == "while":
            loop_body, times = loop_of(module, each, body)
            inner = None if trips is None or times is None else trips * times
            yield from _walk(module, loop_body, inner)
        elif each.opcode in ("call", "conditional"):
            for callee in callees(each):
                yield from _walk(module, callee, trips)
        else:
            found = list(collectives_of(module, body, each))
            again = met if each.opcode == "fusion" else set()
            yield from (replace(one, trips=trips) for one in found if one.channel not in again)
            met |= {one.channel for one in found if one.channel and each.opcode == "fusion"}


def collectives_of(
    module: Module, body: dict[str, Instruction], each: Instruction
) -> Iterator[Found]:
    """Those that one instruction of a schedule runs or starts, in its fusion or by itself."""
    kind = each.opcode.removesuffix("-start")
    if kind in COLLECTIVES:
        yield Found(kind, _result_type(each, body), each.line, 1, _source(each, body))
    elif not each.opcode.endswith(("-done", "-update")):
        for callee in callees(each):
            inside = module.computation(callee)
            for inner in inside.values():
                for found in collectives_of(module, inside, inner):
                    yield _scattered(each, found) if callee.startswith(_REDUCE_SCATTER) else found


def _source(each: Instruction, body: dict[str, Instruction]) -> str:
    """The JAX operation that it was made for; where XLA does not say, the nearest that it reads."""
    near = {each.name: each}
    for name in (names := [each.name]):
        if near[name].source:
            return near[name].source
        read = [one for one in near[name].operands if one in body and one not in near]
        near |= {one: body[one] for one in read}
        names += read
    return ""


def loop_of(
    module: Module, loop: Instruction, around: dict[str, Instruction]
) -> tuple[str, int | None]:
    """(body, trips) of a `while`; trips are None where they are not a constant of the program."""
    condition, body = _LOOP.search(loop.line).groups()
    return body, _trip_count(module, loop, around, condition, body)


def _scattered(fusion: Instruction, found: Found) -> Found:
    source = found.source or fusion.source
    return Found("reduce-scatter", fusion.type, found.line, found.trips, source)


def callees(each: Instruction) -> list[str]:
    """The computations that an instruction runs, loops left out."""
    return _CALLEES.findall(each.line) + _NAME.findall(each.attribute(_BRANCHES.pattern))


def _result_type(each: Instruction, body: dict[str, Instruction]) -> str:
    """Of an asynchronous collective the type of its end: its start names its operands as well."""
    if not each.opcode.endswith("-start"):
        return each.type
    end = each.opcode.removesuffix("-start") + "-done"
    return next(b.type for b in body.values() if b.opcode == end and each.name in b.operands)


def _trip_count(
    module: Module, loop: Instruction, around: dict[str, Instruction], condition: str, body: str
) -> int | None:
    """How often a loop runs: as XLA says, or counted where its condition is `counter < limit`."""
    known = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
    if known:
        return int(known)
    test, asked = module.root(condition), module.computation(condition)
    before, after = around.get(loop.operands[0]), module.root(body)
    if test.opcode != "compare" or "direction=LT" not in test.line or before is None:
        return None
    counter, limit = (_element(asked, operand) for operand in test.operands)
    if counter is None or {before.opcode, after.opcode} != {"tuple"}:
        return None
    first = _constant(around, before.operands[counter])
    step = _step(module.computation(body), after.operands[counter], counter)
    last = _constant(asked, test.operands[1])
    if last is None and limit is not None:
        last = _constant(around, before.operands[limit])
    return None if first is None or last is None or not step else -(-(last - first) // step)


def _step(body: dict[str, Instruction], name: str, counter: int) -> int | None:
    """n, where a loop's body turns element `counter` of its state into itself + n."""
    sum_ = _behind_copies(body, name)
    if sum_ is None or sum_.opcode != "add" or _element(body, sum_.operands[0]) != counter:
        return None
    return _constant(body, sum_.operands[1])


def _element(body: dict[str, Instruction], name: str) -> int | None:
    """Which element of its computation's parameter a value is."""
    each = _behind_copies(body, name)
    if each is None or each.opcode != "get-tuple-element":
        return None
    source = body.get(each.operands[0])
    is_parameter = source is not None and source.opcode == "parameter"
    return int(each.attribute(r"index=(\d+)")) if is_parameter else None


def _constant(body: dict[str, Instruction], name: str) -> int | None:
    each = _behind_copies(body, name)
    found = each is not None and each.opcode == "constant"
    return int(each.operands[0]) if found and each.operands[0].isdigit() else None


def _behind_copies(body: dict[str, Instruction], name: str) -> Instruction | None:
    each = body.get(name)
    while each is not None and each.opcode in ("copy", "bitcast"):
        each = body.get(each.operands[0])
    return each


# Which chips take part.


def chip_groups(line: str, chips: int) -> list[set[int]] | None:
    """The groups of chips that a collective names, in any of XLA's notations; None in another."""
    pairs = permuted(line)
    if pairs:
        return _connected(pairs)
    listed = re.search(r"replica_groups=(\{\{.*?\}\}|\{\})", line)
    if listed:
        groups = re.findall(r"\{([\d,]+)\}", listed[1])
        return [set(_ints(group)) for group in groups] or [set(range(chips))]
    counted = re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", line)
    if counted:
        return [set(row) for row in _order(counted[2]).reshape(_ints(counted[1])).tolist()]
    named = re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((\S+)\))? \{(.*?)\}", line)
    return _along_axes(*named.groups()) if named else None


def permuted(line: str) -> list[tuple[int, ...]]:
    """The pairs (source, target) of a collective-permute."""
    pairs = re.search(r"source_target_pairs=\{(.*?\})\}", line)
    return [_ints(pair) for pair in re.findall(r"\{([\d,]+)\}", pairs[1])] if pairs else []


def _connected(pairs: list[tuple[int, ...]]) -> list[set[int]]:
    """The chips between which a permutation moves data, at once or over others."""
    groups: list[set[int]] = []
    for pair in pairs:
        touching = [group for group in groups if group & set(pair)]
        groups = [group for group in groups if group not in touching]
        groups.append(set(pair).union(*touching))
    return groups


def _order(text: str) -> np.ndarray:
    """Chip numbers: "[2,4]T(1,0)" is 0 to 7 in two rows of four, read column by column."""
    dims, _, axes = text.rstrip(")").partition("T(")
    if not dims.startswith("["):
        return np.array(_ints(dims))
    shape = _ints(dims.strip("[]"))
    return np.arange(math.prod(shape)).reshape(shape).transpose(_ints(axes) or None).ravel()


def _along_axes(mesh: str, order: str | None, axes: str) -> list[set[int]]:
    """Groups along axes of a mesh: "'x'=2,'y'=4" and "'y'", or "'y':(2)2" for a part of y.

    The part (2)2 of an axis of 8 is its second factor in 2 x 2 x 2.
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
