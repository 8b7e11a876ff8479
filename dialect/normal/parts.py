"""A part of a value along an axis, made of parts: of a weight, a bias, a state that is read beside.

part(f(x @ w + b))  ->  f(x @ part(w) + part(b))
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from itertools import accumulate
from typing import Any

from dialect.matching.values import cut
from rewrite.ir import Op, Value
from rewrite.opdef import build, signature, traits


class Parts:
    """Makes parts of values; of `leaves`, such as inputs and weights, by cutting them. `cut` tells
    what had to be."""

    def __init__(self, leaves: Iterable[Value] = ()) -> None:
        self.leaves, self.cut = set(leaves), list[Value]()
        self.made: dict[tuple[Value, int, int, int], Value] = {}

    def of(self, value: Value, axis: int, start: int, stop: int) -> Value:
        """value[start:stop] along an axis"""
        asked = value, axis, start, stop
        if asked not in self.made:
            self.made[asked] = self._new(*asked)
        return self.made[asked]

    def _new(self, value: Value, axis: int, start: int, stop: int) -> Value:
        read = {} if value in self.leaves else read_by_part(value, axis)
        parts = joint(value, axis)
        ends = list(accumulate(part.type.shape[axis] for part in parts))
        for part, first, last in zip(parts, (0, *ends), ends):
            if (first, last) == (start, stop):
                return part
        if not read:
            part = cut(value, axis, start, stop)
            self.leaves |= {part} if value in self.leaves else set()
            self.cut.append(value)
            return part
        op, offset = value.op, _offset(value.op, axis)
        args = (
            self.of(arg, read[i], offset + start, offset + stop) if i in read else arg
            for i, arg in enumerate(op.args)
        )
        attrs = cut_attrs(op, {axis: stop - start})
        return build(op.name, *args, origin=op.origin, **attrs).results[value.index]


def between(value: Value, axis: int, weights: Container[Value]) -> dict[Value, int]:
    """The values between products with weights that have this axis and a value, with their axes.

    None where no product with a weight makes the value, or anything on the way is not made part by
    part. What is behind a cut along the axis, as the whole that it cuts, is left out.
    """
    seen: dict[Value, int] = {}
    products: list[Op] = []

    def is_cuttable(value: Value, axis: int, seen: dict[Value, int]) -> bool:
        op = value.op
        if value in weights or not op.args:
            return True
        if value in seen:
            return seen[value] == axis
        seen[value], read = axis, read_by_part(value, axis)
        if op.name == "contract":
            products.append(op)
            if not any(op.args[i] in weights for i in read):
                return False
        is_whole = not read or op.args[0].type.shape[read.get(0, 0)] == value.type.shape[axis]
        along = seen if is_whole else {}
        return bool(read) and all(is_cuttable(op.args[i], at, along) for i, at in read.items())

    return seen if is_cuttable(value, axis, seen) and products else {}


def joint(value: Value, axis: int) -> tuple[Value, ...]:
    """The values that it is, one after another along an axis; none where it is not made so."""
    op = value.op
    is_joint = op.name in ("concatenate", "joined")
    return op.args if is_joint and axis == op.get("dimension", op.get("axis")) else ()


def read_by_part(value: Value, axis: int) -> dict[int, int]:
    """The arguments of which a part of a value reads a part, by number, with their axes; none where
    it is not made part by part."""
    op = value.op
    if not op.args:
        return {}
    if "start_indices" in dict(op.attrs):
        return {} if op.get("strides") else {0: axis}
    axes, about = signature(op), traits(op)
    (*more, letter) = axes.outputs[value.index][axis] or ("",)
    of_any_size = about.batches or about.of_cache or (about.moves and not about.picks)
    if more or letter not in axes.row_wise or not of_any_size:
        return {}
    return {i: array.index((letter,)) for i, array in enumerate(axes.inputs) if (letter,) in array}


def _offset(op: Op, axis: int) -> int:
    """Where along the axis a slice begins; 0 of other ops."""
    return op["start_indices"][axis] if "start_indices" in dict(op.attrs) else 0


def cut_attrs(op: Op, sizes: Mapping[int, int]) -> dict[str, Any]:
    """The attributes of an op whose result, and what it reads along it, has other sizes."""
    attrs = dict(op.attrs)
    for axis, size in sizes.items():
        for name, bound in (
            ("start_indices", 0),
            ("limit_indices", size),
            (traits(op).shape, size),
        ):
            if name in attrs:
                attrs[name] = (*attrs[name][:axis], bound, *attrs[name][axis + 1 :])
    return attrs
