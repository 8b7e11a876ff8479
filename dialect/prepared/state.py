"""State in the program's form between steps: transposed, split, quantised, or merged arrays.

The programs `adapt` and `restore` convert between the user's form and the step's. Here they are
split into connected groups of arrays, which are converted independently; arrays that keep their
form are passed through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from dialect.arrays.components import connected
from dialect.arrays.dtypes import struct_of
from dialect.arrays.evaluate import evaluate
from dialect.compiled.compiling import compiled_stage
from dialect.display.quantities import size
from dialect.display.told import tell
from rewrite.errors import TraceError
from rewrite.ir import Graph, Value
from rewrite.opdef import make
from rewrite.program import Input, Output, Program


class State:
    """One array of the user's state, in the program's form: `parts`.

    If several arrays are merged into one, the first of them has the parts. `form` tells how they
    become the user's array again.
    """

    def __init__(self, parts: list[Any], shape: tuple[int, ...], dtype: Any, form: Form) -> None:
        self.parts, self.shape, self.dtype, self.form = parts, shape, dtype, form


jax.tree_util.register_pytree_node(
    State,
    lambda state: ((state.parts,), (state.shape, state.dtype, state.form)),
    lambda about, children: State(children[0], *about),
)


def is_state(leaf: Any) -> bool:
    """Whether a leaf of the user's pytree is in the program's form."""
    return isinstance(leaf, State)


@dataclass(frozen=True)
class _Group:
    """State that is converted together: numbers of the user's arrays, and of the step's."""

    members: tuple[int, ...]
    parts: tuple[int, ...]
    adapt: Callable[[list[Any]], list[Any]]
    restore: Callable[[list[Any]], list[Any]]
    merges: Graph | None  # pairs of (merged heads repeated again, the heads before)

    def adapted(self, arrays: list[Any]) -> list[Any]:
        """The step's form of these arrays. Raises TraceError if repeated heads differ."""
        traced = any(isinstance(array, jax.core.Tracer) for array in arrays)
        if self.merges is not None and not traced and not _are_equal(self.merges, arrays):
            raise TraceError(
                "cache_layout merges repeated heads of the state, but in this state the copies "
                "differ",
                hint="start from a state that the step returned, or drop cache_layout",
            )
        return self.adapt(arrays)


class Form:
    """Conversions between the two forms of a program's state: the user's arrays, and the step's.

    `about`: the shape and dtype of every array of the user's state.
    """

    def __init__(self, program: Program) -> None:
        self.name, self._told = program.name, False
        outputs = program.step_outputs
        users, packed = (_states(inputs) for inputs in (program.inputs, program.step_inputs))
        structs = [struct_of(program.inputs[i].type) for i in users]
        self.about = [(struct.shape, struct.dtype) for struct in structs]
        stages = program.stages
        kept = tuple(str(program.step_inputs[i].type) for i in packed)
        self._key = (kept, stages and (stages.adapt, stages.restore))
        number = {i: n for n, i in enumerate(users)}
        self._updates = [number.get(output.updates) for output in program.outputs]
        # Positions among the step's results: of plain outputs, and of the new value of every part.
        self._plain = [i for i, out in enumerate(outputs) if out.updates is None]
        updated = {out.updates: i for i, out in enumerate(outputs) if out.updates is not None}
        self._arrives = [updated[i] for i in packed]
        self._groups = _groups(program, packed) if program.stages is not None else []
        changed = {number for group in self._groups for number in group.members}
        kept = {number for group in self._groups for number in group.parts}
        self._same = list(
            zip(
                (n for n in range(len(users)) if n not in changed),
                (n for n in range(len(packed)) if n not in kept),
            )
        )

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, Form) and self.about == other.about and self._key == other._key
        return self is other or same

    def __hash__(self) -> int:
        return hash(tuple(self.about))

    def is_of(self, leaves: Sequence[Any]) -> bool:
        """Whether leaves are in this form, or in the user's."""
        return all(leaf.form == self for leaf in leaves if is_state(leaf))

    def parts(self, leaves: Sequence[Any], copy: bool = False) -> list[Any]:
        """The step's state from the user's leaves, or from those in the form of another step.

        With `copy`, no buffer is shared. Raises TraceError if only some of several merged arrays
        are `State` leaves.
        """
        if not self.is_of(leaves):
            self._tell_once(leaves, asked=copy)
            leaves = self.restored(leaves)
        state: list[Any] = [None] * len(self._arrives)
        for mine, place in self._same:
            state[place] = jnp.array(leaves[mine], copy=True) if copy else leaves[mine]
        for group in self._groups:
            values = [leaves[number] for number in group.members]
            if not any(map(is_state, values)):
                parts_ = group.adapted(values)
            elif all(map(is_state, values)):
                parts_ = values[0].parts
            else:
                raise TraceError(
                    f"{len(values)} arrays of the state are merged into one, and some of them were "
                    "replaced",
                    hint="change the state between step.restore(state) and step.adapt(state)",
                )
            for number, value in zip(group.parts, parts_):
                state[number] = value
        return state

    def _tell_once(self, leaves: Sequence[Any], asked: bool) -> None:
        """Says that a state of another step is converted, where nobody asked for it."""
        if asked or self._told:
            return
        self._told = True
        bytes_ = sum(part.nbytes for leaf in leaves if is_state(leaf) for part in leaf.parts)
        tell(
            f"{self.name}: the state has the form of another step, and is converted to that of "
            f"this one, {size(bytes_)}, whenever it is handed over"
        )

    def states(self, parts: Sequence[Any]) -> list[Any]:
        """The user's leaves for a state in the step's form."""
        states_: list[Any] = [None] * len(self.about)
        for mine, place in self._same:
            states_[mine] = parts[place]
        for group in self._groups:
            kept = [parts[number] for number in group.parts]
            for number in group.members:
                states_[number], kept = State(kept, *self.about[number], self), []
        return states_

    def restored(self, leaves: Sequence[Any]) -> list[Any]:
        """The user's leaves with every `State`, of whatever form, converted back to an array.

        Raises TraceError for the state of another function.
        """
        arrays = list(leaves)
        for form in {leaf.form for leaf in leaves if is_state(leaf)}:
            if form.about != self.about:
                raise TraceError(
                    "the state is that of another function: its arrays have other shapes",
                    hint="give step.adapt what the other step's restore(state) returns",
                )
            for group in form._groups:
                values = [leaves[number] for number in group.members]
                if all(is_state(value) and value.form == form for value in values):
                    for number, value in zip(group.members, group.restore(values[0].parts)):
                        arrays[number] = value
        return arrays

    def collected(self, results: Sequence[Any]) -> list[Any]:
        """The user's outputs from the step's."""
        states = self.states([results[i] for i in self._arrives])
        plain = iter(self._plain)
        return [
            results[next(plain)] if number is None else states[number] for number in self._updates
        ]


