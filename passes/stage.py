"""stage: what can be computed once is cut off the step.

step(params, state, args)  ->  prepare(params), adapt(state), step(packed, packed state, args)

Parameters are cut where the step has the fewest bytes to read (`dialect.binding`); a loop over
layers is first split in two, so that what its body does to parameters alone runs in a loop of its
own. A state whose layout is changed on the way in and changed back on the way out is kept in the
new layout: `adapt` changes it once, `restore` changes it back.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from dialect.binding import bound_values, frontier, region_bound
from dialect.control import remade_scan, scan_parts
from dialect.layouts import with_input_layouts
from rewrite.driver import rewrite
from rewrite.ir import Graph, Op, Value, new_input, replace_values
from rewrite.opdef import build, with_args
from rewrite.passbase import Pass
from rewrite.program import ROLES, Input, Output, Program, Stages
from rewrite.target import Target


@dataclass(frozen=True)
class Stage(Pass):
    """Cuts the program into prepare, adapt, step and restore."""

    keeps: ClassVar[str] = "bits"

    def run(self, program: Program, target: Target) -> Program:
        params, state, args = (program.values(role) for role in ROLES)
        graph = rewrite(split_loops(program.graph, params), ())
        front = frontier(graph, params)
        boundaries = [_boundary(graph, value, i) for value, i in _updated(program, state).items()]
        entering = [value for each in boundaries for value in each.entering]
        fresh = {value: new_input(value.type) for value in (*front, *entering)}
        outputs, declared = _step_outputs(program, graph, boundaries, len(front))
        step = Graph(
            (*fresh.values(), *args), replace_values(Graph(graph.inputs, outputs), fresh).outputs
        )
        stages = Stages(
            prepare=Graph(tuple(params), front),
            adapt=Graph(tuple(state), tuple(entering)),
            restore=_restore(boundaries),
            inputs=_step_inputs(program, params, front, boundaries),
            outputs=declared,
        )
        staged = replace(program, graph=step, stages=stages)
        return self.said(with_input_layouts(staged), *_notes(program, stages))


def _updated(program: Program, state: list[Value]) -> dict[Value, int]:
    """For each state input, the number of the output that is its new value."""
    by_input = {out.updates: i for i, out in enumerate(program.outputs) if out.updates is not None}
    place = {value: i for i, value in enumerate(program.graph.inputs)}
    return {value: by_input[place[value]] for value in state}


# Loops over layers.


def split_loops(graph: Graph, inputs: Iterable[Value]) -> Graph:
    """`graph` with every loop split: what its body does to parameters alone becomes its own loop.

    scan(body: w -> f(w), x)  ->  scan(x) over [scan: w -> f(w)]
    """
    bound = bound_values(graph, inputs)
    memo: dict[Value, Value] = {value: value for value in graph.inputs}
    for op in graph.ops:
        moved = with_args(op, tuple(memo[arg] for arg in op.args))
        if op.name == "scan" and op.results[0] not in bound:
            moved = _split(moved, region_bound(op, bound))
        memo.update(zip(op.results, moved.results))
    return Graph(graph.inputs, tuple(memo[value] for value in graph.outputs))


def _split(op: Op, bound: frozenset[Value]) -> Op:
    body = split_loops(op.regions[0], bound)
    front = [value for value in frontier(body, bound) if value not in body.inputs]
    if not front:
        return with_args(op, op.args, (body,))
    consts, carry, xs = (list(op.args[part]) for part in scan_parts(op))
    before = build(
        "scan",
        *consts,
        *xs,
        regions=(
            Graph(
                (*body.inputs[: len(consts)], *body.inputs[len(consts) + len(carry) :]),
                tuple(front),
            ),
        ),
        origin=op.origin,
        consts=len(consts),
        carry=0,
        length=op["length"],
        reverse=op["reverse"],
        unroll=op["unroll"],
    )
    before = remade_scan(before, before.regions[0], consts, (), xs)
    fresh = {value: new_input(value.type) for value in front}
    after = replace_values(body, fresh)
    after = Graph((*body.inputs, *fresh.values()), after.outputs)
    return remade_scan(op, after, consts, carry, [*xs, *before.results])


# The state's boundary.


@dataclass
class _Boundary:
    """One state input: the values that enter the step for it, and those that leave it."""

    output: int
    outside: Value
    entering: list[Value]
    leaving: list[Value]


def _boundary(graph: Graph, value: Value, output: int) -> _Boundary:
    """Moves the boundary inward over every layout change that the output undoes."""
    entering, leaving = [value], [graph.outputs[output]]
    position = 0
    while position < len(entering):
        readers = {op for op, _ in graph.users.get(entering[position], ())}
        alone = len(readers) == 1 and entering[position] not in graph.outputs
        op = next(iter(readers)) if alone else None
        if op is not None and _undone(op, leaving[position].op) and leaving[position].index == 0:
            entering[position : position + 1] = op.results
            leaving[position : position + 1] = leaving[position].op.args
        else:
            position += 1
    return _Boundary(output, graph.outputs[output], entering, leaving)


def _undone(op: Op, other: Op) -> bool:
    """Whether `other` is the inverse of `op`, both being mere changes of layout."""
    if op.name == "reshape" and other.name == "reshape":
        return other.args[0].type == op.types[0] and other.types[0] == op.args[0].type
    if op.name == "transpose" and other.name == "transpose":
        back = tuple(op["permutation"].index(i) for i in range(len(op["permutation"])))
        return other["permutation"] == back
    if op.name == "unstack" and other.name == "stack":
        return op["axis"] == other["axis"] and len(op.types) == len(other.args)
    return False


def _restore(boundaries: Sequence[_Boundary]) -> Graph:
    """From the packed state, in the order of the step's outputs, to the user's."""
    inputs: list[Value] = []
    outputs: list[Value] = []
    for each in sorted(boundaries, key=lambda each: each.output):
        own = [new_input(value.type) for value in each.leaving]
        shell = Graph((), (each.outside,))
        inputs += own
        outputs += replace_values(shell, dict(zip(each.leaving, own))).outputs
    return Graph(tuple(inputs), tuple(outputs))


def _step_outputs(
    program: Program, graph: Graph, boundaries: list[_Boundary], packed: int
) -> tuple[tuple[Value, ...], tuple[Output, ...]]:
    """The step's outputs: the user's, each state replaced by what leaves for it."""
    leaving: dict[int, list[tuple[Value, int]]] = {}
    for each in boundaries:
        leaving[each.output] = [(value, packed + n) for n, value in enumerate(each.leaving)]
        packed += len(each.leaving)
    values: list[Value] = []
    declared: list[Output] = []
    for i, (value, out) in enumerate(zip(graph.outputs, program.outputs)):
        parts = leaving.get(i, [(value, None)])
        values += [part for part, _ in parts]
        names = _numbered(out.name, len(parts))
        declared += [Output(name, updates) for name, (_, updates) in zip(names, parts)]
    return tuple(values), tuple(declared)


def _numbered(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name}.{n}" for n in range(count)]


def _step_inputs(
    program: Program, params: list[Value], front: Sequence[Value], boundaries: list[_Boundary]
) -> tuple[Input, ...]:
    names = {v: each.name for v, each in zip(program.graph.inputs, program.inputs)}
    taken: set[str] = set()
    inputs = [Input(_packed_name(value, names, taken), value.type, "param") for value in front]
    for each, state in zip(boundaries, program.values("state")):
        numbered = _numbered(names[state], len(each.entering))
        inputs += [Input(n, value.type, "state") for n, value in zip(numbered, each.entering)]
    return (*inputs, *(each for each in program.inputs if each.role == "arg"))


_LAYOUT_NOISE = {"slice", "reshape", "transpose", "constrain", "convert_element_type", "unstack"}


def _packed_name(value: Value, names: dict[Value, str], taken: set[str]) -> str:
    """The path of the parameter it comes from, and the last thing that was done to it."""
    made: list[str] = []
    at = value
    while at not in names:
        at = _towards_parameter(at, names, made)
    told = next((each for each in made if each not in _LAYOUT_NOISE), None)
    name = f"{names[at]}.{told}" if told else names[at]
    tries = itertools.chain([name], (f"{name}.{i}" for i in itertools.count(2)))
    name = next(each for each in tries if each not in taken)
    taken.add(name)
    return name


def _towards_parameter(value: Value, names: dict[Value, str], made: list[str]) -> Value:
    """The argument to follow from a packed value to its parameter; notes the ops on the way."""
    op = value.op
    if op.name == "scan":
        body = op.regions[0]
        at = body.outputs[value.index]
        while at not in body.inputs:
            at = _towards_parameter(at, names, made)
        return op.args[body.inputs.index(at)]
    made.append(f"{op.name}{value.index}" if len(op.types) > 1 else op.name)
    variable = [arg for arg in op.args if arg.op.name != "const"]
    return min(variable, key=_steps_to_input)


def _steps_to_input(value: Value) -> int:
    """How many ops lie between a value and the nearest input along first arguments."""
    steps = 0
    while value.op.args:
        value, steps = value.op.args[0], steps + 1
    return steps


def _notes(program: Program, stages: Stages) -> list[str]:
    before = sum(each.type.bytes for each in program.inputs if each.role == "param")
    after = sum(each.type.bytes for each in stages.inputs if each.role == "param")
    kept = {each.name for each in stages.inputs}
    gone = [each.name for each in program.inputs if each.role == "param" and each.name not in kept]
    notes = [f"parameters: {before:,} bytes -> {after:,} bytes packed"]
    notes += [f"replaced in the step: {', '.join(gone)}"] if gone else []
    return notes
