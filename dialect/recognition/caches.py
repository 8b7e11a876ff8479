"""How a step writes its new keys and values into its state, in whatever spelling.

dynamic_update_slice, in place                          ->  cache_write
a scatter, one written by row or under vmap             ->  cache_put
the whole cache rewritten through a one-hot mask        ->  cache_put, which touches only a row
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dialect.arrays.dtypes import dtype_of
from dialect.jaxprs.jaxpr import constant
from dialect.matching.proofs import is_finite
from dialect.matching.values import (
    as_bool,
    columns,
    grown_from,
    in_dtype,
    in_shape,
    number,
    one_hot_of,
    reshaped,
    through,
)
from rewrite import runtime
from rewrite.ir import Graph, Op, Symbol, Type, Value
from rewrite.opdef import make
from rewrite.rules import Miss, Outcome, local

_CLIP, _DROP = (Symbol(f"GatherScatterMode.{name}") for name in ("CLIP", "FILL_OR_DROP"))


@local(
    "dynamic_update_slice",
    example=lambda cache, new: jax.lax.dynamic_update_slice(
        cache, new, (0, jnp.int32(new[0, 0, 0]), 0)
    ),
    types=("f32[2,8,4]", "f32[2,1,4]"),
)
def cache_write_of_update(op: Op) -> Outcome:
    """dynamic_update_slice  ->  cache_write; along an axis that it writes whole it starts at 0"""
    cache, new, *start = op.args
    sizes = zip(new.type.shape, cache.type.shape)
    partial = tuple(i for i, (some, whole) in enumerate(sizes) if some != whole)
    if not partial:
        return Miss("it writes everything", 2)
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
    """scatter{clip} of one block  ->  cache_write"""
    cache, index, new = op.args
    places = _numbers(op)["scatter_dims_to_operand_dims"]
    if index.type.shape != (1,) or new.type.rank != cache.type.rank:
        return None
    sizes = zip(new.type.shape, cache.type.shape)
    if op["mode"] != _CLIP or any(a != b for d, (a, b) in enumerate(sizes) if d not in places):
        return Miss("it drops what lies out of bounds", 2)
    return make("cache_write", cache, new, reshaped(index, ()), axes=places)


@local(
    "scatter",
    example=lambda cache, new: cache.at[:, new[0, :, 0].astype("int32")].set(new),
    types=("f32[2,8,4]", "f32[2,3,4]"),
)
def put_of_scatter(op: Op) -> Outcome:
    """scatter of whole rows along one axis  ->  cache_put"""
    cache, indices, new = op.args
    numbers = _numbers(op)
    kept = _indexed(numbers)
    if len(kept) != 1 or not _whole_rows(numbers, cache, new, kept):
        return None
    (axis,) = kept
    positions = reshaped(indices, indices.type.shape[:-1] or (1,))
    if indices.type.rank == 1:
        shape = new.type.shape
        new = reshaped(new, (*shape[:axis], 1, *shape[axis:]))
    elif _scatter_axes(numbers, new) != [axis]:
        return Miss("its rows do not lie where the cache has them", 3)
    return make("cache_put", cache, new, positions, axis=axis, mode=op["mode"])


@local(
    "scatter",
    example=lambda cache, new: cache.at[jnp.arange(2), new[:, 0].astype("int32")].set(new),
    types=("f32[2,8,4]", "f32[2,4]"),
)
def put_of_scatter_by_row(op: Op) -> Outcome:
    """cache.at[arange(b), positions].set(new)  ->  cache_put with places for each sequence"""
    cache, indices, new = op.args
    numbers = _numbers(op)
    kept, parts = _indexed(numbers), indices.op.args
    if len(kept) != 2 or kept[0] != 0:
        return None
    if indices.op.name != "stack" or indices.op["axis"] != indices.type.rank - 1:
        return Miss("its indices are not made side by side", 3)
    if not _counts_rows(parts[0], cache.type.shape[0]):
        return Miss("its first index does not count the sequences", 3)
    if not _whole_rows(numbers, cache, new, kept):
        return Miss("it writes parts of rows", 3)
    return _put_by_row(op, parts[1], kept[1])


@local(
    "scatter",
    example=lambda cache, new: jax.vmap(lambda c, n: c.at[n[0].astype("int32")].set(n))(cache, new),
    types=("f32[2,8,4]", "f32[2,4]"),
)
def put_of_mapped_scatter(op: Op) -> Outcome:
    """vmap(cache.at[position].set)(cache, new, positions)  ->  cache_put"""
    cache, indices, new = op.args
    numbers = _numbers(op)
    kept = _indexed(numbers)
    if len(kept) != 1 or not _is_mapped(numbers):
        return None
    if not _whole_rows(numbers, cache, new, (0, *kept)):
        return Miss("it writes parts of rows", 3)
    return _put_by_row(op, reshaped(indices, indices.type.shape[:-1]), *kept)


def _put_by_row(op: Op, positions: Value, axis: int) -> Outcome:
    """What a scatter writes at a place for each sequence, or at several  ->  cache_put"""
    cache, _, new = op.args
    along, shape = _scatter_axes(_numbers(op), new), new.type.shape
    if along == [0]:
        positions = reshaped(positions, (*positions.type.shape, 1))
        new = reshaped(new, (*shape[:axis], 1, *shape[axis:]))
    elif along != [0, axis]:
        return Miss("its rows do not lie where the cache has them", 3)
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
    numbers = _numbers(op)
    if numbers["inserted_window_dims"] or not _is_mapped(numbers):
        return None
    partial = [d for d in range(1, cache.type.rank) if new.type.shape[d] != cache.type.shape[d]]
    starts, places = columns(indices), numbers["scatter_dims_to_operand_dims"]
    if op["mode"] != _CLIP or len(partial) != 1 or starts is None:
        return None
    (axis,) = partial
    if axis not in places or _scatter_axes(numbers, new) != [0]:
        return Miss("its rows do not lie where the cache has them", 3)
    rows = new.type.shape[axis]
    first = _clamped(starts[places.index(axis)], cache.type.shape[axis] - rows)
    offsets = make("iota", dtype=Symbol("i32"), shape=(1, rows), dimension=1)
    positions = make("add", first, offsets)
    return make("cache_put", cache, new, positions, axis=axis, mode=_CLIP)


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
    """x * (1 - m) + y * m, m being 0 or 1  ->  select(m, x, y)"""
    for kept, added in (op.args, op.args[::-1]):
        if kept.op.name != "mul" or added.op.name != "mul":
            continue
        for x, rest in (kept.op.args, kept.op.args[::-1]):
            for y, mask in (added.op.args, added.op.args[::-1]):
                if not _complements(rest, mask) or x.type != op.types[0]:
                    continue
                if not (is_finite(x) and is_finite(y)):
                    return Miss("zero times NaN or infinity is NaN, which it may hold", 4)
                test = in_shape(as_bool(mask), op.types[0].shape)
                return make("select_n", test, x, in_shape(y, op.types[0].shape))
    return None


def _complements(rest: Value, mask: Value) -> bool:
    """Whether rest = 1 - mask for a mask of zeros and ones."""
    if rest.op.name != "sub" or number(rest.op.args[0]) != 1 or as_bool(mask) is None:
        return False
    return rest.op.args[1] == mask


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
    mask, cache, new = grown_from(op.args[0]), op.args[1], grown_from(op.args[2])
    found = one_hot_of(through(mask, "reshape"))
    if found is None:
        return None
    ids, counting, width = found
    here = [d for d, size in enumerate(mask.type.shape) if size > 1]
    there = [d for d, size in enumerate(through(mask, "reshape").type.shape) if size > 1]
    if len(here) != len(there):
        return Miss("its mask is not over sequences and places alone", 3)
    axis = here[there.index(counting)]
    if here not in ([axis], [0, axis]):
        return Miss("its mask is not over sequences, and places behind them, alone", 3)
    rows = (*cache.type.shape[:axis], 1, *cache.type.shape[axis + 1 :])
    if cache.type.shape[axis] != width or new.type.shape != rows:
        return Miss("it writes more than one place for each sequence", 3)
    positions = reshaped(ids, (ids.type.size, 1) if len(here) == 2 else (1,))
    return make("cache_put", cache, new, positions, axis=axis, mode=_DROP)


def _numbers(op: Op) -> dict[str, Any]:
    """How a scatter places what it writes."""
    return dict(op["dimension_numbers"].fields)


def _is_mapped(numbers: dict[str, Any]) -> bool:
    """Whether a scatter takes the first axis of the cache and of its indices together."""
    return numbers["operand_batching_dims"] == numbers["scatter_indices_batching_dims"] == (0,)


def _indexed(numbers: dict[str, Any]) -> tuple[int, ...]:
    """The axes that a scatter indexes one place at a time; none where it writes blocks."""
    kept = numbers["inserted_window_dims"]
    return kept if kept == numbers["scatter_dims_to_operand_dims"] else ()


def _whole_rows(numbers: dict, cache: Value, new: Value, kept: tuple[int, ...]) -> bool:
    """Whether a scatter writes everything along the axes that it does not index."""
    windows = [new.type.shape[d] for d in numbers["update_window_dims"]]
    return windows == [size for d, size in enumerate(cache.type.shape) if d not in kept]


def _scatter_axes(numbers: dict, new: Value) -> list[int]:
    """The axes of what a scatter writes that run over its indices."""
    return [d for d in range(new.type.rank) if d not in numbers["update_window_dims"]]


def _counts_rows(value: Value, rows: int) -> bool:
    """Whether a constant array is 0, 1 .. `rows` - 1 along its first axis, alike along others."""
    base = through(value, "wrap", "reshape", "broadcast_in_dim", "convert_element_type")
    if value.type.shape[:1] != (rows,) or value.type.size > 1_000_000:
        return False
    if base.op.name not in ("iota", "const"):
        return False
    with jax.ensure_compile_time_eval():
        (array,) = runtime.framework().evaluate(Graph((), (value,)), [])
    return all((array[i] == i).all() for i in range(rows))


def _clamped(place: Value, last: int) -> Value:
    """max(min(place, last), 0) in int32; a dtype that does not hold `last` holds nothing larger."""
    if last <= jnp.iinfo(dtype_of(place.type.dtype)).max:
        place = make("min", place, _number(last, place))
    return in_dtype(make("max", place, _number(0, place)), "i32")


def _number(value: int, like: Value) -> Value:
    """A number in the dtype of another value."""
    return constant(value, Type(like.type.dtype, ()))
