"""What the mask of an attention says of positions: as bounds, and as operands of their own.

attend(q, k, v, mask)  ->  attend(q, k, v, rest of the mask, first, last)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dialect.matching.bound_values import Kept, kept
from dialect.matching.constant_arrays import constant_array
from dialect.matching.mask_regions import Bound, Sum, linear
from rewrite.ir import Op, Value
from rewrite.opdef import build
from rewrite.signature import Array, Signature

_CONTEXT, _SUMMED = ("s",), ("k",)


def kept_by(op: Op) -> Kept:
    """What the mask of an attention keeps."""
    mask, axes = _operands(op).get("mask", (None, ()))
    if mask is None or _CONTEXT not in axes:
        return Kept(None, None, None, ())
    return kept(mask, axes.index(_CONTEXT))


def bounds_of(op: Op, kept: Kept) -> tuple[tuple[Bound, ...], Array]:
    """The bounds that `found` has for the mask of an attention, or those that are its operands, a
    window among them; and the axes in which they count. None of either where there are none."""
    operands = _operands(op)
    if kept.bounds:
        return kept.bounds, operands["mask"][1]
    given = {name: linear(operands[name][0]) for name in ("first", "last") if name in operands}
    if not given:
        return (), ()
    bounds = [Bound((end,), name == "first") for name, end in given.items()]
    if op.get("window"):
        bounds.append(Bound((given["last"].plus(Sum(number=1 - op["window"])),), True))
    return tuple(bounds), operands[next(iter(given))][1]


def shares_last(op: Op) -> bool:
    """Whether all queries that share their keys have one last position, given as an operand."""
    operands, (_, key, value, *_) = _operands(op), Signature.parse(op["axes"]).inputs
    return {axis for axis in operands["last"][1] if axis} <= {*key} & {*value}


def query_only(op: Op) -> int:
    """How many queries share their keys."""
    query, key, *_ = Signature.parse(op["axes"]).inputs
    return math.prod(n for n, axis in zip(op.args[0].type.shape, query) if axis not in key)


def window_read(op: Op) -> int:
    """How many places of its context an attention reads of which all queries have one window; 0
    where it reads them all (`dialect.ops.attend_window`)."""
    if not op.get("window") or op.get("rounds") or op.get("blocks"):
        return 0
    key, count = Signature.parse(op["axes"]).inputs[1], op["window"] + (op.get("sinks") or 0)
    return count if shares_last(op) and count < op.args[1].type.shape[key.index(_CONTEXT)] else 0


def part_read(op: Op, keys: int) -> float:
    """The part of so many keys, and of their values, that an attention at once reads: a window, or
    the columns and positions that it chooses."""
    if not op.get("sparq"):
        return (window_read(op) or keys) / max(keys, 1)
    columns, positions, *_ = op["sparq"]
    width = op.args[1].type.shape[Signature.parse(op["axes"]).inputs[1].index(_SUMMED)]
    return min(1, columns / (2 * width) + positions / keys)


def with_bounds(op: Op, kept: Kept, **more: Any) -> Op:
    """The attention with these bounds in the place of its mask, and with `more` attributes."""
    named, attrs = Signature.parse(op["axes"]), dict(op.attrs) | more
    if not kept.bounds:
        return build("attend", *op.args, origin=op.origin, **attrs)
    args, inputs, given = list(op.args), list(named.inputs), op["given"].split()
    at = 3 + given.index("mask")
    axes = inputs[at]
    parts = {
        name: (value, _own(value, axes))
        for name, value in (("mask", kept.rest), ("first", kept.first), ("last", kept.last))
        if value is not None
    }
    args[at : at + 1], inputs[at : at + 1] = zip(*parts.values())
    given[at - 3 : at - 2] = parts
    attrs |= {"axes": str(Signature(tuple(inputs), named.outputs)), "given": " ".join(given)}
    return build("attend", *args, origin=op.origin, **attrs)


def with_operand(op: Op, name: str, value: Value, axes: Array, **more: Any) -> Op:
    """The attention with one more operand, of these axes, and with `more` attributes."""
    named, attrs = Signature.parse(op["axes"]), dict(op.attrs) | more
    attrs["axes"] = str(Signature((*named.inputs, axes), named.outputs))
    attrs["given"] = f"{op.get('given', '')} {name}".lstrip()
    return build("attend", *op.args, value, origin=op.origin, **attrs)


def map_of(op: Op) -> np.ndarray | None:
    """The map of an attention, where it is a constant; None without one."""
    value, _ = _operands(op).get("map", (None, ()))
    return None if value is None else constant_array(value)


def _operands(op: Op) -> dict[str, tuple[Value, Array]]:
    """What an attention is given besides query, key and value, by name, with its axes."""
    arrays = zip(op.args[3:], Signature.parse(op["axes"]).inputs[3:])
    return dict(zip(op.get("given", "").split(), arrays, strict=True))


def _own(value: Value, axes: Array) -> Array:
    """The axes of a value that may be of size one where a mask with these axes is not."""
    return tuple(axis if size > 1 else () for axis, size in zip(axes, value.type.shape))
