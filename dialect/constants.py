"""The op `const`: an array that is known while the program is rewritten."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from dialect import dtypes
from dialect.attributes import decode
from rewrite import opdef
from rewrite.ir import Opaque, Type
from rewrite.opdef import OpDef
from rewrite.signature import Signature


def _constant(value: Any, type: Type) -> Any:
    if isinstance(value, Opaque):
        return value.payload
    array = np.asarray(decode(value), dtypes.dtype_of(type.dtype)).reshape(type.shape)
    if type.weak and not type.shape:
        scalar = array.item()
        # Only of the dtype that JAX gives to it: what computes with it must see the constant's own.
        return scalar if jax.typeof(scalar).dtype == array.dtype else array
    return array


CONST = opdef.define(
    OpDef(
        name="const",
        signature=lambda op: Signature((), (tuple(() for _ in op.types[0].shape),)),
        infer=lambda types, attrs, regions: (attrs["type"],),
        reference=_constant,
        attrs=("value", "type"),
        doc="A constant. Small ones print their content, large ones are handles.",
    )
)
