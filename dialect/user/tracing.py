"""Tracing: a user's function and arguments become a Program with names, roles and pytrees."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from dialect.jaxprs import jaxpr
from dialect.jaxprs.framework import describe
from dialect.machine.caller import explicit_mesh
from dialect.naming.axis_hints import hints_for
from dialect.user.calls import (
    Call,
    Callee,
    Roles,
    Where,
    dynamic,
    must_be_callable,
    name_of,
    unbound,
)
from dialect.user.closed_over import must_be_given
from dialect.user.traced_errors import as_trace_error, must_be_arrays
from rewrite.dataflow import dependents
from rewrite.errors import ShardwrightError, TraceError
from rewrite.ir import Graph
from rewrite.program import Input, Output, Program


def trace(
    function: Callable[..., Any],
    *args: Any,
    params: Where | None = None,
    state: Where | Sequence[Where] | None = None,
    static_argnums: int | Sequence[int] = (),
    static_argnames: str | Sequence[str] = (),
    axes: Mapping[str, str] | None = None,
) -> Program:
    """The Program of a function, from arguments of which only shapes and dtypes matter.

    `params` and `state` are argument numbers or names. Without `params`, the first argument holds
    them that is neither static nor None. Without `state`, an argument is state when the function
    returns a pytree of the same structure and types that is computed from it. Arguments that are no
    arrays are static.
    `axes` says what cannot be inferred: `{"params/.../wq": "d_model (heads d_head)"}`.
    Raises TraceError, naming the user's line, where the function cannot be traced.
    """
    must_be_callable(function)
    callee = Callee(function, Roles(params, state, static_argnums, static_argnames))
    return trace_call(callee.call(args, {}), callee.roles, axes)


def trace_call(call: Call, roles: Roles, axes: Mapping[str, str] | None = None) -> Program:
    """The Program of a function as it is called: see `trace`."""
    numbers = [i for i in range(len(call.names)) if i not in call.static]
    names = [call.names[i] for i in numbers]
    given = [call.values[i] for i in numbers]
    graph, returned = _traced(call, numbers, given)
    at_params = numbers.index(call.params)
    owners = [i for i, argument in enumerate(given) for _ in jax.tree.leaves(argument)]
    outputs = _outputs(returned)
    if roles.state is None:
        updates = _updates_found(graph, owners, given, returned, at_params)
    else:
        at_state = [numbers.index(i) for i in _places_of_state(roles.state, call)]
        updates = _updates_named(graph, owners, returned, given, at_state, names)
    _must_be_parameters(graph, owners, names, at_params, roles.params is None)
    inputs = [n for n, owner in enumerate(owners) if owner == at_params]
    comes_back = bool(_returned(graph, inputs, given[at_params], returned))
    must_be_given(graph, [graph.inputs[n] for n in inputs], names[at_params], comes_back)
    states = set(updates.values())
    kinds = [
        "param" if owner == at_params else "state" if i in states else "arg"
        for i, owner in enumerate(owners)
    ]
    paths = _paths(given, names)
    hints = hints_for(axes or {}, paths, [value.type for value in graph.inputs])
    inputs_ = zip(paths, graph.inputs, kinds)
    return Program(
        name=getattr(inspect.unwrap(unbound(call.function)), "__name__", "step").strip("<>"),
        graph=graph,
        inputs=tuple(
            Input(path, value.type, kind, axes=hints.get(path, "")) for path, value, kind in inputs_
        ),
        outputs=tuple(Output(name, updates.get(i)) for i, name in enumerate(outputs)),
        tree=(describe(jax.tree.structure(tuple(given))), describe(returned)),
    )


def _places_of_state(state: Where | Sequence[Where], call: Call) -> list[int]:
    """The numbers of the arguments that are state. Raises TraceError for parameters."""
    listed = state if isinstance(state, (list, tuple)) else [state]
    numbers = [dynamic(where, call.names, "state", call.static) for where in listed]
    if call.params in numbers:
        raise TraceError(
            f"{call.names[call.params]} is named as parameters and as state",
            hint="params= and state= take different arguments; params is the first by default",
        )
    return numbers


def _must_be_parameters(
    graph: Graph, owners: list[int], names: list[str], number: int, first: bool
) -> None:
    """Raises TraceError for tokens that are taken for parameters as they come first, if `first`."""
    inputs = [n for n, owner in enumerate(owners) if owner == number]
    others = any(owners.count(owner) > 1 for owner in owners)
    if first and others and _looks_like_tokens(graph, inputs):
        raise TraceError(
            f"{names[number]}, {graph.inputs[inputs[0]].type}, would be the parameters, as "
            "the first argument",
            hint=f"name the argument that they are: params= one of {', '.join(names)}",
        )


def _traced(call: Call, numbers: list[int], given: list[Any]) -> tuple[Graph, Any]:
    """(the graph of a call as a function of its arrays, the structure of its result)."""
    returned: list[Any] = []

    def traced(*arguments: Any) -> list[Any]:
        full = list(call.values)
        for number, argument in zip(numbers, arguments):
            full[number] = argument
        result = call.with_values(full).result()
        must_be_arrays(result, call)
        out, structure = jax.tree.flatten(result)
        returned.append(structure)
        return out

    _called_as(traced, call, numbers)
    structs = jax.tree.map(shape_of, given)
    try:
        return jaxpr.trace_graph(traced, *structs), returned[-1]
    except ShardwrightError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's function raises
        raise as_trace_error(error, call) from error


def _called_as(traced: Callable[..., Any], call: Call, numbers: list[int]) -> None:
    """Lets JAX speak of the user's function and its arguments, not of what calls it."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(call.names[number], kind) for number in numbers]
    traced.__name__, traced.__wrapped__ = name_of(call.function), unbound(call.function)
    traced.__signature__ = inspect.Signature(parameters)


