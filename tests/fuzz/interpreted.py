"""Graphs and jaxprs run in numpy, op by op: nothing is compiled, a program costs milliseconds.

Both go through the same numbers (`tests.fuzz.in_numpy`); what is not there is left to JAX.
Composites of our own are run as what their reference traces to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import repeat
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dialect.arrays import attributes, primitives
from dialect.arrays.dtypes import dtype_of, is_dtype, struct_of, type_of
from dialect.checked.lifted import widened
from dialect.checked.sensitivity import Disturb, terms
from dialect.jaxprs.jaxpr import CALLS, scan_counts
from dialect.ops.control import scan_parts
from rewrite import opdef
from rewrite.ir import Graph, Op, Opaque, Type, Value, attrs_of
from rewrite.program import ROLES, Program
from tests.fuzz.in_numpy import computed

_OF_ONE_DEVICE = frozenset("psum psum_invariant pmax pmin pvary pbroadcast ppermute".split())


def interpreted(graph: Graph, arrays: Sequence[Any], disturb: Disturb | None = None) -> list[Any]:
    """The outputs of a graph. `disturb` may change the results of each op."""
    return _Run(disturb).graph(graph, [as_numpy(array) for array in arrays])


def interpreted_program(
    program: Program, leaves: Sequence[Any], disturb: Disturb | None = None
) -> list[Any]:
    """All stages of a program on a flat list of the user's arrays."""
    run, leaves = _Run(disturb), [as_numpy(leaf) for leaf in leaves]
    if program.stages is None:
        return run.graph(program.graph, leaves)
    params, state, args = (program.take(leaves, role) for role in ROLES)
    packed = run.graph(program.stages.prepare, params)
    adapted = run.graph(program.stages.adapt, state)
    results = run.graph(program.graph, [*packed, *adapted, *args])
    updated = [r for r, out in zip(results, program.step_outputs) if out.updates is not None]
    plain = iter([r for r, out in zip(results, program.step_outputs) if out.updates is None])
    restored = iter(run.graph(program.stages.restore, updated))
    return [next(plain if out.updates is None else restored) for out in program.outputs]


def interpreted_function(function: Callable[..., Any], *args: Any) -> list[Any]:
    """What a function of arrays returns, flat: its jaxpr run, nothing of ours between."""
    closed = jax.make_jaxpr(function)(*args)
    leaves = [as_numpy(leaf) for leaf in jax.tree.leaves(args)]
    return _Run(None).jaxpr(closed.jaxpr, closed.consts, leaves)


def as_numpy(array: Any) -> Any:
    """A numpy array; a typed PRNG key as it is."""
    type_ = jax.typeof(array)
    if jnp.issubdtype(type_.dtype, jax.dtypes.prng_key):
        return array
    return np.asarray(array, type_.dtype)


