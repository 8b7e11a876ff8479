"""The spellings of writing new keys and values into a cache.

dynamic_update_slice                                    ->  cache_write
scatter, also by row or under vmap                      ->  cache_put
select by a one-hot mask, which rewrites all            ->  cache_put, which writes only a row
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dialect.arrays.dtypes import dtype_of
from dialect.jaxprs.jaxpr import constant
from dialect.matching.constant_arrays import constant_array
from dialect.matching.proofs import is_finite
from dialect.matching.values import (
    as_bool,
    columns,
    in_dtype,
    in_shape,
    number,
    one_hot_of,
    reshaped,
    through,
)
from dialect.ops.lookups import CLIP, DROP
from dialect.ops.nn import Traced
from rewrite.ir import Op, Symbol, Type, Value
from rewrite.opdef import make
from rewrite.rules import Miss, Outcome, local


@local(
    "dynamic_update_slice",
    example=lambda cache, new: jax.lax.dynamic_update_slice(
        cache, new, (0, jnp.int32(new[0, 0, 0]), 0)
    ),
    types=("f32[2,8,4]", "f32[2,1,4]"),
)
def cache_write_of_update(op: Op) -> Outcome:
    """dynamic_update_slice  ->  cache_write, without the starts of axes that are written whole: JAX
    clamps them to 0"""
    cache, new, *start = op.args
    sizes = zip(new.type.shape, cache.type.shape)
    partial = tuple(i for i, (written, size) in enumerate(sizes) if written != size)
    if not partial:
        return Miss("it writes the whole cache", 2)
    return make("cache_write", cache, new, *(start[i] for i in partial), axes=partial)


@local(
    "scatter",
    example=lambda cache, new: jax.lax.scatter(
        cache,
        new[0, 0, :1].astype("int32"),
        new,
        jax.lax.ScatterDimensionNumbers((0, 1, 2), (), (1,)),
        mode="clip",
    ),
    types=("f32[2,8,4]", "f32[2,3,4]"),
)
def write_of_scatter(op: Op) -> Outcome:
    """scatter{clip} of one block, or one that is within bounds  ->  cache_write"""
    cache, index, new = op.args
    axes = numbers_of(op)["scatter_dims_to_operand_dims"]
    if index.type.shape != (1,) or new.type.rank != cache.type.rank:
        return None
    sizes = zip(new.type.shape, cache.type.shape)
    if any(written != size for d, (written, size) in enumerate(sizes) if d not in axes):
        return None
    if op["mode"] != CLIP and not _is_within(
        index, cache.type.shape[axes[0]] - new.type.shape[axes[0]]
    ):
        return Miss("it drops writes out of bounds", 2)
    return make("cache_write", cache, new, reshaped(index, ()), axes=axes)


@local(
    "scatter",
    example=lambda cache, new: cache.at[:, new[0, :, 0].astype("int32")].set(new),
    types=("f32[2,8,4]", "f32[2,3,4]"),
)
def put_of_scatter(op: Op) -> Outcome:
    """scatter of whole rows along one axis  ->  cache_put"""
    cache, indices, new = op.args
    numbers = numbers_of(op)
    indexed = indexed_axes(numbers)
    if len(indexed) != 1 or not writes_whole_rows(numbers, cache, new, indexed):
        return None
    (axis,) = indexed
    positions = reshaped(indices, indices.type.shape[:-1] or (1,))
    if indices.type.rank == 1:
        shape = new.type.shape
        new = reshaped(new, (*shape[:axis], 1, *shape[axis:]))
    elif scatter_axes(numbers, new) != [axis]:
        return Miss("its rows have their axes in another order than the cache", 3)
    return make("cache_put", cache, new, positions, axis=axis, mode=op["mode"])


@local(
    "scatter",
    example=lambda cache, new: cache.at[jnp.arange(2), new[:, 0].astype("int32")].set(new),
    types=("f32[2,8,4]", "f32[2,4]"),
)
def put_of_scatter_by_row(op: Op) -> Outcome:
    """cache.at[arange(b), positions].set(new)  ->  cache_put with positions for each sequence"""
    cache, indices, new = op.args
    numbers = numbers_of(op)
    indexed, columns_of_indices = indexed_axes(numbers), indices.op.args
    if len(indexed) != 2 or indexed[0] != 0:
        return None
    if indices.op.name != "stack" or indices.op["axis"] != indices.type.rank - 1:
        return Miss("its indices are not a stack of columns", 3)
    sequences, positions = columns_of_indices
    if not _counts_rows(sequences, cache.type.shape[0]):
        return Miss("its first index does not count the sequences", 3)
    if not writes_whole_rows(numbers, cache, new, indexed):
        return Miss("it writes parts of rows", 3)
    return _put_by_row(op, positions, indexed[1])


@local(
    "scatter",
    example=lambda cache, new: jax.vmap(lambda c, n: c.at[n[0].astype("int32")].set(n))(cache, new),
    types=("f32[2,8,4]", "f32[2,4]"),
)
def put_of_mapped_scatter(op: Op) -> Outcome:
    """vmap(cache.at[position].set)(cache, new, positions)  ->  cache_put"""
    cache, indices, new = op.args
    numbers = numbers_of(op)
    indexed = indexed_axes(numbers)
    if len(indexed) != 1 or not _is_mapped(numbers):
        return None
    if not writes_whole_rows(numbers, cache, new, (0, *indexed)):
        return Miss("it writes parts of rows", 3)
    return _put_by_row(op, reshaped(indices, indices.type.shape[:-1]), *indexed)


def _put_by_row(op: Op, positions: Value, axis: int) -> Outcome:
    """scatter at one or several positions of each sequence  ->  cache_put"""
    cache, _, new = op.args
    taken, shape = scatter_axes(numbers_of(op), new), new.type.shape
    if taken == [0]:
        positions = reshaped(positions, (*positions.type.shape, 1))
        new = reshaped(new, (*shape[:axis], 1, *shape[axis:]))
    elif taken != [0, axis]:
        return Miss("its rows have their axes in another order than the cache", 3)
    return make("cache_put", cache, new, positions, axis=axis, mode=op["mode"])


@local(
    "scatter",
    example=lambda cache, new: jax.vmap(
        lambda c, n: jax.lax.dynamic_update_slice(c, n, (jnp.int32(n[0, 0]), 0))
    )(cache, new),
    types=("f32[2,8,4]", "f32[2,3,4]"),
)
def put_of_mapped_update(op: Op) -> Outcome:
    """vmap(dynamic_update_slice)(cache, new, p)  ->  cache_put at clamp(p) + 0, 1, 2 .."""
    cache, indices, new = op.args
    numbers = numbers_of(op)
    if numbers["inserted_window_dims"] or not _is_mapped(numbers):
        return None
    partial = [d for d in range(1, cache.type.rank) if new.type.shape[d] != cache.type.shape[d]]
    starts, axes = columns(indices), numbers["scatter_dims_to_operand_dims"]
    if op["mode"] != CLIP or len(partial) != 1 or starts is None:
        return None
    (axis,) = partial
    if axis not in axes or scatter_axes(numbers, new) != [0]:
        return Miss("its rows have their axes in another order than the cache", 3)
    rows = new.type.shape[axis]
    first = clamped(starts[axes.index(axis)], cache.type.shape[axis] - rows)
    offsets = make("iota", dtype=Symbol("i32"), shape=(1, rows), dimension=1)
    positions = make("add", first, offsets)
    return make("cache_put", cache, new, positions, axis=axis, mode=CLIP)


@local(
    "add",
    example=lambda x, y, m: (
        x.astype("float32") * (1 - (m > 0).astype("float32"))
        + y.astype("float32") * (m > 0).astype("float32")
    ),
    types=("i8[4]", "i8[4]", "f32[4]"),
    keeps="reals",
    needs=("finite",),
)
def blend_to_select(op: Op) -> Outcome:
    """x * (1 - m) + y * m, where m is 0 or 1  ->  select(m, x, y)"""
    for left, right in (op.args, op.args[::-1]):
        if {left.op.name, right.op.name} != {"mul"}:
            continue
        for x, complement in (left.op.args, left.op.args[::-1]):
            for y, mask in (right.op.args, right.op.args[::-1]):
                if not _is_complement(complement, mask) or x.type != op.types[0]:
                    continue
                if not (is_finite(x) and is_finite(y)):
                    return Miss("x or y may hold NaN or infinity, which zero times is NaN", 4)
                test = in_shape(as_bool(mask), op.types[0].shape)
                return make("select_n", test, x, in_shape(y, op.types[0].shape))
    return None


def _is_complement(value: Value, mask: Value) -> bool:
    """Whether value = 1 - mask for a mask of zeros and ones."""
    if value.op.name != "sub" or number(value.op.args[0]) != 1 or as_bool(mask) is None:
        return False
    return value.op.args[1] == mask


@local(
    "select_n",
    example=lambda cache, new: jnp.where(
        (jnp.arange(8) == new[:, 0, :1].astype("int32"))[:, :, None], new, cache
    ),
    types=("f32[2,8,4]", "f32[2,1,4]"),
)
def put_of_one_hot(op: Op) -> Outcome:
    """select(arange(s) == p, cache, new)  ->  cache_put(cache, new, p)"""
    if len(op.args) != 3:
        return None
    mask, cache, new = _before_growth(op.args[0]), op.args[1], _before_growth(op.args[2])
    unshaped_mask = through(mask, "reshape")
    one_hot = one_hot_of(unshaped_mask)
    if one_hot is None:
        return None
    ids, one_hot_axis, length = one_hot
    mask_axes = [d for d, size in enumerate(mask.type.shape) if size > 1]
    unshaped_axes = [d for d, size in enumerate(unshaped_mask.type.shape) if size > 1]
    if len(mask_axes) != len(unshaped_axes):
        return Miss("its mask is not over sequences and positions alone", 3)
    axis = mask_axes[unshaped_axes.index(one_hot_axis)]
    if mask_axes not in ([axis], [0, axis]):
        return Miss("its mask is not over sequences, then positions, alone", 3)
    row_shape = (*cache.type.shape[:axis], 1, *cache.type.shape[axis + 1 :])
    if cache.type.shape[axis] != length or new.type.shape != row_shape:
        return Miss("it writes more than one position of a sequence", 3)
    positions = reshaped(ids, (ids.type.size, 1) if len(mask_axes) == 2 else (1,))
    return make("cache_put", cache, new, positions, axis=axis, mode=DROP)


def _before_growth(value: Value) -> Value:
    """The value before a broadcast, with axes of size one where it had none; a number, which is no
    row, stays as it is."""
    axes = value.op.get("broadcast_dimensions")
    if not axes or list(axes) != sorted(axes):
        return value
    sizes = dict(zip(axes, value.op.args[0].type.shape))
    return reshaped(value.op.args[0], tuple(sizes.get(d, 1) for d in range(value.type.rank)))


@local(
    "cache_put",
    example=lambda cache, new: Traced["cache_put"](
        jnp.roll(cache, -1, axis=1), new, jnp.array([7]), axis=1, mode=DROP
    ),
    types=("f32[2,8,4]", "f32[2,1,4]"),
    keeps="bits",
)
def put_over_last_part(op: Op) -> Outcome:
    """cache_put(concatenate(x, y), new, the places of y)  ->  concatenate(x, new)"""
    places = constant_array(op.args[2])
    return _over_last_part(op, op["axis"], None if places is None else list(places.flat))


@local(
    "cache_write",
    example=lambda cache, new: Traced["cache_write"](
        jnp.roll(cache, -2, axis=1), new, jnp.int32(6), axes=(1,)
    ),
    types=("f32[2,8,4]", "f32[2,2,4]"),
    keeps="bits",
)
def write_over_last_part(op: Op) -> Outcome:
    """cache_write(concatenate(x, y), new, the first place of y)  ->  concatenate(x, new)"""
    axis, start = op["axes"][0], constant_array(op.args[2])
    if start is None:
        return None
    return _over_last_part(op, axis, [int(start) + i for i in range(op.args[1].type.shape[axis])])


def _over_last_part(op: Op, axis: int, places: list[int] | None) -> Outcome:
    parted, new = op.args[0].op, op.args[1]
    if parted.name != "concatenate" or parted["dimension"] != axis:
        return None
    *parts, last = parted.args
    end = op.types[0].shape[axis]
    if new.type != last.type or places != list(range(end - last.type.shape[axis], end)):
        return Miss("it writes other places than those of the last part", 2)
    return make("concatenate", *parts, new, dimension=axis)


def numbers_of(op: Op) -> dict[str, Any]:
    """The dimension numbers of a scatter, by name."""
    return dict(op["dimension_numbers"].fields)


def _is_mapped(numbers: dict[str, Any]) -> bool:
    """Whether a scatter is batched along the first axis of the cache and of its indices."""
    return numbers["operand_batching_dims"] == numbers["scatter_indices_batching_dims"] == (0,)


def indexed_axes(numbers: dict[str, Any]) -> tuple[int, ...]:
    """The axes of which a scatter writes single positions; none if it writes longer blocks."""
    inserted = numbers["inserted_window_dims"]
    return inserted if inserted == numbers["scatter_dims_to_operand_dims"] else ()


def writes_whole_rows(numbers: dict, cache: Value, new: Value, indexed: tuple[int, ...]) -> bool:
    """Whether a scatter writes all of the axes that it does not index."""
    windows = [new.type.shape[d] for d in numbers["update_window_dims"]]
    return windows == [size for d, size in enumerate(cache.type.shape) if d not in indexed]


def scatter_axes(numbers: dict, new: Value) -> list[int]:
    """The axes of the new rows that run over the indices of a scatter."""
    return [d for d in range(new.type.rank) if d not in numbers["update_window_dims"]]


def _counts_rows(value: Value, rows: int) -> bool:
    """Whether a constant array is 0, 1, ..., `rows` - 1 along its first axis and constant along
    others."""
    array = constant_array(value) if value.type.shape[:1] == (rows,) else None
    return array is not None and all((array[i] == i).all() for i in range(rows))


def clamped(start: Value, last: int) -> Value:
    """max(min(start, last), 0) in int32; without the min if the dtype does not reach `last`."""
    if last <= jnp.iinfo(dtype_of(start.type.dtype)).max:
        start = make("min", start, _number(last, start))
    return in_dtype(make("max", start, _number(0, start)), "i32")


def _is_within(start: Value, last: int) -> bool:
    """Whether this is a constant from 0 to `last`."""
    array = constant_array(start)
    return array is not None and bool(((array >= 0) & (array <= last)).all())


def _number(value: int, like: Value) -> Value:
    """A number in the dtype of another value."""
    return constant(value, Type(like.type.dtype, ()))