def _states(inputs: Sequence[Input]) -> list[int]:
    return [i for i, input_ in enumerate(inputs) if input_.role == "state"]


def _order(outputs: Sequence[Output], states: Sequence[int]) -> list[int]:
    """The numbers of the states that the outputs update, without other outputs."""
    number = {i: n for n, i in enumerate(states)}
    return [number[out.updates] for out in outputs if out.updates is not None]


def _groups(program: Program, packed: list[int]) -> list[_Group]:
    """The groups of arrays that change form together."""
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
    for nodes in connected(links):
        members, numbers = (
            tuple(sorted(n for kind, n in nodes if kind == which)) for which in ("user", "part")
        )
        inside = Graph(
            tuple(adapt.inputs[n] for n in members), tuple(adapt.outputs[n] for n in numbers)
        )
        outside = Graph(tuple(again[n] for n in numbers), tuple(back[n] for n in members))
        if inside.inputs != inside.outputs:
            turned = (compiled_stage(graph, None) for graph in (inside, outside))
            groups.append(_Group(members, numbers, *turned, _merges(inside)))
    return groups


def _merges(adapt: Graph) -> Graph | None:
    """Pairs of (merged heads repeated again, the heads before); None if no heads are merged."""
    merges = [op for op in adapt.ops if op.get("by") == "same"]
    again = [make("spread_heads", op.results[0], **dict(op.attrs)) for op in merges]
    pairs = [value for op, spread in zip(merges, again) for value in (spread, op.args[0])]
    return Graph(adapt.inputs, tuple(pairs)) if pairs else None


def _are_equal(merges: Graph, arrays: list[Any]) -> bool:
    """Whether both values of every pair of `merges` are equal."""
    values = jax.jit(lambda inputs: evaluate(merges, inputs))(arrays)
    pairs = zip(values[::2], values[1::2])
    return all(jnp.array_equal(*pair, equal_nan=True) for pair in pairs)


def _sources(graph: Graph) -> dict[Value, frozenset[Value]]:
    """The graph inputs that every value depends on."""
    sources = {value: frozenset({value}) for value in graph.inputs}
    for op in graph.ops:
        of_op = frozenset().union(*(sources.get(arg, frozenset()) for arg in op.args))
        sources.update(dict.fromkeys(op.results, of_op))
    return sources
