"""The state as it is kept between steps: in which arrays, in which form.

A change of form that the step undoes when it leaves, `back(forth(state))`, is made once, by
`adapt`. What is behind all of these is stored, read and written in every step.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rewrite.ir import Graph, Op, Value
from rewrite.opdef import lookup
from rewrite.program import Program


@dataclass(frozen=True)
class StoredState:
    """A part of the state: the value that enters the step for it, and the one that leaves.

    `place` orders the parts as the user's states, `output` as the user's outputs. `is_beside`: what
    is kept beside the array that it was, such as scales, a table of pages or a second order.
    """

    entering: Value
    leaving: Value
    name: str
    output_name: str
    place: tuple[int, ...]
    output: tuple[int, ...]
    is_beside: bool = False


def _users_state(program: Program, graph: Graph) -> list[StoredState]:
    """The state as the user keeps it."""
    parts = []
    for number, out in enumerate(program.step_outputs):
        if out.updates is not None:
            value, name = graph.inputs[out.updates], program.step_inputs[out.updates].name
            leaving = graph.outputs[number]
            parts.append(StoredState(value, leaving, name, out.name, (out.updates,), (number,)))
    return sorted(parts, key=lambda part: part.place)


def stored_states(program: Program, graph: Graph) -> list[StoredState]:
    """The state as it is kept between steps, in the user's order: behind every change of form that
    the step undoes. `graph` is the step of `program`, or one that gives the same."""
    held = {part.entering: part for part in _users_state(program, graph)}
    results = set(graph.outputs)
    waiting = deque(held)
    while waiting:
        value = waiting.popleft()
        readers = {op for op, _ in graph.users.get(value, ())}
        if value not in held or len(readers) != 1:
            continue
        (op,) = readers
        alone = all({user for user, _ in graph.users[arg]} == readers for arg in op.args)
        if not alone or any(arg not in held or arg in results for arg in op.args):
            continue
        changed = [held[arg] for arg in op.args]
        if any(part.entering == part.leaving for part in changed):
            continue  # it stays as it is
        other = changed[0].leaving.op
        if other == op:
            continue  # it leaves as what it has become
        if other.results == tuple(part.leaving for part in changed) and undoes(other, op):
            for arg in op.args:
                held.pop(arg, None)
            held |= {part.entering: part for part in _changed(op, other, changed)}
            waiting += op.results
    return sorted(held.values(), key=lambda part: part.place)


def _changed(op: Op, other: Op, parts: Sequence[StoredState]) -> Iterator[StoredState]:
    """What the parts are between `op`, which takes them all, and `other`, which gives them back."""
    several = len(op.types) > 1
    for number, (entering, leaving) in enumerate(zip(op.results, other.args)):
        at, suffix = ((number,), f".{result_name(op, number)}") if several else ((), "")
        yield StoredState(
            entering,
            leaving,
            spanning([part.name for part in parts]) + suffix,
            spanning([part.output_name for part in parts]) + suffix,
            (*min(part.place for part in parts), *at),
            (*min(part.output for part in parts), *at),
            number >= len(parts) or all(part.is_beside for part in parts),
        )


def spanning(names: Sequence[str]) -> str:
    """`layers/0/k`, `layers/1/k`, ..., `layers/79/k`  ->  `layers/0-79/k`"""
    first, last = (re.split(r"(\d+)", name) for name in (names[0], names[-1]))
    pairs = zip(first, last) if len(first) == len(last) else zip(first, first)
    return "".join(one if one == other else f"{one}-{other}" for one, other in pairs)


def undoes(other: Op, op: Op) -> bool:
    """Whether `other`, applied to the results of `op`, would give the arguments of `op`."""
    inverse = lookup(op.name).inverse
    if inverse is None or [arg.type for arg in other.args] != list(op.types):
        return False
    name, attrs = inverse(op)
    is_inverse = other.name == name and all(other.get(key) == x for key, x in attrs.items())
    return is_inverse and [arg.type for arg in op.args] == list(other.types)


def result_name(op: Op, number: int, unnamed: str = "") -> str:
    """What the op calls a result of several; otherwise its number."""
    names = lookup(op.name).results
    return names[number] if names else f"{unnamed}{number}"
