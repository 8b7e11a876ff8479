"""The op `const`: an array that is known while the program is rewritten.

Small ones are written out, and what is written must be what an array of their type can hold.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dialect.arrays import dtypes
from dialect.arrays.attributes import decode
from rewrite import opdef
from rewrite.ir import Graph, Opaque, Symbol, Type
from rewrite.opdef import OpDef, Traits
from rewrite.signature import Signature


def _constant(value: Any, type: Type) -> Any:
    if isinstance(value, Opaque):
        return value.payload
    array = np.asarray(decode(value), dtypes.dtype_of(type.dtype)).reshape(type.shape)
    if type.weak and not type.shape:
        scalar = array.item()
        # Only of the dtype that JAX gives to it: what computes with it must see the constant's.
        return scalar if jax.typeof(scalar).dtype == array.dtype else array
    return array


def _infer(
    types: tuple[Type, ...], attrs: dict[str, Any], regions: tuple[Graph, ...]
) -> tuple[Type, ...]:
    value, type_ = attrs["value"], attrs["type"]
    if not isinstance(value, Opaque):
        must_hold(type_, value)
    return (type_,)


def must_hold(type_: Type, value: Any) -> None:
    """Raises ValueError for numbers that are no content of an array of this type.

    value: a number, or where the type has axes a flat tuple of them, as attributes write numbers.
    """
    count = len(value) if isinstance(value, tuple) else None
    if count != (type_.size if type_.shape else None):
        count_text = "a single value" if count is None else f"{count} values"
        raise ValueError(f"{count_text} cannot be {type_}")
    for number in value if type_.shape else (value,):
        if not _holds(type_.dtype, number):
            raise ValueError(f"{number} is no {type_.dtype}")


@lru_cache(maxsize=4096, typed=True)  # True is no 1 here
def _holds(name: str, number: Any) -> bool:
    if name == "bool" or isinstance(number, bool):
        return name == "bool" and isinstance(number, bool)
    if not dtypes.is_dtype(name):
        return False
    dtype = dtypes.dtype_of(name)
    if jnp.issubdtype(dtype, jnp.integer):
        bounds = jnp.iinfo(dtype)
        return isinstance(number, int) and bounds.min <= number <= bounds.max
    if isinstance(number, Symbol):
        number = float(number.text) if number.text in ("nan", "-0.0") else None
    if not isinstance(number, (int, float, complex)):
        return False
    if isinstance(number, complex) and not jnp.issubdtype(dtype, jnp.complexfloating):
        return False
    try:
        with np.errstate(all="ignore"):
            kept = np.asarray(float(number) if isinstance(number, int) else number).astype(dtype)
    except OverflowError:  # a whole number that no float holds
        return False
    return bool(np.isinf(kept) == np.isinf(number) and np.isnan(kept) == np.isnan(number))


CONST = opdef.define(
    OpDef(
        name="const",
        signature=lambda op: Signature((), (tuple(() for _ in op.types[0].shape),)),
        infer=_infer,
        reference=_constant,
        attrs=("value", "type"),
        doc="A constant. Small ones print their content, large ones are handles.",
        traits=Traits(moves=True, view=True),
    )
)
