"""Loops over layers: rolling unrolled layers into a scan, and unrolling or peeling a scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dialect.layered.segments import LEAF, START, Segment
from dialect.normal.normal_form import reshaped
from dialect.ops.control import remade_scan, scan_parts
from rewrite.ir import Graph, Op, Value, new_input
from rewrite.opdef import build, make, substitute, with_args


def rolled(groups: Sequence[Sequence[Segment]]) -> dict[Value, Value]:
    """A scan over isomorphic groups of segments: {old value: value of the scan}.

    Leaves that all groups share are constants of the scan, all others are stacked and scanned, and
    the trunk is the carry. Results that ops outside read are stacked by the scan and unstacked
    after it. The old values are the end of the last group and every exit.
    """
    template = groups[0]
    columns = [
        list(zip(*(group[place].leaves for group in groups))) for place in range(len(template))
    ]
    read = {column: _read(column) for leaves in columns for column in leaves}
    inputs = [column for column, value in read.items() if value.op.name == "input"]
    fixed = [column for column in inputs if len(set(column)) == 1]
    scanned = [column for column in inputs if len(set(column)) > 1]
    carried = new_input(template[0].start.type)
    ops, end = _body(template, carried, [[read[column] for column in row] for row in columns])
    rows = _rows_read_outside(groups)
    body = Graph(
        (*(read[column] for column in fixed), carried, *(read[column] for column in scanned)),
        (end, *(ops[place][number].results[index] for place, number, index in rows)),
    )
    loop = build(
        "scan",
        *(column[0] for column in fixed),
        template[0].start,
        *(make("stack", *column, axis=0) for column in scanned),
        regions=(body,),
        origin=template[0].end.op.origin.then("roll"),
        consts=len(fixed),
        carry=1,
        length=len(groups),
        reverse=False,
        unroll=1,
    )
    values = {groups[-1][-1].end: loop.results[0]}
    for (place, number, index), stacked in zip(rows, loop.results[1:]):
        for group, value in zip(groups, build("unstack", stacked, axis=0).results):
            values.setdefault(group[place].ops[number].results[index], value)
    return values


def _read(column: tuple[Value, ...]) -> Value:
    """What the body of the scan reads for a leaf, given that leaf in every group."""
    first = column[0]
    if first.op.name == "const" and all(value.op.attrs == first.op.attrs for value in column):
        return first
    return new_input(first.type if len(set(column)) == 1 else replace(first.type, weak=False))


def _body(
    template: Sequence[Segment], carried: Value, leaves: Sequence[Sequence[Value]]
) -> tuple[list[list[Op]], Value]:
    """(the ops of every segment of the body, its end), given the leaves of every segment."""
    ops: list[list[Op]] = []
    end = carried
    for segment, read in zip(template, leaves):
        ops.append(_copied(segment, end, read))
        end = ops[-1][segment.ops.index(segment.end.op)].results[segment.end.index]
    return ops, end


def _copied(segment: Segment, start: Value, leaves: Sequence[Value]) -> list[Op]:
    """The ops of a segment with another start and other leaves."""
    ops: list[Op] = []
    for op, refs in zip(segment.ops, segment.refs):
        args = (
            start if place == START else leaves[n] if place == LEAF else ops[place].results[n]
            for place, n in refs
        )
        ops.append(with_args(op, tuple(args)))
    return ops


def _rows_read_outside(groups: Sequence[Sequence[Segment]]) -> list[tuple[int, int, int]]:
    """(segment in its group, op in its segment, result) of every exit of any group."""
    rows: dict[tuple[int, int, int], None] = {}
    for group in groups:
        for place, segment in enumerate(group):
            number = {op: i for i, op in enumerate(segment.ops)} if segment.exits else {}
            rows |= {(place, number[exit.op], exit.index): None for exit in segment.exits}
    return list(rows)


def unrolled(op: Op) -> tuple[Value, ...]:
    """The results of a scan with its iterations written out.

    Scanned inputs are unstacked and outputs stacked in one op, so that `stage` can undo both at the
    boundary and keep one array per layer.
    """
    consts, carry, xs = (op.args[part] for part in scan_parts(op))
    layers = [build("unstack", stack, axis=0).results for stack in xs]
    rows: list[list[Value]] = []
    order = range(op["length"])
    for i in reversed(order) if op["reverse"] else order:
        out = substitute(op.regions[0], [*consts, *carry, *(rows[i] for rows in layers)])
        carry = tuple(out[: op["carry"]])
        rows.append(out[op["carry"] :])
    rows = rows[::-1] if op["reverse"] else rows
    return (*carry, *(make("stack", *column, axis=0) for column in zip(*rows)))


def peeled(op: Op) -> tuple[tuple[Value, ...], Op]:
    """(the results of a scan, the scan over all iterations but the first, which is written out).

    Raises ValueError for a reversed scan or one of a single iteration.
    """
    if op["reverse"] or op["length"] < 2:
        raise ValueError("only a forward loop of two or more can be peeled")
    consts, carry, xs = (op.args[part] for part in scan_parts(op))
    first = [reshaped(_rows(stack, 0, 1), stack.type.shape[1:]) for stack in xs]
    out = substitute(op.regions[0], [*consts, *carry, *first])
    rest = [_rows(stack, 1, op["length"]) for stack in xs]
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


def _rows(value: Value, start: int, stop: int) -> Value:
    """value[start:stop] along the first axis."""
    rank = value.type.rank
    return make(
        "slice",
        value,
        start_indices=(start, *[0] * (rank - 1)),
        limit_indices=(stop, *value.type.shape[1:]),
    )
