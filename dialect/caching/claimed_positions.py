"""A position that is claimed to be the place that a step writes, and NaN where it is not.

attend(q, k, v, last)  ->  checked(attend(q, k, v, last), last == place)

A library may write at a counter of its cache, and mask by positions that its caller gives or by the
counter of another layer. No program says that all of these are one, and a ring is right only where
they are. So rows whose positions differ are NaN, and not wrong.
"""

from __future__ import annotations

from dialect.matching.operands import arranged, named
from dialect.matching.values import in_dtype, in_shape, reshaped, shaped
from dialect.ops.attend import names_of
from rewrite.ir import Op, Symbol, Value
from rewrite.opdef import make, traits
from rewrite.signature import Signature, letters


def places_written(op: Op) -> Value:
    """The places that a `cache_write` or a `cache_put` writes, i32[rows, places]; one row where all
    rows write to the same places."""
    along = op[traits(op).axes]
    if not isinstance(along, tuple):
        places = in_dtype(op.args[2], "i32")
        return places if places.type.rank == 2 else reshaped(places, (1, places.type.size))
    start = reshaped(in_dtype(op.args[1 + len(along)], "i32"), (1, 1))
    count = op.args[1].type.shape[along[-1]]
    if count == 1:
        return start
    counter = make("iota", dtype=Symbol("i32"), shape=(1, count), dimension=1)
    return make("add", start, counter)


def checked(op: Op, places: Value) -> Value:
    """The result of an attention; NaN where its `last` position is none of these places, those of
    `places_written`."""
    axes, number = Signature.parse(op["axes"]), names_of(op).index("last")
    last, count = op.args[number], places.type.shape[1]
    rows = reshaped(in_dtype(last, "i32"), (last.type.size // count, count))
    holds = named(reshaped(make("eq", rows, places), last.type.shape), axes.inputs[number])
    held = {axis: size for axis, size in zip(holds.axes, holds.value.type.shape) if axis}
    (result,), (out,) = op.results, axes.outputs
    placed = shaped(arranged(holds, letters(out)), tuple(held.get(axis, 1) for axis in out))
    return make("checked", result, in_shape(placed, result.type.shape))
