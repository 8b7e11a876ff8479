"""The sharded step: what `auto_shard` gives back.

Per set of argument shapes it holds one rewritten program and one executable. A call with shapes
seen before goes straight to the executable; nothing is traced again.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp

from dialect.annotate import annotated
from dialect.compiling import Compilable, compiled, compiled_stage
from dialect.dtypes import dtype_of
from dialect.framework import treedef
from dialect.tracing import (
    Where,
    argument_names,
    argument_number,
    as_numbers,
    first_line,
    trace,
)
from rewrite.errors import ShardwrightError, TraceError
from rewrite.ir import Graph, Value
from rewrite.pipeline import Pipeline
from rewrite.program import Program
from rewrite.target import Target


class Packed:
    """Parameters as a step wants them: quantised, merged, precomputed, laid out on the mesh.

    Made by `prepare`. Until the step has seen the shapes of its other arguments it holds the
    user's own parameters, and packs them at the first call.
    """

    def __init__(self, leaves: list[Any], names: tuple[str, ...] = (), raw: Any = None) -> None:
        self.leaves, self.names, self.raw = leaves, names, raw


class State:
    """One array of the state in the program's own layout: the parts it is kept in."""

    def __init__(self, parts: list[Any], shape: tuple[int, ...], dtype: Any) -> None:
        self.parts, self.shape, self.dtype = parts, shape, dtype


jax.tree_util.register_pytree_node(
    Packed,
    lambda packed: ((packed.leaves, packed.raw), packed.names),
    lambda names, children: Packed(children[0], names, children[1]),
)
jax.tree_util.register_pytree_node(
    State,
    lambda state: ((state.parts,), (state.shape, state.dtype)),
    lambda about, children: State(children[0], *about),
)


class Step:
    """A rewritten, sharded `step(params, state, ...)` with the signature of the original."""

    def __init__(
        self,
        function: Callable[..., Any],
        mesh: Any,
        target: Target,
        pipeline: Pipeline,
        *,
        params: Where = 0,
        state: Where | Sequence[Where] | None = None,
        static_argnums: int | Sequence[int] = (),
        axes: Mapping[str, str] | None = None,
        donate_state: bool = True,
    ) -> None:
        functools.update_wrapper(self, function)
        self.function, self.mesh, self.target, self.pipeline = function, mesh, target, pipeline
        self.params, self.state = params, state
        self.static_argnums, self.donate_state = as_numbers(static_argnums), donate_state
        self.axes = axes
        self._programs: dict[Any, Program] = {}
        self._executables: dict[Any, _Executable] = {}
        self._known: tuple[list[Any], Packed] | None = None

    # Looking at it.

    def program(self, *args: Any) -> Program:
        """The rewritten program for arguments of these shapes (ShapeDtypeStructs will do)."""
        key = self._key(args)
        if key not in self._programs:
            traced = trace(
                self.function,
                *map(_users_own, args),
                params=self.params,
                state=self.state,
                static_argnums=self.static_argnums,
                axes=self.axes,
            )
            with self._told_where():
                self._programs[key] = self.pipeline.run(traced, self.target)
        return self._programs[key]

    def ir(self, *args: Any) -> str:
        """The rewritten program as text, its axes and layouts beside it."""
        return annotated(self.program(*args))

    def plan(self, *args: Any) -> Any:
        """The plan that the program was sharded by, or None where the pipeline makes none."""
        return self.program(*args).plan

    def explain(self, *args: Any) -> str:
        """What was done and why, what was chosen and what was rejected, pass by pass."""
        program = self.program(*args)
        lines = []
        for each in program.history:
            lines.append(f"{each.text}  (keeps {each.keeps})")
            lines += [f"  {note}" for note in each.notes]
        lines += [program.plan.explain()] if program.plan is not None else []
        return "\n".join(lines)

    def lower(self, *args: Any) -> Any:
        """A `jax.stages.Lowered` for the step's own mesh: for a TPU too, where there is none."""
        return self._compilable(self.program(*args)).lower()

    # Running it.

    def prepare(self, params: Any, *rest: Any) -> Packed:
        """Packs the parameters once. `rest` are the other arguments; shapes will do.

        Without them, and before any call has shown their shapes, packing waits for the first call.
        """
        if rest:
            names = argument_names(self.function, len(rest) + 1)
            at = argument_number(self.params, names, "params")
            return self._executable((*rest[:at], params, *rest[at:])).packed(params)
        if self._executables:
            return next(iter(self._executables.values())).packed(params)
        return Packed([], (), params)

    def adapt(self, state: Any) -> Any:
        """The user's state in the program's layout, on the mesh. A new step waits for a call."""
        executable = next(iter(self._executables.values()), None)
        return state if executable is None else executable.adapted(state)

    def restore(self, state: Any) -> Any:
        """The user's own state back from the program's."""
        executable = next(iter(self._executables.values()), None)
        return state if executable is None else executable.restored(state)

    def __call__(self, *args: Any, **named: Any) -> Any:
        if named:
            args = inspect.signature(self.function).bind(*args, **named).args
        executable = self._executable(args)
        at = self._params_at(args)
        others = [a for i, a in enumerate(args) if i != at and i not in self.static_argnums]
        return executable(self._packed_leaves(executable, args[at]), others)

    # Inside.

    def _key(self, args: tuple[Any, ...]) -> Any:
        at = self._params_at(args)
        parts = []
        for i, each in enumerate(args):
            if i in self.static_argnums:
                parts.append(each)
            elif i != at:
                leaves, tree = jax.tree.flatten(each, is_leaf=_is_state)
                parts.append((tree, tuple(map(_shape, leaves))))
        return tuple(parts)

    def _params_at(self, args: tuple[Any, ...]) -> int:
        if isinstance(self.params, int) and 0 <= self.params < len(args):
            return self.params
        return argument_number(self.params, argument_names(self.function, len(args)), "params")

    def _executable(self, args: tuple[Any, ...]) -> _Executable:
        key = self._key(args)
        found = self._executables.get(key)
        if found is None:
            program = self.program(*args)
            with self._told_where():
                found = _Executable(self._compilable(program))
            self._executables[key] = found
        return found

    @contextmanager
    def _told_where(self) -> Iterator[None]:
        """Errors that name no line of the user's name the one where the function begins."""
        try:
            yield
        except ShardwrightError as error:
            error.where = error.where or first_line(self.function)
            raise

    def _compilable(self, program: Program) -> Compilable:
        return Compilable(program, self.mesh, self.donate_state)

    def _packed_leaves(self, executable: _Executable, params: Any) -> list[Any]:
        if isinstance(params, Packed):
            if params.raw is not None:
                made = executable.packed(params.raw)
                params.leaves, params.names, params.raw = made.leaves, made.names, None
            executable.check(params)
            return params.leaves
        leaves = jax.tree.leaves(params)
        if self._known is None or not _same_objects(self._known[0], leaves):
            self._known = ([_reference(leaf) for leaf in leaves], executable.packed(params))
        executable.check(self._known[1])
        return self._known[1].leaves


