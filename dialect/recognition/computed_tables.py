"""A row of a table that is computed from its place is computed by itself, and not the table.

Libraries compute the rotary angles of their longest context, 163,840 positions of them, and take
those of one token out of them in every layer.
"""

from __future__ import annotations

import jax.numpy as jnp

from dialect.jaxprs.jaxpr import constant
from dialect.matching.values import grown_from, in_dtype, in_shape, is_iota, reshaped
from dialect.ops import lax
from dialect.ops.lookups import DROP
from rewrite.ir import Op, Type, Value
from rewrite.opdef import make
from rewrite.rules import Miss, Outcome, local

_EXACT = {"i32": 2**31, "u32": 2**32, "f32": 2**24}  # dtypes that hold integers up to these


@local(
    "take",
    example=lambda i, x: jnp.take(
        jnp.sin(jnp.arange(8)[:, None] * x), i.astype("int32"), axis=0, mode="clip"
    ),
    types=("f32[3]", "f32[4]"),
    keeps="reals",
)
def row_of_computed(op: Op) -> Outcome:
    """take(f(iota(n), x), ids)  ->  f(clamp(0, ids, n - 1), x), where no more rows are taken"""
    table, ids = op.args
    count = table.type.shape[0]
    if not _is_computed(table):
        return None
    if op["mode"] == DROP:
        return Miss("it has another value out of bounds", 2)
    if not 0 < ids.type.size <= count:
        return Miss("it takes more rows than the table has, or none", 2)
    if ids.type.dtype not in ("i32", "u32"):
        return Miss("its ids may not reach the last row", 2)
    place = Type(ids.type.dtype, ())
    return _rows(table, make("clamp", constant(0, place), ids, constant(count - 1, place)))


def _is_thin(value: Value) -> bool:
    """Whether a value is the same for every row of the table."""
    return grown_from(value).type.shape[:1] in ((), (1,))


def _is_computed(value: Value, steps: int = 12) -> bool:
    """Whether every row of a value is computed from its place alone."""
    source = grown_from(value)
    op = source.op
    if is_iota(source):
        return source.type.rank == 1 and source.type.size <= _EXACT.get(source.type.dtype, 0)
    inside = op.name in lax.MAPS or _keeps_rows(op)
    rest = [arg for arg in op.args if not _is_thin(arg)]
    return inside and steps > 0 and all(_is_computed(x, steps - 1) for x in rest)


def _keeps_rows(op: Op) -> bool:
    """Whether an op gives every row another shape."""
    sizes = op.get("new_sizes")
    return sizes is not None and sizes[:1] == op.args[0].type.shape[:1]


def _rows(value: Value, places: Value) -> Value:
    """The rows of a computed value at these places."""
    source, front = grown_from(value), places.type.shape
    op, row = source.op, source.type.shape[1:]
    if not source.type.rank:
        rows = source
    elif _is_thin(source):
        rows = reshaped(source, (*(1 for _ in front), *row))
    elif is_iota(source):
        rows = in_dtype(places, source.type.dtype)
    elif _keeps_rows(op):
        rows = reshaped(_rows(op.args[0], places), (*front, *row))
    else:
        rows = make(op.name, *(_rows(arg, places) for arg in op.args), **dict(op.attrs))
    return rows if source == value else in_shape(rows, (*front, *value.type.shape[1:]))
