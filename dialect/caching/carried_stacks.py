"""Stacked caches of loops that count: layer i is read, updated and written back.

`carry_cache` then carries the whole stack and writes at (layer, position) in place, as it does for
caches that `lax.scan` hands to its body layer by layer.
"""

from __future__ import annotations

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
    (body,), (fixed, carry, xs) = op.regions, scan_parts(op)
    places = Places(op)
    for position, (stack, written) in enumerate(zip(body.inputs[carry], body.outputs)):
        readers = _readers(body, stack, written)
        indices = [row_read(reader)[1] for reader in readers or ()] + [_index_written(written)]
        whole = stack.type.shape[:1] == (op["length"],)
        if (
            readers is None
            or not whole
            or not _updates(written, readers)
            or any(places.first(index) != 0 for index in indices)
        ):
            continue
        row = new_input(Type(stack.type.dtype, stack.type.shape[1:]))
        read = {x.results[0]: reshaped(row, x.types[0].shape) for x in readers}
        new = reshaped(written.op.args[1], row.type.shape)
        carried = [*body.outputs[: op["carry"]]]
        del carried[position]
        outputs = (*carried, *body.outputs[op["carry"] :], new)
        inputs = [value for value in body.inputs if value != stack]
        changed = replace_values(Graph((*inputs, row), outputs), read)
        starts = [*op.args[carry]]
        given = starts.pop(position)
        fewer = replace(op, attrs=attrs_of({**dict(op.attrs), "carry": len(starts)}))
        results = list(
            remade_scan(fewer, changed, op.args[fixed], starts, [*op.args[xs], given]).results
        )
        return (*results[:position], results[-1], *results[position:-1])
    return None


def _readers(body: Graph, stack: Value, written: Value) -> list[Op] | None:
    """The ops that read a row of a carried stack; None if it is read or written otherwise."""
    users = [user for user, _ in body.users.get(stack, ())]
    others = list(dict.fromkeys(user for user in users if user != written.op))
    is_read = body.outputs.count(stack) or any(row_read(user)[0] != stack for user in others)
    is_written = _index_written(written) is not None and written.op.args[0] == stack
    once = body.outputs.count(written) == 1 and not body.users.get(written)
    return others if is_written and once and not is_read else None


def _index_written(written: Value) -> Value | None:
    """Where a row is written whole into a stack, along its first axis."""
    op = written.op
    if opdef.traits(op).writes != 1:
        return None
    whole = op.args[1].type.shape == (1, *written.type.shape[1:])
    along = (op.get("axes", (0,)), op.get("axis", 0)) == ((0,), 0)
    return op.args[2] if whole and along else None


def _updates(written: Value, readers: list[Op]) -> bool:
    """Whether the row that is written is one of those that are read, updated in place."""
    update = through(written.op.args[1], "reshape").op
    rows = {reader.results[0] for reader in readers}
    return bool(opdef.traits(update).writes) and through(update.args[0], "reshape") in rows
