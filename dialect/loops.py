"""Taking iterations out of a loop over layers."""

from __future__ import annotations

from dialect.control import remade_scan, scan_parts
from dialect.normal_form import reshaped
from rewrite.ir import Op, Value
from rewrite.opdef import build, make, substitute


def unrolled(op: Op) -> tuple[Value, ...]:
    """The results of a scan, its iterations written out.

    Stacked inputs are unstacked and outputs stacked whole, so that `stage` can undo both at the
    boundary and keep one array per layer.
    """
    consts, carry, xs = (op.args[part] for part in scan_parts(op))
    layers = [build("unstack", each, axis=0).results for each in xs]
    rows: list[list[Value]] = []
    order = range(op["length"])
    for i in reversed(order) if op["reverse"] else order:
        out = substitute(op.regions[0], [*consts, *carry, *(each[i] for each in layers)])
        carry = tuple(out[: op["carry"]])
        rows.append(out[op["carry"] :])
    rows = rows[::-1] if op["reverse"] else rows
    return (*carry, *(make("stack", *column, axis=0) for column in zip(*rows)))


def peeled(op: Op) -> tuple[tuple[Value, ...], Op]:
    """A scan's first iteration written out, and the loop over the rest.

    Returns (results of the whole, the remaining loop). Raises ValueError for a reversed loop.
    """
    if op["reverse"] or op["length"] < 2:
        raise ValueError("only a forward loop of two or more can be peeled")
    consts, carry, xs = (op.args[part] for part in scan_parts(op))
    first = [_first(each) for each in xs]
    out = substitute(op.regions[0], [*consts, *carry, *first])
    rest = [_rows(each, 1, op["length"]) for each in xs]
    shorter = Op(
        op.name,
        op.args,
        tuple((name, value - 1 if name == "length" else value) for name, value in op.attrs),
        op.types,
        op.regions,
        op.origin,
    )
    loop = remade_scan(shorter, op.regions[0], consts, out[: op["carry"]], rest)
    ys = [
        make("concatenate", reshaped(head, (1, *head.type.shape)), tail, dimension=0)
        for head, tail in zip(out[op["carry"] :], loop.results[op["carry"] :])
    ]
    return (*loop.results[: op["carry"]], *ys), loop


def _first(value: Value) -> Value:
    """value[0]. A counter stays a value: told that the first layer is number 0, a TPU's compiler
    gives it a cache layout of its own and copies the whole cache there and back."""
    first = reshaped(_rows(value, 0, 1), value.type.shape[1:])
    return make("optimization_barrier", first) if value.op.name == "iota" else first


def _rows(value: Value, start: int, stop: int) -> Value:
    """value[start:stop] along the first axis."""
    rank = value.type.rank
    return make(
        "slice",
        value,
        start_indices=(start, *[0] * (rank - 1)),
        limit_indices=(stop, *value.type.shape[1:]),
    )
