"""State stored in another form: an inverse pair of ops at the boundary, which rules move inward.

    state  ->  outward(inward(state)), for the inputs and outputs of the step

The rules of a form (transposed, quantised, heads merged) move `outward` through reads, writes and
loops until an op absorbs it. `stage` then stores the state in the new form, and `adapt` converts
the user's once. Pairs that do not cancel stay in the program, where they can be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dialect.normal.normal_form import EXACT_RULES, normal_form
from dialect.ops.control import remade_scan, scan_parts
from dialect.staging.stored_states import undoes
from rewrite.errors import PipelineError
from rewrite.ir import Graph, Op, Value, new_input, replace_values
from rewrite.opdef import lookup, traits
from rewrite.program import Program
from rewrite.rules import Rule


@dataclass(frozen=True)
class Change:
    """A change of form: from an array to the arrays that it is stored as, and back."""

    inward: Callable[[Value], Sequence[Value]]
    outward: Callable[..., Value]


_SAME = Change(lambda value: (value,), lambda value: value)
Forms = Mapping[int, tuple[Value, Value]]


def kept_forms(program: Program) -> dict[int, tuple[Value, Value]]:
    """The values of every state inside the step, by the number of its input: (entering, leaving).

    They are in the stored form, if earlier passes have changed it from one array to another.
    Raises PipelineError if the program is staged: `adapt` and `restore` convert from and to the
    stored form by then.
    """
    if program.stages is not None:
        raise PipelineError(
            "the form of a state is fixed once a program is staged",
            hint="put the passes that change it before stage",
        )
    graph = program.graph
    return {
        out.updates: _innermost(graph, graph.inputs[out.updates], leaving)
        for leaving, out in zip(graph.outputs, program.outputs)
        if out.updates is not None
    }


def stacked_forms(program: Program) -> dict[int, tuple[Value, Value]]:
    """`kept_forms`, in which states that the step stacks share one form, that of the stack; those
    that an op changes together have one each of its results."""
    forms, graph = kept_forms(program), program.graph
    held: dict[Value, list[int]] = {entering: [i] for i, (entering, _) in forms.items()}
    for op in graph.ops:
        read_once = all(len(graph.users[arg]) == 1 for arg in op.args)
        if len(op.args) < 2 or not read_once or any(arg not in held for arg in op.args):
            continue
        members = [held[arg] for arg in op.args]
        leaving = [forms[numbers[0]][1] for numbers in members]
        if leaving == list(leaving[0].op.results) and undoes(leaving[0].op, op):
            pairs = zip(op.results, leaving[0].op.args, strict=True)
            inner = [_innermost(graph, *pair) for pair in pairs]
            for numbers, form in zip(members, inner * len(members) if len(inner) == 1 else inner):
                forms |= dict.fromkeys(numbers, form)
                held[form[0]] = [*held.get(form[0], ()), *numbers]
    return forms


def _innermost(graph: Graph, entering: Value, leaving: Value) -> tuple[Value, Value]:
    """The form inside of all changes from one array to another."""
    while len(readers := graph.users.get(entering, ())) == 1:
        op = readers[0][0]
        if len(op.args) > 1 or len(op.types) > 1 or not undoes(leaving.op, op):
            break
        entering, leaving = op.results[0], leaving.op.args[0]
    return entering, leaving


def keep_in(
    program: Program,
    changes: Mapping[int, Change],
    rules: Iterable[Rule],
    word: str = "",
    readers: Container[str] = (),
    forms: Forms | None = None,
) -> tuple[Program, dict[int, str]]:
    """`program` with states, by the number of their input, stored in another form inside it.

    A change is of the form in `forms`, those of `kept_forms` if not given; states that share one
    are changed alike. `word` is the name of the op that `outward` makes: if given, a state is left
    alone where an op that is none of `readers` reads a result of it after all rules; the second
    result gives the reason for every state left alone. The history of the program is not changed.
    """
    left_alone: dict[int, str] = {}
    rules, forms = [*EXACT_RULES, *rules], forms or kept_forms(program)
    leaders = {number: _leader(forms, number) for number in forms}
    while True:
        chosen = {
            number: change
            for number, change in changes.items()
            if number not in left_alone and leaders[number] == number
        }
        if not chosen:
            return program, left_alone
        beside = {i: _SAME for i in forms if leaders[i] == i and _is_beside(forms, i, chosen)}
        fresh = {
            number: tuple(new_input(value.type) for value in change.inward(forms[number][0]))
            for number, change in (chosen | beside).items()
        }
        inside = normal_form(_inside(program, forms, chosen | beside, fresh), rules=rules)
        number = {value: i for i in chosen for value in fresh[i]}
        still_read = _still_read(inside, word, readers, number) if word else {}
        if not still_read:
            return _restored(program, forms, chosen | beside, fresh, inside), left_alone
        left_alone |= {i: still_read[leaders[i]] for i in changes if leaders[i] in still_read}


def _is_beside(forms: Forms, number: int, chosen: Container[int]) -> bool:
    """Whether a state keeps its form, and an op that changes it changes a chosen one too."""
    op = _shared_change(forms[number][0])
    others = (i for i, (entering, _) in forms.items() if _shared_change(entering) is op)
    return len(op.types) > 1 and number not in chosen and any(i in chosen for i in others)


def _shared_change(entering: Value) -> Op:
    """The innermost op that changes several arrays together, behind those that change one."""
    op = entering.op
    while len(op.args) == len(op.types) == 1:
        op = op.args[0].op
    return op


def _leader(forms: Forms, number: int) -> int:
    """The first state that shares the form of this one."""
    return min(i for i, form in forms.items() if form == forms[number])


def _inside(
    program: Program,
    forms: Forms,
    changes: Mapping[int, Change],
    fresh: Mapping[int, tuple[Value, ...]],
) -> Graph:
    """The step on states in the new form, `fresh`, whose outputs are in the new form too."""
    outputs: list[Value] = []
    for value, number in _outputs(program, forms, changes):
        outputs += (value,) if number is None else changes[number].inward(forms[number][1])
    users = {forms[i][0]: change.outward(*fresh[i]) for i, change in changes.items()}
    inputs = (*program.graph.inputs, *(value for values in fresh.values() for value in values))
    return Graph(inputs, replace_values(Graph((), tuple(outputs)), users).outputs)


def _outputs(
    program: Program, forms: Forms, changes: Mapping[int, Change]
) -> Iterator[tuple[Value, int | None]]:
    """The outputs of the step in the new form: a value as it is, or the state that changes."""
    for value, out in zip(program.graph.outputs, program.outputs):
        leader = None if out.updates is None else _leader(forms, out.updates)
        if leader not in changes:
            yield value, None
        elif leader == out.updates:
            yield value, leader


def _restored(
    program: Program,
    forms: Forms,
    changes: Mapping[int, Change],
    fresh: Mapping[int, tuple[Value, ...]],
    inside: Graph,
) -> Program:
    """The rewritten step with conversions from and to the user's form around it.

    They are added last: beside the pairs of the new form they would cancel at once.
    """
    entering = {
        part: value
        for i, change in changes.items()
        for part, value in zip(fresh[i], change.inward(forms[i][0]))
    }
    results = iter(replace_values(inside, entering).outputs)
    leaving, plain = {}, {}
    for value, number in _outputs(program, forms, changes):
        if number is None:
            plain[value] = next(results)
        else:
            parts = [next(results) for _ in fresh[number]]
            leaving[forms[number][1]] = changes[number].outward(*parts)
    changed = [value for value in program.graph.outputs if value not in plain]
    stored = replace_values(Graph((), tuple(changed)), leaving).outputs
    outputs = map((plain | dict(zip(changed, stored))).get, program.graph.outputs)
    return program.with_graph(Graph(program.graph.inputs, tuple(outputs)))


def carried_in_form(op: Op, position: int, change: Change) -> tuple[Value, ...]:
    """The results of a scan whose carry at this argument is stored as the parts of the argument.

    The argument is `change.outward(*parts)`.
    """
    parts = op.args[position].op.args
    body, index = op.regions[0], position - op["consts"]
    inside = [new_input(value.type) for value in parts]
    known = {body.inputs[position]: change.outward(*inside)}
    outputs = list(replace_values(body, known).outputs)
    outputs[index : index + 1] = change.inward(outputs[index])
    inputs = (*body.inputs[:position], *inside, *body.inputs[position + 1 :])
    consts, carry, xs = scan_parts(op)
    carried = [*op.args[carry.start : position], *parts, *op.args[position + 1 : carry.stop]]
    loop = remade_scan(op, Graph(inputs, tuple(outputs)), op.args[consts], carried, op.args[xs])
    results, end = list(loop.results), index + len(inside)
    results[index:end] = [change.outward(*results[index:end])]
    return tuple(results)


def carries(op: Op, name: str) -> Iterator[int]:
    """The arguments of a scan, by number, that are carries and results of ops of this name."""
    _, carry, _ = scan_parts(op)
    return (i for i in range(carry.start, carry.stop) if op.args[i].op.name == name)


def writes(program: Program) -> Iterator[tuple[Op, int]]:
    """Every `cache_write` and `cache_put`, with the number of the input that it writes into."""
    number = {value: i for i, value in enumerate(program.graph.inputs)}
    for graph, arguments in _graphs(program.graph, {}):
        for op in graph.ops:
            if writes_places(op):
                inputs = sources(op.args[0], arguments)
                yield from ((op, number[value]) for value in inputs if value in number)


def writes_places(op: Op) -> bool:
    """Whether an op writes into places of a cache that it numbers: `cache_write`, `cache_put`."""
    about = traits(op)
    return about.of_cache and about.writes > 0 and bool(about.axes)


def read_by(program: Program, is_reader: Callable[[Op], bool], number: int) -> set[int]:
    """The inputs of the program, by number, that are states which such ops read, in any form, as
    their argument of this number."""
    numbers = {value: i for i, value in enumerate(program.graph.inputs)}
    read = (
        sources(op.args[number], arguments)
        for graph, arguments in _graphs(program.graph, {})
        for op in graph.ops
        if is_reader(op)
    )
    return {numbers[value] for values in read for value in values if value in numbers}


def _still_read(
    graph: Graph, word: str, readers: Container[str], number: Mapping[Value, int]
) -> dict[int, str]:
    """The states, by number, whose results of the op `word` other ops than `readers` still read;
    the reason for each."""
    reasons = {}
    for inner, arguments in _graphs(graph, {}):
        for op in inner.ops:
            users = inner.users.get(op.results[0], ()) if op.name == word else ()
            others = [user for user, _ in users if user.name not in readers]
            if others:
                reason = _why_read(others[0])
                inputs = sources(op.args[0], arguments)
                reasons |= {number[value]: reason for value in inputs if value in number}
    return reasons


def _why_read(reader: Op) -> str:
    """Why a state cannot change its form in front of this op."""
    if lookup(reader.name).inverse is not None and len(reader.types) > 1:
        return f"`{reader.name}` keeps it in another form already: name this pass before that one"
    return f"{reader.told} reads it in its original form"


def _graphs(
    graph: Graph, arguments: dict[Value, Value]
) -> Iterator[tuple[Graph, dict[Value, Value]]]:
    """Every graph of a program, with the argument of each input of the loop bodies around it."""
    yield graph, arguments
    for op in graph.ops:
        for region in op.regions:
            outer = op.args[len(op.args) - len(region.inputs) :]
            yield from _graphs(region, arguments | dict(zip(region.inputs, outer)))


def sources(value: Value, arguments: dict[Value, Value]) -> set[Value]:
    """The inputs of the program that a state, in any form, is computed from; `arguments` are those
    of the loops around it."""
    inputs, stack = set(), [value]
    while stack:
        value = stack.pop()
        op = value.op
        if value in arguments:
            stack.append(arguments[value])
        elif op.name == "input":
            inputs.add(value)
        elif op.name == "scan":
            _, carry, _ = scan_parts(op)
            stack += op.args[carry][value.index : value.index + 1]
        else:
            stack += op.args if op.name == "stack" else op.args[:1]
    return inputs
