"""Activations in steps of int8, as libraries round them on the way into a product.

    s = max|x| / 127.5 along some axes;  q = int8(round(x / s));  product(q, ...) * s * ...

`rounded` is what the integers stand for, q * s: so a product of integers is one product of two
arrays with their scales inside, and everything that knows products knows it. `lower` takes the
scales out again, and multiplies integers.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from dialect.vocabulary import word
from rewrite.ir import Op
from rewrite.signature import Signature


def steps(x: Any, *, axes: tuple[int, ...], largest: float, least: float) -> list[Any]:
    """[q: int8, scale], x being about q * scale. The scale has size one along `axes`."""
    scale = jnp.max(jnp.abs(x), axis=axes, keepdims=True) / jnp.asarray(largest, x.dtype)
    scale = jnp.where(scale < jnp.asarray(least, x.dtype), jnp.ones((), x.dtype), scale)
    return [jnp.round(x / scale).astype(jnp.int8), scale]


def rounded(x: Any, *, axes: tuple[int, ...], largest: float, least: float) -> Any:
    """x in 2 * `largest` steps of its greatest magnitude along `axes`, symmetric about zero.

    A scale below `least` is one. Dynamic quantisation per token where `axes` is the last axis.
    """
    q, scale = steps(x, axes=axes, largest=largest, least=least)
    return q.astype(x.dtype) * scale


def _axes(op: Op) -> Signature:
    axes = tuple((f"x{i}",) for i in range(op.args[0].type.rank))
    return Signature((axes,), (axes,), frozenset(f"x{i}" for i in op["axes"]))


word(rounded, _axes, ("axes", "largest", "least"))
