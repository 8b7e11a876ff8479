"""State kept in another form: an inverse pair at the boundary, which rules push inward.

    state  ->  outward(inward(state)), going in and coming out

The rules of a form (transposed, quantised, heads merged) move `outward` through reads, writes and
loops to where it is absorbed. `stage` then keeps the state in the new form, and its `adapt` turns
the user's around once. What does not cancel stays in the program, where it can be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dialect.normal.normal_form import EXACT_RULES, normal_form
from dialect.ops.control import remade_scan, scan_parts
from rewrite.errors import PipelineError
from rewrite.ir import Graph, Op, Value, new_input, replace_values
from rewrite.opdef import lookup
from rewrite.program import Program
from rewrite.rules import Rule


@dataclass(frozen=True)
class Change:
    """A change of form: an array to the arrays that it is kept as, and back."""

    inward: Callable[[Value], Sequence[Value]]
    outward: Callable[..., Value]


def kept_forms(program: Program) -> dict[int, tuple[Value, Value]]:
    """What enters the step for each state, by its input's number, and what leaves it.

    That is behind every change of form that the program has already, of one array to one.
    Raises PipelineError where the program is staged: `adapt` and `restore` know the forms by then.
    """
    if program.stages is not None:
        raise PipelineError(
            "the form of a state is settled once a program is staged",
            hint="put the passes that change it before stage",
        )
    graph, found = program.graph, {}
    for leaving, out in zip(graph.outputs, program.outputs):
        if out.updates is None:
            continue
        entering = graph.inputs[out.updates]
        while len(readers := graph.users.get(entering, ())) == 1:
            op = readers[0][0]
            if len(op.args) > 1 or len(op.types) > 1 or not undoes(leaving.op, op):
                break
            entering, leaving = op.results[0], leaving.op.args[0]
        found[out.updates] = entering, leaving
    return found


def keep_in(
    program: Program, changes: Mapping[int, Change], rules: Iterable[Rule], word: str = ""
) -> tuple[Program, dict[int, str]]:
    """`program` with states, by the number of their input, kept in another form inside it.

    The form is a change of what `kept_forms` tells. With a `word`, the op that `outward` makes,
    states of which something still reads that are left as they are: the second result says why.
    The program's history stays as it is.
    """
    alone: dict[int, str] = {}
    rules, forms = [*EXACT_RULES, *rules], kept_forms(program)
    while True:
        chosen = {number: each for number, each in changes.items() if number not in alone}
        if not chosen:
            return program, alone
        fresh = {
            number: tuple(new_input(value.type) for value in change.inward(forms[number][0]))
            for number, change in chosen.items()
        }
        inside = normal_form(_inside(program, forms, chosen, fresh), rules=rules)
        number = {value: i for i, values in fresh.items() for value in values}
        left = _still_read(inside, word, number) if word else {}
        if not left:
            return _restored(program, forms, chosen, fresh, inside), alone
        alone |= left


def _inside(
    program: Program,
    forms: Mapping[int, tuple[Value, Value]],
    changes: Mapping[int, Change],
    fresh: Mapping[int, tuple[Value, ...]],
) -> Graph:
    """The step as it sees the new forms, `fresh`: those are what its outputs give, too."""
    outputs: list[Value] = []
    for value, out in zip(program.graph.outputs, program.outputs):
        change = changes.get(out.updates)
        outputs += change.inward(forms[out.updates][1]) if change else (value,)
    users = {forms[i][0]: change.outward(*fresh[i]) for i, change in changes.items()}
    inputs = (*program.graph.inputs, *(value for values in fresh.values() for value in values))
    return Graph(inputs, replace_values(Graph((), tuple(outputs)), users).outputs)


def _restored(
    program: Program,
    forms: Mapping[int, tuple[Value, Value]],
    changes: Mapping[int, Change],
    fresh: Mapping[int, tuple[Value, ...]],
    inside: Graph,
) -> Program:
    """The user's own form around the step. Put there before, the pairs would cancel at once."""
    entering = {
        each: value
        for i, change in changes.items()
        for each, value in zip(fresh[i], change.inward(forms[i][0]))
    }
    found = iter(replace_values(inside, entering).outputs)
    outputs: list[Value] = []
    for value, out in zip(program.graph.outputs, program.outputs):
        change = changes.get(out.updates)
        made = [next(found) for _ in (fresh[out.updates] if change else (value,))]
        if change:
            own = {forms[out.updates][1]: change.outward(*made)}
            made = replace_values(Graph((), (value,)), own).outputs
        outputs += made
    return program.with_graph(Graph(program.graph.inputs, tuple(outputs)))


