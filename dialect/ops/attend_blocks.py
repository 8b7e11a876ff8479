"""Attention block by block, with an online softmax: `attend` with `blocks`.

    m' = max(m, max(x));  l' = l e^(m - m') + sum(e^(x - m'));  o' = o e^(m - m') + e^(x - m') v

over blocks x of the logits and v of the values, and o / l at the end (Milakov & Gimelshein 2018,
arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135). No more logits are there at a time than those
of one block of queries and one of keys, so that they stay on the chip.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from dialect.arrays.attributes import decode
from dialect.arrays.expected_trips import expecting
from dialect.ops.pages import PagedArray
from dialect.ops.quant import greatest, in_steps
from dialect.ops.scores import (
    CONTEXT,
    NOTHING,
    ORIGIN,
    WINDOW_START,
    Arrays,
    Form,
    at_context,
    largest,
    loop_axes,
    masks_out,
    sizes_of,
)
from dialect.ops.stacked import LayerArray
from rewrite.signature import Array, Dimension


def in_blocks(form: Form, arrays: Arrays, queries: int, keys: int) -> Any:
    """The result of an attention, as many queries and keys at a time: those of one sequence, or of
    several sequences where they are fewer. Raises ValueError for blocks that do not divide."""
    sizes = sizes_of(arrays)
    sequence, time = loop_axes(form.axes, sizes)
    at_a_time = min(queries, sizes.get(time, 1))
    _must_divide(at_a_time, sizes.get(time, 1), "queries")
    _must_divide(keys, sizes[CONTEXT], "keys")
    sequences = largest_divisor(sizes.get(sequence, 1), queries // at_a_time)

    trips = form.visits and form.visits * at_a_time / sizes.get(time, 1)

    def of_queries(arrays: Arrays) -> Any:
        return _over_keys(form, arrays, _Keys(keys, trips))

    def of_sequences(arrays: Arrays) -> Any:
        return one_by_one(form.out, arrays, time, at_a_time, of_queries)

    return one_by_one(form.out, arrays, sequence, sequences, of_sequences)


def _must_divide(block: int, size: int, what: str) -> None:
    if block < 1 or size % block:
        raise ValueError(f"blocks of {block} do not divide {size} {what}")


def largest_divisor(size: int, most: int) -> int:
    """The largest divisor of a size that is no more than `most`, or 1."""
    return next(divisor for divisor in range(max(1, min(size, most)), 0, -1) if size % divisor == 0)


def one_by_one(
    out: Array, arrays: Arrays, axis: Dimension, block: int, function: Callable[[Arrays], Any]
) -> Any:
    """`function` of one block of an axis after the other, put together along that axis of `out`."""
    count = sizes_of(arrays).get(axis, 1) // block
    if count <= 1:
        return function(arrays)
    blocks = lax.map(lambda i: function(_cut(arrays, axis, block, i)), jnp.arange(count))
    at = out.index(axis)
    moved = jnp.moveaxis(blocks, 0, at)
    return moved.reshape(*moved.shape[:at], -1, *moved.shape[at + 2 :])


def _cut(arrays: Arrays, axis: Dimension, block: int, number: Any) -> Arrays:
    """Block `number` of the arrays that have this axis, all of the others."""

    def cut(array: Any, axes: Array) -> Any:
        if axis not in axes:
            return array
        start, at = number * block, axes.index(axis)
        if isinstance(array, (PagedArray, LayerArray)):
            return array.part(start, block, at)
        return lax.dynamic_slice_in_dim(array, start, block, at)

    return {name: (cut(array, axes), axes) for name, (array, axes) in arrays.items()}


class _Keys(NamedTuple):
    """The blocks of keys: how long one is, and how many of them a block of queries is expected to
    read, where that is known only when it runs."""

    size: int
    trips: float | None


def _over_keys(form: Form, arrays: Arrays, keys: _Keys) -> Any:
    """The result for a block of queries, a block of keys at a time."""
    if form.rounds is not None:
        return _rounded(form, arrays, keys)
    axes = _axes_of_sum(form, arrays)

    def step(carry: tuple, part: Arrays, mask: Any, scores: Any) -> tuple:
        statistics, result = carry
        statistics, faded, weights = _seen(form, statistics, scores)
        added = form.mixed(form.weights_of(weights, part, mask), part, axes, result.dtype)
        return statistics, result * _along(faded, result) + added

    start = _nothing_seen(form, arrays)
    start = (start, _zeros(axes, arrays, start[0].dtype))
    (_, total), result = _folded(form, arrays, keys, start, step)
    return _in_order((result / _along(total, result)).astype(form.dtype), axes, form.out)


def _rounded(form: Form, arrays: Arrays, keys: _Keys) -> Any:
    """The same with rounded weights. The step of a row is known once all of its weights are, so all
    keys are read twice."""
    axes, (most, least) = _axes_of_sum(form, arrays), form.rounds or (0, 0)

    def look(carry: tuple, part: Arrays, mask: Any, scores: Any) -> tuple:
        statistics, seen = carry
        statistics, faded, weights = _seen(form, statistics, scores)
        weights = form.weights_of(weights, part, mask).astype(seen.dtype)
        return statistics, jnp.maximum(seen * faded, greatest(weights, (weights.ndim - 1,)))

    def step(result: Any, part: Arrays, mask: Any, scores: Any) -> Any:
        shares = form.exp(scores - _finite(top)) / total
        weights = form.weights_of(shares, part, mask)
        q, scale = in_steps(weights, seen / total, form="int8", largest=most, least=least)
        weights = (q.astype(scale.dtype) * scale).astype(weights.dtype)
        return result + form.mixed(weights, part, axes, result.dtype)

    start = _nothing_seen(form, arrays)
    (top, total), seen = _folded(form, arrays, keys, (start, jnp.zeros_like(start[0])), look)
    result = _folded(form, arrays, keys, _zeros(axes, arrays, top.dtype), step)
    return _in_order(result.astype(form.dtype), axes, form.out)


def _folded(form: Form, arrays: Arrays, keys: _Keys, start: Any, step: Callable[..., Any]) -> Any:
    """`step` over the blocks of keys, with the mask and the logits of every block."""

    count = sizes_of(arrays)[CONTEXT] // keys.size
    skips = _skips(form, arrays) and count > 1
    low, high, block_of = _visited(form, arrays, keys.size, count) if skips else (0, count, _same)

    def next_(trip: Any, carry: Any) -> Any:
        number = block_of(trip)
        part = _cut(arrays, CONTEXT, keys.size, number)
        part = at_context(part, (number * keys.size, ()))
        mask = form.mask_of(part)
        scores = form.logits_of(part, mask)
        return step(carry, part, mask, scores.astype(_wide(scores.dtype)))

    with expecting(keys.trips if skips else None):
        return lax.fori_loop(low, high, next_, start)


def _same(number: Any) -> Any:
    return number


# Blocks of keys that the mask leaves out.


def _skips(form: Form, arrays: Arrays) -> bool:
    """Whether blocks outside of `first` and `last` add nothing."""
    bounded = "first" in arrays or "last" in arrays
    return bounded and ("fill" in arrays or masks_out(form.fill))


def _visited(
    form: Form, arrays: Arrays, block: int, count: int
) -> tuple[Any, Any, Callable[[Any], Any]]:
    """The blocks of keys of which a query keeps one: the first trip over them, the number behind
    the last, and the block of a trip. Trips are numbered as blocks are, but for blocks of sinks
    that are left of the others, whose trips come right before."""
    end = count * block - 1
    starts = [jnp.min(arrays[name][0]) for name in ("first", WINDOW_START) if name in arrays]
    first = reduce(jnp.maximum, starts, jnp.int32(0))
    last = jnp.max(arrays["last"][0]) if "last" in arrays else end
    low, high = jnp.clip(first, 0, end) // block, jnp.clip(last, -1, end) // block + 1
    if form.fill is not None or "fill" in arrays:
        # A row that keeps no key is a mean of all values; a fill may turn out to have weight.
        none = ~jnp.all(jnp.any(form.mask_of(arrays), axis=-1))
        none |= ~(form.fill_of(arrays, jnp.float32) <= NOTHING)
        low, high = jnp.where(none, 0, low), jnp.where(none, count, high)
    else:
        none = jnp.bool_(False)
    if ORIGIN in arrays:
        return _chosen(form, arrays, block, (low, high, none))
    if not form.sinks:
        return low, high, _same
    gap = low - jnp.minimum(-(-form.sinks // block), low)
    return gap, high, lambda trip: jnp.where(trip < low, trip - gap, trip)


def _chosen(
    form: Form, arrays: Arrays, block: int, among: tuple[Any, Any, Any]
) -> tuple[Any, Any, Callable[[Any], Any]]:
    """The same of the blocks from one to another of which the map of a query has a place, or of all
    blocks: those that are visited come first in the order of trips."""
    low, high, is_all = among
    places, _ = form.in_map(arrays)
    has_place = jnp.any(places.reshape(-1, places.shape[-1] // block, block), axis=(0, 2))
    numbers = jnp.arange(len(has_place))
    is_between = ((numbers >= low) & (numbers < high)) | (numbers * block < form.sinks)
    is_visited = (has_place & is_between) | is_all
    order = jnp.argsort(~is_visited, stable=True)
    return jnp.int32(0), jnp.sum(is_visited), lambda trip: order[trip]


# The statistics of a row: the largest logit so far, and the sum of exp(logit - largest).


def _nothing_seen(form: Form, arrays: Arrays) -> tuple[Any, Any]:
    """The statistics of no keys: those of the sink alone, where there is one."""
    sizes, dtype = sizes_of(arrays), _logits_dtype(form, arrays)
    shape = [*(sizes[axis] for axis in form.over[:-1]), 1]
    sink = form.sink_of(arrays, dtype)
    if sink is None:
        return jnp.full(shape, -jnp.inf, _wide(dtype)), jnp.zeros(shape, _wide(dtype))
    sink = sink.astype(_wide(dtype))
    top = largest(sink)
    total = jnp.sum(form.exp(sink - _finite(top)), axis=-1, keepdims=True)
    return jnp.broadcast_to(top, shape), jnp.broadcast_to(total, shape)


def _seen(form: Form, statistics: tuple, scores: Any) -> tuple[tuple[Any, Any], Any, Any]:
    """The statistics with one more block; what the sums so far have faded by; exp of the block."""
    top, total = statistics
    higher = jnp.maximum(top, largest(scores))
    faded = form.exp(top - _finite(higher))
    weights = form.exp(scores - _finite(higher))
    return (higher, total * faded + jnp.sum(weights, axis=-1, keepdims=True)), faded, weights


def _finite(top: Any) -> Any:
    """What is subtracted: 0 from a row of -infinity alone, of which nothing has weight so far."""
    return jnp.where(top == -jnp.inf, jnp.zeros((), top.dtype), top)


def _logits_dtype(form: Form, arrays: Arrays) -> Any:
    return decode(form.inner) or decode(form.logits) or arrays["query"][0].dtype


def _wide(dtype: Any) -> Any:
    """Floats of 32 bits at least: statistics and sums are of many keys."""
    return jnp.promote_types(dtype, jnp.float32)


# The sum over values has the axes of a row in the order of the logits, and then the value's own.


def _axes_of_sum(form: Form, arrays: Arrays) -> Array:
    rows = form.over[:-1]
    return (*rows, *(axis for axis in arrays["value"][1] if axis not in form.over))


def _zeros(axes: Array, arrays: Arrays, dtype: Any) -> Any:
    sizes = sizes_of(arrays)
    return jnp.zeros([sizes[axis] for axis in axes], dtype)


def _along(row: Any, result: Any) -> Any:
    """A number of every row beside the sum over values: [rows, 1] -> [rows, 1 or nothing]."""
    return row.reshape(row.shape[:-1] + (1,) * (result.ndim - row.ndim + 1))


def _in_order(array: Any, axes: Array, out: Array) -> Any:
    return jnp.transpose(array, [axes.index(axis) for axis in out])
