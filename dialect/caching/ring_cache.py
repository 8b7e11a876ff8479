"""Caches kept as rings, which attention with a window reads (see `dialect.ops.rings`).

cache  ->  around(first_round(cache)), inside the step

`around` moves through writes, reads and loops to attention. The rules hold where attention reads no
place but the last ones that were written, which `dialect.caching.ring_places` sees to: so places
before these may hold anything.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dialect.caching.commute import Form, loop_rule, rule
from dialect.caching.state_forms import Change, undoes
from dialect.ops import rings  # noqa: F401  (defines them)
from dialect.ops.attend import names_of
from dialect.ops.nn import Traced
from dialect.ops.scores import CONTEXT
from rewrite.ir import Op, Value
from rewrite.opdef import make
from rewrite.rules import Miss, Outcome, Rule, local
from rewrite.signature import Signature


def in_ring(axis: int, context: int, size: int) -> Change:
    """A cache of `context` places along an axis, stored as a ring of so many."""
    return Change(
        lambda cache: (make("first_round", cache, axis=axis, size=size),),
        lambda ring: make("around", ring, axis=axis, context=context, size=size),
    )


def _around(ring: jax.Array, axis: int, times: int) -> jax.Array:
    """A cache that goes so many times around a ring."""
    size = ring.shape[axis]
    return Traced["around"](ring, axis=axis, context=times * size, size=size)


def _once(ring: jax.Array) -> jax.Array:
    return _around(ring, 2, 1)


AROUND = Form(
    "around",
    undo="first_round",
    parts=("r",),
    change=in_ring,
    example=_once,
    types=lambda places: (f"f32[2,3,{places},4]",),
    keeps="approx",
)


@local(
    "first_round",
    example=lambda r: Traced["first_round"](_around(r, 1, 2), axis=1, size=4),
    types=("f32[2,4,3]",),
)
def round_of_ring(op: Op) -> Outcome:
    """first_round(around(r))  ->  r"""
    inner = op.args[0].op
    return inner.args[0] if undoes(inner, op) else None


@local(
    "cache_write",
    keeps="approx",
    example=lambda r, new: Traced["cache_write"](_once(r), new, 3, axes=(2,)),
    types=("f32[2,3,8,4]", "f32[2,3,1,4]"),
)
def write_of_ring(op: Op) -> Outcome:
    """cache_write(around(r), new, p)  ->  around(cache_write(r, new, p modulo its places))"""
    (_, new, *starts), ring = op.args, op.args[0].op
    if ring.name != AROUND.op:
        return None
    if ring["axis"] not in op["axes"] or new.type.shape[ring["axis"]] != 1:
        return Miss("it writes several places, and may still need those that they replace", 3)
    number = op["axes"].index(ring["axis"])
    starts[number] = _place(starts[number], ring)
    return _as(ring, make("cache_write", ring.args[0], new, *starts, axes=op["axes"]))


@local(
    "cache_put",
    keeps="approx",
    example=lambda r, new: Traced["cache_put"](
        _once(r), new, jnp.full((2, 1), 2), axis=2, mode=jax.lax.GatherScatterMode.CLIP
    ),
    types=("f32[2,3,8,4]", "f32[2,3,1,4]"),
)
def put_of_ring(op: Op) -> Outcome:
    """cache_put(around(r), new, p)  ->  around(cache_put(r, new, p modulo its places))"""
    (_, new, places, *layer), ring = op.args, op.args[0].op
    if ring.name != AROUND.op:
        return None
    if op["axis"] != ring["axis"] or new.type.shape[ring["axis"] - len(layer)] != 1:
        return Miss("it writes several places, and may still need those that they replace", 3)
    places = _place(places, ring)
    return _as(ring, make("cache_put", ring.args[0], new, places, *layer, **dict(op.attrs)))


def _place(place: Value, ring: Op) -> Value:
    """A place of the cache, in the ring."""
    return make("modulo", place, size=ring["size"])


def _as(before: Op, ring: Value) -> Value:
    return make("around", ring, **dict(before.attrs))


@local(
    "attend",
    keeps="approx",
    example=lambda q, r: Traced["attend"](
        q,
        _around(r, 1, 2),
        _around(r, 1, 2),
        jnp.array([6]),
        axes="b k, b s k, b s v, 1 -> b v",
        given="last",
        window=4,
    ),
    types=("f32[2,3]", "f32[2,4,3]"),
)
def attend_to_ring(op: Op) -> Outcome:
    """attend{window=n}(q, around(k), around(v), last)  ->  attend(q, k, v, last), of n places"""
    inputs, args, window = Signature.parse(op["axes"]).inputs, list(op.args), op.get("window")
    over = [i for i, axes in enumerate(inputs) if CONTEXT in axes]
    rounds = [args[i].op for i in over]
    if not window or AROUND.op not in {ring.name for ring in rounds}:
        return None
    if op.get("sinks") or op.get("blocks") or op.get("sparq") or "first" in names_of(op):
        return Miss("it keeps other positions than the last ones", 2)
    for i, ring in zip(over, rounds):
        if ring.name != AROUND.op or ring["axis"] != inputs[i].index(CONTEXT):
            return Miss(f"its {names_of(op)[i]} is no ring", 3)
        if ring["size"] != window:
            return Miss(f"its window is {window}, and a ring has {ring['size']} places", 3)
        args[i] = ring.args[0]
    attrs = {name: value for name, value in op.attrs if name not in ("window", "sinks")}
    return make("attend", *args, **attrs)


RULES: tuple[Rule, ...] = (
    round_of_ring,
    *(rule(AROUND, name) for name in ("stack", "unstack", "cache_read")),
    loop_rule(AROUND),
    write_of_ring,
    put_of_ring,
    attend_to_ring,
)
