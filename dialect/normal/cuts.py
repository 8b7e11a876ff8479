"""An op whose axes are cut into parts: its arguments are reshaped, its attributes follow.

reshape(f(x, y): (h k) -> h k)  ->  f(reshape(x), reshape(y))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from dialect.matching.values import reshaped, shaped
from dialect.ops.follow import followed
from rewrite import opdef
from rewrite.ir import Op, Value
from rewrite.opdef import build, traits
from rewrite.signature import Array, Dimension, Signature, letters

Parts = Mapping[Dimension, tuple[int, ...]]


def cuts(op: Op) -> bool:
    """Whether a reshape cuts dimensions apart, and does nothing else but add some of size one."""
    axes = opdef.signature(op)
    return only_cuts(axes.inputs[0], tuple(filter(None, axes.outputs[0])))


def only_cuts(merged: Array, split: Array) -> bool:
    """Whether `split` has the axes of `merged`, each alone."""
    return (
        all(len(dimension) == 1 for dimension in split)
        and all(dimension for dimension in merged)
        and any(len(dimension) > 1 for dimension in merged)
    )


def cut_inside(op: Op) -> Value:
    """reshape(f(x, y)) that only cuts axes apart  ->  f(reshape(x), reshape(y))

    Axes of size one that it adds stay behind: whoever else reads the axes apart shares f.
    """
    (inner, index), signature = op.args[0], opdef.signature(op)
    shape = op.types[0].shape
    kept = (size for size, axis in zip(shape, signature.outputs[0]) if axis)
    sizes = dict(zip(letters(signature.outputs[0]), kept))
    axes = zip(opdef.signature(inner).outputs[index], signature.inputs[0])
    parts = {axis: tuple(sizes[letter] for letter in merged) for axis, merged in axes}
    return shaped(cut(inner, parts).results[index], shape)


def cut(
    op: Op,
    parts: Parts,
    fresh: Iterator[str] | None = None,
    change: Callable[[Value, int], Value] | None = None,
) -> Op:
    """`op` with axes cut into parts of these sizes, which have `fresh` letters but for the first.

    Its arguments are reshaped; or, with a `change`, one that has the only axis of `parts` becomes
    `change(argument, dimension of the axis)`. Unless an op spells its axes, its arrays match from
    the last dimension: one of size one becomes as many as the matching axis is cut into.
    """
    axes = opdef.signature(op)
    fresh = axes.free_letters() if fresh is None else fresh
    names = {axis: [axis, *((next(fresh),) for _ in n[1:])][: len(n)] for axis, n in parts.items()}
    out = () if traits(op).spelled else axes.outputs[0]

    def along(array: Array) -> Array:
        if len(array) > len(out):
            return array
        return tuple(axis or same for axis, same in zip(array, out[len(out) - len(array) :]))

    def cut_axes(array: Array) -> Array:
        return tuple(part for axis in along(array) for part in names.get(axis, [axis]))

    def changed(arg: Value, array: Array) -> Value:
        if change and not parts.keys().isdisjoint(array):
            return change(arg, array.index(*parts))
        sizes = zip(array, along(array), arg.type.shape)
        shape = [n if name else 1 for name, axis, size in sizes for n in parts.get(axis, [size])]
        return reshaped(arg, shape) if tuple(shape) != arg.type.shape else arg

    now = Signature(tuple(map(cut_axes, axes.inputs)), tuple(map(cut_axes, axes.outputs)))
    args = map(changed, op.args, axes.inputs)
    sizes = {part: n for axis in parts for part, n in zip(names[axis], parts[axis])}
    return build(op.name, *args, **followed(op, axes, now, sizes))
