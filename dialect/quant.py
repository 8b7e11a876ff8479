"""Quantised weights: `quantize` and its inverse up to rounding, `dequantize`.

Symmetric, one scale per channel, as in AQT: s = max|w| / 127 over the axes that a product sums,
q = round(w / s). A scale per output channel commutes with the product (see `passes/lower.py`).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from dialect.attributes import decode
from dialect.lax import infer_by_reference
from rewrite import opdef
from rewrite.ir import Op
from rewrite.opdef import OpDef
from rewrite.signature import Signature

LARGEST = {"int8": 127, "int4": 7}


def weight_scale(weights: Any, *, axes: tuple[int, ...], form: str) -> Any:
    """f32 scales of the weights, size one along `axes`. A channel of zeros has scale one."""
    largest = jnp.max(jnp.abs(weights.astype(jnp.float32)), axis=axes, keepdims=True)
    return jnp.where(largest == 0, 1.0, largest / LARGEST[form])


def quantize(weights: Any, scale: Any, *, form: str) -> Any:
    """weights / scale, rounded to integers of `form`. Same shape."""
    largest = LARGEST[form]
    rounded = jnp.round(weights.astype(jnp.float32) / scale)
    return jnp.clip(rounded, -largest, largest).astype(form)


def dequantize(q: Any, scale: Any, *, dtype: Any) -> Any:
    """q * scale in `dtype`: the weights that the integers stand for."""
    return (q.astype(jnp.float32) * scale).astype(decode(dtype))


def _weight_scale_axes(op: Op) -> Signature:
    axes = tuple((f"x{i}",) for i in range(op.args[0].type.rank))
    scale = tuple(() if i in op["axes"] else axis for i, axis in enumerate(axes))
    return Signature((axes,), (scale,))


def _scaled_axes(op: Op) -> Signature:
    axes = tuple((f"x{i}",) for i in range(op.types[0].rank))
    sizes = zip(op.args[1].type.shape, op.types[0].shape, axes)
    scale = tuple(() if size == 1 != whole else axis for size, whole, axis in sizes)
    return Signature((axes, scale), (axes,))


for _name, _reference, _signature, _attrs in (
    ("weight_scale", weight_scale, _weight_scale_axes, ("axes", "form")),
    ("quantize", quantize, _scaled_axes, ("form",)),
    ("dequantize", dequantize, _scaled_axes, ("dtype",)),
):
    opdef.define(
        OpDef(
            name=_name,
            signature=_signature,
            infer=infer_by_reference(_name),
            reference=_reference,
            attrs=_attrs,
            doc=(_reference.__doc__ or "").splitlines()[0],
        )
    )
