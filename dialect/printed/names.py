"""Names for the values of a graph: the user's variables, and the paths of parameters.

A value that a statement assigns has the name of its variable; another form of a named value (a
reshape, a conversion) has that name and a number; any other value has the name of its op.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from dialect.printed.variables import assigned_at
from rewrite import opdef
from rewrite.ir import Graph, Op, Value


class Names:
    """Hands out names, no name twice. `of` holds them."""

    def __init__(self) -> None:
        self.of: dict[Value, str] = {}
        self.taken: dict[str, int] = {}

    def inputs(self, values: Sequence[Value], paths: Sequence[str]) -> None:
        """Names the inputs of a program by their paths."""
        for value, path in zip(values, paths):
            self.of[value] = self._free(path.replace(" ", "_"))

    def inner(self, given: Mapping[Value, str], kept: Iterable[Value]) -> None:
        """Names the inputs of a loop's body: those in `kept` as outside, others by the last part
        of the name of what they are given."""
        same = set(kept)
        for value, outside in given.items():
            self.of[value] = outside if value in same else self._free(_last(outside))

    def ops(self, graph: Graph, ops: Sequence[Op], is_layer: bool = False) -> None:
        """Names what some ops of a graph give, in this order."""
        ends = self._ends(graph, ops, is_layer)
        for op in ops:
            if len(op.types) > 1 and not op.regions:
                name = self._free(self._by_op(op, op.results[0]))
                self.of |= {value: f"{name}[{value.index}]" for value in op.results}
                continue
            for value in op.results:
                self.of[value] = self._free(ends.get(value) or self._by_op(op, value))

    def _by_op(self, op: Op, value: Value) -> str:
        if op.regions:
            given = op.args[op.get("consts", 0) :]
            if value.index < op.get("carry", 0) and value.index < len(given):
                return _last(self.of.get(given[value.index], op.name))
            return op.name
        known = opdef.traits(op)
        names = {_last(self.of.get(arg, op.name)) for arg in op.args}
        moves = known.moves and not known.writes or known.converts
        return names.pop() if moves and len(names) == 1 else op.name

    def _ends(self, graph: Graph, ops: Sequence[Op], is_layer: bool) -> dict[Value, str]:
        """{value: the variable that it is assigned to}: what leaves a statement is what it
        assigns."""
        results: dict[str, list[Value]] = {}
        # What a layer assigns, the next one reads, perhaps on the same line.
        named = set(ops if is_layer else graph.ops)
        for op in ops:
            source = op.origin.source
            if source and op.args and not op.regions and not _is_read_by(op, source, graph, named):
                results.setdefault(source, []).extend(op.results)
        ends: dict[Value, str] = {}
        for source, values in results.items():
            variables = assigned_at(source)
            if len(variables) == 1:
                ends |= dict.fromkeys(values, variables[0])
            elif variables and all(value.op.get("start_indices") for value in values):
                ends |= _of_slices(values, variables)
            else:
                ends |= {value: name for value in values for name in self._one_of(variables, value)}
        return ends

    def _one_of(self, variables: Sequence[str], value: Value) -> list[str]:
        """Which of the variables of a statement a value is: the ops of a program are in no order
        that tells, so that only what it is computed from does."""
        read = (_last(self.of[root]) for arg in value.op.args if (root := _root(arg)) in self.of)
        words = {part for name in (value.op.name, *read) for part in _parts(name)}
        fitting = [name for name in variables if words & _parts(name)]
        return fitting if len(fitting) == 1 else []

    def _free(self, name: str) -> str:
        """`x`, and where that is taken `x.1`, `x.2`, ..."""
        if name not in self.taken:
            self.taken[name] = 0
            return name
        self.taken[name] += 1
        numbered = f"{name}.{self.taken[name]}"
        return numbered if numbered not in self.taken else self._free(name)


def _last(name: str) -> str:
    """`wq` of `params/layers/0/wq`, and of `wq.3[0]`."""
    words = [word for word in name.split("/") if not word.isdigit()] or [name]
    return re.sub(r"(\.\d+)?(\[\d+\])?$", "", words[-1]) or words[-1]


def _root(value: Value) -> Value:
    """What a value is another form of: a weight, however it is reshaped and converted."""
    known = opdef.traits(value.op)
    is_form = (known.moves and not known.writes or known.converts) and len(value.op.args) == 1
    return _root(value.op.args[0]) if is_form else value


def _of_slices(values: Sequence[Value], variables: Sequence[str]) -> dict[Value, str]:
    """`q, k, v = split(x)`: the parts of every x in their order."""
    parts: dict[Value, list[Value]] = {}
    for value in values:
        parts.setdefault(value.op.args[0], []).append(value)
    return {
        value: name
        for group in parts.values()
        if len(group) == len(variables)
        for value, name in zip(sorted(group, key=lambda part: part.op["start_indices"]), variables)
    }


def _parts(name: str) -> set[str]:
    """The words of a name, and of `wq` the `q`."""
    words = set(re.findall("[a-z0-9]+", name.lower()))
    return words | {word[1:] for word in words if len(word) == 2 and word[0] == "w"}


def _is_read_by(op: Op, source: str, graph: Graph, among: set[Op], steps: int = 4) -> bool:
    """Whether a line reads what an op gives: itself, or through ops that have no line."""
    for value in op.results:
        for reader, _ in graph.users.get(value, ()):
            line = reader.origin.source
            if reader in among and line == source:
                return True
            if steps and not line and _is_read_by(reader, source, graph, among, steps - 1):
                return True
    return False
