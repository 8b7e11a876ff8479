"""Stacked caches in loops with a counter i: the body reads layer i, updates it and writes it back.

The rule makes the loop a scan over the layers of the cache. `carry_cache` then carries the whole
stack and writes at (layer, position) in place, as for any cache that a `lax.scan` scans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import jax

from dialect.matching.values import reshaped, through
from dialect.normal.trips import Places, row_read
from dialect.ops.control import remade_scan, scan_parts
from dialect.ops.nn import Traced
from rewrite import opdef
from rewrite.ir import Graph, Op, Type, Value, attrs_of, new_input, replace_values
from rewrite.rules import Outcome, local


@local(
    "scan",
    example=lambda c, x: jax.lax.fori_loop(
        0,
        3,
        lambda i, c: jax.lax.dynamic_update_index_in_dim(
            c,
            Traced["cache_write"](
                jax.lax.dynamic_index_in_dim(c, i, keepdims=False), x, 1, axes=(0,)
            ),
            i,
            0,
        ),
        c,
    ),
    types=("f32[3,4,2]", "f32[1,2]"),
)
def stack_of_trips(op: Op) -> Outcome:
    """scan{carry c, i -> c[i] = cache_write(c[i])}  ->  scan{row -> cache_write(row)} over c"""
    (body,), (_, carry, _) = op.regions, scan_parts(op)
    places = Places(op)
    for position, (stack, written) in enumerate(zip(body.inputs[carry], body.outputs)):
        readers = _readers(body, stack, written)
        indices = [row_read(reader)[1] for reader in readers or ()] + [_index_written(written)]
        all_rows = stack.type.shape[:1] == (op["length"],)
        if (
            readers is None
            or not all_rows
            or not _updates(written, readers)
            or any(places.first(index) != 0 for index in indices)
        ):
            continue
        return _scanned(op, position, written, readers)
    return None


def _scanned(op: Op, position: int, written: Value, readers: list[Op]) -> Sequence[Value]:
    """The results of a loop whose carry at `position`, a stack, is a scanned input and output."""
    (body,), (consts, carry, xs) = op.regions, scan_parts(op)
    stack = body.inputs[carry][position]
    row = new_input(Type(stack.type.dtype, stack.type.shape[1:]))
    rows_read = {reader.results[0]: reshaped(row, reader.types[0].shape) for reader in readers}
    new_row = reshaped(written.op.args[1], row.type.shape)
    carried = [*body.outputs[: op["carry"]]]
    del carried[position]
    outputs = (*carried, *body.outputs[op["carry"] :], new_row)
    inputs = [value for value in body.inputs if value != stack]
    new_body = replace_values(Graph((*inputs, row), outputs), rows_read)
    starts = [*op.args[carry]]
    scanned = [*op.args[xs], starts.pop(position)]
    fewer = replace(op, attrs=attrs_of({**dict(op.attrs), "carry": len(starts)}))
    loop = remade_scan(fewer, new_body, op.args[consts], starts, scanned)
    *results, new_stack = loop.results
    return (*results[:position], new_stack, *results[position:])


def _readers(body: Graph, stack: Value, written: Value) -> list[Op] | None:
    """The ops that read a carried stack; None if it leaves otherwise than by being written."""
    users = [user for user, _ in body.users.get(stack, ())]
    readers = list(dict.fromkeys(user for user in users if user != written.op))
    is_written = written.op.args[:1] == (stack,) and stack not in body.outputs
    only_carried = body.outputs.count(written) == 1 and not body.users.get(written)
    return readers if is_written and only_carried else None


def _index_written(written: Value) -> Value | None:
    """The index at which one whole row is written into a stack; None if something else is."""
    op = written.op
    if opdef.traits(op).writes != 1:
        return None
    whole_row = op.args[1].type.shape == (1, *written.type.shape[1:])
    along_first = (op.get("axes", (0,)), op.get("axis", 0)) == ((0,), 0)
    return op.args[2] if whole_row and along_first else None


def _updates(written: Value, readers: list[Op]) -> bool:
    """Whether the written row is one of the rows read, updated in place."""
    update = through(written.op.args[1], "reshape").op
    rows = {reader.results[0] for reader in readers}
    return bool(opdef.traits(update).writes) and through(update.args[0], "reshape") in rows
