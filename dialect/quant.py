"""Quantised weights: `quantize` and its inverse up to rounding, `dequantize`.

Symmetric, one scale per channel, as in AQT: s = max|w| / 127 over the axes that a product sums,
q = round(w / s). A scale per output channel commutes with the product (see `passes/lower.py`).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dialect.attributes import decode
from dialect.lax import infer_by_reference
from rewrite import opdef
from rewrite.ir import Op
from rewrite.opdef import OpDef
from rewrite.signature import Signature

_BITS = {"int8": 8, "int4": 4}


def quantize(weights: Any, *, axes: tuple[int, ...], form: str) -> list[Any]:
    """[q, scale]: integers of the weights' shape, and f32 scales with size one along `axes`."""
    largest = 2 ** (_BITS[form] - 1) - 1
    wide = weights.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=axes, keepdims=True) / largest
    scale = jnp.where(scale == 0, 1.0, scale)  # a channel of zeros stays one
    q = jnp.clip(jnp.round(wide / scale), -largest, largest)
    return [q.astype(form), scale]


def dequantize(q: Any, scale: Any, *, dtype: Any) -> Any:
    """q * scale in `dtype`: the weights that the integers stand for."""
    return (q.astype(jnp.float32) * scale).astype(decode(dtype))


def _quantize_axes(op: Op) -> Signature:
    axes = tuple((f"x{i}",) for i in range(op.args[0].type.rank))
    scale = tuple(() if i in op["axes"] else axis for i, axis in enumerate(axes))
    # Rounding is elementwise once the scale is known: only the scale needs the summed axes.
    return Signature((axes,), (axes, scale))


def _dequantize_axes(op: Op) -> Signature:
    axes = tuple((f"x{i}",) for i in range(op.types[0].rank))
    sizes = zip(op.args[1].type.shape, op.types[0].shape, axes)
    scale = tuple(() if size == 1 != whole else axis for size, whole, axis in sizes)
    return Signature((axes, scale), (axes,))


opdef.define(
    OpDef(
        name="quantize",
        signature=_quantize_axes,
        infer=infer_by_reference("quantize"),
        reference=quantize,
        attrs=("axes", "form"),
        lead="form",
        doc="Weights as integers and one scale per channel.",
    )
)
opdef.define(
    OpDef(
        name="dequantize",
        signature=_dequantize_axes,
        infer=infer_by_reference("dequantize"),
        reference=dequantize,
        attrs=("dtype",),
        doc="The weights that integers and scales stand for.",
    )
)
