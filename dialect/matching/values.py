"""Small questions about values, and short ways to build new ones."""

from __future__ import annotations

from collections.abc import Sequence

from rewrite.ir import Op, Symbol, Value, bits
from rewrite.opdef import make, with_args


def reshaped(value: Value, shape: tuple[int, ...]) -> Value:
    """`value` in another shape."""
    return make("reshape", value, new_sizes=tuple(shape))


def shaped(value: Value, shape: Sequence[int]) -> Value:
    """`value` in a shape, where it has another one."""
    return value if value.type.shape == tuple(shape) else reshaped(value, tuple(shape))


def in_dtype(value: Value, dtype: str) -> Value:
    """`value` converted, where it has another dtype."""
    if value.type.dtype == dtype:
        return value
    return make("convert_element_type", value, new_dtype=Symbol(dtype), weak_type=False)


def in_shape(value: Value, shape: tuple[int, ...]) -> Value:
    """A scalar, or a value of the same rank, broadcast to a shape along its axes of size one."""
    if value.type.shape == shape:
        return value
    places = tuple(range(value.type.rank))
    return make("broadcast_in_dim", value, shape=shape, broadcast_dimensions=places)


def grown_from(value: Value) -> Value:
    """The value before `in_shape` broadcast it; the value itself if it did not."""
    op, dims = value.op, tuple(range(value.type.rank))
    return op.args[0] if op.get("broadcast_dimensions") == dims else value


def is_splat(value: Value) -> bool:
    """Whether the value is a constant scalar."""
    return value.op.name == "const" and not value.type.shape


def number(value: Value) -> float | int | bool | None:
    """The number that every element is equal to, seen through broadcasts; None if there is none."""
    while value.op.name in ("broadcast_in_dim", "reshape"):
        value = value.op.args[0]
    element = value.op["value"] if is_splat(value) else None
    return element if isinstance(element, (bool, int, float)) else None


def through(value: Value, *names: str) -> Value:
    """The value upstream of a chain of these ops, followed along first arguments."""
    while value.op.name in names:
        value = value.op.args[0]
    return value


def rounding(value: Value) -> Op | None:
    """The `quantize` of dequantize(quantize(x)), which is x in steps."""
    if value.op.name != "dequantize":
        return None
    op = value.op.args[0].op
    whole = op.name == "quantize" and op.results == value.op.args
    return op if whole and op["axes"] == value.op["axes"] else None


# Dtypes of real numbers: a conversion between them only rounds. A conversion to a format of eight
# bits and fewer is quantisation.
REALS = ("f64", "f32", "bf16", "f16")


def unrounded(value: Value, *names: str) -> Value:
    """The value upstream of these ops and of conversions between floats, which only round."""
    while value.op.name in names or _only_rounds(value.op):
        value = value.op.args[0]
    return value


def _only_rounds(op: Op) -> bool:
    if op.name != "convert_element_type":
        return False
    return op.types[0].dtype in REALS and op.args[0].type.dtype in REALS


def parts_along(value: Value, dimension: int) -> tuple[Value, ...]:
    """The values that it holds one after another along a dimension; none if it is no such one."""
    op = value.op
    whole = op.name == "concatenate" and op["dimension"] == dimension
    return op.args if whole else ()


def cut(value: Value, dimension: int, start: int, stop: int) -> Value:
    """value[start:stop] along a dimension"""
    first, last = [0] * value.type.rank, list(value.type.shape)
    first[dimension], last[dimension] = start, stop
    return make("slice", value, start_indices=tuple(first), limit_indices=tuple(last))


WITHOUT_ZERO = "f8_e8m0fnu"  # a format of powers of two


def as_bool(value: Value) -> Value | None:
    """The boolean that the value converts to 0 or 1, seen through its layout; else None."""
    op = value.op
    if op.name == "convert_element_type" and op.types[0].dtype != WITHOUT_ZERO:
        return op.args[0] if op.args[0].type.dtype == "bool" else as_bool(op.args[0])
    if op.name in ("reshape", "broadcast_in_dim", "transpose"):
        inner = as_bool(op.args[0])
        return None if inner is None else with_args(op, (inner,)).results[0]
    return None


def one_hot_of(value: Value) -> tuple[Value, int, int] | None:
    """(ids, the one-hot axis, its length) where the value is ids == arange(n)."""
    if value.op.name != "eq":
        return None
    for counter, ids in (value.op.args, value.op.args[::-1]):
        axis = _counting_axis(counter)
        if axis is None or (ids.type.rank and ids.type.shape[axis] != 1):
            continue
        shape = tuple(size for d, size in enumerate(value.type.shape) if d != axis)
        return reshaped(ids, shape), axis, counter.type.shape[axis]
    return None


def is_iota(value: Value) -> bool:
    """Whether a value is 0, 1, 2, ... along one of its axes."""
    return value.op.name == "iota"


def counts_modulo(value: Value, size: int) -> bool:
    """Whether a value is others modulo this size, in any shape."""
    inner = through(value, "reshape").op
    return inner.name == "modulo" and inner["size"] == size


def _counting_axis(value: Value) -> int | None:
    """The axis along which a value is 0, 1, 2, ...: an iota in any shape, in integers that hold all
    of it; else None."""
    axes = [d for d, size in enumerate(value.type.shape) if size > 1]
    while len(axes) == 1 and _holds(value.type.dtype, value.type.size - 1):
        if is_iota(value):
            return axes[0] if value.type.shape[value.op["dimension"]] > 1 else None
        if value.op.name not in ("convert_element_type", "reshape"):
            return None
        value = value.op.args[0]
    return None


def _holds(dtype: str, number: int) -> bool:
    """Whether integers of this dtype hold a number."""
    return dtype[0] in "iu" and number < 1 << (bits(dtype) - (dtype[0] == "i"))


def columns(indices: Value) -> list[Value] | None:
    """The columns of indices [..., n], each [..., 1]; None where they cannot be separated."""
    if indices.op.name == "stack" and indices.op["axis"] == indices.type.rank - 1:
        return [reshaped(part, (*part.type.shape, 1)) for part in indices.op.args]
    if indices.op.name == "concatenate" and indices.op["dimension"] == indices.type.rank - 1:
        parts = indices.op.args
        return list(parts) if all(part.type.shape[-1] == 1 for part in parts) else None
    return [indices] if indices.type.shape[-1:] == (1,) else None
