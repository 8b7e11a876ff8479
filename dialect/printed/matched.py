"""Which ops of two programs are the same op.

    matches(before, after) -> {op before: op after}

First those that compute the same from the same inputs, then those that do the same on the same
source line, then those that do the same to an argument that is matched. Neither a line's number in
a text nor a value's name counts.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence

from dialect.ops.control import given_inside
from dialect.printed.listing import Part
from dialect.reports.described import unnumbered
from rewrite.ir import Graph, Op, Value

Roots = Mapping[Value, str]


def line_of(op: Op) -> str:
    """The user's line of an op; "" of a program that was read, whose lines are those of a text."""
    source = op.origin.source
    return source if ":" in source else ""


def roots(graph: Graph, paths: Sequence[str]) -> dict[Value, str]:
    """{value: the path of the input that it is, without the numbers of layers}: of inputs, of what
    is stacked of them, and of what a loop is given of these."""
    of = {value: _bare(path) for value, path in zip(graph.inputs, paths)}
    _follow(graph, of)
    return of


def _follow(graph: Graph, of: dict[Value, str]) -> None:
    for op in graph.ops:
        known = {of.get(arg) for arg in op.args}
        if len(op.args) > 1 and len(known) == 1 and None not in known:  # a stack
            of |= dict.fromkeys(op.results, known.pop() or "")
        for region, given in zip(op.regions, given_inside(op)):
            of |= {inner: of[arg] for inner, (arg, _) in given.items() if arg in of}
            _follow(region, of)


def _bare(path: str) -> str:
    return "/".join(word for word in unnumbered(path).split("/") if word != "*")


def paired(before: Sequence[Part], after: Sequence[Part]) -> list[tuple[Part | None, Part | None]]:
    """The parts of two programs that are most alike, in the order of the second; then those that
    only the first has."""
    left = list(before)
    pairs: list[tuple[Part | None, Part | None]] = []
    for part in after:
        scored = [(_likeness(other, part), -number) for number, other in enumerate(left)]
        best, number = max(scored, default=(0.0, 0))
        pairs.append((left.pop(-number) if best > 0 else None, part))
    return pairs + [(part, None) for part in left]


def _likeness(one: Part, other: Part) -> float:
    """How many source lines two parts share; loops are like loops only."""
    if (one.times > 1) != (other.times > 1):
        return 0
    if not one.name and not other.name:
        return 2
    a, b = (
        {line_of(op) or (op.name, op.types) for op in part.ops if op.args} for part in (one, other)
    )
    return len(a & b) / max(1, min(len(a), len(b)))


def matches(before: Part, after: Part, of_before: Roots, of_after: Roots) -> dict[Op, Op]:
    """{op of one part: the op of the other that it is}."""
    pairs: dict[Op, Op] = {}
    _by_key(pairs, before, after, _deep(before, of_before), _deep(after, of_after))
    _by_key(pairs, before, after, _on_line, _on_line)
    candidates = _left(pairs, after, _local)
    for op in before.ops:
        options = candidates.get(_local(op), ()) if op not in pairs else ()
        same = next((other for other in options if _share(op, other, pairs)), None)
        if same is not None:
            pairs[op] = same
            candidates[_local(op)].remove(same)
    return pairs


def _share(one: Op, other: Op, pairs: Mapping[Op, Op]) -> bool:
    """Whether an argument of both is the same; without arguments there is nothing to go by."""
    return any(pairs.get(x.op) is y.op for x, y in zip(one.args, other.args)) or not one.args


Key = Callable[[Op], object]


def _by_key(pairs: dict[Op, Op], before: Part, after: Part, key: Key, other_key: Key) -> None:
    """Matches what is left and has one key, in order."""
    waiting = _left(pairs, after, other_key)
    for op in before.ops:
        same = waiting.get(key(op)) if op not in pairs and key(op) is not None else None
        if same:
            pairs[op] = same.popleft()


def _local(op: Op) -> object:
    """What an op does, wherever its arguments come from."""
    return op.name, op.attrs, op.types, tuple(arg.type for arg in op.args)


def _on_line(op: Op) -> object:
    return (_local(op), line_of(op)) if line_of(op) else None


def _deep(part: Part, of: Roots) -> Key:
    """What an op computes of the inputs of its part."""
    keys: dict[Op, int] = {}
    for op in part.ops:
        args = tuple(_arg(value, keys, of) for value in op.args)
        keys[op] = hash((op.name, op.attrs, op.types, args, tuple(r.key for r in op.regions)))
    return keys.__getitem__


def _arg(value: Value, keys: Mapping[Op, int], of: Roots) -> object:
    if value.op in keys:
        return keys[value.op], value.index
    content = value.op.attrs if not value.op.args else ()
    return of.get(value, ""), value.type, content


def _left(pairs: Mapping[Op, Op], after: Part, key: Key) -> dict[object, deque[Op]]:
    """The ops that are not matched yet, in order, by their keys."""
    taken = set(pairs.values())
    left: dict[object, deque[Op]] = defaultdict(deque)
    for op in after.ops:
        if op not in taken:
            left[key(op)].append(op)
    return left
