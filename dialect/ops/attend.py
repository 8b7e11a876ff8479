"""Attention as one word: `attend` (Vaswani et al. 2017, section 3.2), in all its variants.

Grouped and single heads of keys (Ainslie et al. 2023, Shazeer 2019) need no op of their own: they
are axes that the keys lack. What a variant adds (a mask, a bias, a cap, a sink) is an operand or an
attribute that is absent where it is not used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dialect.arrays.attributes import decode
from dialect.ops.rounding import rounded
from dialect.ops.tensor import contract
from dialect.ops.vocabulary import word
from rewrite.ir import Op
from rewrite.opdef import Traits
from rewrite.signature import Array, Signature


def attend(
    query: Any,
    key: Any,
    value: Any,
    *operands: Any,
    axes: str,
    given: str = "",
    scale: float = 1.0,
    cap: float | None = None,
    fill: Any = None,
    added: bool = False,
    dropped: bool = False,
    logits: Any = None,
    inner: Any = None,
    weights: Any = None,
    dtype: Any = None,
    key_precision: Any = None,
    value_precision: Any = None,
    rounds: tuple[float, float] | None = None,
    base: float | None = None,
) -> Any:
    """Attention: softmax(cap(scale * query . key) + bias, where mask) . value.

    `axes` names the axes of all arrays and of the result: `k` is summed between query and key, `s`
    is the context, `v` the value's alone. An axis that query and key share is batch or KV heads,
    one that only the query has is time or query heads; `1` is an axis of size one. `given` names
    the further operands, in this order:

    - `key_scale` and `value_scale` are those of integer keys and values, one per head of d_head
      numbers. They multiply the logits and the weights, so that both products read integers alone
      (a product of integers is computed in f32).
    - `mask` is boolean and keeps where true. Elsewhere the logits are `fill` (by default
      -infinity); where `added`, it is added to them. A row that keeps no key is what the library
      makes of it: NaN for -infinity, the mean of the values for another `fill`, their mean weighted
      by the logits where it is added, zero where `dropped`: the weights are 0 where the mask is
      false.
    - `bias` is added to the logits, as ALiBi is (Press et al. 2022).
    - `sink` are logits that take their share of the softmax and lead to no value (Xiao et al.
      2024): one for every place on its axes, or `n`.

    The logits are capped by cap * tanh(logits / cap) (Gemma 2) where `cap` is given. Their dtype is
    `logits` (by default the query's) and, up to the softmax, `inner` (by default `logits`); the
    weights meet the values in `weights` (the value's), and the result is in `dtype` (the query's).
    The precisions are those of the two products. With `rounds` the weights are `rounded` over the
    context, in steps of int8 of that `largest` and `least`. With `base` 2 the logits carry log2(e)
    already, `fill` too, and the softmax is that of 2 ** logits.
    """
    named = Signature.parse(axes)
    over = (*(axis for axis in named.inputs[0] if axis and axis != ("k",)), ("s",))
    more = zip(given.split(), operands, named.inputs[3:], strict=True)
    extra = {name: (array, its) for name, array, its in more}
    logits, factor = decode(logits) or query.dtype, extra.get("key_scale")
    pair = [_squeezed(query, named.inputs[0])]
    pair += [_squeezed(key if factor is None else key.astype(query.dtype), named.inputs[1])]
    scores, _ = _product(*pair, over, logits if factor is None else jnp.float32, key_precision)
    if factor is not None:
        scores = scores * _aligned(*factor, over).astype(scores.dtype)
    scores = scores.astype(logits).astype(decode(inner) or logits)
    if scale != 1.0:
        scores = scores * jnp.asarray(scale, scores.dtype)
    if cap is not None:
        scores = jnp.tanh(scores / jnp.asarray(cap, scores.dtype)) * jnp.asarray(cap, scores.dtype)
    if "bias" in extra:
        scores = scores + _aligned(*extra["bias"], over).astype(scores.dtype)
    mask = _aligned(*extra["mask"], over) if "mask" in extra else None
    if mask is not None:
        nothing = jnp.asarray(-jnp.inf if fill is None else decode(fill), scores.dtype)
        scores = scores + jnp.where(mask, 0, nothing) if added else jnp.where(mask, scores, nothing)
    sink = None
    if "sink" in extra:
        sink = _aligned(*extra["sink"], (*over[:-1], ("n",))).astype(scores.dtype)
    shares = _softmax(scores, sink, jnp.exp if base is None else jnp.exp2)
    if dropped:
        shares = jnp.where(mask, shares, jnp.zeros((), shares.dtype))
    if "value_scale" in extra:
        shares = shares * _aligned(*extra["value_scale"], over).astype(shares.dtype)
    shares = shares.astype(decode(weights) or value.dtype)
    if rounds is not None:
        shares = rounded(shares, axes=(shares.ndim - 1,), largest=rounds[0], least=rounds[1])
    out = tuple(axis for axis in named.outputs[0] if axis)
    values = _squeezed(
        value.astype(shares.dtype) if "value_scale" in extra else value, named.inputs[2]
    )
    result, _ = _product((shares, over), values, out, dtype or query.dtype, value_precision)
    sizes = dict(zip(out, result.shape))
    return result.reshape([sizes.get(axis, 1) for axis in named.outputs[0]])


def _softmax(logits: Any, sink: Any, exp: Callable[[Any], Any]) -> Any:
    """exp(logits) over its sum and that of exp(sink), shifted by the largest of them."""
    top = _largest(logits)
    if sink is not None:
        top = jnp.maximum(top, _largest(sink))
    weights = exp(logits - jax.lax.stop_gradient(top))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    if sink is not None:
        total = total + jnp.sum(exp(sink - top), axis=-1, keepdims=True)
    return weights / total


def _largest(array: Any) -> Any:
    """The maximum over the last axis, which stays with size one; -infinity of nothing."""
    return jnp.expand_dims(jax.lax.reduce_max(array, (array.ndim - 1,)), -1)


def _squeezed(array: Any, axes: Array) -> tuple[Any, Array]:
    """An array without its axes of size one."""
    named = tuple(axis for axis in axes if axis)
    return array.reshape([size for size, axis in zip(array.shape, axes) if axis]), named


def _product(left: Any, right: Any, out: Array, dtype: Any, precision: Any) -> tuple[Any, Array]:
    """The contraction of two named arrays, with the axes `out`."""
    spec = str(Signature((left[1], right[1]), (out,)))
    return contract(left[0], right[0], spec=spec, dtype=dtype, precision=precision), out


def _aligned(array: Any, axes: Array, over: Array) -> Any:
    """An array with the axes of the logits, size one where it lacks one."""
    array, named = _squeezed(array, axes)
    order = sorted(range(len(named)), key=lambda i: over.index(named[i]))
    array = jnp.transpose(array, order)
    sizes = dict(zip((named[i] for i in order), array.shape))
    return array.reshape([sizes.get(axis, 1) for axis in over])


def _attend_axes(op: Op) -> Signature:
    axes = Signature.parse(op["axes"])
    return Signature(axes.inputs, axes.outputs, frozenset("k"))


word(
    attend,
    _attend_axes,
    (
        *("axes", "given", "scale", "cap", "fill", "added", "dropped", "logits", "inner"),
        *("weights", "dtype"),
        *("key_precision", "value_precision", "rounds", "base"),
    ),
    "axes",
    traits=Traits(spelled="axes"),
)
