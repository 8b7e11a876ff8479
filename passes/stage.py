"""stage: what can be computed once is cut off the step.

step(params, state, args)  ->  prepare(params), adapt(state), step(packed, packed state, args)

Parameters are cut where the step has the fewest bytes to read (`dialect.staging.binding`); a loop
over layers is first split in two, so that what its body does to parameters alone runs in a loop of
its own. State that is changed in form on the way in and changed back on the way out, by ops that
declare one another as inverse (transposed, padded, quantised, many arrays stacked as one), is kept
in the new form: `adapt` changes it once, `restore` changes it back.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from dialect.ops.control import remade_scan, remade_while, scan_parts
from dialect.planning.layouts import with_input_layouts
from dialect.staging.binding import frontier, region_bound
from dialect.staging.stored_states import StoredState, result_name, spanning, stored_states
from rewrite.dataflow import bound_values, dependents, rebuilt
from rewrite.driver import rewrite
from rewrite.errors import PipelineError
from rewrite.ir import Graph, Op, Value, new_input, replace_values
from rewrite.opdef import build, substitute, with_args
from rewrite.passbase import Pass
from rewrite.program import ROLES, Input, Output, Program, Stages
from rewrite.target import Target


@dataclass(frozen=True)
class Stage(Pass):
    """Cuts the program into prepare, adapt, step and restore."""

    keeps: ClassVar[str] = "bits"

    def run(self, program: Program, target: Target) -> Program:
        if program.stages is not None:
            raise PipelineError(
                "the program is cut into stages already",
                hint="`stage` stands once in a pipeline, behind all that changes parameters",
            )
        params, state, args = (program.values(role) for role in ROLES)
        graph = rewrite(split_loops(program.graph, params), ())
        front = frontier(graph, params)
        parts = stored_states(program, graph)
        fresh = {value: new_input(value.type) for value in (*front, *(p.entering for p in parts))}
        outputs, declared = _step_outputs(program, graph, parts, len(front))
        step = Graph(
            (*fresh.values(), *args), replace_values(Graph(graph.inputs, outputs), fresh).outputs
        )
        stages = Stages(
            prepare=Graph(tuple(params), front),
            adapt=Graph(tuple(state), tuple(part.entering for part in parts)),
            restore=_restore(program, graph, parts),
            inputs=_step_inputs(program, graph, front, parts),
            outputs=declared,
        )
        staged = replace(program, graph=step, stages=stages)
        return self.recorded(with_input_layouts(staged), *_notes(program, stages))


# Loops over layers.


def split_loops(graph: Graph, inputs: Iterable[Value]) -> Graph:
    """`graph` with every loop split: what its body does to parameters alone becomes another loop.

    scan(body: w -> f(w), x)  ->  scan(x) over [scan: w -> f(w)]

    What is the same in every trip, as the weights in a loop over tokens, is computed once.
    """
    bound = bound_values(graph, inputs)

    def visit(op: Op, args: tuple[Value, ...]) -> Sequence[Value]:
        moved = with_args(op, args)
        if op.get("length") is not None and op.results[0] not in bound:
            moved = _split(moved, region_bound(op, bound))
        elif op.get("cond_consts") is not None and op.results[0] not in bound:
            moved = _known_first(moved, region_bound(op, bound))
        return moved.results

    return rebuilt(graph, visit)


def _split(op: Op, bound: frozenset[Value]) -> Op:
    body = split_loops(op.regions[0], bound)
    front = [value for value in frontier(body, bound) if value not in body.inputs]
    if not front:
        return with_args(op, op.args, (body,))
    consts, carry, xs = (list(op.args[part]) for part in scan_parts(op))
    fixed_inputs, carried_inputs, trip_inputs = (list(body.inputs[part]) for part in scan_parts(op))
    of_a_trip = dependents(body, trip_inputs)
    every, fixed = ([v for v in front if (v in of_a_trip) == of_trip] for of_trip in (True, False))
    before = build(
        "scan",
        *consts,
        *xs,
        regions=(Graph((*fixed_inputs, *trip_inputs), tuple(every)),),
        origin=op.origin,
        consts=len(consts),
        carry=0,
        length=op["length"],
        reverse=op["reverse"],
        unroll=op["unroll"],
    )
    before = remade_scan(before, before.regions[0], consts, (), xs)
    once = substitute(Graph(tuple(fixed_inputs), tuple(fixed)), consts)
    fresh = {value: new_input(value.type) for value in front}
    after = replace_values(body, fresh)
    after = Graph(
        (
            *fixed_inputs,
            *(fresh[value] for value in fixed),
            *carried_inputs,
            *trip_inputs,
            *(fresh[value] for value in every),
        ),
        after.outputs,
    )
    return remade_scan(op, after, [*consts, *once], carry, [*xs, *before.results])


def _known_first(op: Op, bound: frozenset[Value]) -> Op:
    """while(body: w, x -> f(w) x)  ->  f(w), and while(body: f, x -> f x)"""
    first = op["cond_consts"]
    consts = op.args[first : first + op["body_consts"]]
    body = split_loops(op.regions[1], bound)
    front = [value for value in frontier(body, bound) if value not in body.inputs]
    fixed, carried = body.inputs[: len(consts)], body.inputs[len(consts) :]
    fresh = {value: new_input(value.type) for value in front}
    once = substitute(Graph(fixed, tuple(front)), consts)
    inputs = (*fixed, *fresh.values(), *carried)
    return remade_while(op, Graph(inputs, replace_values(body, fresh).outputs), (*consts, *once))


# The state's boundary.


def _numbers(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", name)]


def _restore(program: Program, graph: Graph, parts: Sequence[StoredState]) -> Graph:
    """From the packed state, in the order of the step's outputs, to the user's."""
    leaving = [part.leaving for part in sorted(parts, key=lambda part: part.output)]
    inputs = [new_input(value.type) for value in leaving]
    updated = (v for v, out in zip(graph.outputs, program.outputs) if out.updates is not None)
    shell = replace_values(Graph((), tuple(updated)), dict(zip(leaving, inputs)))
    return Graph(tuple(inputs), shell.outputs)


def _step_outputs(
    program: Program, graph: Graph, parts: Sequence[StoredState], packed: int
) -> tuple[tuple[Value, ...], tuple[Output, ...]]:
    """The step's outputs: the user's, a state replaced by the parts that leave for it."""
    number = {part.entering: packed + n for n, part in enumerate(parts)}
    leaving = [
        (part.output, part.leaving, Output(part.output_name, number[part.entering]))
        for part in parts
    ]
    plain = [
        ((i,), value, Output(out.name))
        for i, (value, out) in enumerate(zip(graph.outputs, program.outputs))
        if out.updates is None
    ]
    in_order = sorted((*leaving, *plain), key=lambda entry: entry[0])
    return tuple(value for _, value, _ in in_order), tuple(out for *_, out in in_order)


def _step_inputs(
    program: Program, graph: Graph, front: Sequence[Value], parts: Sequence[StoredState]
) -> tuple[Input, ...]:
    declared = zip(program.graph.inputs, program.inputs)
    names = {value: source.name for value, source in declared if source.role == "param"}
    behind, taken = _Behind.of(graph, names), set[str]()
    inputs = [Input(_packed_name(v, names, behind, taken), v.type, "param") for v in front]
    inputs += [Input(part.name, part.entering.type, "state") for part in parts]
    return (*inputs, *(source for source in program.inputs if source.role == "arg"))


_LAYOUT_NOISE = set(
    "slice reshape transpose constrain exchange convert_element_type unstack".split()
)


def _packed_name(value: Value, names: dict[Value, str], behind: _Behind, taken: set[str]) -> str:
    """The path of the parameter it comes from, and the last thing that was done to it."""
    steps: list[str] = []
    path = _path(value, names, behind, steps)
    last = next((step for step in steps if step not in _LAYOUT_NOISE), None)
    name = f"{path}.{last}" if last else path
    tries = itertools.chain([name], (f"{name}.{i}" for i in itertools.count(2)))
    name = next(candidate for candidate in tries if candidate not in taken)
    taken.add(name)
    return name


def _path(value: Value, names: dict[Value, str], behind: _Behind, steps: list[str]) -> str:
    """The path of the parameter behind a packed value; notes the ops on the way."""
    at = value
    while at not in names:
        if at.op.name == "stack":
            parts = [arg for arg in at.op.args if arg in behind.steps]
            return spanning([_path(arg, names, behind, steps) for arg in parts])
        at = behind.towards(at, steps)
    return names[at]


@dataclass(frozen=True)
class _Behind:
    """How many ops, at least, are between some inputs and the values behind them."""

    steps: dict[Value, int]

    @staticmethod
    def of(graph: Graph, inputs: Iterable[Value]) -> _Behind:
        steps = dict.fromkeys(inputs, 0)
        for op in graph.ops:
            before = [steps[arg] for arg in op.args if arg in steps]
            if before:
                steps.update(dict.fromkeys(op.results, 1 + min(before)))
        return _Behind(steps)

    def towards(self, value: Value, steps: list[str]) -> Value:
        """The argument to follow from a value to the nearest input; notes the ops on the way."""
        op = value.op
        bound = [arg for arg in op.args if arg in self.steps]
        if op.get("length") is not None:
            return self.into_loop(value, steps) or bound[0]
        several = len(op.types) > 1
        steps.append(result_name(op, value.index, op.name) if several else op.name)
        return min(bound, key=self.steps.__getitem__)

    def into_loop(self, value: Value, steps: list[str]) -> Value | None:
        """The argument that a loop's result comes from; None where its body makes it of nothing."""
        op = value.op
        body = op.regions[0]
        outer = dict(zip(body.inputs, op.args))
        inside = _Behind.of(body, (v for v, arg in outer.items() if arg in self.steps))
        at = body.outputs[value.index]
        while at not in outer and at in inside.steps:
            at = inside.towards(at, steps)
        return outer[at] if at in inside.steps else None


def _notes(program: Program, stages: Stages) -> list[str]:
    before = sum(source.type.bytes for source in program.inputs if source.role == "param")
    after = sum(source.type.bytes for source in stages.inputs if source.role == "param")
    kept = {source.name for source in stages.inputs}
    gone = [x.name for x in program.inputs if x.role == "param" and x.name not in kept]
    notes = [f"parameters: {before:,} bytes -> {after:,} bytes packed"]
    alike: dict[str, list[str]] = {}
    for name in gone:
        alike.setdefault(re.sub(r"\d+", "#", name), []).append(name)
    shown = ", ".join(spanning(sorted(names, key=_numbers)) for names in alike.values())
    notes += [f"replaced in the step: {shown}"] if gone else []
    return notes
