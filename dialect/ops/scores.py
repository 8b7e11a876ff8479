"""The parts of attention, for all of its arrays or a block of them: logits, mask, weights, sums.

`attend` puts them together at once, `dialect.ops.attend_blocks` block by block.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dialect.arrays.attributes import decode
from dialect.ops.tensor import contract
from rewrite.signature import Array, Dimension, Signature

Named = tuple[Any, Array]  # an array, and the axes of its dimensions, none of size one for want
Arrays = Mapping[str, Named]  # "query", "key", "value" and what else `attend` is given, by name
CONTEXT, SUMMED = ("s",), ("k",)
WINDOW_START, SINKS_END = "window start", "sinks end"  # positions too, of an `attend` with a window
ORIGIN = "origin"  # where the context of an `attend` with a map begins
_POSITIONS = ("first", "last", WINDOW_START, SINKS_END, ORIGIN)
NOTHING = -1e4  # a logit of at most this has a weight of zero in any float
PAIRS = {"": "k", "_2": "p", "_3": "q", "_4": "r"}  # of query and key, and what each is summed over


def pairs(names: Container[str]) -> list[str]:
    """The pairs of query and key among these names of arrays."""
    return [pair for pair in PAIRS if f"query{pair}" in names]


def masks_out(fill: Any) -> bool:
    """Whether masked logits of this number have no weight, in a row that keeps a key."""
    return fill is None or float(decode(fill)) <= NOTHING


def squeezed(array: Any, axes: Array) -> Named:
    """An array without its axes of size one."""
    ones = tuple(number for number, axis in enumerate(axes) if not axis)
    return array.squeeze(ones), tuple(axis for axis in axes if axis)


def product(left: Named, right: Named, out: Array, dtype: Any, precision: Any = None) -> Any:
    """The contraction of two named arrays, with the axes `out`."""
    spec = str(Signature((left[1], right[1]), (out,)))
    return contract(left[0], right[0], spec=spec, dtype=dtype, precision=precision)


def aligned(named: Named, over: Array) -> Any:
    """An array with the axes `over`, size one where it lacks one."""
    array, axes = named
    order = sorted(range(len(axes)), key=lambda i: over.index(axes[i]))
    array = jnp.transpose(array, order)
    sizes = dict(zip((axes[i] for i in order), array.shape))
    return array.reshape([sizes.get(axis, 1) for axis in over])


@dataclass(frozen=True)
class Form:
    """What the attributes of an `attend` say, as its documentation explains them."""

    axes: Signature
    scale: float
    cap: float | None
    fill: Any
    added: bool
    dropped: bool
    logits: Any
    inner: Any
    weights: Any
    dtype: Any
    key_precision: Any
    value_precision: Any
    rounds: tuple[float, float] | None
    base: float | None
    visits: int | None
    window: int | None
    sinks: int
    sparq: tuple[int, int, int, bool] | None
    cell: int | None

    @cached_property
    def over(self) -> Array:
        """The axes of the logits, the context last."""
        return (*(axis for axis in self.axes.inputs[0] if axis and axis != SUMMED), CONTEXT)

    @cached_property
    def out(self) -> Array:
        """The axes of the result, but those of size one."""
        return tuple(axis for axis in self.axes.outputs[0] if axis)

    @cached_property
    def exp(self) -> Callable[[Any], Any]:
        """The function that the softmax is of. Raises ValueError for another base than 2."""
        if self.base not in (None, 2):
            raise ValueError(f"a softmax has no base {self.base}")
        return jnp.exp if self.base is None else jnp.exp2

    def logits_of(self, arrays: Arrays, mask: Any) -> Any:
        """Capped, biased and masked, in the dtype of the softmax."""
        dtype = decode(self.logits) or arrays["query"][0].dtype
        products = [self.product_of(arrays, pair, dtype) for pair in pairs(arrays)]
        scores = reduce(jnp.add, products).astype(decode(self.inner) or dtype)
        if self.scale != 1.0:
            scores = scores * jnp.asarray(self.scale, scores.dtype)
        if self.cap is not None:
            cap = jnp.asarray(self.cap, scores.dtype)
            scores = jnp.tanh(scores / cap) * cap
        if "bias" in arrays:
            scores = scores + aligned(arrays["bias"], self.over).astype(scores.dtype)
        if mask is None:
            return scores
        nothing = self.fill_of(arrays, scores.dtype)
        if self.added:
            return scores + jnp.where(mask, 0, nothing)
        return jnp.where(mask, scores, nothing)

    def fill_of(self, arrays: Arrays, dtype: Any) -> Any:
        """The logits where the mask is false, a scalar."""
        if "fill" in arrays:
            return arrays["fill"][0].astype(dtype)
        return jnp.asarray(-jnp.inf if self.fill is None else decode(self.fill), dtype)

    def product_of(self, arrays: Arrays, pair: str, dtype: Any) -> Any:
        """The product of a pair of query and key; of integers times their scales, in f32."""
        query, key = arrays[f"query{pair}"], arrays[f"key{pair}"]
        factor = arrays.get(f"key_scale{pair}")
        over = tuple(axis for axis in self.over if axis in query[1] or axis in key[1])
        if factor is None:
            scores = product(query, key, over, dtype, self.key_precision)
            return aligned((scores, over), self.over)
        key = (key[0].astype(query[0].dtype), key[1])
        scores = product(query, key, over, jnp.float32, self.key_precision)
        scores = aligned((scores, over), self.over)
        return (scores * aligned(factor, self.over).astype(scores.dtype)).astype(dtype)

    def mask_of(self, arrays: Arrays) -> Any:
        """Where logits are kept, with the axes of the logits; None if they all are."""
        kept = [aligned(arrays["mask"], self.over)] if "mask" in arrays else []
        if "first" in arrays or "last" in arrays:
            places = jnp.arange(sizes_of(arrays)[CONTEXT])
            kept += [places >= aligned(arrays["first"], self.over)] if "first" in arrays else []
            kept += [places <= aligned(arrays["last"], self.over)] if "last" in arrays else []
        if WINDOW_START in arrays:
            near = places >= aligned(arrays[WINDOW_START], self.over)
            is_sink = SINKS_END in arrays and places < aligned(arrays[SINKS_END], self.over)
            kept.append(near | is_sink)
        if ORIGIN in arrays:
            kept.append(aligned(self.in_map(arrays), self.over))
        return reduce(jnp.logical_and, kept) if kept else None

    def in_map(self, arrays: Arrays) -> Named:
        """Which places of the context the map has for the last position of each query."""
        (last, axes), (origin, _) = arrays["last"], arrays[ORIGIN]
        cells, cell = arrays["map"][0], self.cell or 1
        places = jnp.arange(sizes_of(arrays)[CONTEXT])
        rows, columns = (
            jnp.clip((positions - origin) // cell, 0, count - 1)
            for positions, count in zip((last, places), cells.shape)
        )
        return cells[rows][..., columns], (*axes, CONTEXT)

    def sink_of(self, arrays: Arrays, dtype: Any) -> Any:
        """The logits that lead to no value, with the axes of the logits; None without any."""
        if "sink" not in arrays:
            return None
        return aligned(arrays["sink"], (*self.over[:-1], ("n",))).astype(dtype)

    def weights_of(self, shares: Any, arrays: Arrays, mask: Any) -> Any:
        """The softmax as it meets the values."""
        if self.dropped:
            shares = jnp.where(mask, shares, jnp.zeros((), shares.dtype))
        if "value_scale" in arrays:
            shares = shares * aligned(arrays["value_scale"], self.over).astype(shares.dtype)
        return shares.astype(decode(self.weights) or arrays["value"][0].dtype)

    def mixed(self, weights: Any, arrays: Arrays, out: Array, dtype: Any) -> Any:
        """The values, summed over the context with these weights."""
        value, axes = arrays["value"]
        if "value_scale" in arrays:
            value = value.astype(weights.dtype)
        return product((weights, self.over), (value, axes), out, dtype, self.value_precision)


class LoopAxes(NamedTuple):
    """The axes over which attention is cut into blocks, besides the context; () for none.

    - sequence: the first that query, key, value and result have
    - time: the longest of queries and result that keys and values lack
    """

    sequence: Dimension
    time: Dimension


def loop_axes(axes: Signature, sizes: Mapping[Dimension, int]) -> LoopAxes:
    """The loop axes of an attention with these arrays."""
    query, key, value = axes.inputs[:3]
    outer = [axis for axis in query if axis and axis in axes.outputs[0]]
    shared = (axis for axis in outer if axis in key and axis in value)
    alone = (axis for axis in outer if axis not in (*key, *value))
    return LoopAxes(next(shared, ()), max(alone, key=lambda axis: sizes[axis], default=()))


def sizes_of(arrays: Arrays) -> dict[Dimension, int]:
    """The size of every axis."""
    return {axis: size for array, axes in arrays.values() for axis, size in zip(axes, array.shape)}


def at_context(arrays: Arrays, start: Named) -> Arrays:
    """The arrays of a part of the context that begins at a position, which may have axes: positions
    count from there."""
    return {
        name: _minus(array, start) if name in _POSITIONS else array
        for name, array in arrays.items()
    }


def _minus(left: Named, right: Named) -> Named:
    over = (*left[1], *(axis for axis in right[1] if axis not in left[1]))
    return aligned(left, over) - aligned(right, over), over


def softmax(logits: Any, sink: Any, exp: Callable[[Any], Any]) -> Any:
    """exp(logits) over its sum and that of exp(sink), shifted by the largest of them."""
    (shares,) = shares_of_parts([logits], sink, exp)
    return shares


def shares_of_parts(parts: Sequence[Any], sink: Any, exp: Callable[[Any], Any]) -> list[Any]:
    """The softmax of logits that several arrays hold, in as many arrays."""
    top = reduce(jnp.maximum, map(largest, parts))
    if sink is not None:
        top = jnp.maximum(top, largest(sink))
    weights = [exp(logits - jax.lax.stop_gradient(top)) for logits in parts]
    total = reduce(jnp.add, (jnp.sum(part, axis=-1, keepdims=True) for part in weights))
    if sink is not None:
        total = total + jnp.sum(exp(sink - top), axis=-1, keepdims=True)
    return [part / total for part in weights]


def largest(array: Any) -> Any:
    """The maximum over the last axis, which stays with size one; -infinity of nothing."""
    return jnp.expand_dims(jax.lax.reduce_max(array, (array.ndim - 1,)), -1)
