"""flash: attention block by block, with an online softmax (see `dialect.ops.attend_blocks`).

attend(q, k, v)  ->  attend(q, k, v) {blocks=(512, 512)}

The logits of a block of queries and a block of keys stay on the chip (Dao et al. 2022,
arXiv:2205.14135). `lower` runs the loops over blocks on the chips that own the attention.

`flash` chooses blocks that fit, and leaves attention alone whose logits fit on the chip as they
are; `flash{query=512, key=512}` asks for blocks, everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from dialect.machine.mesh import Topology
from dialect.ops.scores import CONTEXT, SUMMED, loop_axes
from rewrite.dataflow import rebuilt
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import build, with_args
from rewrite.passbase import Pass
from rewrite.program import NOT_DONE, NOTHING_DONE, Program, Remark
from rewrite.signature import Signature
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
            regions = tuple(self.blocked(region, target, notes) for region in op.regions)
            moved = with_args(op, args, regions)
            if op.name != "attend":
                return moved.results
            blocks, note = self.blocks(moved, target)
            notes.append(note)
            if blocks is None:
                return moved.results
            attrs = dict(moved.attrs) | {"blocks": blocks}
            return build("attend", *args, origin=op.origin, **attrs).results

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


class _Work(NamedTuple):
    """The logits of an attention: those of so many sequences and heads, queries by keys each."""

    sequences: int
    heads: int
    queries: int
    keys: int


def _work(op: Op) -> _Work:
    named = Signature.parse(op["axes"])
    pairs = (pair for arg, axes in zip(op.args, named.inputs) for pair in zip(axes, arg.type.shape))
    sizes = dict(pairs) | {(): 1}
    sequences, time = (sizes[axis] for axis in loop_axes(named, sizes))
    rows = math.prod(sizes[axis] for axis in named.inputs[0] if axis != SUMMED)
    return _Work(sequences, rows // (sequences * time), time, sizes[CONTEXT])


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