def carried_in_form(op: Op, position: int, change: Change) -> tuple[Value, ...]:
    """The results of a scan with one carry kept as its argument is made: `change.outward(...)`."""
    made_of = op.args[position].op.args
    body, index = op.regions[0], position - op["consts"]
    inside = [new_input(value.type) for value in made_of]
    known = {body.inputs[position]: change.outward(*inside)}
    outputs = list(replace_values(body, known).outputs)
    outputs[index : index + 1] = change.inward(outputs[index])
    inputs = (*body.inputs[:position], *inside, *body.inputs[position + 1 :])
    consts, carry, xs = scan_parts(op)
    carried = [*op.args[carry.start : position], *made_of, *op.args[position + 1 : carry.stop]]
    loop = remade_scan(op, Graph(inputs, tuple(outputs)), op.args[consts], carried, op.args[xs])
    results, end = list(loop.results), index + len(inside)
    results[index:end] = [change.outward(*results[index:end])]
    return tuple(results)


def carries(op: Op, name: str) -> Iterator[int]:
    """The places of the carries of a scan that are results of ops of this name."""
    _, carry, _ = scan_parts(op)
    return (i for i in range(carry.start, carry.stop) if op.args[i].op.name == name)


def undoes(other: Op, op: Op) -> bool:
    """Whether `other` gives back what `op` was made of, both being mere changes of form."""
    inverse = lookup(op.name).inverse
    if inverse is None or [arg.type for arg in other.args] != list(op.types):
        return False
    name, attrs = inverse(op)
    named = other.name == name and all(other.get(key) == each for key, each in attrs.items())
    return named and [arg.type for arg in op.args] == list(other.types)


def writes(program: Program) -> Iterator[tuple[Op, int]]:
    """Every `cache_write` and `cache_put`, with the number of the input that it writes into."""
    number = {value: i for i, value in enumerate(program.graph.inputs)}
    for inner, given in _graphs(program.graph, {}):
        for op in inner.ops:
            if op.name in ("cache_write", "cache_put"):
                sources = _sources(op.args[0], given)
                yield from ((op, number[value]) for value in sources if value in number)


def _still_read(graph: Graph, word: str, number: Mapping[Value, int]) -> dict[int, str]:
    """The states, `number` of each, of which ops of this name are still read; the reason why."""
    found = {}
    for inner, given in _graphs(graph, {}):
        for op in inner.ops:
            readers = [reader for reader, _ in inner.users.get(op.results[0], ())]
            if op.name == word and readers:
                reason = f"{readers[0].told} reads it as it was"
                sources = _sources(op.args[0], given)
                found |= {number[value]: reason for value in sources if value in number}
    return found


def _graphs(graph: Graph, given: dict[Value, Value]) -> Iterator[tuple[Graph, dict[Value, Value]]]:
    """Every graph of a program, each with what the inputs of loops' bodies are given at first."""
    yield graph, given
    for op in graph.ops:
        for region in op.regions:
            outer = op.args[len(op.args) - len(region.inputs) :]
            yield from _graphs(region, given | dict(zip(region.inputs, outer)))


def _sources(value: Value, given: dict[Value, Value]) -> set[Value]:
    """The program's inputs that a state in some form was made of."""
    found, stack = set(), [value]
    while stack:
        value = stack.pop()
        op = value.op
        if value in given:
            stack.append(given[value])
        elif op.name == "input":
            found.add(value)
        elif op.name == "scan":
            fixed, carry, _ = scan_parts(op)
            stack += op.args[carry][value.index : value.index + 1]
        else:
            stack += op.args if op.name == "stack" else op.args[:1]
    return found
