"""flash: attention block by block, with an online softmax (see `dialect.ops.attend_blocks`).

attend(q, k, v, mask)  ->  attend(q, k, v, first, last) {blocks=(512, 512)}

The logits of a block of queries and a block of keys stay on the chip (Dao et al. 2022,
arXiv:2205.14135). What the mask says of positions (causal, a window, a chunk, a length) becomes the
first and the last that each query keeps, and blocks outside of these are not computed. `lower` runs
the loops over blocks on the chips that own the attention.

`flash` chooses blocks that fit, and leaves attention alone whose logits fit on the chip as they
are; `flash{query=512, key=512}` asks for blocks, everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from dialect.machine.mesh import Topology
from dialect.matching.bound_values import kept, visited_blocks
from dialect.matching.mask_regions import Bound
from dialect.normal.masks_into_loops import masks_into_loop
from dialect.ops.scores import CONTEXT, SUMMED, LoopAxes, loop_axes
from rewrite.dataflow import rebuilt
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import build, with_args
from rewrite.passbase import Pass
from rewrite.program import NOT_DONE, NOTHING_DONE, Program, Remark
from rewrite.signature import Array, Dimension, Signature
from rewrite.target import Target

_SHARE = 3  # logits, their exponentials, and all else that a block needs: a third each
_UNKNOWN = 512  # queries and keys of a block where the chip is not known


@dataclass(frozen=True)
class Flash(Pass):
    """Computes attention in blocks of `query` positions and `key` positions; 0: as many as fit."""

    query: int = 0
    key: int = 0

    keeps: ClassVar[str] = "reals"

    def run(self, program: Program, target: Target) -> Program:
        notes: list[str | Remark] = []
        graph = self.blocked(program.graph, target, notes)
        notes = notes or [Remark("no attention was recognised", kind=NOTHING_DONE)]
        return self.recorded(program.with_graph(graph), *dict.fromkeys(notes))

    def blocked(self, graph: Graph, target: Target, notes: list[str | Remark]) -> Graph:
        """`graph` with its attention in blocks, in the bodies of loops too."""

        def visit(op: Op, args: tuple[Value, ...]) -> Sequence[Value]:
            op = masks_into_loop(with_args(op, args))
            op = with_args(
                op, op.args, tuple(self.blocked(each, target, notes) for each in op.regions)
            )
            if op.name != "attend":
                return op.results
            blocks, note = self.blocks(op, target)
            if blocks is None:
                notes.append(note)
                return op.results
            bounded = _bounded(op, blocks)
            visits = bounded.get("visits")
            notes.append(f"{note}, of which {visits} are visited" if visits else note)
            return bounded.results

        return rebuilt(graph, visit)

    def blocks(self, op: Op, target: Target) -> tuple[tuple[int, int] | None, str | Remark]:
        """(the queries and keys of a block, or None to leave it whole; what there is to say)."""
        work, on_chip = _work(op), _on_chip(target)
        if not (self.query or self.key) and 4 * math.prod(work) <= on_chip * target.chips:
            return None, "whole: its logits fit on the chip"
        queries, keys = _fitting(work, on_chip)
        queries, keys = self.query or queries, min(self.key or keys, work.keys)
        for block, size, what in (
            (min(queries, work.queries), work.queries, "queries"),
            (keys, work.keys, "keys"),
        ):
            if size % block:
                wrong = f"blocks of {block} do not divide {size} {what}: {op.origin.source}"
                return None, Remark(wrong, kind=NOT_DONE)
        return (queries, keys), f"blocks of {queries} queries and {keys} keys"


def _bounded(op: Op, blocks: tuple[int, int]) -> Op:
    """attend(q, k, v, mask)  ->  attend(q, k, v, rest of the mask, first, last) {blocks}"""
    named, attrs = Signature.parse(op["axes"]), dict(op.attrs) | {"blocks": blocks}
    args, inputs, given = list(op.args), list(named.inputs), op.get("given", "").split()
    at = 3 + given.index("mask") if "mask" in given else None
    if at is None or CONTEXT not in inputs[at]:
        return build("attend", *args, origin=op.origin, **attrs)
    axes = inputs[at]
    found = kept(args[at], axes.index(CONTEXT))
    parts = {
        name: (value, _own(value, axes))
        for name, value in (("mask", found.rest), ("first", found.first), ("last", found.last))
        if value is not None
    }
    args[at : at + 1], inputs[at : at + 1] = zip(*parts.values()) if parts else ((), ())
    given[at - 3 : at - 2] = parts
    attrs["axes"], attrs["given"] = str(Signature(tuple(inputs), named.outputs)), " ".join(given)
    if found.bounds:
        attrs["visits"] = _visits(op, axes, found.bounds, blocks)
    return build("attend", *args, origin=op.origin, **attrs)


def _own(value: Value, axes: Array) -> Array:
    """The axes of a value that may be of size one where a mask with these axes is not."""
    return tuple(axis if size > 1 else () for axis, size in zip(axes, value.type.shape))


def _visits(op: Op, axes: Array, bounds: Sequence[Bound], blocks: tuple[int, int]) -> int:
    """How many blocks of a mask with these axes are visited when the context is full."""
    work, time = _work(op), _loop_axes(op).time
    dim = axes.index(time) if time and time in axes else None
    return visited_blocks(bounds, dim, (work.queries, work.keys), blocks)


class _Work(NamedTuple):
    """The logits of an attention: those of so many sequences and heads, queries by keys each."""

    sequences: int
    heads: int
    queries: int
    keys: int


def _work(op: Op) -> _Work:
    query, sizes = Signature.parse(op["axes"]).inputs[0], _sizes(op)
    sequences, time = (sizes[axis] for axis in _loop_axes(op))
    rows = math.prod(sizes[axis] for axis in query if axis != SUMMED)
    return _Work(sequences, rows // (sequences * time), time, sizes[CONTEXT])


def _loop_axes(op: Op) -> LoopAxes:
    return loop_axes(Signature.parse(op["axes"]), _sizes(op))


def _sizes(op: Op) -> dict[Dimension, int]:
    named = Signature.parse(op["axes"]).inputs
    pairs = (pair for arg, axes in zip(op.args, named) for pair in zip(axes, arg.type.shape))
    return dict(pairs) | {(): 1}


def _on_chip(target: Target) -> int:
    """Bytes of a chip's own memory; 0 where the chip is not known."""
    return Topology.parse(target.topology).chip.on_chip_bytes if target.topology else 0


def _fitting(work: _Work, on_chip: int) -> tuple[int, int]:
    """The queries and keys of a block whose logits fit, about as many of both."""
    most = on_chip // (4 * _SHARE * work.heads) or _UNKNOWN**2
    keys = _divisor(work.keys, math.isqrt(most))
    return _divisor(work.queries, most // keys), keys


def _divisor(size: int, most: int) -> int:
    """The largest divisor of a size that is no more than `most`; of fewer, a power of two."""
    if size <= most:
        return 1 << (most.bit_length() - 1)
    return next(number for number in range(most, 0, -1) if size % number == 0)