class _Run:
    def __init__(self, disturb: Disturb | None) -> None:
        self.disturb = disturb

    # Graphs.

    def graph(self, graph: Graph, arrays: Sequence[Any]) -> list[Any]:
        results: dict[Value, Any] = dict(zip(graph.inputs, arrays, strict=True))
        for op in graph.ops:
            results.update(zip(op.results, self.op(op, [results[arg] for arg in op.args])))
        return [results[value] for value in graph.outputs]

    def op(self, op: Op, args: list[Any]) -> list[Any]:
        match op.name:
            case "const":
                return [_constant(op["value"], op.types[0])]
            case "scan":
                consts, carry, xs = (args[part] for part in scan_parts(op))
                return self.scan(
                    lambda values: self.graph(op.regions[0], values),
                    (consts, carry, xs),
                    (op["length"], op["reverse"]),
                    [_Shaped(type_) for type_ in op.types],
                )
            case "while":
                first, second = op["cond_consts"], op["cond_consts"] + op["body_consts"]
                cond, body = op.regions
                return _loop(
                    lambda carry: self.graph(cond, [*args[:first], *carry]),
                    lambda carry: self.graph(body, [*args[first:second], *carry]),
                    args[second:],
                )
            case "cond":
                return self.graph(op.regions[_branch(args[0], len(op.regions))], args[1:])
            case "constrain" | "exchange":
                return args
        if primitives.is_ours(op.name) or primitives.find(op.name) is None:
            return self.ours(op.name, op.attrs, tuple(arg.type for arg in op.args), args)
        params = {name: attributes.decode(value) for name, value in op.attrs}
        if op.name == "shard_map":
            return self.jaxpr(*primitives.opened(params["jaxpr"]), args)
        types = [_Shaped(type_) for type_ in op.types]
        return self.applied(op.name, args, {**primitives.unsaid(op.name), **params}, types)

    # Jaxprs.

    def jaxpr(self, jaxpr: Any, consts: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
        known = dict(zip(jaxpr.constvars, map(as_numpy, consts)))
        known.update(zip(jaxpr.invars, arrays, strict=True))

        def read(atom: Any) -> Any:
            if isinstance(atom, primitives.Literal):
                return np.asarray(atom.val, atom.aval.dtype)
            return known[atom]

        for eqn in jaxpr.eqns:
            known.update(zip(eqn.outvars, self.equation(eqn, [read(atom) for atom in eqn.invars])))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, eqn: Any, args: list[Any]) -> list[Any]:
        name, params = eqn.primitive.name, eqn.params
        if name in CALLS:
            return self.jaxpr(*primitives.opened(params[CALLS[name]]), args)
        types = [var.aval for var in eqn.outvars]
        match name:
            case "scan":
                consts, carried = scan_counts(params)
                carry = consts + carried
                body = primitives.opened(params["jaxpr"])
                return self.scan(
                    lambda values: self.jaxpr(*body, values),
                    (args[:consts], args[consts:carry], args[carry:]),
                    (params["length"], params["reverse"]),
                    types,
                )
            case "while":
                first = params["cond_nconsts"]
                second = first + params["body_nconsts"]
                cond = primitives.opened(params["cond_jaxpr"])
                body = primitives.opened(params["body_jaxpr"])
                return _loop(
                    lambda carry: self.jaxpr(*cond, [*args[:first], *carry]),
                    lambda carry: self.jaxpr(*body, [*args[first:second], *carry]),
                    args[second:],
                )
            case "cond":
                branches = params["branches"]
                chosen = branches[_branch(args[0], len(branches))]
                return self.jaxpr(*primitives.opened(chosen), args[1:])
            case "shard_map":
                return self.jaxpr(*primitives.opened(params["jaxpr"]), args)
        if primitives.is_ours(name):
            given = tuple(type_of(atom.aval) for atom in eqn.invars)
            return self.ours(name, attrs_of(params), given, args)
        primitives.remember(eqn.primitive)
        return self.applied(name, args, params, types)

    # Both.

    def ours(self, name: str, attrs: Any, types: tuple[Type, ...], args: list[Any]) -> list[Any]:
        jaxpr, consts = _of_reference(name, attrs, types, jax.config.jax_enable_x64)
        return self.jaxpr(jaxpr, consts, args)

    def applied(
        self, name: str, args: list[Any], params: dict[str, Any], types: Sequence[Any]
    ) -> list[Any]:
        if name in _OF_ONE_DEVICE:
            return args
        if name == "all_gather":
            return [np.reshape(args[0], types[0].shape)]
        args = terms(self.disturb, name, args, types[0].dtype)
        plain = all(isinstance(each, np.ndarray) for each in args)
        made = computed(name, args, params, types) if plain else None
        if made is None:
            made = [as_numpy(each) for each in primitives.bind(name, tuple(args), params)]
        return self.disturb(name, args, made) if self.disturb else made

    def scan(
        self,
        body: Callable[[list[Any]], list[Any]],
        parts: tuple[list[Any], list[Any], list[Any]],
        how: tuple[int, bool],
        types: Sequence[Any],
    ) -> list[Any]:
        (consts, carry, xs), (length, reverse) = parts, how
        carried, rows = len(carry), []
        for i in reversed(range(length)) if reverse else range(length):
            made = body([*consts, *carry, *(x[i, ...] for x in xs)])
            carry, row = made[:carried], made[carried:]
            rows.append(row)
        if reverse:
            rows.reverse()
        if not rows:
            return [*carry, *(_empty(type_) for type_ in types[carried:])]
        return [*carry, *(_stacked(column) for column in zip(*rows))]


class _Shaped:
    """A Type as numpy has it."""

    def __init__(self, type_: Type) -> None:
        self.shape, self.type_ = type_.shape, type_

    @property
    def dtype(self) -> Any:
        name = self.type_.dtype
        return dtype_of(name) if is_dtype(name) else struct_of(self.type_).dtype


def _constant(value: Any, type_: Type) -> Any:
    if isinstance(value, Opaque):
        return as_numpy(value.payload)
    array = np.asarray(attributes.decode(value))
    kind = dtype_of(type_.dtype)
    return (array.astype(kind) if array.dtype.kind == "f" else np.asarray(array, kind)).reshape(
        type_.shape
    )


def _branch(index: Any, count: int) -> int:
    return min(max(int(index), 0), count - 1)


def _loop(cond: Callable[..., Any], body: Callable[..., Any], carry: list[Any]) -> list[Any]:
    """Under `vmap` the condition has an element for each row, and rows that have stopped stay."""
    while np.any(rows := cond(carry)[0]):
        new = body(carry)
        carry = [*map(_rows_of, repeat(rows), new, carry)] if rows.ndim else new
    return carry


def _rows_of(rows: Any, new: Any, old: Any) -> Any:
    """`new` in the rows that are true, `old` in the others."""
    mask = rows.reshape(rows.shape + (1,) * (new.ndim - rows.ndim))
    plain = isinstance(new, np.ndarray) and isinstance(old, np.ndarray)
    return np.where(mask, new, old) if plain else jnp.where(mask, new, old)


def _stacked(rows: Sequence[Any]) -> Any:
    plain = all(isinstance(row, np.ndarray | np.generic) for row in rows)
    return np.stack(rows) if plain else jnp.stack(rows)


def _empty(type_: Any) -> Any:
    if jnp.issubdtype(type_.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0), type_.shape)
    return np.empty(type_.shape, type_.dtype)


@lru_cache(maxsize=4096)
def _of_reference(
    name: str, attrs: tuple, types: tuple[Type, ...], x64: bool
) -> tuple[Any, Sequence[Any]]:
    """(jaxpr, constants) of one of our own ops, traced in the width of integers that is set."""
    reference = opdef.lookup(name).reference
    structs = [struct_of(type_) for type_ in types]
    closed = jax.make_jaxpr(lambda *arrays: reference(*arrays, **dict(attrs)))(*structs)
    return closed.jaxpr, closed.consts


def as_reals(array: Any) -> Any:
    """An input of a lifted graph: floats of more than eight bits widened, the rest as it is."""
    return widened(as_numpy(array))