class _Executable:
    """One program of a step, compiled for one set of shapes."""

    def __init__(self, compilable: Compilable) -> None:
        self.compilable, program = compilable, compilable.program
        self.program = program
        self.compiled, self.notes = compiled(compilable)
        # With the memory layouts that the compiler chose for the state.
        self.formats = dict(zip(("param", "state", "arg"), self.compiled.input_formats[0]))
        self.names = tuple(each.name for each in compilable.inputs("param"))
        self.roles = [each.role for each in program.inputs if each.role != "param"]
        self.out_tree = treedef(program.tree[1])
        stages = program.stages
        state_count = self.roles.count("state")
        self.adapts = _per_leaf(stages.adapt) if stages else [None] * state_count
        self.restores = _per_result(stages.restore) if stages else [None] * state_count
        self.prepare = (
            compiled_stage(stages.prepare, compilable.shardings("param")) if stages else None
        )

    def __call__(self, packed: list[Any], others: list[Any]) -> Any:
        state: list[Any] = []
        rest: list[Any] = []
        adapts = iter(self.adapts)
        for leaf, role in zip(jax.tree.leaves(others, is_leaf=_is_state), self.roles):
            if role == "arg":
                rest.append(leaf)
                continue
            adapt = next(adapts)
            if isinstance(leaf, State):
                state += leaf.parts
            elif adapt is None:
                state.append(leaf)
            else:
                state += adapt([leaf])
        try:
            results = self.compiled(packed, state, rest)
        except (ValueError, TypeError):
            # Arrays that live elsewhere are moved; anything else fails again, and says why.
            groups = zip((packed, state, rest), ("param", "state", "arg"))
            results = self.compiled(*(self.placed(group, role) for group, role in groups))
        return jax.tree.unflatten(self.out_tree, self.collected(results))

    def placed(self, leaves: list[Any], role: str) -> list[Any]:
        return jax.device_put(leaves, self.formats[role])

    def collected(self, results: list[Any]) -> list[Any]:
        """The user's outputs: a state that is kept in parts becomes one State."""
        out, rest, restores = [], iter(results), iter(self.restores)
        for each in self.program.outputs:
            restore = next(restores) if each.updates is not None else None
            if restore is None:
                out.append(next(rest))
                continue
            about = self.program.inputs[each.updates].type
            parts = [next(rest) for _ in range(restore.parts)]
            out.append(State(parts, about.shape, dtype_of(about.dtype)))
        return out

    def packed(self, params: Any) -> Packed:
        leaves = jax.tree.leaves(params)
        made = self.prepare(leaves) if self.prepare is not None else self.placed(leaves, "param")
        return Packed(list(made), self.names)

    def check(self, packed: Packed) -> None:
        if packed.names != self.names:
            raise TraceError(
                "these parameters were packed for another program: it takes "
                f"{sorted(set(self.names) - set(packed.names))[:3]}, they have "
                f"{sorted(set(packed.names) - set(self.names))[:3]}",
                hint="prepare the originals for these shapes: step.prepare(params, *rest)",
            )

    def adapted(self, state: Any) -> Any:
        leaves, tree = jax.tree.flatten(state, is_leaf=_is_state)
        formats = iter(self.formats["state"])
        made = []
        for leaf, adapt in zip(leaves, self.adapts):
            if isinstance(leaf, State):
                made.append(leaf)
            elif adapt is None:
                # A copy: the step gives its state away, and the user's own array must live on.
                made.append(jax.device_put(jnp.array(leaf, copy=True), next(formats)))
            else:
                parts = [jax.device_put(part, next(formats)) for part in adapt([leaf])]
                made.append(State(parts, leaf.shape, leaf.dtype))
        return jax.tree.unflatten(tree, made)

    def restored(self, state: Any) -> Any:
        leaves, tree = jax.tree.flatten(state, is_leaf=_is_state)
        by_input = {out.updates: i for i, out in enumerate(self.program.outputs)}
        order = sorted(i for i in by_input if i is not None)
        restores = dict(zip(sorted(order, key=lambda i: by_input[i]), self.restores))
        made = [
            restores[i](leaf.parts)[0] if isinstance(leaf, State) else leaf
            for i, leaf in zip(order, leaves)
        ]
        return jax.tree.unflatten(tree, made)


