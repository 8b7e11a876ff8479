"""HBM traffic of an executable: the bytes that one run reads and writes, from its schedule.

XLA's cost analysis counts a loop body once. Here every scheduled instruction counts its operands
and results once per run; a fusion counts only the bytes that it touches: the slice of an array that
it slices, the update of an array that it updates in place. Arrays are tiled, and partial tiles
count as full ones. Arrays in on-chip memory (memory space S(1)) are free; moving them there is not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from dialect.compiled import hlo
from dialect.compiled.hlo import Instruction, Module, module_of

_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^{}]*\})?")
_CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)")
_ALIASED = re.compile(r"\{(\d+)\}: \(")
_TILES = re.compile(r"\{([\d,]+):T\(([\d,]+)\)")
# Instructions that move nothing: aliases, constants, and calls of other computations.
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
# Custom calls of the TPU compiler that are annotations only.
_FREE_CALLS = {
    "AllocateBuffer",
    "AssumeGatherIndicesInBound",
    "AsyncCollectiveDone",
    "AsyncCollectiveStart",
    "ConcatBitcast",
}
_THROUGH = (
    "bitcast",
    "reshape",
    "copy",
    "convert",
)  # inside a fusion: read as their users read
_SLICES = ("dynamic-slice", "slice", "gather")
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # the operand that is written into the first


@dataclass(frozen=True)
class Traffic:
    """Bytes that a chip reads from and writes to its HBM."""

    read: int = 0
    written: int = 0

    @property
    def bytes(self) -> int:
        """Bytes read and written."""
        return self.read + self.written


def hbm_bytes(compiled: Any) -> int:
    """HBM bytes per chip of one run of a `jax.stages.Compiled` for TPU.

    Raises ValueError if the trip count of a loop is not a constant.
    """
    module, total = module_of(compiled), 0.0
    for name, trips in hlo.scheduled(module):
        if trips is None:
            raise ValueError(f"how often {name} runs is not known")
        body = module.computation(name)
        total += trips * sum(traffic(module, body, op).bytes for op in body.values())
    return round(total)


def traffic(module: Module, body: dict[str, Instruction], op: Instruction) -> Traffic:
    """HBM traffic of one run of a scheduled instruction; an asynchronous pair counts at its
    start."""
    if op.opcode in _FREE or op.opcode.endswith(("-done", "-update")) or free_call(op):
        return Traffic()
    arrays = _arrays(op)
    if op.opcode == "slice-start":
        _, (size, hbm), *_ = arrays  # its source, the slice, and a semaphore
        return Traffic(size, size if hbm else 0)
    if op.opcode == "copy-start":
        return Traffic(_read(module, body, op, None), _in_hbm(arrays[:1]))
    called = _CALLED.search(op.line)
    inside = called[1] if called and op.opcode in ("fusion", "async-start") else None
    part = async_part(module, op)
    if part == "AsyncCollectiveStart":
        return Traffic(_in_hbm(arrays[:1]), _in_hbm(arrays[1:2]))  # what is sent, what comes
    if part == "AsyncCollectiveDone":
        return Traffic()
    return Traffic(_read(module, body, op, inside), _written(module, body, op, inside))


def _is_ragged(op: Instruction) -> bool:
    """Whether an instruction is the kernel of a ragged product: its last operand the matrices."""
    return (
        op.opcode == "custom-call" and op.attribute(r'op_name="[^"]*(/ragged_dot_general/)') != ""
    )


def _share_read(body: dict[str, Instruction], op: Instruction) -> float:
    """The share of its matrices that a ragged product reads: of those that have rows.

    Expected where rows belong to one expert as often as to another, as plans have it.
    """
    rows, matrices = (hlo.arrays(body[operand].type)[0][1][0] for operand in op.operands[-2:])
    experts = int(op.attribute(r'op_name="[^"]*/(\d+)_experts/') or matrices)
    return experts * (1 - (1 - 1 / experts) ** rows) / matrices


def free_call(op: Instruction) -> bool:
    """Whether an instruction is a custom call that is only an annotation."""
    is_call = op.opcode == "custom-call"
    return is_call and op.attribute(r'custom_call_target="(\w+)"') in _FREE_CALLS


def async_part(module: Module, op: Instruction) -> str:
    """AsyncCollectiveStart or AsyncCollectiveDone for the ends of an asynchronous collective that
    is split over fusions; else ""."""
    called = _CALLED.search(op.line) if op.opcode == "fusion" else None
    if called is None:
        return ""
    return module.root(called[1]).attribute(r'custom_call_target="(AsyncCollective\w+)"')


def _read(module: Module, body: dict[str, Instruction], op: Instruction, inside: str | None) -> int:
    total = 0
    for number, operand in enumerate(op.operands):
        count = _in_hbm(_arrays(body[operand])) if operand in body else 0
        if count and inside:
            count = min(count, _read_inside(module, inside, number))
        elif count and op.opcode in _SLICES and number == 0:
            count = min(count, result_bytes(op))
        elif op.opcode in _UPDATES and number == 0:
            count = 0
        elif count and number == len(op.operands) - 1 and _is_ragged(op):
            count = round(count * _share_read(body, op))
        total += count
    return total


def _written(
    module: Module, body: dict[str, Instruction], op: Instruction, inside: str | None
) -> int:
    if op.opcode.endswith("-start"):
        end = op.opcode.removesuffix("-start") + "-done"
        ends = [b for b in body.values() if b.opcode == end and op.name in b.operands]
        return sum(_in_hbm(_arrays(b)) for b in ends[:1])
    if op.opcode in _UPDATES:
        return _update_bytes(body, op) if _in_hbm(_arrays(op)) else 0
    if inside is None:
        return _in_hbm(_arrays(op))
    root, computation = module.root(inside), module.computation(inside)
    results = root.operands if root.opcode == "tuple" else (root.name,)
    aliased = set(_ALIASED.findall(op.attribute(r"output_to_operand_aliasing=(\{.*?\)\})")))
    return sum(
        _result_bytes(computation, name, size, str(number) in aliased)
        for number, (name, (size, hbm)) in enumerate(zip(results, _arrays(op)))
        if hbm
    )


def _result_bytes(computation: dict[str, Instruction], name: str, size: int, aliased: bool) -> int:
    """Bytes that a fusion writes of one result: the update of an array updated in place; nothing of
    an operand that it returns, or that an asynchronous collective fills."""
    source = computation[name]
    while source.opcode in ("bitcast", "copy", "reshape"):
        source = computation[source.operands[0]]
    if source.opcode in _UPDATES:
        return min(size, _update_bytes(computation, source))
    return 0 if aliased else size


def _update_bytes(computation: dict[str, Instruction], op: Instruction) -> int:
    """Bytes of what an instruction writes into its first operand, in place."""
    return result_bytes(computation[op.operands[_UPDATES[op.opcode]]])


def _read_inside(module: Module, inside: str, number: int) -> int:
    """Bytes that a fused computation reads of one of its parameters."""
    computation = module.computation(inside)
    (parameter,) = (
        other
        for other in computation.values()
        if other.opcode == "parameter" and other.operands == (str(number),)
    )
    return _read_of(module, computation, parameter)


def _read_of(module: Module, computation: dict[str, Instruction], source: Instruction) -> int:
    total = 0
    for reader in computation.values():
        for number, operand in enumerate(reader.operands):
            if operand != source.name or _reads_nothing(computation, reader):
                continue
            if reader.opcode in _SLICES and number == 0:
                total += round(result_bytes(reader) * _width(source) / _width(reader))
            elif reader.opcode in _UPDATES and number == 0:
                total += 0
            elif reader.opcode in _THROUGH and not reader.is_root:
                total += min(result_bytes(source), _read_of(module, computation, reader))
            elif reader.opcode == "fusion":
                inner = _CALLED.search(reader.line)[1]
                read = _read_inside(module, inner, number)
                if not reader.is_root and _is_copy(module.computation(inner)):
                    read = min(read, _read_of(module, computation, reader))
                total += read
            else:
                total += result_bytes(source)
    return min(total, result_bytes(source))


def _is_copy(computation: dict[str, Instruction]) -> bool:
    """Whether a nested fusion only changes the form of its parameter, so that its reader fuses
    it."""
    return all(op.opcode in ("parameter", *_THROUGH) for op in computation.values())


def _reads_nothing(computation: dict[str, Instruction], op: Instruction) -> bool:
    """Whether an instruction only returns its operands: a fusion's tuple of results, or a
    collective that is one of them."""
    if op.opcode not in hlo.COLLECTIVES:
        return op.opcode == "tuple"
    results = (b.operands for b in computation.values() if b.is_root and b.opcode == "tuple")
    return any(op.name in operands for operands in results)


def _arrays(op: Instruction) -> list[tuple[int, bool]]:
    """(bytes, whether in HBM) of the arrays of an instruction's result."""
    head = op.line.partition(" = ")[2]
    types = head[: head.index(f" {op.opcode}(")]
    return [
        (_tiled_bytes(dtype, sizes, layout), "S(" not in layout)
        for dtype, sizes, layout in _ARRAY.findall(types)
    ]


