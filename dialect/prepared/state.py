"""State in the program's own form, between steps: transposed, in parts, or many arrays in one.

`adapt` and `restore` say what becomes of the user's arrays. Here they are taken apart into groups
of arrays that go together, so that each is turned by itself, and what keeps its form is passed on
untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from dialect.arrays.dtypes import dtype_of
from dialect.arrays.evaluate import evaluate
from dialect.compiled.compiling import compiled_stage
from rewrite.errors import TraceError
from rewrite.ir import Graph, Value
from rewrite.opdef import make
from rewrite.program import Input, Output, Program

Node = tuple[str, int]  # an array of the user's, or a part, by number


class State:
    """One array of the user's state, kept in the program's own form.

    `parts` is what it is kept as. Of several arrays that are kept as one the first has the parts.
    """

    def __init__(self, parts: list[Any], shape: tuple[int, ...], dtype: Any) -> None:
        self.parts, self.shape, self.dtype = parts, shape, dtype


jax.tree_util.register_pytree_node(
    State,
    lambda state: ((state.parts,), (state.shape, state.dtype)),
    lambda about, children: State(children[0], *about),
)


def is_state(leaf: Any) -> bool:
    """Whether a leaf of the user's pytree is kept in the program's own form."""
    return isinstance(leaf, State)


@dataclass(frozen=True)
class _Group:
    """Arrays that change form together: the user's, by number, and what they are kept as."""

    members: tuple[int, ...]
    parts: tuple[int, ...]
    adapt: Callable[[list[Any]], list[Any]]
    restore: Callable[[list[Any]], list[Any]]
    merges: Graph | None  # the heads that are kept once, spread again, and as they were

    def adapted(self, arrays: list[Any]) -> list[Any]:
        """What these arrays are kept as. Raises TraceError where that would lose some of them."""
        traced = any(isinstance(each, jax.core.Tracer) for each in arrays)
        if self.merges is not None and not traced and not _alike(self.merges, arrays):
            raise TraceError(
                "a state repeats its heads, and this one's copies differ: kept once, as "
                "cache_layout keeps them, some would be lost",
                hint="start from a state as the step itself leaves it, or drop cache_layout",
            )
        return self.adapt(arrays)


class Form:
    """The two forms of a program's state: the user's arrays, and the step's."""

    def __init__(self, program: Program) -> None:
        outputs = program.step_outputs
        own, packed = (_states(inputs) for inputs in (program.inputs, program.step_inputs))
        self._about = [
            (program.inputs[i].type.shape, dtype_of(program.inputs[i].type.dtype)) for i in own
        ]
        number = {i: n for n, i in enumerate(own)}
        self._updates = [number.get(each.updates) for each in program.outputs]
        # Where among the step's results the plain ones are, and the new value of each part.
        self._plain = [i for i, out in enumerate(outputs) if out.updates is None]
        updated = {out.updates: i for i, out in enumerate(outputs) if out.updates is not None}
        self._arrives = [updated[i] for i in packed]
        self._groups = _groups(program, packed) if program.stages is not None else []
        changed = {number for group in self._groups for number in group.members}
        kept = {number for group in self._groups for number in group.parts}
        self._same = list(
            zip(
                (n for n in range(len(own)) if n not in changed),
                (n for n in range(len(packed)) if n not in kept),
            )
        )

    def parts(self, leaves: Sequence[Any], copy: bool = False) -> list[Any]:
        """The step's state from the user's, raw or kept. With `copy`, nothing of theirs is shared.

        Raises TraceError where arrays that are kept as one come raw and kept at once.
        """
        made: list[Any] = [None] * len(self._arrives)
        for mine, own in self._same:
            made[own] = jnp.array(leaves[mine], copy=True) if copy else leaves[mine]
        for group in self._groups:
            values = [leaves[number] for number in group.members]
            if not any(map(is_state, values)):
                found = group.adapted(values)
            elif all(map(is_state, values)):
                found = values[0].parts
            else:
                raise TraceError(
                    f"{len(values)} arrays of the state are kept as one, and some of them were "
                    "replaced by others",
                    hint="change the state between step.restore(state) and step.adapt(state)",
                )
            for number, value in zip(group.parts, found):
                made[number] = value
        return made

    def states(self, parts: Sequence[Any]) -> list[Any]:
        """The user's state, kept in the step's form."""
        made: list[Any] = [None] * len(self._about)
        for mine, own in self._same:
            made[mine] = parts[own]
        for group in self._groups:
            found = [parts[number] for number in group.parts]
            for number in group.members:
                made[number], found = State(found, *self._about[number]), []
        return made

    def restored(self, leaves: Sequence[Any]) -> list[Any]:
        """The user's own arrays. Raw ones are theirs already."""
        made = list(leaves)
        for group in self._groups:
            values = [leaves[number] for number in group.members]
            if all(map(is_state, values)):
                for number, value in zip(group.members, group.restore(values[0].parts)):
                    made[number] = value
        return made

    def collected(self, results: Sequence[Any]) -> list[Any]:
        """The user's outputs from the step's."""
        states = self.states([results[i] for i in self._arrives])
        plain = iter(self._plain)
        return [
            results[next(plain)] if number is None else states[number] for number in self._updates
        ]


