"""Integers and scales, in the traced functions of tests."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from dialect.ops.vocabulary import Traced
from rewrite.ir import Symbol


def scaled(q: Any, scale: Any, dtype: str = "f32") -> Any:
    """dequantize(q, scale), the scale having size one where it is for all, or being a scalar."""
    sizes = scale.shape or (1,) * q.ndim
    axes = tuple(d for d, (size, whole) in enumerate(zip(sizes, q.shape)) if size != whole)
    kept = jnp.reshape(scale, [size for d, size in enumerate(q.shape) if d not in axes])
    return Traced["dequantize"](q, kept, axes=axes, dtype=Symbol(dtype))


def in_steps(x: Any, axes: tuple[int, ...] = (1,), form: str = "int8", **how: Any) -> Any:
    """dequantize(quantize(x)), which is x in steps."""
    dtype = Symbol(str(x.dtype).replace("bfloat", "bf").replace("float", "f"))
    q, scale = Traced["quantize"](x, axes=axes, form=form, **how)
    return Traced["dequantize"](q, scale, axes=axes, dtype=dtype)