def _tiled_bytes(dtype: str, sizes: str, layout: str) -> int:
    """("bf16", "64,512", "{1,0:T(8,128)(2,1)}") -> 65536, with padding to full tiles. A layout
    lists the minor dimensions first; the tile covers these."""
    shape = [int(size) for size in sizes.split(",") if size]
    tiled = _TILES.match(layout)
    if tiled and shape:
        minor_first, tile = (
            [int(edge) for edge in dimensions.split(",")] for dimensions in tiled.groups()
        )
        for dimension, length in zip(minor_first, reversed(tile)):
            shape[dimension] = -(-shape[dimension] // length) * length
    return hlo.array_bytes(dtype, tuple(shape))


def result_bytes(op: Instruction) -> int:
    """Bytes of what an instruction makes, padded to tiles."""
    return sum(size for size, _ in _arrays(op))


def _width(op: Instruction) -> float:
    """Bytes of an element of what an instruction makes: a slice may convert what it reads."""
    ((dtype, _),) = hlo.arrays(op.type)
    return hlo.array_bytes(dtype, (8,)) / 8


def made_bytes(op: Instruction) -> int:
    """Bytes that what an instruction makes takes in HBM; of an asynchronous pair its end makes
    it."""
    return 0 if op.opcode.endswith("-start") else _in_hbm(_arrays(op))


def _in_hbm(arrays: list[tuple[int, bool]]) -> int:
    return sum(size for size, hbm in arrays if hbm)
