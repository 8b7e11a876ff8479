"""A difference as lines, and as data.

block at llama.py:83, by attend                        32 times   saves 5.1 GiB
- scores = dot_general ...
+ mixed = attend ...
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from dialect.display.quantities import amount, size
from dialect.printed.difference import (
    Change,
    Difference,
    PartDifference,
    Side,
    Totals,
    short_source,
)
from dialect.printed.words import Line, Word, line, plain
from dialect.reports.described import unnumbered
from dialect.reports.op_cost import Cost

_RULES, _SOURCES = 6, 3  # that are named
_LEAST = 10_000  # what saves or costs less than this part of a step is not said to


def difference_lines(changes: Difference, most: int = 40) -> list[Line]:
    """The lines of a difference; of either side of a change `most` at most."""
    head = " -> ".join(name for name in changes.names if name) or "two programs"
    lines = [line(head, "head")]
    if changes.is_empty:
        return [*lines, line("the same program", depth=1)]
    lines += [Line((Word(f"{what:28}"), Word(text)), depth=1) for what, text in _totals(changes)]
    lines += _inputs(changes)
    least = Cost(changes.before.cost.flops // _LEAST, changes.before.cost.bytes // _LEAST)
    for part in changes.parts:
        lines += _part(part, most, least)
    return lines


def _totals(changes: Difference) -> Iterator[tuple[str, str]]:
    one, other = changes.before, changes.after
    yield "ops", f"{one.ops:,} -> {other.ops:,}"
    yield "FLOP of a step", _arrow(amount(one.cost.flops, ""), amount(other.cost.flops, ""))
    yield "bytes moved, before fusion", _arrow(size(one.cost.bytes), size(other.cost.bytes))
    for role, name in (("param", "parameters"), ("state", "state")):
        held = (size(dict(side.bytes).get(role, 0)) for side in (one, other))
        yield name, _arrow(*held)
    if one.collectives or other.collectives:
        yield "collectives of a step", _arrow(_kinds(one.collectives), _kinds(other.collectives))


def _arrow(one: str, other: str) -> str:
    return one if one == other else f"{one} -> {other}"


def _kinds(collectives: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in collectives) or "none"


def _inputs(changes: Difference) -> Iterator[Line]:
    if changes.inputs:
        yield line("inputs", "head")
    counts = Counter((unnumbered(name), *types) for name, *types in changes.inputs)
    for (name, one, other), count in counts.items():
        words = [Word(name), *([Word(f" x{count}")] if count > 1 else [])]
        for mark, type_ in (("-", one), ("+", other)):
            if type_:
                yield Line(tuple(words), type_, mark=mark, depth=1)


def _part(part: PartDifference, most: int, least: Cost) -> Iterator[Line]:
    name = part.name or "around the layers"
    times = f"{part.times} times a step" if part.times > 1 else "once a step"
    same = f"{part.same} ops unchanged" if part.same else "all of it"
    yield line(name, "head", f"{times}, {same}")
    for change in part.changes:
        yield Line((Word(_place(change), "fold"), *_saved(change, least)), depth=1)
        for mark, side in (("-", change.before), ("+", change.after)):
            for shown in side.lines[:most]:
                yield Line(shown.words, shown.type, shown.note, 2, mark)
            if len(side.lines) > most:
                yield Line((Word(f"{len(side.lines) - most} more ops"),), depth=2, mark=mark)


def _place(change: Change) -> str:
    """`llama.py:83 block and 2 lines more, by attend`."""
    places = [short_source(source) for source in change.sources]
    shown = ", ".join(places[:_SOURCES]) or _ops(change)
    shown += f" and {len(places) - _SOURCES} more" if len(places) > _SOURCES else ""
    rules = [*change.rules[:_RULES], *(["..."] if len(change.rules) > _RULES else [])]
    return f"{shown}, by {', '.join(rules)}" if rules else shown


def _ops(change: Change) -> str:
    """The ops of a change that no line of the user's is known of."""
    lines = change.after.lines or change.before.lines
    return ", ".join(dict.fromkeys(w.text for row in lines for w in row.words if w.kind == "op"))


def _saved(change: Change, least: Cost) -> Iterator[Word]:
    """What a change saves, and what it costs."""
    for name, kind in (("saves", "saved"), ("costs", "cost")):
        sign = 1 if name == "saves" else -1
        parts = _gains(change.before, change.after, sign, least)
        if parts:
            yield Word("   ")
            yield Word(f"{name} {', '.join(parts)}", kind)


def _gains(before: Side, after: Side, sign: int, least: Cost) -> list[str]:
    flops = sign * (before.cost.flops - after.cost.flops)
    moved = sign * (before.cost.bytes - after.cost.bytes)
    counts = dict(before.collectives), dict(after.collectives)
    parts = [amount(flops, "FLOP")] if flops > least.flops else []
    parts += [size(moved)] if moved > least.bytes else []
    for kind in sorted({*counts[0], *counts[1]}):
        less = sign * (counts[0].get(kind, 0) - counts[1].get(kind, 0))
        parts += [f"{less} {kind}"] if less > 0 else []
    return parts


def facts(changes: Difference) -> dict[str, Any]:
    """A difference for machines: `before` and `after` everywhere, lines as text."""
    return {
        "names": list(changes.names),
        "before": _total_facts(changes.before),
        "after": _total_facts(changes.after),
        "inputs": [dict(zip(("name", "before", "after"), row)) for row in changes.inputs],
        "parts": [
            {
                "name": part.name,
                "times": part.times,
                "unchanged": part.same,
                "changes": [
                    {
                        "sources": list(change.sources),
                        "rules": list(change.rules),
                        "before": _side_facts(change.before),
                        "after": _side_facts(change.after),
                    }
                    for change in part.changes
                ],
            }
            for part in changes.parts
        ],
    }


def _total_facts(totals: Totals) -> dict[str, Any]:
    cost = {"flops": totals.cost.flops, "bytes": totals.cost.bytes}
    held = {"collectives": dict(totals.collectives), "held_bytes": dict(totals.bytes)}
    return {"ops": totals.ops, **cost, **held}


def _side_facts(side: Side) -> dict[str, Any]:
    return {
        "ops": [plain([row]).strip() for row in side.lines],
        "flops": side.cost.flops,
        "bytes": side.cost.bytes,
        "collectives": dict(side.collectives),
    }
