"""What a compiled program moves to and from HBM, by what was recognised of it.

A fusion counts for the user's line that the compiler names it after.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from dialect.arrays.source_lines import line_of, tag
from dialect.compiled.hlo import Instruction, module_of, scheduled, source_near
from dialect.compiled.traffic import traffic
from dialect.display.quantities import percent, size
from dialect.display.tables import Table
from dialect.reports.coverage import Coverage, Unrecognised

_OPS = re.compile(r"\b[a-z]\w{2,}")  # `contract x2, tanh`: contract and tanh
_FETCHES = frozenset(
    "copy-start copy-done slice-start slice-done copy bitcast get-tuple-element".split()
)
RECOGNISED, NOT_RECOGNISED, SHARED = "recognised", "NOT RECOGNISED", "lines with both"
COMPILER = "other lines, and what the compiler moves for none"


def moved_by_line(executable: Any) -> Counter[str]:
    """HBM bytes of one run of a `jax.stages.Compiled` for a TPU, by the user's line: by JAX's name
    of the operation for what has none, "" without either. A loop whose length is not known counts
    once."""
    moved = Counter[str]()
    module = module_of(executable)
    for name, trips in scheduled(module):
        body = module.computation(name)
        for op in body.values():
            count = traffic(module, body, op).bytes
            if count:
                moved[_made_for(op, body)] += round((trips or 1) * count)
    return moved


def _made_for(op: Instruction, body: dict[str, Instruction]) -> str:
    """The line that an instruction computes, or for which it fetches; else its operation."""
    near, reached = [op], {op.name}
    for instruction in near:
        name = source_near(instruction, body)
        if line_of(name):
            return line_of(name)
        if instruction.opcode in _FETCHES:
            readers = [b for b in body.values() if instruction.name in b.operands]
            near += [b for b in readers if b.name not in reached]
            reached.update(b.name for b in readers)
    return source_near(op, body).rpartition("/")[2]


def moved_table(report: Coverage, moved: Counter[str]) -> Table:
    """The bytes that nobody understands, line by line, and those of what was recognised."""
    total = moved.total()
    counts = _counts(report, moved)
    unknown = sum(count for what, count in counts.items() if what.startswith(NOT_RECOGNISED))
    title = f"moved by the compiled program: {size(unknown)} of {size(total)} not recognised"
    rows = ((what, size(count), percent(count, total)) for what, count in counts.most_common())
    return Table(title, ("HBM traffic in one step", ">bytes", ">share"), tuple(rows))


def _counts(report: Coverage, moved: Counter[str]) -> Counter[str]:
    known = {tag(source) for source in report.lines}
    groups = {name: group.ops for group in report.unrecognised for name in _names(group)}
    counts = Counter[str]()
    for name, count in moved.most_common():
        if name in groups:
            what = SHARED if name in known else f"{NOT_RECOGNISED}: {groups[name]} at {name}"
        else:
            what = RECOGNISED if name in known else COMPILER
        counts[what] += count
    return counts


def _names(group: Unrecognised) -> list[str]:
    """How the compiler names what is made for a group: its line, or its ops where it has none."""
    return [tag(group.source)] if group.source else _OPS.findall(group.ops)
