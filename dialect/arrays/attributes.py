"""Primitive parameters as printable attributes, and back.

Whatever has a printable form gets one; the rest travels as an `Opaque` handle.
"""

from __future__ import annotations

import enum
import math
from typing import Any

import jax
import numpy as np

from dialect.arrays import dtypes
from rewrite.errors import brief, nearest
from rewrite.ir import Attrs, Opaque, Record, Symbol, attrs_of

_ENUMS = {
    cls.__name__: cls
    for cls in (
        jax.lax.GatherScatterMode,
        jax.lax.Precision,
        jax.lax.RoundingMethod,
        jax.lax.FftType,
        jax.lax.RandomAlgorithm,
        jax.lax.DotAlgorithmPreset,
    )
}
_RECORDS = {
    cls.__name__: cls
    for cls in (
        jax.lax.GatherDimensionNumbers,
        jax.lax.ScatterDimensionNumbers,
        jax.lax.ConvDimensionNumbers,
        jax.lax.RaggedDotDimensionNumbers,
    )
}


def encode(value: Any) -> Any:
    """A primitive's parameter as an attribute value."""
    if value is None or isinstance(value, (bool, str, Symbol, Record, Opaque)):
        return value
    if isinstance(value, enum.Enum) and type(value).__name__ in _ENUMS:
        return Symbol(f"{type(value).__name__}.{value.name}")
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return encode_float(float(value))
    if isinstance(value, (np.dtype, type)) and dtypes.is_dtype(dtypes.short(np.dtype(value))):
        return Symbol(dtypes.short(np.dtype(value)))
    if type(value).__name__ in _RECORDS:
        names = getattr(value, "_fields", None) or tuple(vars(value))
        return Record(
            type(value).__name__, tuple((name, encode(getattr(value, name))) for name in names)
        )
    if type(value) in (tuple, list):
        return tuple(encode(item) for item in value)
    return Opaque.of(value)


def decode(value: Any) -> Any:
    """An attribute value as the primitive's parameter. The inverse of `encode`.

    Raises ValueError for a name that JAX does not have, or not with these fields.
    """
    if isinstance(value, Symbol):
        return _decode_symbol(value.text)
    if isinstance(value, Record):
        return _decode_record(value)
    if isinstance(value, Opaque):
        return value.payload
    if isinstance(value, tuple):
        return tuple(decode(item) for item in value)
    return value


def _decode_record(record: Record) -> Any:
    if record.name not in _RECORDS:
        raise ValueError(f"there is no {brief(record.name)}: {nearest(record.name, _RECORDS)}")
    fields = {name: decode(item) for name, item in record.fields}
    if record.name == "ConvDimensionNumbers":  # JAX leaves these to the compiler
        for name, spec in fields.items():
            if sorted(spec) != list(range(len(spec))):
                raise ValueError(f"{name} is a permutation of axes, not {spec}")
    try:
        return _RECORDS[record.name](**fields)
    except TypeError as error:
        raise ValueError(str(error)) from None


def encode_params(params: dict[str, Any]) -> Attrs:
    """All parameters of a primitive; what is None is left out of no one's sight: it is kept."""
    return attrs_of({name: encode(value) for name, value in params.items()})


def encode_float(value: float) -> float | Symbol:
    """Floats that `==` confuses or cannot compare (-0.0, nan) become symbols."""
    if math.isnan(value):
        return Symbol("nan")
    if value == 0 and math.copysign(1, value) < 0:
        return Symbol("-0.0")
    return value


def _decode_symbol(text: str) -> Any:
    if text in ("nan", "-0.0"):
        return float(text)
    if dtypes.is_dtype(text):
        return dtypes.dtype_of(text)
    name, _, member = text.partition(".")
    if name not in _ENUMS or member not in _ENUMS[name].__members__:
        known = [f"{kind}.{name}" for kind, enum in _ENUMS.items() for name in enum.__members__]
        raise ValueError(f"there is no {brief(text)}: {nearest(text, known)}")
    return _ENUMS[name][member]
