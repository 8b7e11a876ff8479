"""HBM traffic of an executable, read off its schedule: the bytes that one run reads and writes.

What the compiler itself reports counts the body of a loop once. Here every instruction that runs
by itself counts its operands and results as often as it runs; within a fusion only what it really
touches: of an array that it slices the slice, of one that it updates in place the update. Arrays
that the compiler keeps on the chip (memory space S(1)) are free; moving them there is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from dialect import hlo
from dialect.hlo import Instruction, Module

_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^{}]*\})?")
_CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)")
# Names for what is there already, or is nowhere.
_FREE = {
    "add-dependency",
    "after-all",
    "bitcast",
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
_THROUGH = ("bitcast", "reshape", "copy", "convert")  # inside a fusion: the same bytes, or fewer
_SLICES = ("dynamic-slice", "slice", "gather")


def hbm_bytes(compiled: Any) -> int:
    """Bytes that one run of a `jax.stages.Compiled` for TPU moves to and from HBM, on one chip.

    Raises ValueError where a loop's number of trips is not a constant of the program.
    """
    module = Module(compiled.as_text())
    return sum(
        trips * _moved(module, module.computation(name), each)
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


def _moved(module: Module, body: dict[str, Instruction], each: Instruction) -> int:
    """Bytes that one instruction of a schedule moves."""
    if each.opcode in _FREE or each.opcode.endswith(("-done", "-update")) or each.opcode == "call":
        return 0
    if each.opcode == "slice-start":
        _, (size, hbm), *_ = _arrays(each)  # its source, the slice, and a semaphore
        return size + (size if hbm else 0)
    called = _CALLED.search(each.line)
    inside = called[1] if called and each.opcode in ("fusion", "async-start") else None
    read = 0
    for number, operand in enumerate(each.operands):
        held = _hbm(body[operand]) if operand in body else 0
        if held and inside:
            held = min(held, _read_inside(module, inside, number))
        elif held and each.opcode in _SLICES and number == 0:
            held = min(held, _size(each))
        elif each.opcode == "dynamic-update-slice" and number == 0:
            held = 0
        read += held
    return read + _written(module, body, each, inside)


def _written(
    module: Module, body: dict[str, Instruction], each: Instruction, inside: str | None
) -> int:
    if each.opcode == "copy-start":
        return sum(size for size, hbm in _arrays(each)[:1] if hbm)
    if each.opcode == "async-start" or each.opcode.endswith("-start"):
        end = each.opcode.removesuffix("-start") + "-done"
        ends = [b for b in body.values() if b.opcode == end and each.name in b.operands]
        return sum(map(_hbm, ends[:1]))
    if each.opcode == "dynamic-update-slice":
        return _size(body[each.operands[1]]) if _hbm(each) else 0
    if inside is None:
        return _hbm(each)
    root = module.root(inside)
    computation = module.computation(inside)
    results = root.operands if root.opcode == "tuple" else (root.name,)
    total = 0
    for name, (size, hbm) in zip(results, _arrays(each)):
        update = _update(computation, name)
        total += (size if update is None else min(size, update)) if hbm else 0
    return total


def _update(computation: dict[str, Instruction], name: str) -> int | None:
    """Bytes of the update, where a fusion's result is an array updated in place."""
    at = computation[name]
    while at.opcode in ("bitcast", "copy", "reshape"):
        at = computation[at.operands[0]]
    return _size(computation[at.operands[1]]) if at.opcode == "dynamic-update-slice" else None


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
            if operand != source.name:
                continue
            if each.opcode in _SLICES and number == 0:
                total += _size(each)
            elif each.opcode == "dynamic-update-slice" and number == 0:
                total += 0
            elif each.opcode in _THROUGH and not each.is_root:
                total += min(_size(source), _read_of(module, computation, each))
            elif each.opcode == "fusion":
                total += _read_inside(module, _CALLED.search(each.line)[1], number)
            else:
                total += _size(source)
    return min(total, _size(source))


def _arrays(each: Instruction) -> list[tuple[int, bool]]:
    """(bytes, whether in HBM) of each array that an instruction gives."""
    head = each.line.partition(" = ")[2]
    types = head[: head.index(f" {each.opcode}(")]
    found = []
    for dtype, sizes, layout in _ARRAY.findall(types):
        shape = tuple(int(size) for size in sizes.split(",") if size)
        found.append((hlo.array_bytes(dtype, shape), "S(" not in layout))
    return found


def _size(each: Instruction) -> int:
    return sum(size for size, _ in _arrays(each))


def _hbm(each: Instruction) -> int:
    return sum(size for size, hbm in _arrays(each) if hbm)
