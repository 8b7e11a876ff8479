"""Loops over layers that count: the layer of a trip is a row of what the loop scans.

A `fori_loop` reads layer i of stacked weights at a place that depends on its counter. `lax.scan`
over the stack says the same by itself, so that later passes see weights that are parameters alone.
(What it does to caches is undone by `dialect.caching.carried_stacks`.)
"""

from __future__ import annotations

import jax

from dialect.matching.values import reshaped
from dialect.normal.trips import Places, row_read
from dialect.ops.control import remade_scan, scan_parts
from rewrite.ir import Graph, Op, Type, Value, new_input, replace_values
from rewrite.opdef import make
from rewrite.rules import Outcome, local


@local(
    "scan",
    example=lambda w, x: jax.lax.fori_loop(
        0, 3, lambda i, x: x * jax.lax.dynamic_index_in_dim(w, i, keepdims=False), x
    ),
    types=("f32[3,2]", "f32[2]"),
)
def row_of_trip(op: Op) -> Outcome:
    """scan{i -> f(w[i])}, i counting from a  ->  scan{row -> f(row)} over w[a : a + trips]"""
    (body,), (fixed, carry, xs) = op.regions, scan_parts(op)
    given = dict(zip(body.inputs[fixed], op.args[fixed]))
    places = Places(op)
    rows: dict[Value, tuple[Value, int]] = {}
    for inner in body.ops:
        stack, index = row_read(inner)
        first = places.first(index) if stack in given else None
        if first is not None and first + op["length"] <= stack.type.shape[0]:
            rows[inner.results[0]] = (stack, first)
    if not rows:
        return None
    scanned = {
        place: new_input(Type(place[0].type.dtype, place[0].type.shape[1:]))
        for place in dict.fromkeys(rows.values())
    }
    read = {row: reshaped(scanned[place], row.type.shape) for row, place in rows.items()}
    outputs = replace_values(body, read).outputs
    stacks = [_rows(given[stack], first, op["length"]) for stack, first in scanned]
    return remade_scan(
        op,
        Graph((*body.inputs, *scanned.values()), outputs),
        op.args[fixed],
        op.args[carry],
        [*op.args[xs], *stacks],
    ).results


def _rows(stack: Value, first: int, count: int) -> Value:
    """stack[first : first + count]"""
    if count == stack.type.shape[0]:
        return stack
    others = stack.type.shape[1:]
    starts, limits = (first, *[0] * len(others)), (first + count, *others)
    return make("slice", stack, start_indices=starts, limit_indices=limits)
