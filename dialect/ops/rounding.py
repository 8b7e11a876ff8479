"""Activations in steps of int8, as libraries round them on the way into a product.

    s = max|x| / 127.5 along some axes;  q = int8(round(x / s));  product(q, ...) * s * ...

`rounded` is what the integers stand for, q * s: so a product of integers is one product of two
arrays with their scales inside, and everything that knows products knows it. `lower` takes the
scales out again, and multiplies integers.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from dialect.quant import FORMS
from dialect.vocabulary import word
from rewrite.ir import Op
from rewrite.signature import Signature


def steps(
    x: Any, *, axes: tuple[int, ...], largest: float, least: float, form: str = "int8"
) -> list[Any]:
    """[q of `form`, f32 scale], x being about q * scale. The scale has size one along `axes`.

    In f32 whatever x is: in bf16 a quotient beyond 64 would be rounded to halves first.
    """
    wide = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=axes, keepdims=True) / largest
    scale = jnp.where(scale < least, 1.0, scale)
    return [FORMS[form].rounded(wide / scale), scale]


def rounded(
    x: Any, *, axes: tuple[int, ...], largest: float, least: float, form: str = "int8"
) -> Any:
    """x in 2 * `largest` steps of its greatest magnitude along `axes`, symmetric about zero.

    Dynamic quantisation per token where `axes` is the last axis. A scale below `least` is one. The
    greatest itself lies between two steps, of which it takes the smaller whatever its sign: a
    library that leaves this to the rounding of x / scale takes either.
    """
    q, scale = steps(x, axes=axes, largest=largest, least=least, form=form)
    return (q.astype(jnp.float32) * scale).astype(x.dtype)


def _axes(op: Op) -> Signature:
    axes = tuple((f"x{i}",) for i in range(op.args[0].type.rank))
    return Signature((axes,), (axes,), frozenset(f"x{i}" for i in op["axes"]))


word(rounded, _axes, ("axes", "largest", "least", "form"))
