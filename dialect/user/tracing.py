"""Tracing: a user's function and arguments become a Program with names, roles and pytrees."""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import jax

from dialect.jaxprs import jaxpr
from dialect.jaxprs.framework import describe
from dialect.naming.axis_hints import hints_for
from dialect.user.closed_over import must_be_given
from rewrite.dataflow import dependents
from rewrite.errors import ShardwrightError, TraceError, nearest
from rewrite.ir import Graph
from rewrite.program import Input, Output, Program

Where = int | str


def trace(
    function: Callable[..., Any],
    *args: Any,
    params: Where = 0,
    state: Where | Sequence[Where] | None = None,
    static_argnums: int | Sequence[int] = (),
    axes: Mapping[str, str] | None = None,
) -> Program:
    """The Program of a function, from arguments of which only shapes and dtypes matter.

    `params` and `state` are argument numbers or names. Without `state`, an argument is state when
    the function returns a pytree of the same structure and types that is computed from it.
    `axes` says what cannot be inferred: `{"params/.../wq": "d_model (heads d_head)"}`.
    Raises TraceError, naming the user's line, where the function cannot be traced.
    """
    if not callable(function):
        raise TraceError(f"expected a function, got {type(function).__name__} {function!r}")
    names = argument_names(function, len(args))
    static = as_numbers(static_argnums)
    dynamic = [i for i in range(len(args)) if i not in static]
    place = {number: position for position, number in enumerate(dynamic)}
    given = [args[i] for i in dynamic]
    leaves, tree = jax.tree.flatten(tuple(given))
    returned: dict[str, Any] = {}

    def flat(*arrays: Any) -> list[Any]:
        full = list(args)
        for number, argument in zip(dynamic, jax.tree.unflatten(tree, arrays)):
            full[number] = argument
        out, returned["tree"] = jax.tree.flatten(function(*full))
        return out

    graph = _traced(flat, leaves, function)
    at_params = _dynamic(params, names, "params", place)
    owners = [i for i, argument in enumerate(given) for _ in jax.tree.leaves(argument)]
    outputs = _outputs(returned["tree"])
    if state is None:
        updates = _updates_found(graph, owners, given, returned["tree"], at_params)
    else:
        at = _places_of_state(state, names, place, at_params)
        updates = _updates_named(graph, owners, returned["tree"], given, at, names, dynamic)
    inputs = [n for n, owner in enumerate(owners) if owner == at_params]
    comes_back = bool(_returned(graph, inputs, given[at_params], returned["tree"]))
    must_be_given(graph, [graph.inputs[n] for n in inputs], names[dynamic[at_params]], comes_back)
    states = set(updates.values())
    roles = [
        "param" if owner == at_params else "state" if i in states else "arg"
        for i, owner in enumerate(owners)
    ]
    paths = _paths(given, [names[i] for i in dynamic])
    hints = hints_for(axes or {}, paths, [value.type for value in graph.inputs])
    return Program(
        name=getattr(inspect.unwrap(_unbound(function)), "__name__", "step").strip("<>"),
        graph=graph,
        inputs=tuple(
            Input(path, value.type, role, axes=hints.get(path, ""))
            for path, value, role in zip(paths, graph.inputs, roles)
        ),
        outputs=tuple(Output(name, updates.get(i)) for i, name in enumerate(outputs)),
        tree=(describe(tree), describe(returned["tree"])),
    )


def _places_of_state(
    state: Where | Sequence[Where], names: Sequence[str], place: Mapping[int, int], at_params: int
) -> list[int]:
    """The arguments that are state, among the dynamic ones. Raises TraceError for parameters."""
    listed = state if isinstance(state, (list, tuple)) else [state]
    at = [_dynamic(where, names, "state", place) for where in listed]
    if at_params in at:
        number = next(number for number, position in place.items() if position == at_params)
        raise TraceError(
            f"{names[number]} is named as parameters and as state",
            hint="params= and state= take different arguments; params is the first by default",
        )
    return at


def as_numbers(numbers: int | Sequence[int]) -> tuple[int, ...]:
    """One number or several, as `jax.jit` takes them."""
    return (numbers,) if isinstance(numbers, int) else tuple(numbers)


def argument_names(function: Callable[..., Any], count: int) -> list[str]:
    """The names of a function's positional arguments; `arg3` where it does not say."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        parameters = ()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [names[i] if i < len(names) else f"arg{i}" for i in range(count)]


def argument_number(where: Where, names: Sequence[str], what: str) -> int:
    """The number of an argument given by number or name. Raises TraceError with the names."""
    if not names:
        hint = "a step is traced as trace(step, params, cache, tokens)"
        raise TraceError("the function is given no argument, and its parameters are one", hint=hint)
    if isinstance(where, int) and -len(names) <= where < len(names):
        return where % len(names)
    if isinstance(where, str) and where in names:
        return names.index(where)
    raise TraceError(
        f"{what}={where!r} is no argument of the function, which has {', '.join(names)}",
        hint=nearest(where, names) if isinstance(where, str) else "give a name or a number",
    )


def _dynamic(where: Where, names: Sequence[str], what: str, place: dict[int, int]) -> int:
    """The place of an argument among those that are traced."""
    number = argument_number(where, names, what)
    if number not in place:
        raise TraceError(f"{what}={where!r} is static", hint=f"name the argument that holds {what}")
    return place[number]


def _unbound(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _traced(flat: Callable[..., list[Any]], leaves: list[Any], function: Any) -> Graph:
    try:
        structs = [_struct(leaf) for leaf in leaves]
    except TypeError as error:
        raise TraceError(f"an argument is no array: {error}") from error
    try:
        return jaxpr.trace_graph(flat, *structs)
    except ShardwrightError:
        raise
    except (
        Exception
    ) as error:  # whatever the user's function raises, is raised again with the user's line
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise TraceError(
            f"{getattr(_unbound(function), '__name__', function)} cannot be traced: "
            f"{type(error).__name__}: {reason}",
            where=users_line(error),
            hint="it must be a pure function of arrays, as jax.jit asks",
        ) from error


def _struct(leaf: Any) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    aval = jax.typeof(leaf)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=getattr(aval, "weak_type", False))


def first_line(function: Any) -> str:
    """Where a function of the user's begins: `file:line (name)`, or nothing where none is known."""
    code = getattr(inspect.unwrap(_unbound(function)), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno} ({code.co_name})" if code else ""


