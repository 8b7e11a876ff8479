"""What kind of value an attribute takes, by its name, which means the same in every op.

JAX asks of a primitive's parameters what it needs for the shapes; what else is wrong with them (a
text for a precision, 1.5 for an axis that some other program has as 1) shows in the compiler, or
ends the process there. Names that are not listed are left to the ops.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from dialect.arrays.dtypes import is_dtype
from rewrite.errors import brief
from rewrite.ir import Opaque, Record, Symbol, Type
from rewrite.text import show_value

Kind = tuple[str, Callable[[Any], bool]]


def _whole(value: Any) -> bool:
    return type(value) is int


def _wholes(value: Any) -> bool:
    if isinstance(value, Record):
        return all(_wholes(item) or isinstance(item, Symbol) for _, item in value.fields)
    if type(value) is tuple:
        return all(map(_wholes, value))
    return value is None or type(value) is int


def _axes(value: Any) -> bool:
    """Numbers, names of mesh axes, or names with their sizes."""
    return all(map(_axes, value)) if type(value) is tuple else type(value) in (int, str)


def _number(value: Any) -> bool:
    return type(value) in (int, float) or value is None


def _dtype(value: Any) -> bool:
    return value is None or isinstance(value, Opaque) or _named(value, is_dtype)


def _precision(value: Any) -> bool:
    if type(value) is tuple:
        return len(value) == 2 and all(map(_precision, value))
    enums = ("Precision.", "DotAlgorithmPreset.")
    return (
        value is None or isinstance(value, Opaque) or _named(value, lambda x: x.startswith(enums))
    )


def _mode(value: Any) -> bool:
    return _named(value, lambda text: text.startswith("GatherScatterMode."))


def _named(value: Any, known: Callable[[str], bool]) -> bool:
    return isinstance(value, Symbol) and known(value.text)


_KINDS: dict[str, Kind] = {}
for _names, _told, _holds in (
    (
        "axis dimension",
        "a whole number, and none below zero",
        lambda value: _whole(value) and value >= 0,
    ),
    (
        "num_keys k y size length count exponent_bits mantissa_bits parts axis_size "
        "batch_group_count feature_group_count all_gather_dimension scatter_dimension",
        "a whole number",
        _whole,
    ),
    (
        "permutation new_sizes shape sizes dimensions broadcast_dimensions start_indices "
        "limit_indices strides slice_sizes padding_config window_dimensions window_strides "
        "base_dilation window_dilation lhs_dilation rhs_dilation fft_lengths dimension_numbers "
        "ragged_dot_dimension_numbers turned",
        "made of whole numbers",
        _wholes,
    ),
    (
        "reverse is_stable indices_are_sorted unique_indices weak_type tiled left_side lower "
        "transpose_a conjugate_a unit_diagonal compute_uv full_matrices pivoting",
        "true or false",
        lambda value: type(value) is bool,
    ),
    ("epsilon scale cap base largest least", "a number", _number),
    (
        "dtype new_dtype preferred_element_type index_dtype logits inner weights",
        "a dtype",
        _dtype,
    ),
    (
        "precision key_precision value_precision",
        "a precision, such as Precision.HIGHEST",
        _precision,
    ),
    ("mode", "a mode, such as GatherScatterMode.CLIP", _mode),
    ("axes", "made of numbers and names", _axes),
    (
        "sharding out_sharding accuracy",
        "none, or what no text can write",
        lambda value: value is None or isinstance(value, Opaque),
    ),
):
    _KINDS |= {name: (_told, _holds) for name in _names.split()}


def check(op: str, types: tuple[Type, ...], attrs: dict[str, Any]) -> None:
    """Raises ValueError for an attribute that is of another kind than its name says."""
    for name, value in attrs.items():
        kind, holds = _KINDS.get(name, _ANY)
        if not holds(value):
            raise ValueError(f"`{name}` is {kind}, not {brief(show_value(value), 100)}")
    if op == "reshape" and math.prod(attrs["new_sizes"]) != types[0].size:
        raise ValueError(f"{types[0]} has not as many elements as {attrs['new_sizes']}")
    order = attrs.get("dimensions") if op == "reshape" else None
    if order is not None and sorted(order) != list(range(types[0].rank)):
        raise ValueError(f"{order} does not name every axis of {types[0]} once")
    if op in _ALONG:  # JAX takes any number here, or counts from the end
        axis, rank = attrs[_ALONG[op]], types[0].rank + (op == "stack")
        if not 0 <= axis < rank:
            raise ValueError(f"{types[0]} has no axis {axis}")
    if op == "sort" and not 1 <= attrs["num_keys"] <= len(types):
        raise ValueError(f"{len(types)} arrays cannot have {attrs['num_keys']} keys")


_ALONG = {"sort": "dimension", "stack": "axis", "unstack": "axis", "split": "axis"}
_ANY: Kind = ("anything", lambda value: True)