def _states(inputs: Sequence[Input]) -> list[int]:
    return [i for i, each in enumerate(inputs) if each.role == "state"]


def _order(outputs: Sequence[Output], states: Sequence[int]) -> list[int]:
    """Which of the states each output is the new value of, those that are none left out."""
    number = {i: n for n, i in enumerate(states)}
    return [number[out.updates] for out in outputs if out.updates is not None]


def _groups(program: Program, packed: list[int]) -> list[_Group]:
    """Which of the user's arrays change form, together with which others."""
    adapt, restore = program.stages.adapt, program.stages.restore
    leaving = _order(program.step_outputs, packed)
    returning = _order(program.outputs, _states(program.inputs))
    arrays = {value: ("user", n) for n, value in enumerate(adapt.inputs)}
    parts = {value: ("part", n) for n, value in zip(leaving, restore.inputs)}
    inward, outward = _sources(adapt), _sources(restore)
    links = [
        (("part", n), arrays[source])
        for n, value in enumerate(adapt.outputs)
        for source in inward[value]
    ]
    links += [
        (("user", n), parts[source])
        for n, value in zip(returning, restore.outputs)
        for source in outward[value]
    ]
    back, again = dict(zip(returning, restore.outputs)), dict(zip(leaving, restore.inputs))
    groups = []
    for nodes in _connected(links):
        members, numbers = (
            tuple(sorted(n for kind, n in nodes if kind == which)) for which in ("user", "part")
        )
        inside = Graph(
            tuple(adapt.inputs[n] for n in members), tuple(adapt.outputs[n] for n in numbers)
        )
        outside = Graph(tuple(again[n] for n in numbers), tuple(back[n] for n in members))
        if inside.inputs != inside.outputs:
            turned = (compiled_stage(each, None) for each in (inside, outside))
            groups.append(_Group(members, numbers, *turned, _merges(inside)))
    return groups


def _merges(adapt: Graph) -> Graph | None:
    """Pairs of what is kept once, spread again, and what it was; None where nothing is."""
    merges = [op for op in adapt.ops if op.get("by") == "same"]
    again = [make("spread_heads", op.results[0], **dict(op.attrs)) for op in merges]
    pairs = [value for op, spread in zip(merges, again) for value in (spread, op.args[0])]
    return Graph(adapt.inputs, tuple(pairs)) if pairs else None


def _alike(merges: Graph, arrays: list[Any]) -> bool:
    values = jax.jit(lambda given: evaluate(merges, given))(arrays)
    pairs = zip(values[::2], values[1::2])
    return all(jnp.array_equal(*pair, equal_nan=True) for pair in pairs)


def _sources(graph: Graph) -> dict[Value, frozenset[Value]]:
    """For each value the graph inputs that it depends on."""
    found = {value: frozenset({value}) for value in graph.inputs}
    for op in graph.ops:
        own = frozenset().union(*(found.get(arg, frozenset()) for arg in op.args))
        found.update(dict.fromkeys(op.results, own))
    return found


def _connected(links: Sequence[tuple[Node, Node]]) -> list[set[Node]]:
    """The nodes in sets, each holding what links connect."""
    sets: dict[Node, set[Node]] = {}
    for link in links:
        small, large = sorted((sets.setdefault(node, {node}) for node in link), key=len)
        if small is not large:
            large |= small
            sets.update(dict.fromkeys(small, large))
    return list({id(each): each for each in sets.values()}.values())
