"""How the attributes of an op follow its axes: what its traits say of them, carried out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewrite.ir import Op
from rewrite.opdef import traits
from rewrite.signature import Dimension, Signature


def followed(
    op: Op, axes: Signature, now: Signature, sizes: Mapping[Dimension, int] | None = None
) -> dict[str, Any]:
    """The attributes of `op` once its arrays have other axes, or have them in another order: they
    had those of `axes`, and are to have those of `now`. `sizes` are those of axes of the result.

    Raises ValueError where an axis that it needs whole has moved among the others, and no attribute
    says where to.
    """
    known, attrs = traits(op), dict(op.attrs)
    before, first, result = axes.inputs[0], now.inputs[0], now.outputs[0]
    told = before if known.by_axis or known.spelled else ()
    if known.axes:
        where = attrs[known.axes]
        told = tuple(before[d] for d in (where if isinstance(where, tuple) else (where,)))
        places = tuple(map(first.index, told))
        attrs[known.axes] = places if isinstance(where, tuple) else places[0]
    if known.lacked:
        arrays = (*now.inputs, *now.outputs)
        told = tuple(before[d] for d in attrs[known.lacked])
        attrs[known.lacked] = tuple(
            d for d, axis in enumerate(first) if any(axis not in array for array in arrays)
        )
    for axis in before:
        if axes.need.intersection(axis) and axis not in told:
            was, lies = (set(array[: array.index(axis)]) for array in (before, first))
            if was.intersection(first) != lies.intersection(before):
                raise ValueError(f"{op.name} needs {' '.join(axis)} where it is")
    if known.order:
        attrs[known.order] = tuple(map(first.index, result))
    if known.new_axis:
        attrs[known.new_axis] = next(d for d, axis in enumerate(result) if axis not in first)
    if known.spelled:
        attrs[known.spelled] = str(Signature(now.inputs, now.outputs))
    for name in filter(attrs.get, known.by_axis):
        attrs[name] = tuple(attrs[name][before.index(axis)] for axis in first)
    if known.shape:
        sizes = dict(zip(axes.outputs[0], op.types[0].shape)) | (sizes or {})
        attrs[known.shape] = tuple(sizes[axis] for axis in result)
    return attrs
