"""block_sparse: attention to the first places of the context and the last (see
`dialect.ops.attend_window`), or to blocks that a file names.

attend(q, k, v, mask)  ->  attend(q, k, v, last) {window=1024, sinks=4}
                       or  attend(q, k, v, last, map) {cell=128}

Beside what its mask leaves out, every query leaves out all but the last `window` positions that it
could see and the first `sinks` (StreamingLLM, Xiao et al. 2024, arXiv:2309.17453; Longformer,
Beltagy et al. 2020, arXiv:2004.05150). A decode step reads these places of the cache alone; in a
prefill `flash`, which comes behind, skips the blocks of keys that no query of a block sees.

With `blocks` a file says which blocks of positions attend to which (`dialect.user.block_map`), in
the place of window and sinks, such as the global and random blocks of BigBird (Zaheer et al. 2020,
arXiv:2007.14062, section 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dialect.jaxprs.jaxpr import constant
from dialect.matching.attend_bounds import kept_by, with_bounds, with_operand
from dialect.matching.bound_values import Kept
from dialect.normal.every_attention import with_attention
from dialect.ops.scores import CONTEXT
from dialect.user.block_map import BlockMap, read_block_map
from rewrite.errors import PipelineError
from rewrite.ir import Op
from rewrite.passbase import Pass
from rewrite.program import NOT_DONE, NOTHING_DONE, Program, Remark
from rewrite.signature import Signature
from rewrite.source import read_file
from rewrite.target import Target


@dataclass(frozen=True)
class BlockSparse(Pass):
    """Narrows every mask to the last `window` positions and the first `sinks`, or to the `blocks`
    of a file, which is read when the pass runs."""

    window: int = 1024
    sinks: int = 4
    blocks: str = ""

    keeps: ClassVar[str] = "approx"

    def run(self, program: Program, target: Target) -> Program:
        if self.window < 1 or self.sinks < 0:
            raise PipelineError(f"{self} keeps no position: a window has one at least")
        notes: list[str | Remark] = []
        text = read_file(self.blocks, "map of blocks") if self.blocks else ""
        of_file = read_block_map(text, self.blocks) if self.blocks else None
        graph = with_attention(program.graph, lambda op: self.attend(op, of_file, notes))
        notes = notes or [Remark("no attention was recognised", kind=NOTHING_DONE)]
        return self.recorded(program.with_graph(graph), *dict.fromkeys(notes))

    def attend(self, op: Op, of_file: BlockMap | None, notes: list[str | Remark]) -> Op:
        """An attention with its mask narrowed, or as it is; with a note on which and why."""
        kept, source = kept_by(op), op.origin.source
        if op.get("blocks") or op.get("sparq"):
            what = "in blocks already, put flash behind" if op.get("blocks") else "it has sparq"
            notes.append(Remark(f"{what}: {source}", kind=NOT_DONE))
            return op
        if kept.last is None:
            why = "it has no mask" if kept.rest is None else "its mask depends on data"
            unknown = f"where its window would end is not known, {why}: {source}"
            notes.append(Remark(unknown, kind=NOT_DONE))
            return op
        if of_file is not None:
            return _in_map(op, kept, of_file, notes)
        told = f"the first {self.sinks} and " if self.sinks else ""
        notes.append(f"{told}the last {self.window} positions")
        return with_bounds(op, kept, window=self.window, sinks=self.sinks)


def _in_map(op: Op, kept: Kept, of_file: BlockMap, notes: list[str | Remark]) -> Op:
    """An attention that keeps the blocks of a map, or as it is where its context is longer."""
    key = Signature.parse(op["axes"]).inputs[1]
    context = op.args[1].type.shape[key.index(CONTEXT)]
    if context > of_file.context:
        short = f"its context is {context}, and the map has {of_file.context} positions"
        notes.append(Remark(f"{short}: {op.origin.source}", kind=NOT_DONE))
        return op
    shown = of_file.cells[: -(-context // of_file.cell), : -(-context // of_file.cell)]
    causal = np.tril(np.ones_like(shown))
    notes.append(
        f"{int((shown & causal).sum())} of {int(causal.sum())} blocks of {of_file.cell} positions"
    )
    cells, axes = constant(of_file.cells), (("row",), ("column",))
    return with_operand(with_bounds(op, kept), "map", cells, axes, cell=of_file.cell)
