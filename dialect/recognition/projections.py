"""Fused projections: one product whose result is cut into query, key and value, or gate and up.

Equal parts become an axis of their own (`(qkv heads d_head)`), so that the heads stay an axis that
can be sharded. For unequal parts, as with grouped queries, the weight is cut instead, and with it
all that lies between the product and the cuts, as the convolution of a state space does, with its
kernel, bias and state. Whoever reads any of that whole reads its parts, one after another.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass

from dialect.matching.values import reshaped
from dialect.normal.layout_rules import made_by
from dialect.normal.parts import Parts, between
from dialect.staging.binding import region_bound
from rewrite.dataflow import bound_values
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import build, make, with_args

_MOST_PARTS = 4


def cut_projections(graph: Graph, params: Iterable[Value]) -> Graph:
    """`graph` with the cuts of fused projections turned into axes, or moved to the weights."""
    bound = bound_values(graph, params)
    cuts = [cut for value, slices in _sliced(graph) if (cut := _cut(value, slices, bound))]
    of_slice = {op: cut for cut in cuts for op in cut.slices}
    of_value = {value: cut for cut in cuts for value in cut.between}
    memo: dict[Value, Value] = {value: value for value in graph.inputs}
    parts = Parts(graph.inputs)
    for op in graph.ops:
        regions = op.regions
        if op.name == "scan":
            regions = (cut_projections(op.regions[0], region_bound(op, bound)),)
        results = with_args(op, tuple(memo[arg] for arg in op.args), regions).results
        if op in of_slice:
            results = (of_slice[op].part(op, memo[op.args[0]], parts),)
        for known, value in zip(op.results, results):
            memo[known] = (
                of_value[known].joined(known, value, parts) if known in of_value else value
            )
            parts.leaves |= {value} if known in bound else set()
    return Graph(graph.inputs, tuple(memo[value] for value in graph.outputs))


@dataclass(frozen=True)
class _Cut:
    """The slices of a projection along an axis, and the values between its product and them, with
    their axes; none where the parts are equal, and become an axis."""

    slices: list[Op]
    axis: int
    between: dict[Value, int]

    def part(self, op: Op, whole: Value, parts: Parts) -> Value:
        """The value in place of a slice, of what has become of the whole that it cuts."""
        start, stop = _bounds(op, self.axis)
        if self.between:
            return parts.of(whole, self.axis, start, stop)
        shape, size = whole.type.shape, stop - start
        cut = (*shape[: self.axis], shape[self.axis] // size, size, *shape[self.axis + 1 :])
        return build("unstack", reshaped(whole, cut), axis=self.axis).results[start // size]

    def joined(self, known: Value, value: Value, parts: Parts) -> Value:
        """A value between, as its parts one after another, if the slices are all of it."""
        axis, bounds = self.between[known], sorted({_bounds(op, self.axis) for op in self.slices})
        starts, stops = zip(*bounds)
        if (0, *stops) != (*starts, value.type.shape[axis]):
            return value
        cut = [parts.of(value, axis, *bound) for bound in bounds]
        return make("concatenate", *cut, dimension=axis)


def _cut(value: Value, slices: list[Op], bound: Container[Value]) -> _Cut | None:
    """How the slices cut a projection; None where the value is none."""
    axis = _axis(value, slices)
    if axis is None:
        return None
    part = slices[0].types[0].shape[axis]
    if _equal_parts(slices, axis, value.type.shape[axis], part) and made_by(("contract",), value):
        return _Cut(slices, axis, {})
    on_the_way = between(value, axis, bound)
    return _Cut(slices, axis, on_the_way) if on_the_way else None


def _sliced(graph: Graph) -> Iterator[tuple[Value, list[Op]]]:
    """The values that only slices read, with those slices."""
    for value, users in graph.users.items():
        slices = list(dict.fromkeys(op for op, _ in users))
        if len(slices) > 1 and all(op.name == "slice" and not op.get("strides") for op in slices):
            yield value, slices


def _axis(value: Value, slices: list[Op]) -> int | None:
    """The one axis along which the slices cut, or None."""
    axes = {
        d
        for cut in slices
        for d, (part, size) in enumerate(zip(cut.types[0].shape, value.type.shape))
        if part != size
    }
    return axes.pop() if len(axes) == 1 else None


def _bounds(op: Op, axis: int) -> tuple[int, int]:
    return op["start_indices"][axis], op["limit_indices"][axis]


def _equal_parts(slices: list[Op], axis: int, size: int, part: int) -> bool:
    if part <= 1 or any(cut.types[0].shape[axis] != part for cut in slices):
        return False
    even = size % part == 0 and all(_bounds(cut, axis)[0] % part == 0 for cut in slices)
    return even and size // part <= _MOST_PARTS