def users_line(error: BaseException) -> str:
    """The innermost line of the user's code in an error's traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    frames = [
        f for f in frames if not f.filename.startswith(jaxpr.OURS) and "<frozen" not in f.filename
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno} ({frames[-1].name})" if frames else ""


def _paths(given: list[Any], names: list[str]) -> list[str]:
    paths = []
    for name, argument in zip(names, given):
        for path, _ in jax.tree_util.tree_flatten_with_path(argument)[0]:
            inner = jax.tree_util.keystr(path, simple=True, separator="/")
            paths.append(f"{name}/{inner}" if inner else name)
    return paths


def _outputs(tree: Any) -> list[str]:
    numbered = jax.tree.unflatten(tree, range(tree.num_leaves))
    paths = jax.tree_util.tree_flatten_with_path(numbered)[0]
    return [jax.tree_util.keystr(path, simple=True, separator="/") or "result" for path, _ in paths]


def _parts(tree: Any) -> list[tuple[Any, list[int]]]:
    """The whole result and its top-level parts: (structure, output numbers)."""
    whole = jax.tree.unflatten(tree, range(tree.num_leaves))
    parts = [whole]
    if isinstance(whole, (tuple, list)):
        parts += list(whole)
    elif isinstance(whole, dict):
        parts += list(whole.values())
    return [(jax.tree.structure(part), jax.tree.leaves(part)) for part in parts]


def _updates_found(
    graph: Graph, owners: list[int], given: list[Any], tree: Any, params: int
) -> dict[int, int]:
    """Output number -> input number, for every argument that comes back updated."""
    updates: dict[int, int] = {}
    for i, argument in enumerate(given):
        inputs = [n for n, owner in enumerate(owners) if owner == i]
        if i != params and not _looks_like_tokens(graph, inputs):
            updates.update(_returned(graph, inputs, argument, tree, updates))
    return updates


def _returned(
    graph: Graph, inputs: list[int], argument: Any, tree: Any, taken: Container[int] = ()
) -> list[tuple[int, int]]:
    """(output, input) numbers of an argument that comes back updated; none if it does not.

    taken: outputs that are no update of it.
    """
    for structure, numbers in _parts(tree) if inputs else ():
        if structure != jax.tree.structure(argument) or any(n in taken for n in numbers):
            continue
        pairs = list(zip(numbers, inputs))
        if all(_same_type(graph, out, n) for out, n in pairs) and _computed_from(graph, pairs):
            return pairs
    return []


def _looks_like_tokens(graph: Graph, inputs: list[int]) -> bool:
    """One small integer array: a token that comes back is the next token, not a state."""
    types = [graph.inputs[n].type for n in inputs]
    return len(types) == 1 and types[0].dtype[0] in "iu" and types[0].rank <= 2


def _same_type(graph: Graph, output: int, number: int) -> bool:
    one, other = graph.outputs[output].type, graph.inputs[number].type
    return (one.dtype, one.shape) == (other.dtype, other.shape)


def _computed_from(graph: Graph, pairs: list[tuple[int, int]]) -> bool:
    """Whether one of these outputs depends on the input that it would update."""
    for output, number in pairs:
        if graph.outputs[output] in dependents(graph, [graph.inputs[number]]):
            return True
    return False


def _updates_named(
    graph: Graph,
    owners: list[int],
    tree: Any,
    given: list[Any],
    at: list[int],
    names: list[str],
    dynamic: list[int],
) -> dict[int, int]:
    updates: dict[int, int] = {}
    for i in at:
        structure = jax.tree.structure(given[i])
        inputs = [n for n, owner in enumerate(owners) if owner == i]
        matching = [numbers for part, numbers in _parts(tree) if part == structure]
        matching = [numbers for numbers in matching if not any(n in updates for n in numbers)]
        if not matching:
            raise TraceError(
                f"state {names[dynamic[i]]!r} does not come back: no part of the result has its "
                f"structure {structure}",
                hint="return the updated state as the function got it",
            )
        fitting = [m for m in matching if all(_same_type(graph, o, n) for o, n in zip(m, inputs))]
        pairs = list(zip((fitting or matching)[0], inputs))
        for output, number in pairs:
            if not _same_type(graph, output, number):
                raise TraceError(
                    f"state {_paths([given[i]], [names[dynamic[i]]])[inputs.index(number)]!r} "
                    f"goes in as {graph.inputs[number].type} and comes back as "
                    f"{graph.outputs[output].type}",
                    where=graph.outputs[output].op.origin.source,
                    hint="a state keeps its shape and dtype from step to step",
                )
        updates.update(pairs)
    return updates
