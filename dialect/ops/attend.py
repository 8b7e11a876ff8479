"""Attention as one word: `attend` (Vaswani et al. 2017, section 3.2), in all its variants.

Grouped and single heads of keys (Ainslie et al. 2023, Shazeer 2019) need no word of their own: they
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
from rewrite.signature import Array, Signature

# What an `attend` may have beside query, key and value.
BESIDE = ("key_scale", "value_scale", "mask", "bias", "sink")


def attend(
    query: Any,
    key: Any,
    value: Any,
    *beside: Any,
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

    `axes` names every array's axes, those of `beside` too, and those of the result: `k` is summed
    between query and key, `s` is the context, `v` the value's own. Of the others, one that query
    and key share is batch or KV heads, one that only query has is time or query heads; `1` is an
    axis of size one. `given` says which arrays are `beside`, in this order:

    - `key_scale` and `value_scale` are those of integer keys and values, one for each head of
      d_head numbers: they multiply the logits and the weights, so that both products read
      integers and nothing else (a product of integers is made in f32).
    - `mask` is boolean and keeps where true. Elsewhere the logits are `fill`, -infinity unless
      said; where `added`, it is added to them instead. A row that keeps no key is then what it is
      in
      the library: NaN of -infinity, the mean of the values of another `fill`, and their mean by
      the logits where it is added. Where `dropped`, it is zero: the weights are 0 where the mask is
      false.
    - `bias` is added to the logits, as ALiBi is (Press et al. 2022).
    - `sink` are logits that take their share of the softmax and lead to no value (Xiao et al.
      2024): one for each place on its axes, or `n` for each.

    The logits are capped by cap * tanh(logits / cap) (Gemma 2) where `cap` is given. They are made
    in dtype `logits` (query's unless said) and stay, up to the softmax, in `inner` (`logits`'s
    unless said); the weights meet the values in `weights` (value's unless said), and the result is
    in `dtype` (query's unless said). The precisions are those of the two products. With `rounds`
    the weights are `rounded` over the context, in steps of int8 of that `largest` and `least`.
    With `base` 2 the logits carry log2(e) already, `fill` too, and the softmax is that of
    2 ** logits.
    """
    named = Signature.parse(axes)
    over = (*(axis for axis in named.inputs[0] if axis and axis != ("k",)), ("s",))
    more = zip(given.split(), beside, named.inputs[3:], strict=True)
    extra = {name: (array, its) for name, array, its in more}
    logits, factor = decode(logits) or query.dtype, extra.get("key_scale")
    pair = [_squeezed(query, named.inputs[0])]
    pair += [_squeezed(key if factor is None else key.astype(query.dtype), named.inputs[1])]
    made, _ = _product(*pair, over, logits if factor is None else jnp.float32, key_precision)
    if rounds is not None:  # libtpu 0.0.42 overflows its stack if it merges long ones with these
        made = jax.lax.optimization_barrier(made)
    if factor is not None:
        made = made * _aligned(*factor, over).astype(made.dtype)
    made = made.astype(logits).astype(decode(inner) or logits)
    if scale != 1.0:
        made = made * jnp.asarray(scale, made.dtype)
    if cap is not None:
        made = jnp.tanh(made / jnp.asarray(cap, made.dtype)) * jnp.asarray(cap, made.dtype)
    if "bias" in extra:
        made = made + _aligned(*extra["bias"], over).astype(made.dtype)
    mask = _aligned(*extra["mask"], over) if "mask" in extra else None
    if mask is not None:
        nothing = jnp.asarray(-jnp.inf if fill is None else fill, made.dtype)
        made = made + jnp.where(mask, 0, nothing) if added else jnp.where(mask, made, nothing)
    sink = None
    if "sink" in extra:
        sink = _aligned(*extra["sink"], (*over[:-1], ("n",))).astype(made.dtype)
    shares = _softmax(made, sink, jnp.exp if base is None else jnp.exp2)
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
    found = Signature.parse(op["axes"])
    return Signature(found.inputs, found.outputs, frozenset("k"))


word(
    attend,
    _attend_axes,
    (
        *("axes", "given", "scale", "cap", "fill", "added", "dropped", "logits", "inner"),
        *("weights", "dtype"),
        *("key_precision", "value_precision", "rounds", "base"),
    ),
    "axes",
)
