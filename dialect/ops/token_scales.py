"""Integers with one scale per token and head: the two forms of keys and values in a cache.

    s = max|x| / 127 over d_head;  q = int8(round(x / s));  x is about q * s

A token is rounded when it is written and never again: what is read back and rounded once more is
what it was. One scale per d_head numbers costs 2 / d_head of the cache's bytes (KVQuant,
Hooper et al. 2024, section 3, and KIVI, Liu et al. 2024, round keys per channel instead; a token's
own scale is known when it comes, which a channel's is not).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from dialect.arrays.attributes import decode
from dialect.ops.quant import float_dtype, greatest, widened
from dialect.ops.vocabulary import word
from rewrite.ir import Op
from rewrite.opdef import Traits
from rewrite.signature import Array, Signature

LARGEST = {"int8": 127}


def quantize_tokens(x: Any, *, axis: int, form: str) -> list[Any]:
    """[q: integers of `form`, scale: bf16], x being about q * scale.

    x: [..., k, ...] with k, the numbers of a head, at `axis`; the scale lacks that axis. It is
    rounded to bf16 before it divides, so that only the integers are inexact. A head of zeros has
    scale one; one that holds NaN or infinity has NaN.
    """
    wide = widened(x)
    scale = (greatest(wide, (axis,)) / LARGEST[form]).astype(jnp.bfloat16)
    scale = jnp.where(scale == 0, jnp.ones_like(scale), scale)
    steps = jnp.round(wide / scale.astype(wide.dtype))
    numbers = jnp.clip(steps, -LARGEST[form], LARGEST[form]).astype(form)
    return [numbers, jnp.squeeze(scale, axis)]


def dequantize_tokens(q: Any, scale: Any, *, axis: int, dtype: Any) -> Any:
    """q * scale in `dtype`: the numbers that the integers stand for. Shapes as above."""
    float_dtype(scale.dtype)
    wide = q.astype(jnp.float32) * jnp.expand_dims(scale, axis).astype(jnp.float32)
    return wide.astype(float_dtype(decode(dtype)))


def _axes(op: Op) -> tuple[Array, Array]:
    """The axes of the numbers, and those of their scales."""
    whole = tuple((f"x{i}",) for i in range(op.args[0].type.rank))
    return whole, whole[: op["axis"]] + whole[op["axis"] + 1 :]


def _quantize_axes(op: Op) -> Signature:
    whole, scale = _axes(op)
    return Signature((whole,), (whole, scale), frozenset(whole[op["axis"]]))


def _dequantize_axes(op: Op) -> Signature:
    whole, scale = _axes(op)
    return Signature((whole, scale), (whole,))


def _dequantized(op: Op) -> tuple[str, dict[str, Any]]:
    return "dequantize_tokens", {"axis": op["axis"]}


_QUANTIZES = Traits(axes="axis", jumps=True)
word(quantize_tokens, _quantize_axes, ("axis", "form"), inverse=_dequantized, traits=_QUANTIZES)
word(dequantize_tokens, _dequantize_axes, ("axis", "dtype"), traits=Traits(axes="axis"))
