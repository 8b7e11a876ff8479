"""Activations in steps of int8, as libraries round them on the way into a product.

    s = max|x| / 127.5 along some axes;  q = int8(round(x / s));  product(q, ...) * s * ...

`rounded` is what the integers stand for, q * s: so a product of integers is one product of two
arrays with their scales inside, and everything that knows products knows it. `lower` takes the
scales out again, and multiplies integers.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from dialect.ops.quant import FORMS, greatest, widened
from dialect.ops.vocabulary import word
from rewrite.ir import Op
from rewrite.opdef import Traits
from rewrite.signature import Signature


def steps(
    x: Any,
    *,
    axes: tuple[int, ...],
    largest: float,
    least: float,
    form: str = "int8",
    lowest: float | None = None,
) -> list[Any]:
    """[q of `form`, scale], x being about q * scale. The scale has size one along `axes`.

    Both are computed in f32 at least: in bf16 a quotient beyond 64 would be rounded to halves.
    Where x holds NaN or infinity the scale is NaN.
    """
    return in_steps(x, greatest(widened(x), axes), largest, least, form, lowest)


def in_steps(
    x: Any, top: Any, largest: float, least: float, form: str = "int8", lowest: float | None = None
) -> list[Any]:
    """The same where the greatest magnitude is known: `top`."""
    scale = top / largest
    scale = jnp.where(scale < least, 1.0, scale)
    return [FORMS[form].rounded(widened(x) / scale, lowest), scale]


def rounded(x: Any, *, axes: tuple[int, ...], largest: float, least: float, **options: Any) -> Any:
    """x in 2 * `largest` steps of its greatest magnitude along `axes`, symmetric about zero.

    Dynamic quantisation per token where `axes` is the last axis. A scale below `least` is one. The
    greatest itself is between two steps, of which it takes the smaller, but where `lowest` says
    that there is one more below zero: -128, which a library that only converts to int8 reaches.
    """
    q, scale = steps(x, axes=axes, largest=largest, least=least, **options)
    return (q.astype(scale.dtype) * scale).astype(x.dtype)


def _axes(op: Op) -> Signature:
    axes = tuple((f"x{i}",) for i in range(op.args[0].type.rank))
    return Signature((axes,), (axes,), frozenset(f"x{i}" for i in op["axes"]))


_TRAITS = Traits(jumps=True, skips_zeros=True)
word(rounded, _axes, ("axes", "largest", "least", "form", "lowest"), traits=_TRAITS)