def shape_of(leaf: Any) -> Any:
    """An array or a number as the ShapeDtypeStruct that it is traced as.

    Under a mesh with Explicit axes every array has a type on that mesh, whole where none was given.
    """
    is_struct = isinstance(leaf, jax.ShapeDtypeStruct)
    aval = leaf if is_struct else jax.typeof(leaf)
    mesh, given = explicit_mesh(), aval.sharding
    if mesh is None and is_struct:
        return leaf
    on_it = isinstance(given, NamedSharding) and given.mesh.abstract_mesh == mesh
    return jax.ShapeDtypeStruct(
        aval.shape,
        aval.dtype,
        weak_type=getattr(aval, "weak_type", False),
        sharding=NamedSharding(mesh, given.spec if on_it else PartitionSpec()) if mesh else None,
    )


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
) -> dict[int, int]:
    updates: dict[int, int] = {}
    for i in at:
        structure = jax.tree.structure(given[i])
        inputs = [n for n, owner in enumerate(owners) if owner == i]
        matching = [numbers for part, numbers in _parts(tree) if part == structure]
        matching = [numbers for numbers in matching if not any(n in updates for n in numbers)]
        if not matching:
            raise TraceError(
                f"state {names[i]!r} does not come back: no part of the result has its "
                f"structure {structure}",
                hint="return the updated state as the function got it",
            )
        fitting = [m for m in matching if all(_same_type(graph, o, n) for o, n in zip(m, inputs))]
        pairs = list(zip((fitting or matching)[0], inputs))
        for output, number in pairs:
            if not _same_type(graph, output, number):
                raise TraceError(
                    f"state {_paths([given[i]], [names[i]])[inputs.index(number)]!r} "
                    f"goes in as {graph.inputs[number].type} and comes back as "
                    f"{graph.outputs[output].type}",
                    where=graph.outputs[output].op.origin.source,
                    hint="a state keeps its shape and dtype from step to step",
                )
        updates.update(pairs)
    return updates
