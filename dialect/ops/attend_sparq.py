"""Attention to chosen positions: `attend` with `sparq`, one step of a decoder at a time.

SparQ attention (Ribar et al. 2024, arXiv:2312.04985, algorithm 1). Of the query q, the keys K, the
values V and their mean v over the positions that are kept:

    i = the r largest of |q|,    s = softmax(q[i] . K[i] / tau),    tau^2 = d_head |q[i]|_1 / |q|_1
    j = the k largest of s, the last `local` positions among them
    alpha = sum of s[j],    y = alpha softmax(q . K[j] / sqrt(d_head)) . V[j] + (1 - alpha) v

Queries that share their keys share i and j, by the sums of |q| and of s over them (section 4 of the
paper, "Grouped query attention"). Read are r numbers of every key, and k keys and values.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from dialect.ops.attend_blocks import largest_divisor, one_by_one
from dialect.ops.caches import in_int32
from dialect.ops.scores import (
    CONTEXT,
    SUMMED,
    Arrays,
    Form,
    Named,
    aligned,
    loop_axes,
    sizes_of,
    softmax,
)
from dialect.ops.stacked import LayerArray
from rewrite.signature import Array, Dimension

SECOND_KEYS = "columns"  # the operand that is the keys once more, with the context last
_LAYERS = ("layers",)
_ON_CHIP = 1 << 24  # bytes of columns that find room beside all else, on any TPU


class Choice(NamedTuple):
    """How many columns of the keys are read, how many positions, how many of these are the last
    ones, and whether the mean of the values takes the share of all others."""

    columns: int
    positions: int
    local: int
    mean: bool


def by_choice(form: Form, arrays: Arrays, choice: Choice) -> Any:
    """The result of an attention that reads chosen columns and positions, of some sequences at a
    time, so that what is gathered of them stays on the chip.

    `columns` are the keys once more, with the context last, and `total` is the sum of the values
    over the context; without them keys and values are read. Raises ValueError for more columns or
    positions than there are, and where queries have positions of their own.
    """
    sizes = sizes_of(arrays)
    shared = tuple(axis for axis in arrays["key"][1] if axis not in (SUMMED, CONTEXT))
    _must_fit(choice, sizes, shared, arrays)
    sequence = loop_axes(form.axes, sizes).sequence
    others = math.prod(sizes[axis] for axis in shared if axis != sequence)
    gathered = choice.columns * sizes[CONTEXT] * others * arrays["key"][0].dtype.itemsize
    count = largest_divisor(sizes.get(sequence, 1), _ON_CHIP // gathered)

    def of_sequences(arrays: Arrays) -> Any:
        return _of_sequences(form, arrays, choice, shared)

    return one_by_one(form.out, arrays, sequence, count, of_sequences)


def _of_sequences(form: Form, arrays: Arrays, choice: Choice, shared: Array) -> Any:
    """The result of as many sequences as are read at a time."""
    mask = form.mask_of(arrays)
    shares = _approximate(form, arrays, choice, shared, mask)
    score = _summed(shares, form.over, (*shared, CONTEXT))
    last = aligned(arrays["last"], (*shared, CONTEXT))
    places = jnp.arange(score.shape[-1])
    is_local = (places > last - choice.local) & (places <= last)
    # A share is 1 at most, and the sum over queries as many as there are.
    preferred = score + jnp.where(is_local, shares.size // score.size + 1, 0)
    best, chosen = lax.top_k(preferred, choice.positions)
    result = _exact(form, arrays, (chosen, (*shared, CONTEXT)))
    if choice.mean:
        is_chosen = aligned((preferred >= best[..., -1:], (*shared, CONTEXT)), form.over)
        alpha = jnp.sum(jnp.where(is_chosen, shares, 0), axis=-1)
        result = _reallocated(form, arrays, result, (alpha, form.over[:-1]))
    return result.astype(form.dtype)


def _must_fit(choice: Choice, sizes: dict[Dimension, int], shared: Array, arrays: Arrays) -> None:
    for count, axis, what in (
        (choice.columns, SUMMED, "numbers of a query"),
        (choice.positions, CONTEXT, "positions"),
    ):
        if not 1 <= count <= sizes[axis]:
            raise ValueError(f"{count} of {sizes[axis]} {what} cannot be chosen")
    if choice.local > choice.positions:
        raise ValueError(f"{choice.local} local positions are more than {choice.positions}")
    if "last" not in arrays or not set(arrays["last"][1]) <= set(shared):
        raise ValueError("positions are chosen for one query of a sequence, the last")


def _approximate(form: Form, arrays: Arrays, choice: Choice, shared: Array, mask: Any) -> Any:
    """The softmax of the logits by the largest numbers of the queries alone."""
    query, axes = arrays["query"]
    rows = tuple(axis for axis in axes if axis not in (*shared, SUMMED))
    over = (*shared, *rows, SUMMED)
    query = aligned((query, axes), over)
    size = jnp.abs(query.astype(jnp.float32))
    grouped = _summed(size, over, (*shared, SUMMED))
    columns = lax.top_k(grouped, choice.columns)[1]
    at = columns.reshape(*columns.shape[:-1], *(1 for _ in rows), choice.columns)
    part, largest = (jnp.take_along_axis(x, at, axis=-1, mode="clip") for x in (query, size))
    share = jnp.sum(largest, -1, keepdims=True) / jnp.sum(size, -1, keepdims=True)
    cooled = part.astype(jnp.float32) / jnp.sqrt(jnp.where(share > 0, share, 1))
    keys = taken(arrays.get(SECOND_KEYS, arrays["key"]), SUMMED, (columns, (*shared, SUMMED)))
    cut = {**arrays, "query": (cooled.astype(query.dtype), over), "key": keys}
    logits = form.logits_of(cut, mask).astype(jnp.float32)
    return softmax(logits, form.sink_of(arrays, logits.dtype), form.exp)


def _exact(form: Form, arrays: Arrays, chosen: Named) -> Any:
    """Attention to the chosen positions, in the axes of the result."""
    near = {name: array for name, array in arrays.items() if name not in ("first", "last")}
    near |= {name: taken(arrays[name], CONTEXT, chosen) for name in ("key", "value")}
    places, axes = chosen
    kept = places <= aligned(arrays["last"], axes)
    if "first" in arrays:
        kept &= places >= aligned(arrays["first"], axes)
    near["mask"] = (kept, axes)
    mask = form.mask_of(near)
    logits = form.logits_of(near, mask)
    weights = softmax(logits, form.sink_of(arrays, logits.dtype), form.exp)
    return form.mixed(form.weights_of(weights, near, mask), near, form.out, jnp.float32)


def _reallocated(form: Form, arrays: Arrays, result: Any, alpha: Named) -> Any:
    """alpha result + (1 - alpha) mean of the values that are kept"""
    values, axes = arrays["value"]
    over = tuple(axis for axis in axes if axis != CONTEXT)
    total = arrays.get("total") or (_summed(values.astype(jnp.float32), axes, over), over)
    first = aligned(arrays["first"], form.out) if "first" in arrays else 0
    count = aligned(arrays["last"], form.out) - jnp.maximum(first, 0) + 1
    mean = aligned(total, form.out) / jnp.maximum(count, 1).astype(jnp.float32)
    share = aligned(alpha, form.out)
    return share * result + (1 - share) * mean


def _summed(array: Any, axes: Array, over: Array) -> Any:
    """The sum over all axes but these, which come in this order."""
    left = tuple(axis for axis in axes if axis in over)
    gone = tuple(number for number, axis in enumerate(axes) if axis not in over)
    return aligned((jnp.sum(array, axis=gone), left), over)


def taken(array: Named, axis: Dimension, index: Named) -> Named:
    """The elements of an axis that an index names for each of its rows: rows, axis, all others."""
    (whole, axes), (places, rows) = array, index
    known = {axis: in_int32(places)}
    starts: dict[Dimension, Any] = {}
    if isinstance(whole, LayerArray):
        starts = dict(zip(axes, whole.starts))
        known[_LAYERS] = jnp.broadcast_to(in_int32(whole.layer), places.shape)
        whole, axes = whole.stack, (_LAYERS, *axes)
    for number, row in enumerate(rows[:-1]):
        place = lax.broadcasted_iota(jnp.int32, places.shape, number)
        known[row] = place + in_int32(starts.get(row, 0))
    named = tuple(d for d, name in enumerate(axes) if name in known)
    rest = tuple(name for name in axes if name not in known)
    numbers = lax.GatherDimensionNumbers(
        offset_dims=tuple(range(len(rows), len(rows) + len(rest))),
        collapsed_slice_dims=named,
        start_index_map=named,
    )
    indices = jnp.stack([known[axes[d]] for d in named], axis=-1)
    sizes = tuple(1 if d in named else size for d, size in enumerate(whole.shape))
    mode = lax.GatherScatterMode.PROMISE_IN_BOUNDS
    return lax.gather(whole, indices, numbers, sizes, mode=mode), (*rows, *rest)
