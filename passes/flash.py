"""flash: attention block by block, with an online softmax (see `dialect.ops.attend_blocks`).

attend(q, k, v, mask)  ->  attend(q, k, v, first, last) {blocks=(512, 512)}

The logits of a block of queries and a block of keys stay on the chip (Dao et al. 2022,
arXiv:2205.14135). What the mask says of positions (causal, a window, a chunk, a length) becomes the
first and the last that each query keeps, and blocks outside of these are not computed. `lower` runs
the loops over blocks on the chips that own the attention.

`flash` chooses blocks that fit, and leaves attention alone where they would gain nothing: where its
logits fit on the chip, and its keys and values do or the mask leaves none of them out. Pages are
read block by block always, without a copy of the cache.
`flash{query=512, key=512}` asks for blocks, everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from dialect.caching.paged_cache import keys_of_block
from dialect.caching.quantized_cache import attend_in_integers
from dialect.compiled.compilers import compiler_for
from dialect.machine.mesh import Topology
from dialect.machine.tiles import lanes_of
from dialect.matching.attend_bounds import bounds_of, kept_by, map_of, window_read, with_bounds
from dialect.matching.bound_values import visited_blocks
from dialect.matching.mask_regions import Bound
from dialect.matching.pools import is_in_pages
from dialect.normal.every_attention import with_attention
from dialect.ops.scores import CONTEXT, SUMMED, LoopAxes, loop_axes
from rewrite.ir import Op, Value
from rewrite.passbase import Pass
from rewrite.program import NOT_DONE, Program, Remark
from rewrite.signature import Array, Dimension, Signature
from rewrite.target import Target

_SHARE = 3  # logits, their exponentials, and all else that a block needs: a third each
_UNKNOWN = 512  # queries and keys of a block where the chip is not known
_LONGER = 4  # at most so many times as many keys as a square block has
_FEWEST = 64  # of fewer a block is mostly padding


@dataclass(frozen=True)
class Flash(Pass):
    """Computes attention in blocks of `query` positions and `key` positions; 0: as many as fit."""

    query: int = 0
    key: int = 0

    keeps: ClassVar[str] = "reals"

    def run(self, program: Program, target: Target) -> Program:
        notes: list[str | Remark] = []
        graph = with_attention(program.graph, lambda op: self.attend(op, target, notes))
        asked = NOT_DONE if self.query or self.key else ""
        notes = notes or [Remark("no attention was recognised", kind=asked)]
        return self.recorded(program.with_graph(graph), *dict.fromkeys(notes))

    def attend(self, op: Op, target: Target, notes: list[str | Remark]) -> Op:
        """An attention in blocks, or as it is; with a note on which and why."""
        if op.get("sparq"):
            notes.append("whole: it reads chosen positions alone")
            return op
        op = _of_integers(op)
        kept = kept_by(op)
        bounds, axes = bounds_of(op, kept)
        if not (self.query or self.key) and not _pays(op, bounds, target):
            notes.append("whole: blocks would gain nothing")
            return op
        work, (queries, keys) = _work(op), self.blocks(op, target)
        for block, size, what in (
            (min(queries, work.queries), work.queries, "queries"),
            (keys, work.keys, "keys"),
        ):
            if size % block:
                wrong = f"blocks of {block} do not divide {size} {what}: {op.origin.source}"
                notes.append(Remark(wrong, kind=NOT_DONE))
                return op
            if block < _FEWEST and block < size and not self.key:
                notes.append(f"whole: {size} {what} have no divisor from {_FEWEST} on that fits")
                return op
        more, of = {}, ""
        if bounds:
            more["visits"] = visits = _visits(op, bounds, axes, (queries, keys))
            of = f", of which {visits} are visited"
        notes.append(f"blocks of {queries} queries and {keys} keys{of}")
        return with_bounds(op, kept, blocks=(queries, keys), **more)

    def blocks(self, op: Op, target: Target) -> tuple[int, int]:
        """The queries and keys of a block whose logits fit, about as many of both; more keys where
        queries are few, so that reading them takes longer than a trip of a loop, but no more than
        fit with their values. Of keys in pages, as many as are read at a time."""
        work = _work(op)
        most = _on_chip(target) // (4 * _SHARE * work.heads) or _UNKNOWN**2
        square, rows = math.isqrt(most), work.queries * work.sequences
        longest = _LONGER * square
        in_pages = keys_of_block(op.args[1]) if _is_in_pages(op) else 0
        held = _on_chip(target) * target.chips * work.keys // max(1, _read(op, target)) or longest
        fitting = _divisor(work.keys, min(most // min(rows, square), longest, held))
        keys = self.key or in_pages or fitting
        queries = self.query or _divisor(work.queries, min(most // keys, longest))
        return queries, min(keys, work.keys)


def _pays(op: Op, bounds: Sequence[Bound], target: Target) -> bool:
    """Whether logits do not fit on the chips that they are split over, or the keys and values do
    not, of which the mask may leave some out. A window that is read alone needs none; pages are
    read without a copy of the cache."""
    if window_read(op):
        return False
    if _is_in_pages(op):
        return True
    if target.topology and not compiler_for(Topology.parse(target.topology).chip).gains_by_blocks:
        return False
    room = _on_chip(target) * target.chips
    return 4 * math.prod(_work(op)) > room or (bool(bounds) and _read(op, target) > room)


def _read(op: Op, target: Target) -> int:
    """Bytes of the keys and values, the last axis of which fills whole lanes."""
    lanes = lanes_of(Topology.parse(target.topology).chip) if target.topology else 1
    rows = ((arg.type.bytes, arg.type.shape[-1]) for arg in op.args[1:3])
    return sum(bytes_ * -(-last // lanes) * lanes // max(1, last) for bytes_, last in rows)


def _of_integers(op: Op) -> Op:
    """Attention to pages of integers, which reads these and their scales; others as they are."""
    outcome = attend_in_integers.apply(op) if is_in_pages(op.args[1]) else None
    return outcome.op if isinstance(outcome, Value) else op


def _is_in_pages(op: Op) -> bool:
    return bool(op.args[1].op.get("page"))


def _visits(op: Op, bounds: Sequence[Bound], axes: Array, blocks: tuple[int, int]) -> int:
    """How many blocks are visited when the context is full, of a mask with these axes."""
    work, time = _work(op), _loop_axes(op).time
    dim = axes.index(time) if time and time in axes else None
    sizes, sinks, cells = (work.queries, work.keys), op.get("sinks") or 0, map_of(op)
    mapped = None if cells is None else (cells, op["cell"])
    return visited_blocks(bounds, dim, sizes, blocks, sinks, mapped)


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


def _divisor(size: int, most: int) -> int:
    """The largest divisor of a size that is no more than `most`; of fewer, a power of two."""
    if size <= most:
        return 1 << (most.bit_length() - 1)
    return next(number for number in range(most, 0, -1) if size % number == 0)
