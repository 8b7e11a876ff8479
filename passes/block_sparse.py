"""block_sparse: attention to the first places of the context and the last (see
`dialect.ops.attend_window`).

attend(q, k, v, mask)  ->  attend(q, k, v, last) {window=1024, sinks=4}

Beside what its mask leaves out, every query leaves out all but the last `window` positions that it
could see and the first `sinks` (StreamingLLM, Xiao et al. 2024, arXiv:2309.17453; Longformer,
Beltagy et al. 2020, arXiv:2004.05150). A decode step reads these places of the cache alone; in a
prefill `flash`, which comes behind, skips the blocks of keys that no query of a block sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dialect.matching.attend_bounds import kept_by, with_bounds
from dialect.normal.every_attention import with_attention
from rewrite.errors import PipelineError
from rewrite.ir import Op
from rewrite.passbase import Pass
from rewrite.program import NOT_DONE, NOTHING_DONE, Program, Remark
from rewrite.target import Target


@dataclass(frozen=True)
class BlockSparse(Pass):
    """Narrows every mask to the last `window` positions and the first `sinks`."""

    window: int = 1024
    sinks: int = 4

    keeps: ClassVar[str] = "approx"

    def run(self, program: Program, target: Target) -> Program:
        if self.window < 1 or self.sinks < 0:
            raise PipelineError(f"{self} keeps no position: a window has one at least")
        notes: list[str | Remark] = []
        graph = with_attention(program.graph, lambda op: self.attend(op, notes))
        notes = notes or [Remark("no attention was recognised", kind=NOTHING_DONE)]
        return self.recorded(program.with_graph(graph), *dict.fromkeys(notes))

    def attend(self, op: Op, notes: list[str | Remark]) -> Op:
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
        told = f"the first {self.sinks} and " if self.sinks else ""
        notes.append(f"{told}the last {self.window} positions")
        return with_bounds(op, kept, window=self.window, sinks=self.sinks)
