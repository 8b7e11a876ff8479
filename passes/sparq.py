"""sparq: a decode step reads what its queries promise most of (see `dialect.ops.attend_sparq`).

attend(q, k, v, mask)  ->  attend(q, k, v, columns, total, last) {sparq=(32, 128, 32, True)}

SparQ attention (Ribar et al. 2024, arXiv:2312.04985): the `r` largest numbers of a query choose the
columns of the keys by which the `k` positions are chosen that it attends to. Of S positions it
reads S r + 2 k d_head + 4 d_head numbers a head instead of 2 S d_head + 2 d_head. Keys are kept in
a second order for that, half a cache more, and the sum of the values beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from dialect.caching.kept_twice import RULES, in_columns, in_total
from dialect.caching.state_forms import Change, keep_in, kept_forms, read_by
from dialect.matching.attend_bounds import kept_by, query_only, shares_last, with_bounds
from dialect.naming.axes import infer_axes
from dialect.normal.every_attention import with_attention
from rewrite.errors import PipelineError
from rewrite.ir import Op
from rewrite.opdef import build
from rewrite.passbase import Pass
from rewrite.program import LEFT_ALONE, NOT_DONE, NOTHING_DONE, Program, Remark
from rewrite.signature import Signature
from rewrite.target import Target

_READ = {"mask", "fill", "first", "last", "sink"}  # what an attention may be given
_FLOATS = ("f32", "bf16", "f16")


@dataclass(frozen=True)
class Sparq(Pass):
    """Attends to `k` positions, the last `local` among them, chosen by `r` columns of the keys.

    `mean`: whether the mean of the values takes the share of all other positions; `auto`: where
    every head has keys of its own, as in the paper.
    """

    r: int = 32
    k: int = 128
    local: int = 32
    mean: Literal["auto", "always", "never"] = "auto"

    keeps: ClassVar[str] = "approx"

    def run(self, program: Program, target: Target) -> Program:
        if self.r < 1 or self.k < 1 or not 0 <= self.local <= self.k:
            raise PipelineError(f"{self}: r and k are 1 at least, and local is at most k")
        notes: list[str | Remark] = []
        graph = with_attention(program.graph, lambda op: self.attend(op, notes))
        notes = notes or [Remark("no attention was recognised", kind=NOTHING_DONE)]
        if graph is program.graph:
            return self.recorded(program, *dict.fromkeys(notes))
        chosen = program.with_graph(graph)
        keys = read_by(chosen, _chooses, 1)
        values = read_by(chosen, _has_mean, 2)
        for word, change, numbers in (
            ("with_columns", in_columns, keys),
            ("with_total", in_total, values - keys),
        ):
            changes = _changes(chosen, change, numbers)
            chosen, left = keep_in(chosen, changes, RULES, word, readers=("attend",))
            notes += (Remark(why, program.inputs[i].name, LEFT_ALONE) for i, why in left.items())
        graph = with_attention(chosen.graph, lambda op: _without_mean(op, notes))
        return self.recorded(chosen.with_graph(graph), *dict.fromkeys(notes))

    def attend(self, op: Op, notes: list[str | Remark]) -> Op:
        """An attention to chosen positions, or as it is; with a note on which and why."""
        named, key = Signature.parse(op["axes"]), op.args[1]
        sizes = dict(zip(named.inputs[1], key.type.shape))
        context, width = sizes[("s",)], sizes[("k",)]
        bounded = with_bounds(op, kept_by(op))
        why = self.refused(bounded, context, width)
        if why:
            notes.append(Remark(f"{why}: {op.origin.source}", kind=NOT_DONE))
            return op
        dense, read = (2 * context + 2) * width, context * self.r + (2 * self.k + 4) * width
        notes.append(
            f"{self.r} of {width} columns and {self.k} of {context} positions are read:"
            f" {read:,} of {dense:,} numbers a head, 1/{dense / read:.1f}"
        )
        is_grouped = query_only(op) > 1
        mean = {"auto": not is_grouped, "always": True, "never": False}[self.mean]
        attrs = dict(bounded.attrs) | {"sparq": (self.r, self.k, self.local, mean)}
        return build("attend", *bounded.args, origin=op.origin, **attrs)

    def refused(self, op: Op, context: int, width: int) -> str:
        """Why an attention cannot be to chosen positions; "" if it can."""
        given = set(op.get("given", "").split())
        if op.get("blocks") or op.get("window"):
            return "it is in blocks or has a window already"
        if op.get("rounds") or given - _READ:
            return f"it has {', '.join(sorted(given - _READ)) or 'rounded weights'}"
        if "mask" in given or "last" not in given:
            return "its mask depends on data" if "mask" in given else "it has no mask"
        if not shares_last(op):
            return "its queries have positions of their own, it is no decode step"
        if self.k > context:
            return f"k={self.k} is more than its {context} positions"
        return f"r={self.r} is more than the {width} numbers of a query" if self.r > width else ""


def _changes(
    program: Program, change: Callable[[int], Change], numbers: set[int]
) -> dict[int, Change]:
    """The change of every one of these states that is an array of floats over the context."""
    axes, changes = infer_axes(program), {}
    for number, (value, _) in kept_forms(program).items():
        names = [name[0] if len(name) == 1 else "" for name in axes.of(value)]
        if number in numbers and "context" in names and value.type.dtype in _FLOATS:
            changes[number] = change(names.index("context"))
    return changes


def _chooses(op: Op) -> bool:
    return op.get("sparq") is not None


def _has_mean(op: Op) -> bool:
    return _chooses(op) and op["sparq"][3]


def _without_mean(op: Op, notes: list[str | Remark]) -> Op:
    """An attention without the mean of the values, where their sum is not kept."""
    if not _has_mean(op) or "total" in op["given"].split():
        return op
    notes.append(Remark(f"the sum of its values is not kept: {op.origin.source}", kind=NOT_DONE))
    attrs = dict(op.attrs) | {"sparq": (*op["sparq"][:3], False)}
    return build("attend", *op.args, origin=op.origin, **attrs)
