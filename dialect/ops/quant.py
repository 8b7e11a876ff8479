"""Numbers as integers and scales: `quantize` and its inverse up to rounding, `dequantize`.

    s = max|x| / largest along some axes;  q = round(x / s);  x is about q * s

Weights, the rows of a cache and activations are all kept so. They differ in which numbers share a
scale (an output channel, a head, a token), in its dtype, and in `largest`: half a step beyond the
last integer (127.5, 7.5), as in AQT and Qwix, so that all steps are used and no error exceeds half
a step; or the last integer itself, so that what is read back and rounded again is what it was.
Integers hold no NaN and no infinity, so the scale is NaN instead: all that share it are NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from dialect.arrays.attributes import decode
from dialect.arrays.dtypes import dtype_of
from dialect.ops.vocabulary import elementwise, word
from rewrite.ir import Op
from rewrite.opdef import Traits
from rewrite.signature import Array, Signature, letters, numbered


@dataclass(frozen=True)
class Form:
    """How a number is kept: its dtype by the short name, and what the greatest becomes."""

    dtype: str
    largest: float
    integer: bool = True

    def rounded(self, steps: Any, lowest: float | None = None) -> Any:
        """The nearest numbers of this form, none beyond the last below `largest`, none below
        `lowest`."""
        # Symmetric: what is scaled to 127.5 could go either way, and goes the same on every chip.
        last = float(int(self.largest))
        whole = jnp.round(steps) if self.integer else steps
        within = jnp.clip(whole, -last if lowest is None else lowest, last)
        return within.astype(dtype_of(self.dtype))

    def holds(self, dtype: str) -> bool:
        """Whether numbers of a dtype are of this form, or integers that it holds too."""
        return dtype == self.dtype or (self.integer and dtype in ("i2", "i4"))


FORMS = {
    "int8": Form("i8", 127.5),
    "int4": Form("i4", 7.5),
    "fp8": Form("f8_e4m3fn", 448.0, integer=False),
}
LONGEST_SUM = (2**31 - 1) // 128**2  # of products of two int8 that 32 bits hold, whatever they are


def quantize(
    x: Any,
    *,
    axes: tuple[int, ...],
    form: str,
    largest: float | None = None,
    least: float = 0.0,
    lowest: float | None = None,
    scale_dtype: Any = None,
) -> list[Any]:
    """[q of `form`, scale], x being about q * scale. The scale lacks `axes`: they share it.

    The greatest of them becomes `largest`, by default that of the form. It is between two steps
    there, of which it takes the smaller, but where `lowest` says that there is one more below zero:
    -128, which a library that only converts to int8 reaches.

    Both are computed in f32 at least: in bf16 a quotient beyond 64 would be rounded to halves. The
    scale is rounded to `scale_dtype` before it divides, so that only the integers are inexact. One
    that is zero, or below `least`, is one; where x holds NaN or infinity it is NaN.
    """
    how = {"largest": largest, "least": least, "lowest": lowest, "scale_dtype": scale_dtype}
    q, scale = in_steps(x, greatest(widened(x), axes), form=form, **how)
    return [q, jnp.squeeze(scale, axes)]


def greatest(x: Any, axes: tuple[int, ...]) -> Any:
    """max|x| along `axes`, of size one there, and NaN where one is NaN or infinite."""
    kept = jnp.where(jnp.isnan(x), jnp.inf, jnp.abs(x))  # a CPU's maximum drops NaN
    top = jnp.max(kept, axis=axes, keepdims=True)
    return jnp.where(jnp.isfinite(top), top, jnp.nan)


def in_steps(
    x: Any,
    top: Any,
    *,
    form: str,
    largest: float | None,
    least: float,
    lowest: float | None = None,
    scale_dtype: Any = None,
) -> tuple[Any, Any]:
    """The same where the greatest magnitude is known: `top`, whose shape the scale has."""
    wide, kept = widened(x), FORMS[form]
    scale = (top / (largest or kept.largest)).astype(decode(scale_dtype) or wide.dtype)
    scale = jnp.where(scale < least if least else scale == 0, jnp.ones_like(scale), scale)
    return kept.rounded(wide / scale.astype(wide.dtype), lowest), scale


def dequantize(q: Any, scale: Any, *, axes: tuple[int, ...], dtype: Any) -> Any:
    """q * scale in `dtype`: the numbers that the integers stand for. The scale lacks `axes`."""
    wide = widened(jnp.expand_dims(scale, axes))
    return (q.astype(wide.dtype) * wide).astype(_float_dtype(decode(dtype)))


def rounded(x: Any, **how: Any) -> Any:
    """x in steps, as `quantize` and `dequantize` leave it. Same dtype."""
    return dequantize(*quantize(x, **how), axes=how["axes"], dtype=x.dtype)


def straight_through(x: Any, stepped: Any) -> Any:
    """x in steps, whose gradient is that of x (Bengio et al. 2013, arXiv:1308.3432)."""
    return jax.lax.stop_gradient(stepped) + (x - jax.lax.stop_gradient(x)).astype(stepped.dtype)


def _float_dtype(dtype: Any) -> Any:
    """A dtype of floats, which are what is scaled. Raises TypeError for any other."""
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"scaled numbers are floats, not {dtype}")
    return dtype


def widened(x: Any) -> Any:
    """Floats of 32 bits at least: in fewer, steps and scales would be rounded."""
    return x.astype(jnp.promote_types(_float_dtype(x.dtype), jnp.float32))


def _axes(op: Op) -> tuple[Array, Array]:
    """The axes of the numbers, and those of their scales."""
    whole = numbered(op.args[0].type.rank)
    return whole, tuple(axis for i, axis in enumerate(whole) if i not in op["axes"])


def _quantize_axes(op: Op) -> Signature:
    whole, scale = _axes(op)
    return Signature((whole,), (whole, scale), frozenset(letters(whole)) - {*letters(scale)})


def _dequantize_axes(op: Op) -> Signature:
    whole, scale = _axes(op)
    return Signature((whole, scale), (whole,))


def _dequantized(op: Op) -> tuple[str, dict[str, Any]]:
    return "dequantize", {"axes": op["axes"]}


word(
    quantize,
    _quantize_axes,
    ("axes", "form", "largest", "least", "lowest", "scale_dtype"),
    results=("quantized", "scale"),
    inverse=_dequantized,
    traits=Traits(lacked="axes", jumps=True, skips_zeros=True),
)
word(straight_through, elementwise)
word(dequantize, _dequantize_axes, ("axes", "dtype"), traits=Traits(lacked="axes", batches=True))
