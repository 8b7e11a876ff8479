"""Fused projections: one product whose result is cut into query, key and value, or gate and up.

Equal parts become an axis of their own (`(qkv heads d_head)`), so that the heads stay an axis that
can be sharded. For unequal parts, as with grouped queries, the weight is cut instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dialect.matching.values import reshaped
from dialect.normal.layout_rules import made_by
from dialect.ops import lax
from dialect.staging.binding import region_bound
from rewrite.dataflow import bound_values
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import build, make, with_args
from rewrite.signature import Signature

_MOST_PARTS = 4


def cut_projections(graph: Graph, params: Iterable[Value]) -> Graph:
    """`graph` with the cuts of fused projections turned into axes, or moved to the weights."""
    bound = bound_values(graph, params)
    cuts = {cut: how for value, slices in _sliced(graph) for cut, how in _cuts(value, slices)}
    memo: dict[Value, Value] = {value: value for value in graph.inputs}
    for op in graph.ops:
        regions = op.regions
        if op.name == "scan":
            regions = (cut_projections(op.regions[0], region_bound(op, bound)),)
        results = with_args(op, tuple(memo[arg] for arg in op.args), regions).results
        if op in cuts:
            results = (_cut(op, *cuts[op], memo, bound) or results[0],)
        memo.update(zip(op.results, results))
    return Graph(graph.inputs, tuple(memo[value] for value in graph.outputs))


def _cuts(value: Value, slices: list[Op]) -> Iterator[tuple[Op, tuple[int, bool]]]:
    """The slices of a projection with their axis, and whether all parts of it are equal."""
    axis = _axis(value, slices)
    if axis is None or not made_by(("contract",), value):
        return
    part = slices[0].types[0].shape[axis]
    equal = _equal_parts(slices, axis, value.type.shape[axis], part)
    for cut in slices:
        yield cut, (axis, equal)


def _cut(
    op: Op, axis: int, equal: bool, memo: dict[Value, Value], bound: frozenset[Value]
) -> Value | None:
    """The value in place of a slice of a projection; None if the slice stays."""
    if not equal:
        return _of_cut_weight(op.args[0], op, axis, memo, bound)
    fused, part = memo[op.args[0]], op.types[0].shape[axis]
    shape = fused.type.shape
    parts = reshaped(fused, (*shape[:axis], shape[axis] // part, part, *shape[axis + 1 :]))
    return build("unstack", parts, axis=axis).results[_start(op, axis) // part]


def _sliced(graph: Graph) -> list[tuple[Value, list[Op]]]:
    """The values that only slices read, with those slices."""
    sliced = []
    for value, users in graph.users.items():
        slices = list(dict.fromkeys(op for op, _ in users))
        if len(slices) > 1 and all(op.name == "slice" and not op.get("strides") for op in slices):
            sliced.append((value, slices))
    return sliced


def _axis(value: Value, slices: list[Op]) -> int | None:
    """The one axis along which the slices cut, or None."""
    axes = {
        d
        for cut in slices
        for d, (part, size) in enumerate(zip(cut.types[0].shape, value.type.shape))
        if part != size
    }
    return axes.pop() if len(axes) == 1 else None


def _start(op: Op, axis: int) -> int:
    return op["start_indices"][axis]


def _equal_parts(slices: list[Op], axis: int, size: int, part: int) -> bool:
    if part <= 1 or any(cut.types[0].shape[axis] != part for cut in slices):
        return False
    even = size % part == 0 and all(_start(cut, axis) % part == 0 for cut in slices)
    return even and size // part <= _MOST_PARTS


def _of_cut_weight(
    value: Value, cut: Op, axis: int, memo: dict[Value, Value], bound: frozenset[Value]
) -> Value | None:
    """slice(f(contract(x, w)))  ->  f(contract(x, slice(w))); None if w is not a weight."""
    op, args = value.op, [memo[arg] for arg in value.op.args]
    if op.name == "contract":
        spec = Signature.parse(op["spec"])
        letter = spec.outputs[0][axis]
        holders = [i for i, array in enumerate(spec.inputs) if letter in array]
        if len(holders) != 1 or op.args[holders[0]] not in bound:
            return None
        (weight,) = holders
        args[weight] = _part(args[weight], spec.inputs[weight].index(letter), cut, axis)
        return make(op.name, *args, origin=op.origin, **dict(op.attrs))
    if op.name not in lax.MAPS:
        return None
    for i, arg in enumerate(op.args):
        if arg.type.shape == value.type.shape and arg not in bound:
            args[i] = _of_cut_weight(arg, cut, axis, memo, bound)
        elif arg.type.shape and arg.type.shape[axis] > 1:
            args[i] = _part(args[i], axis, cut, axis)
    if None in args:
        return None
    return make(op.name, *args, origin=op.origin, **dict(op.attrs))


def _part(value: Value, axis: int, cut: Op, cut_axis: int) -> Value:
    """The part of another array, along this axis, that `cut` takes along `cut_axis`."""
    start, stop = [0] * value.type.rank, list(value.type.shape)
    start[axis], stop[axis] = _start(cut, cut_axis), cut["limit_indices"][cut_axis]
    return make("slice", value, start_indices=tuple(start), limit_indices=tuple(stop))
