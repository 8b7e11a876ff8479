"""prune: the least important parts of the weights are left out, and everything that reads them
becomes smaller.

contract(f(contract(x, w)), v)  ->  contract(f(contract(x, picked(w, p))), picked(v, p))
scan(body, x, ws)               ->  scan(body, x, picked(ws, p))
contract(x, w)                  ->  contract(x, masked(w, w * w))

`p` are the places of d_ff with the largest weights: the sum of squares over all weights that have
the axis, in every layer and expert by itself (structured pruning by magnitude, survey
arXiv:2407.09111; Michel et al. 2019, arXiv:1905.10650, for heads). `stage` picks once, in
`prepare`. Of query heads, as many are kept in every group that shares keys and values, so that the
cache stays as it is. Of layers, `p` are those with the largest weights, all of theirs together: the
others add nothing to the residual stream, and their part of the cache is not read
(`skip_layers` leaves out layers that are named, and their cache). With a `mask` weights keep their
shape: 2 of every 4 that are summed one behind the other are zero, those with the least weights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial, reduce
from typing import ClassVar, Literal

import numpy as np

from dialect.layered.layers import find_layers
from dialect.layered.left_out import (
    NotLeftOut,
    loops_of,
    places_of,
    shorter_loop,
    weights_of,
    without_layers,
)
from dialect.matching.values import in_dtype
from dialect.naming.axes import Axes, infer_axes
from dialect.padded.importance import LAYERS, Importance, read
from dialect.padded.masked_weights import Masking
from dialect.padded.pad_axis import NotPadded
from dialect.padded.pick_axis import picked_program
from rewrite.errors import PipelineError
from rewrite.ir import Value, replace_values
from rewrite.opdef import make
from rewrite.passbase import Pass
from rewrite.program import LEFT_ALONE, NOTHING_DONE, Program, Remark
from rewrite.target import Target

Notes = list[str | Remark]
_WHICH = {False: "those with the largest weights", True: "those that matter most on the text"}


@dataclass(frozen=True)
class Prune(Pass):
    """Keeps `d_ff` hidden units of a feed-forward network, `heads` query heads and `layers`; 0:
    all. `mask="2:4"` keeps 2 of every 4 weights. By activation, those stay that matter most on a
    text, as the file `importance` has it (`dialect.padded.importance`)."""

    d_ff: int = 0
    heads: int = 0
    layers: int = 0
    mask: str = ""
    by: Literal["magnitude", "activation"] = "magnitude"
    importance: str = ""

    keeps: ClassVar[str] = "approx"

    def run(self, program: Program, target: Target) -> Program:
        if not (self.d_ff or self.heads or self.layers or self.mask):
            raise PipelineError(f"{self} says nothing to leave out: prune{{d_ff=1024}}, say")
        if (self.by == "activation") != bool(self.importance):
            hint = "shardwright eval ... --importance FILE writes it"
            raise PipelineError(f"{self}: by=activation reads importance=FILE", hint=hint)
        scores = read(self.importance) if self.importance else None
        notes: Notes = []
        if self.d_ff:
            program = _kept(program, infer_axes(program), "d_ff", self.d_ff, scores, notes)
        if self.heads:
            program = self.fewer_heads(program, infer_axes(program), scores, notes)
        if self.layers:
            program = _fewer_layers(program, self.layers, scores, notes)
        if self.mask:
            program = _masked(program, self.mask, notes)
        return self.recorded(program, *notes)

    def fewer_heads(
        self, program: Program, axes: Axes, scores: Importance | None, notes: Notes
    ) -> Program:
        """The program with fewer query heads: as many in every group of grouped queries."""
        groups = axes.sizes().get("kv_heads", 1)
        if "q_per_kv" not in axes.sizes():
            return _kept(program, axes, "heads", self.heads, scores, notes)
        if self.heads % groups:
            told = f"heads={self.heads}: there are {groups} KV heads, and every one keeps as many"
            notes.append(Remark(told, kind=NOTHING_DONE))
            return program
        return _kept(program, axes, "q_per_kv", self.heads // groups, scores, notes)


def _kept(
    program: Program, axes: Axes, name: str, size: int, scores: Importance | None, notes: Notes
) -> Program:
    """The program with an axis cut to a size, or as it is, with the reason."""
    before = axes.sizes().get(name, 0)
    try:
        given = None if scores is None else scores.get(name, [])
        pruned = picked_program(program, axes, name, size, given)
    except NotPadded as error:
        notes.append(Remark(f"{name} stays: {error}", kind=NOTHING_DONE))
        return program
    notes.append(f"{name} {before} -> {size}, {_WHICH[scores is not None]}")
    return pruned


def _fewer_layers(program: Program, count: int, scores: Importance | None, notes: Notes) -> Program:
    """The program with so many of its layers, or as it is, with the reason."""
    try:
        if scores is None:
            return _by_weights(program, count, notes)
        matter = np.concatenate([np.ravel(each) for each in scores.get(LAYERS, [np.zeros(0)])])
        places = places_of(program, find_layers(program, through_loops=True))
        before = places[-1].numbers.stop if places else 0
        if len(matter) != before:
            raise NotLeftOut(f"there are {before}, and scores of {len(matter)}")
        if not 0 < count < before:
            raise NotLeftOut(f"there are {before}")
        least = sorted(np.argsort(matter, kind="stable")[: before - count].tolist())
        shorter = without_layers(program, least)
    except NotLeftOut as error:
        notes.append(Remark(f"layers stay: {error}", kind=NOTHING_DONE))
        return program
    told = ", ".join(map(str, least))
    notes.append(f"layers {before} -> {count}, {_WHICH[True]}; layers without: {told}")
    return shorter


def _by_weights(program: Program, count: int, notes: Notes) -> Program:
    """The program with the layers of its loop that have the largest weights. Raises NotLeftOut."""
    loops, graph = loops_of(program), program.graph
    if len(loops) != 1:
        raise NotLeftOut(f"they are in {len(loops)} loops, and not in one: roll makes it")
    (loop,) = loops
    before = loop["length"]
    if not 0 < count < before:
        raise NotLeftOut(f"there are {before}")
    places = make("largest", _of_layers(weights_of(program, loop)), count=count)
    shorter = shorter_loop(program, loop, places)
    notes.append(f"layers {before} -> {count}, {_WHICH[False]}; the cache stays")
    return program.with_graph(replace_values(graph, dict(zip(loop.results, shorter))))


def _of_layers(weights: list[Value]) -> Value:
    """f32[layers]: the sum of squares of all weights of a layer."""
    wide = [in_dtype(weight, "f32") for weight in weights]
    sums = [
        make("reduce_sum", make("mul", each, each), axes=tuple(range(1, each.type.rank)))
        for each in wide
    ]
    return reduce(partial(make, "add"), sums)


def _masked(program: Program, mask: str, notes: Notes) -> Program:
    """The program with weights that are zero, and what became of every parameter. Raises
    PipelineError for what is no mask."""
    match = re.fullmatch(r"(\d{1,3}):(\d{1,3})", mask)
    keep, of = map(int, match.groups()) if match else (0, 0)
    if not 0 < keep < of:
        raise PipelineError(f"mask={mask!r} is no mask", hint='mask="2:4" keeps 2 of every 4')
    masking = Masking(keep, of, infer_axes(program))
    result = masking.of_program(program)
    notes.append(f"{len(masking.masked)} weights, {keep} of every {of} kept")
    notes += (Remark(why, name, LEFT_ALONE) for name, why in masking.left.items())
    if not masking.masked:
        notes.append(Remark("nothing is masked: no product reads a weight", kind=NOTHING_DONE))
    return result
