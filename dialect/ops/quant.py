"""Quantised weights: `quantize` and its inverse up to rounding, `dequantize`.

Symmetric: s = max|w| / largest along some axes, q = round(w / s). The largest integer is taken
half a step beyond the last one (127.5, 7.5), as in AQT and Qwix, so that all steps are used and
no error exceeds half a step. A scale per output channel commutes with the product, and so does
one per group of its summed axis with the group's own product
(`dialect/quantized/scaled_products.py`).

Integers hold no NaN and no infinity, so the scale is NaN instead: all that share it are NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from dialect.arrays.attributes import decode
from dialect.arrays.dtypes import dtype_of
from dialect.ops.vocabulary import word
from rewrite.ir import Op
from rewrite.opdef import Traits
from rewrite.signature import Signature


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


def float_dtype(dtype: Any) -> Any:
    """A dtype of floats, which are what is scaled. Raises TypeError for any other."""
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"scaled numbers are floats, not {dtype}")
    return dtype


def widened(x: Any) -> Any:
    """Floats of 32 bits at least: in fewer, steps and scales would be rounded."""
    return x.astype(jnp.promote_types(float_dtype(x.dtype), jnp.float32))


def greatest(x: Any, axes: tuple[int, ...]) -> Any:
    """max|x| along `axes`, of size one there, and NaN where one is NaN or infinite."""
    finite = jnp.all(jnp.isfinite(x), axis=axes, keepdims=True)  # a CPU's maximum drops NaN
    return jnp.where(finite, jnp.max(jnp.abs(x), axis=axes, keepdims=True), jnp.nan)


def weight_scale(weights: Any, *, axes: tuple[int, ...], form: str) -> Any:
    """Scales of the weights, in f32 at least, of size one along `axes`.

    A channel of zeros has scale one; one that holds NaN or infinity has NaN.
    """
    scale = greatest(widened(weights), axes) / FORMS[form].largest
    return jnp.where(scale == 0, 1.0, scale)


def quantize(weights: Any, scale: Any, *, form: str) -> Any:
    """weights / scale, rounded to numbers of `form`. Same shape."""
    return FORMS[form].rounded(widened(weights) / scale)


def dequantize(q: Any, scale: Any, *, dtype: Any) -> Any:
    """q * scale in `dtype`: the weights that the integers stand for."""
    wide = widened(scale)
    return (q.astype(wide.dtype) * wide).astype(float_dtype(decode(dtype)))


def _weight_scale_axes(op: Op) -> Signature:
    axes = tuple((f"x{i}",) for i in range(op.args[0].type.rank))
    scale = tuple(() if i in op["axes"] else axis for i, axis in enumerate(axes))
    return Signature((axes,), (scale,))


def _scaled_axes(op: Op) -> Signature:
    axes = tuple((f"x{i}",) for i in range(op.types[0].rank))
    sizes = zip(op.args[1].type.shape, op.types[0].shape, axes)
    scale = tuple(() if size == 1 != whole else axis for size, whole, axis in sizes)
    return Signature((axes, scale), (axes,))


_SCALE_TRAITS = Traits(jumps=True, skips_zeros=True)
word(weight_scale, _weight_scale_axes, ("axes", "form"), traits=_SCALE_TRAITS)
word(quantize, _scaled_axes, ("form",), traits=Traits(jumps=True))
word(dequantize, _scaled_axes, ("dtype",), traits=Traits(batches=True))
