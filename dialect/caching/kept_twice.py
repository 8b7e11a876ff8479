"""Caches that keep what `sparq` reads: keys in a second order, and the sum of the values.

keys    ->  with_columns(columns(keys)),  values  ->  with_total(total(values)), at the boundary

Both move through writes, reads and loops to attention, which reads the second part. What is
written into a cache is written into both, or added to the sum. So that is the sum of all positions
so far where the cache was fresh, all zero, and each is written once. (What a place held before is
not subtracted: for reading it the compiler lays the cache out anew, in every layer.)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dialect.caching.commute import Form, loop_rule, rule, rules
from dialect.caching.state_forms import Change
from dialect.matching.values import REALS, in_dtype, reshaped
from dialect.ops import kept_twice  # noqa: F401  (defines them)
from dialect.ops.nn import Traced
from dialect.staging.stored_states import undoes
from rewrite.ir import Op, Value
from rewrite.opdef import build, make
from rewrite.rules import Miss, Outcome, Rule, local
from rewrite.signature import Array, Signature


def in_columns(axis: int) -> Change:
    """Keys that are kept a second time, with this axis last."""
    return Change(
        lambda keys: build("columns", keys, axis=axis).results,
        lambda keys, columns: make("with_columns", keys, columns, axis=axis),
    )


def in_total(axis: int) -> Change:
    """Values with their sum over this axis."""
    return Change(
        lambda values: build("total", values, axis=axis).results,
        lambda values, total: make("with_total", values, total, axis=axis),
    )


def _columns(keys: jax.Array, columns: jax.Array, axis: int = 2) -> jax.Array:
    return Traced["with_columns"](keys, columns, axis=axis)


def _total(values: jax.Array, total: jax.Array, axis: int = 2) -> jax.Array:
    return Traced["with_total"](values, total, axis=axis)


COLUMNS = Form(
    "with_columns",
    undo="columns",
    parts=("k", "c"),
    change=in_columns,
    example=_columns,
    types=lambda places: (f"f32[2,3,{places},4]", f"f32[2,3,4,{places}]"),
)
TOTAL = Form(
    "with_total",
    undo="total",
    parts=("v", "t"),
    change=in_total,
    example=_total,
    types=lambda places: (f"f32[2,3,{places},4]", "f32[2,3,4]"),
    fits=lambda op: op.args[0].type.dtype in REALS and op.args[1].type.dtype == "f32",
)


@local(
    "columns",
    keeps="approx",
    example=lambda k: Traced["columns"](_columns(k, jnp.moveaxis(k, 2, -1)), axis=2)[1],
    types=COLUMNS.types(8)[:1],
)
def columns_of_kept(op: Op) -> Outcome:
    """columns(with_columns(k, c))  ->  k, c"""
    return op.args[0].op.args if undoes(op.args[0].op, op) else None


@local(
    "total",
    keeps="approx",
    example=lambda v: Traced["total"](_total(v, v.sum(2)), axis=2)[1],
    types=TOTAL.types(8)[:1],
)
def total_of_kept(op: Op) -> Outcome:
    """total(with_total(v, t))  ->  v, t"""
    return op.args[0].op.args if undoes(op.args[0].op, op) else None


@local(
    "cache_write",
    example=lambda v, t, new: Traced["cache_write"](_total(v, t), new, 3, axes=(2,)),
    types=(*TOTAL.types(8), "f32[2,3,1,4]"),
)
def write_of_total(op: Op) -> Outcome:
    """cache_write(with_total(v, t), new)  ->  with_total(cache_write(v, new), t + new)"""
    (cache, new, *starts), kept = op.args, op.args[0].op
    if kept.name != TOTAL.op or not TOTAL.fits(kept):
        return None
    (values, total), axis = kept.args, kept["axis"]
    if op["axes"] not in ((axis,), (0, axis)):
        return Miss("it writes along another axis than the context", 3)
    *layer, _ = starts
    if layer and new.type.shape[0] != 1:
        return Miss("it writes several layers", 3)
    added = make("reduce_sum", in_dtype(new, "f32"), axes=(axis,), out_sharding=None)
    cache = make("cache_write", values, new, *starts, axes=op["axes"])
    return make("with_total", cache, _plus(total, added, *layer), axis=axis)


def _plus(total: Value, added: Value, *layer: Value) -> Value:
    """The total, or that of one layer, with something added to it."""
    if not layer:
        return make("add", total, added)
    before = reshaped(make("cache_read", total, *layer), added.type.shape)
    return make("cache_write", total, make("add", before, added), *layer, axes=(0,))


@local(
    "attend",
    keeps="approx",
    example=lambda q, k, v, last: Traced["attend"](
        q,
        _columns(k, jnp.moveaxis(k, 1, -1), 1),
        _total(v, v.sum(1), 1),
        last,
        axes="b k, b s k, b s v, 1 -> b v",
        given="last",
        sparq=(2, 3, 1, True),
    ),
    types=("f32[2,4]", "f32[2,5,4]", "f32[2,5,4]", "i32[1]"),
)
def attend_to_kept(op: Op) -> Outcome:
    """attend{sparq}(q, with_columns(k, c), with_total(v, t))  ->  attend{sparq}(q, k, v, c, t)"""
    named = Signature.parse(op["axes"])
    args, inputs, given = list(op.args), list(named.inputs), op.get("given", "").split()
    for number, form, name in ((2, TOTAL, "total"), (1, COLUMNS, "columns")):
        kept = args[number].op
        if kept.name != form.op or op.get("sparq") is None:
            continue
        args[number], more = kept.args
        args.insert(3, more)
        inputs.insert(3, _kept_axes(inputs[number], kept["axis"], form is COLUMNS))
        given.insert(0, name)
    if tuple(args) == op.args:
        return None
    axes = str(Signature(tuple(inputs), named.outputs))
    return make("attend", *args, **{**dict(op.attrs), "axes": axes, "given": " ".join(given)})


def _kept_axes(axes: Array, axis: int, is_last: bool) -> Array:
    rest = (*axes[:axis], *axes[axis + 1 :])
    return (*rest, axes[axis]) if is_last else rest


RULES: tuple[Rule, ...] = (
    *rules(COLUMNS),
    *(rule(TOTAL, name) for name in ("stack", "unstack", "cache_read")),
    loop_rule(TOTAL),
    columns_of_kept,
    total_of_kept,
    write_of_total,
    attend_to_kept,
)
