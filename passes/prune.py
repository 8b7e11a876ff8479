"""prune: the least important parts of the weights are left out, and everything that reads them
becomes smaller.

contract(f(contract(x, w)), v)  ->  contract(f(contract(x, picked(w, p))), picked(v, p))

`p` are the places of d_ff with the largest weights: the sum of squares over all weights that have
the axis, in every layer and expert by itself (structured pruning by magnitude, survey
arXiv:2407.09111; Michel et al. 2019, arXiv:1905.10650, for heads). `stage` picks once, in
`prepare`. Of query heads, as many are kept in every group that shares keys and values, so that the
cache stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dialect.naming.axes import Axes, infer_axes
from dialect.padded.pad_axis import NotPadded
from dialect.padded.pick_axis import picked_program
from rewrite.errors import PipelineError
from rewrite.passbase import Pass
from rewrite.program import NOTHING_DONE, Program, Remark
from rewrite.target import Target

_INDEPENDENT = frozenset({"layers", "experts"})


@dataclass(frozen=True)
class Prune(Pass):
    """Keeps `d_ff` hidden units of a feed-forward network and `heads` query heads; 0: all."""

    d_ff: int = 0
    heads: int = 0

    keeps: ClassVar[str] = "approx"

    def run(self, program: Program, target: Target) -> Program:
        if not self.d_ff and not self.heads:
            raise PipelineError(f"{self} says nothing to leave out: prune{{d_ff=1024}}, say")
        notes: list[str | Remark] = []
        if self.d_ff:
            axes = infer_axes(program)
            program = _kept(program, axes, "d_ff", self.d_ff, _INDEPENDENT, notes)
        if self.heads:
            program = self.fewer_heads(program, infer_axes(program), notes)
        return self.recorded(program, *notes)

    def fewer_heads(self, program: Program, axes: Axes, notes: list[str | Remark]) -> Program:
        """The program with fewer query heads: as many in every group of grouped queries."""
        groups = axes.sizes().get("kv_heads", 1)
        if "q_per_kv" not in axes.sizes():
            return _kept(program, axes, "heads", self.heads, _INDEPENDENT, notes)
        if self.heads % groups:
            told = f"heads={self.heads}: there are {groups} KV heads, and every one keeps as many"
            notes.append(Remark(told, kind=NOTHING_DONE))
            return program
        along = _INDEPENDENT | {"kv_heads"}
        return _kept(program, axes, "q_per_kv", self.heads // groups, along, notes)


def _kept(
    program: Program,
    axes: Axes,
    name: str,
    size: int,
    along: frozenset[str],
    notes: list[str | Remark],
) -> Program:
    """The program with an axis cut to a size, or as it is, with the reason."""
    before = axes.sizes().get(name, 0)
    try:
        pruned = picked_program(program, axes, name, size, along)
    except NotPadded as error:
        notes.append(Remark(f"{name} stays: {error}", kind=NOTHING_DONE))
        return program
    notes.append(f"{name} {before} -> {size}, those with the largest weights")
    return pruned
