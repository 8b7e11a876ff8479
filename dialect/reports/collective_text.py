"""Collectives of a compiled program in words, with the user's lines."""

from __future__ import annotations

from collections import Counter

from dialect.arrays.source_lines import tag
from dialect.display.quantities import size
from dialect.reports.audit import CompiledCollective
from rewrite.ir import Graph


def shown(collective: CompiledCollective, lines: dict[str, str]) -> str:
    """`all-gather over y z, 118 times 576.00 KiB, for dot_general at /my/palm.py:83 (block)`"""
    known = "once" if collective.times == 1 else f"{collective.times} times"
    often = known if collective.trips_known else "in a loop of unknown length"
    where = lines.get(collective.line, collective.line)
    purpose = [f"for {collective.operation}"] if collective.operation else []
    purpose += [f"at {where}"] if where else []
    what = f"{collective.kind} over {' '.join(collective.axes)}, {often} {size(collective.bytes)}"
    return f"{what}, {' '.join(purpose) or 'for what, the compiler does not say'}"


def user_lines(graph: Graph) -> dict[str, str]:
    """The user's lines in full by the tags that they bear in a compiled program.

    A tag that two lines share, of files of one name, is left as it is.
    """
    sources = {op.origin.source for op, _ in graph.walk()} - {""}
    shared = Counter(map(tag, sources))
    return {tag(source): source for source in sources if shared[tag(source)] == 1}
