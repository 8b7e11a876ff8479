"""skip_layers: layers are left out of the residual stream.

x + f(x, w)        ->  x                          of a layer that is written out
scan(body, x, ws)  ->  scan(body, x, ws[kept])    of layers in a loop

What remains of a decoder still speaks its language: with the layers out that change the stream
least it is a smaller decoder (Men et al. 2024, arXiv:2403.03853), and one that drafts for the whole
(Zhang et al. 2023, arXiv:2309.08168).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from dialect.layered.left_out import NotLeftOut, without_layers
from rewrite.errors import PipelineError
from rewrite.passbase import Pass
from rewrite.program import LEFT_ALONE, NOTHING_DONE, Program, Remark
from rewrite.target import Target

_RANGE = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")


@dataclass(frozen=True)
class SkipLayers(Pass):
    """Leaves `layers` out, counted from 0: "2", "2 5", "4-7"."""

    layers: str = ""

    keeps: ClassVar[str] = "approx"

    def run(self, program: Program, target: Target) -> Program:
        numbers = sorted({*numbers_in(self.layers)})
        if not numbers:
            raise PipelineError(f'{self} says nothing to leave out: skip_layers{{layers="2 5"}}')
        try:
            shorter = without_layers(program, numbers)
        except NotLeftOut as error:
            told = Remark(f"all layers stay: {error}", kind=NOTHING_DONE)
            return self.recorded(program, told)
        shown = ", ".join(map(str, numbers))
        notes: list[str | Remark] = [f"layers without: {shown}", *_unread(program, shorter)]
        return self.recorded(shorter, *notes)


def numbers_in(text: str) -> Iterator[int]:
    """The numbers of "2 5-7". Raises PipelineError."""
    for word in text.replace(",", " ").split():
        match = _RANGE.fullmatch(word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise PipelineError(f"{word!r} is neither a layer nor a range of them, such as 4-7")
        yield from range(first, last + 1)


def _unread(program: Program, shorter: Program) -> Iterator[Remark]:
    """The states of which nothing is read any more."""
    before, after = program.graph, shorter.graph
    for value, declared in zip(after.inputs, shorter.inputs):
        stays = value in after.outputs and not after.users.get(value)
        if declared.role == "state" and stays and before.users.get(value):
            yield Remark("it stays as it came, and is not read", declared.name, LEFT_ALONE)
