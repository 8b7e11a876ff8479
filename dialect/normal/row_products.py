"""Products with the axes in front made one: `b t d, d f -> b t f` as `b d, d f -> b f` of rows.

The TPU compiler makes a reduce-scatter of an all-reduce and a slice where the partial sums are a
matrix, and not where they have three axes, even if one of these has size 1. Of a product with three
that is asked for scattered at once it makes steps, a piece of the product in each, and sends one
piece while it computes the next. Each step reads the weights again: that pays where computing hides
it (`hides_reading`).
"""

from __future__ import annotations

from math import prod

from dialect.machine.chips import Chip
from dialect.values import reshaped
from rewrite.ir import Op, Value
from rewrite.opdef import make
from rewrite.program import Layout
from rewrite.signature import Signature, letters


def leading(op: Op, number: int) -> int:
    """How many axes stand in front of argument `number` and of the result alike, and only there."""
    spec = Signature.parse(op["spec"])
    others = {x for i, each in enumerate(spec.inputs) if i != number for x in letters(each)}
    count = 0
    for one, other in zip(spec.inputs[number], spec.outputs[0]):
        if one != other or set(one) & others:
            break
        count += 1
    return count


def hides_reading(rows: float, weight: Value, chip: Chip) -> bool:
    """Whether multiplying so many rows takes as long as reading the weights twice."""
    stored = weight.op.args[0] if weight.op.name == "dequantize" else weight
    compute_s = 2 * rows * weight.type.size / chip.bf16_flops_per_s
    return compute_s >= 2 * stored.type.bytes / chip.hbm_bytes_per_s


def row_product(op: Op, args: tuple[Value, ...], number: int, front: int) -> Value:
    """The product `op` of `args` as a matrix of rows, its `front` leading axes made one."""
    spec = Signature.parse(op["spec"])
    inputs = list(spec.inputs)
    inputs[number] = (inputs[number][0], *inputs[number][front:])
    made = Signature(tuple(inputs), ((spec.outputs[0][0], *spec.outputs[0][front:]),))
    shape = args[number].type.shape
    rows = reshaped(args[number], (prod(shape[:front]), *shape[front:]))
    operands = (*args[:number], rows, *args[number + 1 :])
    attrs = {**dict(op.attrs), "spec": str(made)}
    return make("contract", *operands, origin=op.origin, **attrs)


def row_layout(layout: Layout, front: int) -> Layout:
    """The layout of the rows of an array that lies so."""
    return (tuple(axis for each in layout[:front] for axis in each or ()), *layout[front:])
