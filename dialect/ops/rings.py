"""Caches kept as rings: of a context as many places as a window has, written over in turn.

    rings(caches.., position)   ->  rings, position:   place s mod n is place s of the cache
    unwound(rings.., position)  ->  caches, position:  n places before the position, others 0

A ring is what its cache still needs (the cache of Mistral 7B, Jiang et al. 2023, arXiv:2310.06825,
section 2). `position` is the place that is written next; with it a ring says which places it holds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from dialect.ops.vocabulary import elementwise, word
from rewrite.ir import Op
from rewrite.opdef import Traits
from rewrite.signature import Array, Signature, numbered


def around(ring: Any, *, axis: int, context: int, size: int) -> Any:
    """A cache of `context` places along an axis that goes round and round a ring of `size`.

    Raises ValueError for a ring of another size.
    """
    if ring.shape[axis] != size:
        raise ValueError(f"a ring has {ring.shape[axis]} places, not {size}")
    return jnp.take(ring, jnp.arange(context) % size, axis=axis)


def first_round(cache: Any, *, axis: int, size: int) -> Any:
    """The first `size` places of a cache along an axis: the ring that it goes round."""
    return jax.lax.slice_in_dim(cache, 0, size, axis=axis)


def rings(*arrays: Any, axes: tuple[int, ...], size: int, rows: int | None = None) -> list[Any]:
    """[rings.., position] of caches and the position that is written next.

    axes: where every cache has its context; size: the places of a ring. position: an integer, or
    one for each index along the axis `rows` of the caches; along further axes it is the same.
    """
    *caches, position = arrays
    wound = (
        _by_rows(partial(_wound, size=size), cache, axis, position, rows)
        for cache, axis in zip(caches, axes, strict=True)
    )
    return [*wound, position]


def _wound(cache: Any, position: Any, axis: int, size: int) -> Any:
    """Every place of a ring: the last before the position that is this one modulo `size`; where
    there is none yet, what stands at its own place."""
    last = jnp.clip(position, 0, cache.shape[axis]) - 1
    place = last - (last - jnp.arange(size)) % size
    return jnp.take(cache, jnp.where(place < 0, place + size, place), axis=axis)


def unwound(
    *arrays: Any, axes: tuple[int, ...], contexts: tuple[int, ...], rows: int | None = None
) -> list[Any]:
    """[caches.., position] of rings and the position that is written next; the inverse of `rings`.

    contexts: how many places every cache has. What a ring has written over is zero.
    """
    *wound, position = arrays
    caches = (
        _by_rows(partial(_straight, context=context), ring, axis, position, rows)
        for ring, axis, context in zip(wound, axes, contexts, strict=True)
    )
    return [*caches, position]


def _straight(ring: Any, position: Any, axis: int, context: int) -> Any:
    size, places = ring.shape[axis], jnp.arange(context)
    position = jnp.clip(position, 0, context)
    is_held = (places >= position - size) & (places < jnp.maximum(position, size))
    is_held = is_held.reshape([context if d == axis else 1 for d in range(ring.ndim)])
    whole = around(ring, axis=axis, context=context, size=size)
    return jnp.where(is_held, whole, jnp.zeros((), ring.dtype))


def checked(array: Any, holds: Any) -> Any:
    """What holds of an array; NaN elsewhere. Elementwise."""
    return jnp.where(holds, array, jnp.asarray(jnp.nan, array.dtype))


def _by_rows(
    function: Callable[[Any, Any, int], Any], array: Any, axis: int, position: Any, rows: int | None
) -> Any:
    """`function` of an array, its position and its axis; along `rows` of each row by itself."""
    if rows is None:
        return function(array, position.reshape(-1)[0], axis)
    positions = position.reshape(array.shape[rows], -1)[:, 0]
    inner = axis - (rows < axis)
    mapped = jax.vmap(lambda row, place: function(row, place, inner), (rows, 0), rows)
    return mapped(array, positions)


def _round_axes(op: Op) -> Signature:
    array, at = numbered(op.args[0].type.rank), op["axis"]
    other = (*array[:at], (f"x{at}'",), *array[at + 1 :])
    return Signature((array,), (other,), frozenset({f"x{at}", f"x{at}'"}))


def _ring_axes(op: Op) -> Signature:
    arrays, others, need = [], [], set()
    for number, (arg, at) in enumerate(zip(op.args, op["axes"])):
        array = [(f"c{number}x{d}",) for d in range(arg.type.rank)]
        if op.get("rows") is not None:
            array[op["rows"]] = ("rows",)
        other = [*array[:at], (f"c{number}x{at}'",), *array[at + 1 :]]
        need |= {*array[at], *other[at]}
        arrays.append(tuple(array))
        others.append(tuple(other))
    position = _position(op)
    return Signature((*arrays, position), (*others, position), frozenset(need))


def _position(op: Op) -> Array:
    rank = op.args[-1].type.rank
    named = tuple((f"p{d}",) for d in range(rank))
    return named if op.get("rows") is None else (("rows",), *named[1:])


def _as_unwound(op: Op) -> tuple[str, dict[str, Any]]:
    contexts = tuple(arg.type.shape[at] for arg, at in zip(op.args, op["axes"]))
    return "unwound", {"axes": op["axes"], "contexts": contexts, "rows": op.get("rows")}


def _as_around(op: Op) -> tuple[str, dict[str, Any]]:
    return "around", {**dict(op.attrs), "context": op.args[0].type.shape[op["axis"]]}


_MOVES = Traits(moves=True, axes="axis")
word(checked, elementwise, traits=Traits(batches=True, exact=True))
word(around, _round_axes, ("axis", "context", "size"), traits=_MOVES)
word(first_round, _round_axes, ("axis", "size"), inverse=_as_around, traits=_MOVES)
word(rings, _ring_axes, ("axes", "size", "rows"), inverse=_as_unwound, traits=Traits(moves=True))
word(unwound, _ring_axes, ("axes", "contexts", "rows"), traits=Traits(moves=True))
