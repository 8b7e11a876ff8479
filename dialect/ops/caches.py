"""Caches: how a step writes its new keys and values into its state, in whatever spelling.

    cache_write  one place for all sequences: a dynamic_update_slice, done in place
    cache_put    places that differ by sequence, or by position: a scatter

A library may also rewrite the whole cache through a one-hot mask; that is a `cache_put` too, and
then touches only what it writes.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dialect.arrays.attributes import decode
from dialect.ops.vocabulary import word
from rewrite.ir import Op
from rewrite.opdef import Traits
from rewrite.signature import Signature, numbered


def cache_write(cache: Any, new: Any, *positions: Any, axes: tuple[int, ...]) -> Any:
    """Writes `new` into `cache` at `positions` along `axes`, whole along every other axis.

    `new` has the cache's rank. Lowers to one dynamic_update_slice, done in place on a donated or
    carried cache. A place out of bounds is the nearest one within; none is counted from the end.
    """
    start = [jnp.zeros((), jnp.int32)] * cache.ndim
    for axis, position in zip(axes, positions, strict=True):
        start[axis] = in_int32(position)
    return jax.lax.dynamic_update_slice(cache, new, start, allow_negative_indices=False)


def cache_put(cache: Any, new: Any, positions: Any, *layer: Any, axis: int, mode: Any) -> Any:
    """Writes every row of `new` into `cache` at a place of its own along `axis`.

    `new` has the cache's rank, with t rows along `axis`. positions: [t], or [b, t] where the first
    axis of the cache has different places. With a `layer`, a scalar, the cache is [layers, ...]
    and `new` that of one layer. `mode` says what a place out of bounds does.

    Places are clipped here, for behind a clip of all indices XLA's partitioner does not see that
    those of other axes count them, and gathers what is written.
    """
    first, mode = len(layer), decode(mode)
    places = [in_int32(place) for place in (*layer, positions)]
    if mode == jax.lax.GatherScatterMode.CLIP:
        ends = [cache.shape[d] - 1 for d in (*range(first), axis)]
        places = [jnp.clip(place, 0, end) for place, end in zip(places, ends)]
        mode = jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS
    along = (first, axis) if positions.ndim == 2 else (axis,)
    index: Index = {d: (place, ()) for d, place in enumerate(places[:-1])}
    return put_rows(cache, new, index | {axis: (places[-1], along)}, along, mode)


Index = dict[int, tuple[Any, tuple[int, ...]]]  # axis -> places along it, and the axes they vary by


def put_rows(array: Any, new: Any, index: Index, taken: tuple[int, ...], mode: Any) -> Any:
    """Writes `new` into `array` at the places of `index`, in order along every other axis.

    `new` lacks the leading axes of `array` that it has fewer. It is written by rows of the last
    axis that is not among `taken`: for larger windows XLA changes the layout of the whole array and
    back.
    """
    first = array.ndim - new.ndim
    window = [d for d in range(first, array.ndim) if d not in taken][-1:]
    rows = [d for d in range(first, array.ndim) if d not in window]
    sizes = tuple(new.shape[d - first] for d in rows)
    places = {d: jax.lax.broadcasted_iota(jnp.int32, sizes, rows.index(d)) for d in rows}
    for d, (place, axes) in index.items():
        places[d] = jax.lax.broadcast_in_dim(place, sizes, tuple(map(rows.index, axes)))
    numbers = jax.lax.ScatterDimensionNumbers(
        update_window_dims=tuple(d - first for d in window),
        inserted_window_dims=tuple(sorted(places)),
        scatter_dims_to_operand_dims=tuple(sorted(places)),
    )
    indices = jnp.stack([places[d] for d in sorted(places)], axis=-1)
    return jax.lax.scatter(array, indices, new, numbers, mode=mode)


def in_int32(place: Any) -> Any:
    """A place as an int32: what that cannot hold is out of bounds at the same end still."""
    place, limits = jnp.asarray(place), jnp.iinfo(jnp.int32)
    held = jnp.iinfo(place.dtype)
    if held.min < limits.min or held.max > limits.max:
        place = jnp.clip(place, max(held.min, limits.min), limits.max)
    return place.astype(jnp.int32)


def cache_read(cache: Any, layer: Any) -> Any:
    """One layer of a stacked cache. cache: [layers, ...], layer: a scalar."""
    return jax.lax.dynamic_index_in_dim(
        cache, layer, axis=0, keepdims=False, allow_negative_indices=False
    )


def _write_axes(op: Op) -> Signature:
    axes = numbered(op.types[0].rank)
    new = tuple((f"x{i}'",) if i in op["axes"] else axis for i, axis in enumerate(axes))
    need = {f"x{i}{part}" for i in op["axes"] for part in ("", "'")}
    return Signature((axes, new, *[()] * (len(op.args) - 2)), (axes,), frozenset(need))


def _put_axes(op: Op) -> Signature:
    at, rank, first = op["axis"], op.types[0].rank, len(op.args) - 3
    axes = numbered(rank)
    row = (f"x{at}'",)
    new = (*axes[first:at], row, *axes[at + 1 :])
    places = (axes[first], row) if op.args[2].type.rank == 2 else (row,)
    need = {f"x{at}", *row, *(f"x{i}" for i in range(first))}
    return Signature((axes, new, places, *[()] * first), (axes,), frozenset(need))


def _read_axes(op: Op) -> Signature:
    axes = numbered(op.types[0].rank)
    return Signature(((("layers",), *axes), ()), (axes,), frozenset({"layers"}))


word(
    cache_write,
    _write_axes,
    ("axes",),
    traits=Traits(moves=True, writes=1, of_cache=True, axes="axes"),
)
word(
    cache_put,
    _put_axes,
    ("axis", "mode"),
    traits=Traits(moves=True, writes=1, of_cache=True, axes="axis"),
)
word(cache_read, _read_axes, traits=Traits(moves=True, picks=True, of_cache=True))