class _Stage:
    """Part of `adapt` or `restore`: one array to its parts, or the parts to one array."""

    def __init__(self, graph: Graph) -> None:
        self.run, self.parts = compiled_stage(graph, None), len(graph.inputs)

    def __call__(self, arrays: list[Any]) -> list[Any]:
        return self.run(arrays)


def _ancestors(graph: Graph) -> dict[Value, frozenset[Value]]:
    """For each value the graph inputs that it depends on."""
    found = {value: frozenset({value}) for value in graph.inputs}
    for op in graph.ops:
        own = frozenset().union(*(found.get(arg, frozenset()) for arg in op.args))
        found.update(dict.fromkeys(op.results, own))
    return found


def _per_leaf(adapt: Graph) -> list[_Stage | None]:
    """`adapt`, input by input; None where the state stays as it is."""
    depends = _ancestors(adapt)
    stages: list[_Stage | None] = []
    for value in adapt.inputs:
        parts = tuple(out for out in adapt.outputs if value in depends[out])
        stages.append(None if parts == (value,) else _Stage(Graph((value,), parts)))
    return stages


def _per_result(restore: Graph) -> list[_Stage | None]:
    """`restore`, output by output; None where the state is the user's already."""
    depends = _ancestors(restore)
    stages: list[_Stage | None] = []
    for out in restore.outputs:
        parts = tuple(value for value in restore.inputs if value in depends[out])
        stages.append(None if parts == (out,) else _Stage(Graph(parts, (out,))))
    return stages


def _is_state(leaf: Any) -> bool:
    return isinstance(leaf, State)


def _users_own(arg: Any) -> Any:
    """What the user gave: raw parameters for those yet to be packed, shapes for adapted state."""
    if isinstance(arg, Packed):
        if arg.raw is None:
            raise TraceError(
                "these shapes are new, and packed parameters do not tell their original shapes",
                hint="call the step, or step.program, once with the original parameters",
            )
        return arg.raw
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if _is_state(leaf) else leaf,
        arg,
        is_leaf=_is_state,
    )


def _shape(leaf: Any) -> Any:
    dtype = getattr(leaf, "dtype", None)
    return (leaf.shape, dtype) if dtype is not None else type(leaf)


def _reference(leaf: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(leaf)
    except TypeError:
        return lambda: leaf


def _same_objects(references: list[Any], leaves: list[Any]) -> bool:
    return len(references) == len(leaves) and all(r() is x for r, x in zip(references, leaves))
