"""Caches that a loop scans and writes as views of another shape: the views leave the loop.

scan{row -> reshape(cache_put(reshape(row)))} over c
  ->  scan{row -> cache_put(row)} over reshape(c)

A decoder that ran on a batch of one sees its cache with an axis of size one, in each of its layers.
`carry_cache` then finds a row that is updated in place.
"""

from __future__ import annotations

import jax

from dialect.matching.values import reshaped, through
from dialect.ops.control import remade_scan, scan_parts
from dialect.ops.nn import Traced
from rewrite.ir import Graph, Op, Type, Value, new_input, replace_values
from rewrite.opdef import traits
from rewrite.rules import Outcome, local


@local(
    "scan",
    example=lambda c, x: jax.lax.scan(
        lambda _, row: (
            None,
            Traced["cache_write"](row.reshape(4, 1, 2), x, 1, axes=(0,)).reshape(4, 2),
        ),
        None,
        c,
    )[1],
    types=("f32[3,4,2]", "f32[1,1,2]"),
)
def views_of_rows(op: Op) -> Outcome:
    """scan{row -> reshape(cache_write(reshape(row)))} over c  ->  the same over reshape(c)"""
    (body,), (consts, carry, xs) = op.regions, scan_parts(op)
    for number, row in enumerate(body.inputs[xs]):
        view = _only_view(body, row)
        written = next((at for at, value in enumerate(body.outputs) if _writes(value, view)), None)
        if written is None or written < op["carry"]:
            continue
        inside = new_input(Type(row.type.dtype, view.type.shape))
        outputs, scanned = list(body.outputs), list(op.args[xs])
        outputs[written] = through(outputs[written], "reshape")
        scanned[number] = reshaped(scanned[number], (op["length"], *view.type.shape))
        inputs = [inside if value == row else value for value in body.inputs]
        graph = replace_values(Graph(tuple(inputs), tuple(outputs)), {view: inside})
        results = list(remade_scan(op, graph, op.args[consts], op.args[carry], scanned).results)
        results[written] = reshaped(results[written], op.types[written].shape)
        return results
    return None


def _only_view(body: Graph, row: Value) -> Value | None:
    """The reshape that is all that reads a scanned row."""
    readers = list(dict.fromkeys(user for user, _ in body.users.get(row, ())))
    is_view = [reader.name for reader in readers] == ["reshape"] and row not in body.outputs
    return readers[0].results[0] if is_view else None


def _writes(value: Value, view: Value | None) -> bool:
    """Whether a value is what is written into the view, in whatever shape."""
    update = through(value, "reshape").op
    return bool(traits(update).writes) and update.args[0] == view
