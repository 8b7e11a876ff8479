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
from pathlib import Path
from typing import Any

import jax

from dialect.compiled.compiling import Compilable
from dialect.display.tables import as_text
from dialect.front.strict import must_be_empty, must_have_begun, not_done
from dialect.prepared.composed import Composed, is_traced
from dialect.prepared.fresh_state import fresh_state
from dialect.prepared.originals import shape_of_lazy
from dialect.prepared.packed_schema import PackedError
from dialect.prepared.serving import Executable, Packed, is_state
from dialect.reports.annotate import annotated
from dialect.reports.beside_plan import beside_plan, differences, plan_table
from dialect.reports.explained import Explained
from dialect.user.tracing import (
    Where,
    argument_names,
    argument_number,
    as_numbers,
    first_line,
    trace,
)
from rewrite.errors import ShardwrightError
from rewrite.pipeline import Pipeline
from rewrite.program import Program
from rewrite.target import Target


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
        strict: bool = False,
    ) -> None:
        functools.update_wrapper(self, function)
        self.function, self.mesh, self.target, self.pipeline = function, mesh, target, pipeline
        self.params, self.state = params, state
        self.static_argnums, self.donate_state = as_numbers(static_argnums), donate_state
        self.axes, self.strict = axes, strict
        self._programs: dict[Any, Program] = {}
        self._explained: dict[Any, Explained] = {}
        self._executables: dict[Any, Executable] = {}
        self._known: tuple[list[Any], Packed] | None = None

    # Looking at it.

    def __repr__(self) -> str:
        """`<step decode_step(params, cache, tokens) for v5e:2x4, mesh x=2 y=4: ...>`."""
        name = getattr(self.function, "__name__", None) or type(self.function).__name__
        inner = getattr(self.function, "func", self.function)  # of a functools.partial
        called = f"{getattr(inner, '__name__', name)}{_arguments(self.function)}"
        mesh = " ".join(f"{axis}={chips}" for axis, chips in self.target.mesh)
        known = f"{len(self._programs)} traced, {len(self._executables)} compiled"
        steps = [step.pass_name() for _, phase in self.pipeline.phases for step in phase]
        passes = ", ".join(dict.fromkeys(steps))
        return f"<step {called} for {self.target.topology}, mesh {mesh}: {passes}; {known}>"

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
            listener = self._explained[key] = Explained()
            with self._told_where():
                run = self.pipeline.run
                program = run(traced, self.target, hooks=(listener,))
                must_have_begun(program)
                must_be_empty(not_done(program) if self.strict else ())
            self._programs[key] = program
        return self._programs[key]

    def ir(self, *args: Any) -> str:
        """The rewritten program as text, with axes and layouts as comments."""
        return annotated(self.program(*args))

    def plan(self, *args: Any) -> Any:
        """The plan that the program was sharded by, or None where the pipeline makes none."""
        return self.program(*args).plan

    def explain(self, *args: Any) -> str:
        """What was done and why, pass by pass; what was chosen and what was rejected.

        Then what was recognised and what was not, the cost of both, and the axes. Once the step is
        compiled, the plan stands beside what the compiler made; where they are far apart, that is
        said first.
        """
        program = self.program(*args)
        executable = self._executables.get(self._key(args))
        beside = beside_plan(program, executable.compiled, self.mesh) if executable else []
        lines = [*not_done(program), *differences(beside)]
        for step in program.history:
            lines.append(f"{step.text}  (keeps {step.keeps})")
            lines += [f"  {note}" for note in step.notes]
        lines += [program.plan.explain()] if program.plan is not None else []
        reports = [plan_table(beside)] if beside else []
        explained = self._explained[self._key(args)]
        reports += explained.moved(executable.compiled, self.mesh) if executable else []
        reports += explained.tables()
        return "\n".join([*lines, *([as_text(reports)] if reports else [])])

    def lower(self, *args: Any) -> Any:
        """A `jax.stages.Lowered` for the step's mesh: for a TPU too, where there is none."""
        return self._compilable(self.program(*args)).lower()

    # Running it.

    def prepare(self, params: Any, *rest: Any, donate: bool = False) -> Packed:
        """Packs the parameters once, part by part. `rest` are the other arguments; shapes will do.

        Without them, and before any call has shown their shapes, packing waits for the first call.

        - params: arrays on devices or in the host's memory, or `Lazy` ones, read part by part.
        - donate: arrays on devices are deleted as soon as nothing else is packed from them, so
          that two full copies never exist. What is in the host's memory is the caller's to free.
        """
        if rest:
            names = argument_names(self.function, len(rest) + 1)
            at = argument_number(self.params, names, "params")
            executable = self._executable((*rest[:at], params, *rest[at:]))
            return executable.packed(params, donate)
        if self._executables:
            return next(iter(self._executables.values())).packed(params, donate)
        return Packed([], raw=params, donate=donate)

    def load(self, path: str | Path, *args: Any) -> Packed:
        """The packed parameters that `packed.save(path)` wrote, laid out on the mesh.

        args: those of the step; shapes will do. Without them, those of its first call.

        Raises PackedError, with the difference, where the file was packed for another plan, dtype
        or model.
        """
        if args:
            return self._executable(args).loaded(path)
        if not self._executables:
            raise PackedError(
                f"what {path} should hold is not known before the shapes of the arguments are",
                hint="step.load(path, params, cache, tokens); jax.ShapeDtypeStructs will do",
            )
        return next(iter(self._executables.values())).loaded(path)

    def adapt(self, state: Any) -> Any:
        """The user's state in the program's layout, on the mesh.

        Before a call with a state of these shapes it is returned as it is.
        """
        fitting = (known for known in self._executables.values() if known.takes(state))
        executable = next(fitting, None)
        return state if executable is None else executable.adapted(state)

    def init_state(self, init: Callable[[], Any]) -> Any:
        """The state that `init()` makes, in the program's layout at once, and on the mesh.

        The user's form of it is never in memory. A new step waits for a call.
        """
        executable = next(iter(self._executables.values()), None)
        return (
            init()
            if executable is None
            else fresh_state(executable.form, executable.state_formats, init)
        )

    def restore(self, state: Any) -> Any:
        """The user's state back from the program's."""
        executable = next(iter(self._executables.values()), None)
        return state if executable is None else executable.restored(state)

    def __call__(self, *args: Any, **named: Any) -> Any:
        if named:
            args = inspect.signature(self.function).bind(*args, **named).args
        at = self._params_at(args)
        others = [a for i, a in enumerate(args) if i != at and i not in self.static_argnums]
        if is_traced(others) or is_traced(args[at]):
            return self._composed(args, args[at], others)
        executable = self._executable(args)
        return executable(self._packed(executable, args[at]), others)

    def _composed(self, args: tuple[Any, ...], params: Any, others: list[Any]) -> Any:
        """The results under a tracer, where the step is its program."""
        with jax.ensure_compile_time_eval():
            composed = Composed(self._compilable(self.program(*args)))
        is_packed = isinstance(params, Packed) and params.raw is None
        given = params.raw if isinstance(params, Packed) and not is_packed else params
        leaves = params.leaves if is_packed else jax.tree.leaves(given)
        return composed(leaves, is_packed, others)

    # Inside.

    def _key(self, args: tuple[Any, ...]) -> Any:
        at = self._params_at(args)
        parts = []
        for i, argument in enumerate(args):
            if i in self.static_argnums:
                parts.append(argument)
            elif i != at:
                leaves, tree = jax.tree.flatten(argument, is_leaf=is_state)
                parts.append((tree, tuple(map(_shape, leaves))))
        return tuple(parts)

    def _params_at(self, args: tuple[Any, ...]) -> int:
        if isinstance(self.params, int) and 0 <= self.params < len(args):
            return self.params
        return argument_number(self.params, argument_names(self.function, len(args)), "params")

    def _executable(self, args: tuple[Any, ...]) -> Executable:
        key = self._key(args)
        executable = self._executables.get(key)
        if executable is None:
            program = self.program(*args)
            with self._told_where():
                executable = Executable(self._compilable(program), self._tree(args))
                if self.strict:
                    must_be_empty(differences(beside_plan(program, executable.compiled, self.mesh)))
            self._executables[key] = executable
        return executable

    @contextmanager
    def _told_where(self) -> Iterator[None]:
        """Errors that name no line of the user's name the one where the function begins."""
        try:
            yield
        except ShardwrightError as error:
            error.where = error.where or first_line(self.function)
            raise

    def _tree(self, args: tuple[Any, ...]) -> Any:
        """The pytree of the parameters, as the step's function takes them."""
        return jax.tree.structure(_users_own(args[self._params_at(args)]))

    def _compilable(self, program: Program) -> Compilable:
        return Compilable(program, self.mesh, self.donate_state)

    def _packed(self, executable: Executable, params: Any) -> Packed:
        if isinstance(params, Packed):
            if params.raw is not None:
                packed = executable.packed(params.raw, params.donate)
                params.leaves, params.schema, params.tree = (
                    packed.leaves,
                    packed.schema,
                    packed.tree,
                )
                params.raw = None
            return params
        leaves = jax.tree.leaves(params)
        if self._known is None or not _same_objects(self._known[0], leaves):
            self._known = ([_reference(leaf) for leaf in leaves], executable.packed(params))
        return self._known[1]


def _arguments(function: Callable[..., Any]) -> str:
    try:
        return f"({', '.join(inspect.signature(function).parameters)})"
    except (TypeError, ValueError):  # what has no signature in Python
        return ""


def _users_own(arg: Any) -> Any:
    """What the user gave: parameters as they were before packing, shapes for adapted state."""
    arg = arg.originals() if isinstance(arg, Packed) else arg
    return jax.tree.map(
        lambda leaf: (
            jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if is_state(leaf) else shape_of_lazy(leaf)
        ),
        arg,
        is_leaf=is_state,
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
