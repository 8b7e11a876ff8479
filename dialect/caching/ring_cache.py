"""Caches kept as rings, which attention with a window reads (see `dialect.ops.rings`).

cache  ->  around(first_round(cache)), inside the step

`around` moves through writes, reads and loops to attention. The rules hold where attention reads no
place but the last ones that were written, which `dialect.caching.ring_places` sees to: so places
before these may hold anything.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dialect.caching.claimed_positions import places_written
from dialect.caching.commute import Form, loop_rule, rule
from dialect.caching.state_forms import Change
from dialect.matching.bound_values import integer
from dialect.matching.mask_regions import INTEGERS
from dialect.matching.values import in_dtype, reshaped, shaped
from dialect.ops import rings  # noqa: F401  (defines them)
from dialect.ops.attend import names_of
from dialect.ops.lookups import CLIP
from dialect.ops.nn import Traced
from dialect.ops.scores import CONTEXT
from dialect.staging.stored_states import undoes
from rewrite.ir import Op, Symbol, Value
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
        return Miss("it writes several places", 3)
    number = op["axes"].index(ring["axis"])
    starts[number] = _place(starts[number], ring)
    return _as(ring, make("cache_write", ring.args[0], new, *starts, axes=op["axes"]))


@local(
    "cache_write",
    keeps="approx",
    example=lambda r, new: Traced["cache_write"](_once(r), new, 3, axes=(2,)),
    types=("f32[2,3,8,4]", "f32[2,3,2,4]"),
)
def chunk_of_ring(op: Op) -> Outcome:
    """cache_write(around(r), new, p)  ->  cache_put(around(r), new, p + i), which may wrap"""
    (cache, new, *layer, _), axes = op.args, op["axes"]
    if cache.op.name != AROUND.op or new.type.shape[cache.op["axis"]] == 1:
        return None
    layers = len(layer)
    in_a_layer = axes == (*range(layers), cache.op["axis"])
    if not in_a_layer or new.type.shape[:layers] != (1,) * layers:
        return Miss("it writes several layers, or along other axes than the ring", 3)
    places = places_written(op)
    places, new = reshaped(places, places.type.shape[1:]), shaped(new, new.type.shape[layers:])
    return make("cache_put", cache, new, places, *layer, axis=axes[-1], mode=CLIP)


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
    if op["axis"] != ring["axis"] or new.type.shape[ring["axis"] - len(layer)] > ring["size"]:
        return Miss("it writes more places than a ring has", 3)
    places = _place(places, ring)
    return _as(ring, make("cache_put", ring.args[0], new, places, *layer, **dict(op.attrs)))


def _place(place: Value, ring: Op) -> Value:
    """A place of the cache, in the ring."""
    return make("modulo", place, size=ring["size"])


def _as(before: Op, ring: Value) -> Value:
    return make("around", ring, **dict(before.attrs))


def _of_rings(op: Op) -> tuple[list[Value], int] | Miss | None:
    """What an attention reads, rings in the place of what goes around them, and their places."""
    inputs, args, window = Signature.parse(op["axes"]).inputs, list(op.args), op.get("window")
    over = [i for i, axes in enumerate(inputs) if CONTEXT in axes]
    rounds = [args[i].op for i in over]
    if not window or AROUND.op not in {ring.name for ring in rounds}:
        return None
    if op.get("sinks") or op.get("blocks") or op.get("sparq") or "first" in names_of(op):
        return Miss("it keeps other positions than the last ones", 2)
    size = next(ring["size"] for ring in rounds if ring.name == AROUND.op)
    for i, ring in zip(over, rounds):
        if ring.name != AROUND.op or ring["axis"] != inputs[i].index(CONTEXT):
            return Miss(f"its {names_of(op)[i]} is no ring", 3)
        if ring["size"] != size or size < window:
            return Miss(f"its window is {window}, and a ring has {ring['size']} places", 3)
        args[i] = ring.args[0]
    return args, size


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
    read = _of_rings(op)
    if not isinstance(read, tuple) or read[1] != op["window"]:
        return None if isinstance(read, tuple) else read
    return make("attend", *read[0], **_unwindowed(op))


@local(
    "attend",
    keeps="approx",
    example=lambda q, r: Traced["attend"](
        q,
        _around(r, 1, 2),
        _around(r, 1, 2),
        jnp.array([5, 6]),
        axes="b t k, b s k, b s v, t -> b t v",
        given="last",
        window=3,
    ),
    types=("f32[2,2,3]", "f32[2,4,3]"),
)
def attend_to_chunks(op: Op) -> Outcome:
    """attend{window=n}(q, around(k), around(v), last)  ->  attend(q, k, v, (last - s) mod m < n)

    of m > n places; the first queries of a chunk see none that its last ones have written."""
    read = _of_rings(op)
    if not isinstance(read, tuple) or read[1] == op["window"]:
        return None if isinstance(read, tuple) else read
    if "mask" in names_of(op):
        return Miss("it has a mask besides its window", 3)
    args, size = read
    inputs, at = list(Signature.parse(op["axes"]).inputs), names_of(op).index("last")
    if args[at].type.dtype not in INTEGERS:
        return Miss("its last position is no integer", 3)
    args[at], inputs[at] = _lately(args[at], size, op["window"]), (*inputs[at], CONTEXT)
    axes = str(Signature(tuple(inputs), Signature.parse(op["axes"]).outputs))
    given = " ".join("mask" if name == "last" else name for name in names_of(op)[3:])
    return make("attend", *args, **{**_unwindowed(op), "axes": axes, "given": given})


def _lately(last: Value, size: int, window: int) -> Value:
    """Which places of a ring hold one of the positions of a window up to `last`."""
    last = in_dtype(reshaped(last, (*last.type.shape, 1)), "i32")
    shape = (*(1 for _ in last.type.shape[1:]), size)
    slots = reshaped(make("iota", dtype=Symbol("i32"), shape=(size,), dimension=0), shape)
    ago = make("modulo", make("sub", last, slots), size=size)
    held = make("min", last, integer(window - 1))  # of the first positions there are fewer
    return make("le", ago, held)


def _unwindowed(op: Op) -> dict[str, Any]:
    return {name: value for name, value in op.attrs if name not in ("window", "sinks")}


RULES: tuple[Rule, ...] = (
    round_of_ring,
    *(rule(AROUND, name) for name in ("stack", "unstack", "cache_read")),
    loop_rule(AROUND),
    write_of_ring,
    chunk_of_ring,
    put_of_ring,
    attend_to_ring,
    attend_to_chunks,
)
