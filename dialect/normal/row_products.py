"""Products with the axes in front made one: `b t d, d f -> b t f` as `b d, d f -> b f` of rows.

Partial sums of rows alone are a matrix, which can be scattered over its rows.
"""

from __future__ import annotations

from itertools import islice

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
