"""HBM traffic of an executable, read off its schedule: the bytes that one run reads and writes.

What the compiler itself reports counts the body of a loop once. Here every instruction that runs
by itself counts its operands and results as often as it runs; within a fusion only what it really
touches: of an array that it slices the slice, of one that it updates in place the update. Arrays
lie in tiles, the last of which may be partly empty: the whole tile is counted. Arrays that the
compiler keeps on the chip (memory space S(1)) are free; moving them there is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dialect.compiled import hlo
from dialect.compiled.hlo import Instruction, Module

_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^{}]*\})?")
_CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)")
_ALIASED = re.compile(r"\{(\d+)\}: \(")
_TILES = re.compile(r"\{([\d,]+):T\(([\d,]+)\)")
# Names for what is there already, or is nowhere; and what only runs other computations.
_FREE = {
    "add-dependency",
    "after-all",
    "bitcast",
    "call",
    "conditional",
    "constant",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
    "while",
}
# The TPU compiler's own, which say something and do nothing.
_FREE_CALLS = {
    "AllocateBuffer",
    "AssumeGatherIndicesInBound",
    "AsyncCollectiveDone",
    "AsyncCollectiveStart",
    "ConcatBitcast",
}
_THROUGH = ("bitcast", "reshape", "copy", "convert")  # inside a fusion: the same bytes, or fewer
_SLICES = ("dynamic-slice", "slice", "gather")


@dataclass(frozen=True)
class Traffic:
    """Bytes that a chip reads from its HBM, and writes to it."""

    read: int = 0
    written: int = 0

    @property
    def bytes(self) -> int:
        return self.read + self.written


def hbm_bytes(compiled: Any) -> int:
    """Bytes that one run of a `jax.stages.Compiled` for TPU moves to and from HBM, on one chip.

    Raises ValueError where a loop's number of trips is not a constant of the program.
    """
    module = Module(compiled.as_text())
    return sum(
        trips * traffic(module, module.computation(name), each).bytes
        for name, trips in _scheduled(module, module.entry, 1)
        for each in module.computation(name).values()
    )


def _scheduled(module: Module, name: str, trips: int) -> Iterator[tuple[str, int]]:
    """Every computation that runs as a schedule, and how often; of a conditional every branch."""
    yield name, trips
    body = module.computation(name)
    for each in body.values():
        if each.opcode == "while":
            inner, times = hlo.loop_of(module, each, body)
            if times is None:
                raise ValueError(f"how often {each.name} runs is not known")
            yield from _scheduled(module, inner, trips * times)
        elif each.opcode in ("conditional", "call"):
            for inner in hlo.callees(each):
                yield from _scheduled(module, inner, trips)


def traffic(module: Module, body: dict[str, Instruction], each: Instruction) -> Traffic:
    """What one run of one instruction of a schedule moves: of a pair its start."""
    if each.opcode in _FREE or each.opcode.endswith(("-done", "-update")) or free_call(each):
        return Traffic()
    arrays = _arrays(each)
    if each.opcode == "slice-start":
        _, (size, hbm), *_ = arrays  # its source, the slice, and a semaphore
        return Traffic(size, size if hbm else 0)
    if each.opcode == "copy-start":
        return Traffic(_read(module, body, each, None), _in_hbm(arrays[:1]))
    called = _CALLED.search(each.line)
    inside = called[1] if called and each.opcode in ("fusion", "async-start") else None
    part = async_part(module, each)
    if part == "AsyncCollectiveStart":
        return Traffic(_in_hbm(arrays[:1]), _in_hbm(arrays[1:2]))  # what is sent, what comes
    if part == "AsyncCollectiveDone":
        return Traffic()
    return Traffic(_read(module, body, each, inside), _written(module, body, each, inside))


def free_call(each: Instruction) -> bool:
    """Whether it is a custom call that takes no time and moves nothing."""
    is_call = each.opcode == "custom-call"
    return is_call and each.attribute(r'custom_call_target="(\w+)"') in _FREE_CALLS


def async_part(module: Module, each: Instruction) -> str:
    """AsyncCollectiveStart or -Done for the ends of a collective that runs beside other fusions."""
    called = _CALLED.search(each.line) if each.opcode == "fusion" else None
    if called is None:
        return ""
    return module.root(called[1]).attribute(r'custom_call_target="(AsyncCollective\w+)"')


def _read(
    module: Module, body: dict[str, Instruction], each: Instruction, inside: str | None
) -> int:
    total = 0
    for number, operand in enumerate(each.operands):
        held = _in_hbm(_arrays(body[operand])) if operand in body else 0
        if held and inside:
            held = min(held, _read_inside(module, inside, number))
        elif held and each.opcode in _SLICES and number == 0:
            held = min(held, _size(each))
        elif each.opcode == "dynamic-update-slice" and number == 0:
            held = 0
        total += held
    return total


def _written(
    module: Module, body: dict[str, Instruction], each: Instruction, inside: str | None
) -> int:
    if each.opcode.endswith("-start"):
        end = each.opcode.removesuffix("-start") + "-done"
        ends = [b for b in body.values() if b.opcode == end and each.name in b.operands]
        return sum(_in_hbm(_arrays(b)) for b in ends[:1])
    if each.opcode == "dynamic-update-slice":
        return _size(body[each.operands[1]]) if _in_hbm(_arrays(each)) else 0
    if inside is None:
        return _in_hbm(_arrays(each))
    root, computation = module.root(inside), module.computation(inside)
    results = root.operands if root.opcode == "tuple" else (root.name,)
    aliased = set(_ALIASED.findall(each.attribute(r"output_to_operand_aliasing=(\{.*?\)\})")))
    return sum(
        _made(computation, name, size, str(number) in aliased)
        for number, (name, (size, hbm)) in enumerate(zip(results, _arrays(each)))
        if hbm
    )


def _made(computation: dict[str, Instruction], name: str, size: int, aliased: bool) -> int:
    """Bytes that a fusion writes of one of its results: of an array updated in place the update,
    and nothing of one that it hands on, or that a collective fills beside it."""
    at = computation[name]
    while at.opcode in ("bitcast", "copy", "reshape"):
        at = computation[at.operands[0]]
    if at.opcode == "dynamic-update-slice":
        return min(size, _size(computation[at.operands[1]]))
    return 0 if aliased else size


def _read_inside(module: Module, inside: str, number: int) -> int:
    """Bytes that a fused computation reads of its parameter."""
    computation = module.computation(inside)
    (parameter,) = (
        each
        for each in computation.values()
        if each.opcode == "parameter" and each.operands == (str(number),)
    )
    return _read_of(module, computation, parameter)


def _read_of(module: Module, computation: dict[str, Instruction], source: Instruction) -> int:
    total = 0
    for each in computation.values():
        for number, operand in enumerate(each.operands):
            if operand != source.name or _hands_on(computation, each):
                continue
            if each.opcode in _SLICES and number == 0:
                total += _size(each)
            elif each.opcode == "dynamic-update-slice" and number == 0:
                total += 0
            elif each.opcode in _THROUGH and not each.is_root:
                total += min(_size(source), _read_of(module, computation, each))
            elif each.opcode == "fusion":
                inner = _CALLED.search(each.line)[1]
                read = _read_inside(module, inner, number)
                if not each.is_root and _is_copy(module.computation(inner)):
                    read = min(read, _read_of(module, computation, each))
                total += read
            else:
                total += _size(source)
    return min(total, _size(source))


def _is_copy(computation: dict[str, Instruction]) -> bool:
    """Whether a nested fusion gives its parameter in another form: it is made where it is read."""
    return all(each.opcode in ("parameter", *_THROUGH) for each in computation.values())


def _hands_on(computation: dict[str, Instruction], each: Instruction) -> bool:
    """Whether it reads nothing itself: a fusion's several results, a collective among them."""
    if each.opcode not in hlo.COLLECTIVES:
        return each.opcode == "tuple"
    results = (b.operands for b in computation.values() if b.is_root and b.opcode == "tuple")
    return any(each.name in operands for operands in results)


