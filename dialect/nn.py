"""The decoder's own vocabulary: what an engineer calls the pieces, as ops.

Each carries its reference, so recognising a piece can never lose its meaning. None of them takes
a weight matrix: products stay visible as `contract`, where quantisation, sharding and cost see
them. (A feed-forward network is therefore two or three contracts around a `gate`.)
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dialect import activations, caches, rotary  # noqa: F401  (each defines its own)
from dialect.attributes import decode
from dialect.tensor import contract
from dialect.vocabulary import Traced, elementwise, over_last, word  # noqa: F401
from rewrite.ir import Op
from rewrite.signature import Array, Signature


def softmax(x: Any) -> Any:
    """Softmax over the last axis, shifted by its maximum. x: [..., s]."""
    weights = jnp.exp(x - jax.lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True)))
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


def rms_norm(x: Any, *, epsilon: float) -> Any:
    """x / sqrt(mean(x²) + epsilon) over the last axis. x: [..., d]. Its scale is a `mul` behind."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon)


def layer_norm(x: Any, *, epsilon: float) -> Any:
    """(x - mean) / sqrt(variance + epsilon) over the last axis. x: [..., d]. No scale, no bias."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + epsilon)


def take(table: Any, ids: Any, *, mode: Any, fill: Any = None) -> Any:
    """Rows of a table. table: [v, ...], ids: [...]; `mode` says what an id out of bounds does.

    Where it fills, it fills with `fill`, or with NaN.
    """
    rest = tuple(range(ids.ndim, ids.ndim + table.ndim - 1))
    numbers = jax.lax.GatherDimensionNumbers(
        offset_dims=rest, collapsed_slice_dims=(0,), start_index_map=(0,)
    )
    sizes = (1, *table.shape[1:])
    options = {} if fill is None else {"fill_value": fill}
    return jax.lax.gather(table, ids[..., None], numbers, sizes, mode=decode(mode), **options)


def wrap(i: Any, *, size: int) -> Any:
    """An index that counts from the end where it is negative: i < 0 -> i + size. Elementwise."""
    return jnp.where(i < 0, i + jnp.asarray(size, i.dtype), i)


def modulo(i: Any, *, size: int) -> Any:
    """i modulo size, never negative: the place in a ring buffer. Elementwise."""
    return jnp.mod(i, jnp.asarray(size, i.dtype))


def attend(
    query: Any,
    key: Any,
    value: Any,
    *mask: Any,
    axes: str,
    scale: float,
    fill: Any,
    dtypes: tuple,
    precision: Any = None,
) -> Any:
    """Attention: softmax(scale * query . key, masked) . value.

    `axes` is "query, key, value [, mask] -> out" with s the context axis; an axis that query, key
    and value share is batch or KV heads, one that only query has is time or query heads. A boolean
    mask keeps where true and writes `fill` elsewhere; with `fill` None the mask is added. `dtypes`
    are those of the logits' product, of the softmax, and of its result; `precision` is both
    products'.
    """
    found = Signature.parse(axes)
    out = found.outputs[0]
    product, inner, weights = (decode(each) for each in dtypes)
    logit_axes = _logit_axes(found)
    spec = str(Signature(found.inputs[:2], (logit_axes,)))
    logits = contract(query, key, spec=spec, dtype=product, precision=precision).astype(inner)
    if scale != 1.0:
        logits = logits * jnp.asarray(scale, inner)
    if mask:
        mask = (_aligned(mask[0], found.inputs[3], logit_axes),)
        logits = logits + mask[0] if fill is None else jnp.where(mask[0], logits, decode(fill))
    spec = str(Signature((logit_axes, found.inputs[2]), (out,)))
    return contract(
        softmax(logits).astype(weights), value, spec=spec, dtype=query.dtype, precision=precision
    )


def _logit_axes(found: Signature) -> Array:
    """query's axes that the output keeps, then s."""
    kept = tuple(axis for axis in found.inputs[0] if axis in found.outputs[0])
    return (*kept, ("s",))


def _aligned(mask: Any, axes: Array, logit_axes: Array) -> Any:
    """The mask with its axes in the order of the logits', size one where it lacks one."""
    named = [axis for axis in axes if axis]
    mask = mask.reshape([size for size, axis in zip(mask.shape, axes) if axis])
    order = sorted(range(len(named)), key=lambda i: logit_axes.index(named[i]))
    mask = jnp.transpose(mask, order)
    sizes = dict(zip((named[i] for i in order), mask.shape))
    return mask.reshape([sizes.get(axis, 1) for axis in logit_axes])


def _take_axes(op: Op) -> Signature:
    table, ids = (arg.type for arg in op.args)
    rows = tuple((f"r{i}",) for i in range(ids.rank))
    rest = tuple((f"x{i}",) for i in range(table.rank - 1))
    return Signature(((("v",), *rest), rows), ((*rows, *rest),), frozenset("v"))


def _attend_axes(op: Op) -> Signature:
    found = Signature.parse(op["axes"])
    return Signature(found.inputs, found.outputs, frozenset("k"))


for _reference, *_rest in (
    (softmax, over_last),
    (rms_norm, over_last, ("epsilon",)),
    (layer_norm, over_last, ("epsilon",)),
    (take, _take_axes, ("mode", "fill")),
    (wrap, elementwise, ("size",)),
    (modulo, elementwise, ("size",)),
    (attend, _attend_axes, ("axes", "scale", "fill", "dtypes", "precision"), "axes"),
):
    word(_reference, *_rest)
