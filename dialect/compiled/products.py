"""FLOPs of the matrix products in HLO text.

The TPU compiler writes every product as a convolution with batches and heads as window dimensions;
positions of a window outside of the array are not computed, and not counted. Elementwise ops and
reductions overlap with the matrix unit and are left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dialect.compiled import hlo
from dialect.compiled.hlo import Instruction, Module

_INT8 = {"s8", "u8", "s4", "u4"}
_PASSES = {"high": 3, "highest": 6}  # of a product of float32, by `jax.lax.Precision`
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")


@dataclass(frozen=True)
class Product:
    """A matrix product; a multiply-add is two operations.

    - dtype: the dtype that the matrix unit multiplies: "int8", or "bf16" for everything wider
    - passes: passes over the operands: more than one for float32 at high precision
    """

    flops: int
    dtype: str
    passes: int = 1


def products(module: Module, body: dict[str, Instruction], op: Instruction) -> Iterator[Product]:
    """The products of one run of an instruction, inside its fusion too.

    For a custom call the declared cost (a Pallas kernel's `cost_estimate`).
    """
    if op.opcode in ("convolution", "dot"):
        yield _product(body, op)
    elif op.opcode in ("fusion", "async-start"):
        for callee in hlo.callees(op):
            inside = module.computation(callee)
            for inner in inside.values():
                yield from products(module, inside, inner)
    elif op.opcode == "custom-call":
        declared = int(op.attribute(r'"cost_estimate":\{[^{}]*"flops":"?(\d+)') or 0)
        yield from [Product(declared, _dtype(body, op))] if declared else []


def _product(body: dict[str, Instruction], op: Instruction) -> Product:
    left, right = (_shape(body[operand]) for operand in op.operands[:2])
    if op.opcode == "dot":
        summed = op.attribute(r"lhs_contracting_dims=\{([\d,]*)\}")
        over = math.prod(left[int(dimension)] for dimension in summed.split(",") if dimension)
        multiplied = math.prod(_shape(op)) * over
    else:
        multiplied = _convolved(op, left, right, _shape(op))
    precision = op.attribute(r"operand_precision=\{(\w+)")
    wide = all(_element(body[operand]) == "f32" for operand in op.operands[:2])
    passes = _PASSES.get(precision, 1) if wide else 1
    return Product(2 * multiplied, _dtype(body, op), passes)


def _convolved(
    op: Instruction, left: tuple[int, ...], right: tuple[int, ...], out: tuple[int, ...]
) -> int:
    """The number of multiply-adds of a convolution."""
    of_left, of_right, of_out = _LABELS.search(op.line).groups()
    window = op.attribute(r"window=\{([^}]*)\}")
    pairs = out[of_out.index("b")] * out[of_out.index("f")] * right[of_right.index("i")]
    for number in range(len(of_out) - 2):
        label = str(number)
        low = _window(window, "pad", number, "0_0").split("_")[0]
        pairs *= _positions(
            read=left[of_left.index(label)],
            written=out[of_out.index(label)],
            size=right[of_right.index(label)],
            stride=int(_window(window, "stride", number, "1")),
            low=int(low),
            spread=int(_window(window, "lhs_dilate", number, "1")),
            step=int(_window(window, "rhs_dilate", number, "1")),
        )
    return pairs


def _window(window: str, key: str, number: int, default: str) -> str:
    """One dimension's entry of "size=1x2 pad=0_0x1_1"."""
    match = re.search(rf"\b{key}=(\S+)", window)
    return match[1].split("x")[number] if match else default


@lru_cache(maxsize=4096)
def _positions(
    read: int, written: int, size: int, stride: int, low: int, spread: int, step: int
) -> int:
    """The number of (window, position) pairs that read an element, not padding or a gap of
    `lhs_dilate`."""
    windows, total = np.arange(written) * stride - low, 0
    for position in range(0, size * step, step):
        index = windows + position
        total += int(
            np.count_nonzero((index >= 0) & (index <= (read - 1) * spread) & (index % spread == 0))
        )
    return total


def _dtype(body: dict[str, Instruction], op: Instruction) -> str:
    dtypes = {_element(body[operand]) for operand in op.operands[:2] if operand in body}
    return "int8" if dtypes and dtypes <= _INT8 else "bf16"


def _element(op: Instruction) -> str:
    return hlo.arrays(op.type)[0][0]


def _shape(op: Instruction) -> tuple[int, ...]:
    return hlo.arrays(op.type)[0][1]
