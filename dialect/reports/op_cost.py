"""The cost of an op: FLOPs and bytes, from its axes and types.

A product has two FLOPs per combination of its axes, a data movement none, and any other primitive
one per element of its largest array. A composite op costs as much as its reference, and a loop as
its body times the trip count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from dialect.arrays.dtypes import struct_of
from dialect.jaxprs.jaxpr import trace_graph
from dialect.matching.values import is_iota, through
from rewrite import opdef
from rewrite.ir import Graph, Op, Type, Value
from rewrite.signature import letters


@dataclass(frozen=True)
class Cost:
    """FLOPs, and bytes read and written."""

    flops: int = 0
    bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def times(self, count: int) -> Cost:
        """The same, `count` times."""
        return Cost(self.flops * count, self.bytes * count)


def cost_of(ops: Iterable[Op]) -> Cost:
    """The total cost of `ops`."""
    return sum(map(op_cost, ops), Cost())


def op_cost(op: Op) -> Cost:
    """The cost of one op: `flops` and `bytes_moved`."""
    return Cost(flops(op), bytes_moved(op))


def trips(op: Op) -> int:
    """The trip count of a loop; 1 if it is not known before the loop runs."""
    return op.get("length", 1)


def flops(op: Op) -> int:
    """Operations of one run of `op`, on floats or integers; loops times their trip count.

    A `while`, which has no static trip count, counts once; a `cond` as its most expensive branch.
    """
    if op.regions:
        parts = [sum(map(flops, region.ops)) for region in op.regions]
        return trips(op) * (max if op.name == "cond" else sum)(parts)
    if opdef.traits(op).moves:
        return 0
    body = op.get("body")
    if body is not None and isinstance(body.payload, Graph):  # that every chip runs
        return math.prod(size for _, size in op["axes"]) * sum(map(flops, body.payload.ops))
    summed = _summed(op)
    if summed is not None:
        return 2 * op.types[0].size * summed
    if opdef.lookup(op.name).attrs is not None:  # a composite op; a primitive takes any attributes
        return _flops_of_reference(op.name, tuple(arg.type for arg in op.args), op.attrs)
    return max((type_.size for type_ in (*op.types, *(arg.type for arg in op.args))), default=0)


def bytes_moved(op: Op) -> int:
    """Bytes that one run of `op` reads and writes without fusion; loops times their trip count.

    Updates are in place, tables are read by rows, and dequantised weights are read as the stored
    integers.
    """
    if op.regions:
        parts = [sum(map(bytes_moved, region.ops)) for region in op.regions]
        return trips(op) * (max if op.name == "cond" else sum)(parts)
    known = opdef.traits(op)
    if known.view:
        return 0
    read, written = [_stored_bytes(arg) for arg in op.args], sum(t.bytes for t in op.types)
    if known.picks:
        read[0] = written
    if known.writes:
        read[0], written = 0, read[known.writes]
    return sum(read) + written


def _stored_bytes(value: Value) -> int:
    """Bytes of the array that a value is read from, through views and dequantisation."""
    stored = through(value, "reshape", "broadcast_in_dim")
    if stored.op.name == "dequantize":
        return sum(map(_stored_bytes, stored.op.args))
    return 0 if is_iota(stored) else stored.type.bytes


def _summed(op: Op) -> int | None:
    """The number of products that an element of the result sums; None if `op` is not a product."""
    if op.name in ("contract", "dot_general"):
        spec = opdef.signature(op)
        kept = letters(spec.outputs[0])
        sizes = zip(op.args[0].type.shape, spec.inputs[0])
        return math.prod(size for size, axes in sizes if not set(axes) & set(kept))
    if op.name == "conv_general_dilated":
        out_channels = dict(op["dimension_numbers"].fields)["rhs_spec"][0]
        kernel = op.args[1].type
        return kernel.size // kernel.shape[out_channels]
    if op.name == "ragged_dot_general":
        numbers = dict(op["ragged_dot_dimension_numbers"].fields)
        (summed, _), _ = numbers["dot_dimension_numbers"]
        return math.prod(op.args[0].type.shape[d] for d in summed)
    return None


@lru_cache(maxsize=4096)
def _flops_of_reference(name: str, types: tuple[Type, ...], attrs: tuple) -> int:
    return sum(map(flops, _reference(name, types, attrs).ops))


def _reference(name: str, types: tuple[Type, ...], attrs: tuple) -> Graph:
    """The reference of a composite op, in primitives."""
    reference = opdef.lookup(name).reference

    def traced(*arrays: object) -> list[object]:
        out = reference(*arrays, **dict(attrs))
        return list(out) if isinstance(out, (list, tuple)) else [out]

    return trace_graph(traced, *map(struct_of, types))
