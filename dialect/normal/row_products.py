"""Products with the axes in front made one: `b t d, d f -> b t f` as `b d, d f -> b f` of rows.

The TPU compiler makes a reduce-scatter of an all-reduce and a slice where the partial sums are a
matrix, and not where they have three axes, even if one of these has size 1. Of a product with three
that is asked for scattered at once it makes steps, a piece of the product in each, and sends one
piece while it computes the next. Each step reads the weights again: that pays where computing hides
it (`hides_reading`).
"""

from __future__ import annotations

from itertools import islice

from dialect.machine.chips import Chip
from dialect.matching.values import reshaped
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


def hides_reading(rows: float, bytes_per_weight: float, chip: Chip) -> bool:
    """Whether multiplying so many rows takes twice as long as reading the weights."""
    return 2 * rows / chip.bf16_flops_per_s >= 2 * bytes_per_weight / chip.hbm_bytes_per_s


def row_product(
    op: Op, args: tuple[Value, ...], number: int, front: int, rows: tuple[int, ...]
) -> Value:
    """The product `op` of `args` with its `front` leading axes made rows, of these sizes: of one
    size it is a matrix."""
    spec = Signature.parse(op["spec"])
    names = tuple(islice(spec.free_letters(), len(rows)))
    inputs = list(spec.inputs)
    inputs[number] = (*names, *inputs[number][front:])
    made = Signature(tuple(inputs), ((*names, *spec.outputs[0][front:]),))
    laid_out = reshaped(args[number], (*rows, *args[number].type.shape[front:]))
    operands = (*args[:number], laid_out, *args[number + 1 :])
    attrs = {**dict(op.attrs), "spec": str(made)}
    return make("contract", *operands, origin=op.origin, **attrs)


def row_layout(layout: Layout, front: int) -> Layout:
    """The layout of the rows of an array that lies so."""
    return (tuple(axis for each in layout[:front] for axis in each or ()), *layout[front:])