def _arrays(each: Instruction) -> list[tuple[int, bool]]:
    """(bytes, whether in HBM) of each array that an instruction gives."""
    head = each.line.partition(" = ")[2]
    types = head[: head.index(f" {each.opcode}(")]
    return [
        (_tiled_bytes(dtype, sizes, layout), "S(" not in layout)
        for dtype, sizes, layout in _ARRAY.findall(types)
    ]


def _tiled_bytes(dtype: str, sizes: str, layout: str) -> int:
    """("bf16", "64,512", "{1,0:T(8,128)(2,1)}") -> 65536: the tile goes over the minor dimensions,
    which the layout names first; what it does not fill is there all the same."""
    shape = [int(size) for size in sizes.split(",") if size]
    tiled = _TILES.match(layout)
    if tiled and shape:
        minor_first, tile = ([int(each) for each in found.split(",")] for found in tiled.groups())
        for dimension, length in zip(minor_first, reversed(tile)):
            shape[dimension] = -(-shape[dimension] // length) * length
    return hlo.array_bytes(dtype, tuple(shape))


def _size(each: Instruction) -> int:
    return sum(size for size, _ in _arrays(each))


def _in_hbm(arrays: list[tuple[int, bool]]) -> int:
    return sum(size for size, hbm in arrays if hbm)
