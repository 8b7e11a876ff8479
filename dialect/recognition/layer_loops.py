"""Loops that index stacked layers by a counter become loops that scan the stack.

The body of a `fori_loop` reads layer i of stacked weights, where i is its counter. As a `lax.scan`
over the stack it reads the layer's weights as such, and later passes see that they depend on
parameters alone. (`dialect.caching.carried_stacks` does the same for caches.)
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
    (body,), (consts, carry, xs) = op.regions, scan_parts(op)
    argument = dict(zip(body.inputs[consts], op.args[consts]))
    places = Places(op)
    rows: dict[Value, tuple[Value, int]] = {}
    for inner in body.ops:
        stack, index = row_read(inner)
        first = places.first(index) if stack in argument else None
        if first is not None and first + op["length"] <= stack.type.shape[0]:
            rows[inner.results[0]] = (stack, first)
    if not rows:
        return None
    scanned = {
        (stack, first): new_input(Type(stack.type.dtype, stack.type.shape[1:]))
        for stack, first in dict.fromkeys(rows.values())
    }
    read = {row: reshaped(scanned[place], row.type.shape) for row, place in rows.items()}
    outputs = replace_values(body, read).outputs
    stacks = [_rows(argument[stack], first, op["length"]) for stack, first in scanned]
    return remade_scan(
        op,
        Graph((*body.inputs, *scanned.values()), outputs),
        op.args[consts],
        op.args[carry],
        [*op.args[xs], *stacks],
    ).results


def _rows(stack: Value, first: int, count: int) -> Value:
    """stack[first : first + count]"""
    if count == stack.type.shape[0]:
        return stack
    row_shape = stack.type.shape[1:]
    starts, limits = (first, *[0] * len(row_shape)), (first + count, *row_shape)
    return make("slice", stack, start_indices=starts, limit_indices=limits)
