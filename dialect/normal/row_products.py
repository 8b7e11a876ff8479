"""Products with their leading axes merged into rows: `b t d, d f -> b t f` as `r d, d f -> r f`.

Partial sums of rows are a matrix, which can be scattered over its rows.
"""

from __future__ import annotations

from itertools import islice

from dialect.matching.values import reshaped
from rewrite.ir import Op, Value
from rewrite.opdef import make
from rewrite.program import Layout
from rewrite.signature import Signature, letters


def leading(op: Op, number: int) -> int:
    """The number of leading axes that operand `number` and the result share, and no other has."""
    spec = Signature.parse(op["spec"])
    other_letters = {
        x for i, array in enumerate(spec.inputs) if i != number for x in letters(array)
    }
    count = 0
    for read, written in zip(spec.inputs[number], spec.outputs[0]):
        if read != written or set(read) & other_letters:
            break
        count += 1
    return count


def row_product(
    op: Op, args: tuple[Value, ...], number: int, front: int, rows: tuple[int, ...]
) -> Value:
    """The product `op` of `args` with its `front` leading axes reshaped to rows of these sizes."""
    spec = Signature.parse(op["spec"])
    names = tuple(islice(spec.free_letters(), len(rows)))
    inputs = list(spec.inputs)
    inputs[number] = (*names, *inputs[number][front:])
    rows_spec = Signature(tuple(inputs), ((*names, *spec.outputs[0][front:]),))
    laid_out = reshaped(args[number], (*rows, *args[number].type.shape[front:]))
    operands = (*args[:number], laid_out, *args[number + 1 :])
    attrs = {**dict(op.attrs), "spec": str(rows_spec)}
    return make("contract", *operands, origin=op.origin, **attrs)


def row_layout(layout: Layout, front: int) -> Layout:
    """The sharding of the rows of an array with this sharding."""
    return (tuple(axis for names in layout[:front] for axis in names or ()), *layout[front:])


def partial_sum_axes(op: Op, operand: int, sharding: Layout) -> tuple[str, ...]:
    """Mesh axes over which a contraction leaves partial sums: those of its first contracted axis.

    Empty if a second contracted axis is sharded as well, if the contracted axis is only a part of
    an array dimension, or if no row of the operand leads the result. operand: index of the
    activation; sharding: mesh axes per dimension of that operand.
    """
    if not leading(op, operand):
        return ()
    spec = Signature.parse(op["spec"])
    sharded = {
        dimension: mesh_axes
        for dimension, mesh_axes in zip(spec.inputs[operand], sharding)
        if mesh_axes and set(dimension) & set(spec.summed)
    }
    return sharded.get(spec.summed[:1], ()) if len(sharded) == 1 else ()


def partial_product(op: Op, parts: int) -> Value:
    """The product `op` with a leading axis of `parts` partial sums."""
    spec = Signature.parse(op["spec"])
    result = ((next(spec.free_letters()),), *spec.outputs[0])
    attrs = {**dict(op.attrs), "spec": str(Signature(spec.inputs, (result,))), "parts": parts}
    return make("partial_contract", *op.args, origin=op.origin, **attrs)
