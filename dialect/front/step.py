"""The sharded step: what `auto_shard` gives back.

Per set of argument shapes it holds one rewritten program and one executable. A call with shapes
seen before goes straight to the executable; nothing is traced again.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from dialect.compiled.compiling import Compilable
from dialect.compiled.resolved import mesh_of
from dialect.display.tables import as_text
from dialect.front.lowered import Lowered
from dialect.front.new_shapes import tell_of
from dialect.front.strict import must_be_empty, must_have_begun, not_done
from dialect.machine.caller import apart, is_traced, must_be_outside, settings
from dialect.machine.mesh import Topology, must_be_attached, must_be_here
from dialect.prepared.composed import Composed
from dialect.prepared.known_again import Seen
from dialect.prepared.originals import is_lazy, shape_of_lazy
from dialect.prepared.packed_schema import PackedError
from dialect.prepared.serving import Executable, Packed, is_state
from dialect.printed.program_lines import axis_notes
from dialect.printed.story import story
from dialect.printed.story_page import page
from dialect.reports.beside_plan import Beside, beside_plan, differences, plan_table
from dialect.reports.explained import Explained
from dialect.user.bucketed import BucketedCallee
from dialect.user.calls import Call, Callee, Roles, first_line, frozen, is_array, name_of
from dialect.user.tracing import shape_of, trace_call
from rewrite.errors import ShardwrightError, TraceError
from rewrite.pipeline import Pipeline
from rewrite.program import Program
from rewrite.target import Target
from rewrite.text import show_program


class Step:
    """A rewritten, sharded `step(params, state, ...)` with the signature of the original."""

    def __init__(
        self,
        function: Callable[..., Any],
        mesh: Mesh | None,
        target: Target,
        pipeline: Pipeline,
        roles: Roles = Roles(),
        *,
        axes: Mapping[str, str] | None = None,
        donate_state: bool = True,
        strict: bool = False,
        phase: str | None = None,
        buckets: Sequence[int] = (),
    ) -> None:
        functools.update_wrapper(self, function)
        self.function, self.target, self.pipeline = function, target, pipeline
        self._given = mesh  # None: made from the target, for the first that needs its devices
        self.roles, self.donate_state = roles, donate_state
        self.axes, self.strict, self.phase = axes, strict, phase
        pipeline.passes(phase)  # raises PipelineError where there is no such phase
        self.buckets = tuple(buckets)
        self.callee = (
            BucketedCallee(function, roles, buckets) if buckets else Callee(function, roles)
        )
        self._programs: dict[Any, Program] = {}
        self._explained: dict[Any, Explained] = {}
        self._executables: dict[Any, Executable] = {}
        self._composable: dict[Any, Composed] = {}
        self._known: tuple[Seen, Packed] | None = None
        self._calls: dict[Any, Call] = {}  # shapes alone
        self._last: Any = None  # the key of the last call
        self._newest: Program | None = None  # of those that are compiled
        self._seconds = 0.0  # what it took
        self._methods: dict[int, Step] = {}

    def __get__(self, instance: Any, owner: Any = None) -> Step:
        """The step of a method. As with `jax.jit`, it is kept as long as its class."""
        if instance is None:
            return self
        if id(instance) not in self._methods:
            self._methods[id(instance)] = Step(
                self.function.__get__(instance, owner),
                self._given,
                self.target,
                self.pipeline,
                self.roles.of_method(),
                axes=self.axes,
                donate_state=self.donate_state,
                strict=self.strict,
                phase=self.phase,
                buckets=self.buckets,
            )
        return self._methods[id(instance)]

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The jax Mesh that the step is compiled for. Raises TargetError where it cannot be had."""
        return mesh_of(self.target) if self._given is None else self._given

    # Looking at it. Without arguments, all of these are about the last call.

    def __repr__(self) -> str:
        """`<step decode_step(params, cache, tokens) for v5e:2x4, mesh x=2 y=4: ...>`."""
        arguments = ", ".join(self.callee.signature.parameters) if self.callee.signature else ""
        called = f"{name_of(self.function)}({arguments})"
        mesh = " ".join(f"{axis}={chips}" for axis, chips in self.target.mesh)
        known = f"{len(self._programs)} traced, {len(self._executables)} compiled"
        steps = [step.pass_name() for _, phase in self.pipeline.phases for step in phase]
        passes = ", ".join(dict.fromkeys(steps))
        return f"<step {called} for {self.target.topology}, mesh {mesh}: {passes}; {known}>"

    def program(self, *args: Any, **named: Any) -> Program:
        """The rewritten program for arguments of these shapes (ShapeDtypeStructs will do)."""
        return self._program(self._call(args, named))

    def ir(self, *args: Any, **named: Any) -> str:
        """The rewritten program as text, with axes and layouts as comments."""
        program = self.program(*args, **named)
        return show_program(program, notes=axis_notes(program))

    def plan(self, *args: Any, **named: Any) -> Any:
        """The plan that the program was sharded by, or None where the pipeline makes none."""
        return self.program(*args, **named).plan

    def explain(self, *args: Any, **named: Any) -> str:
        """A page: what was done, what it bought, what was left and why, what to try next.

        What was asked for and not done is said first; so is, once the step is compiled, where plan
        and executable are far apart. `details` has all there is to say.
        """
        call = self._call(args, named)
        program, key = self._program(call), self._key(call)
        first = [*not_done(program), *differences(self._beside_plan(key, program))]
        told = story(self._explained[key], program, self.target)
        return page(told, first, details="step.details(...)")

    def details(self, *args: Any, **named: Any) -> str:
        """What was done and why, pass by pass; what was chosen and what was rejected.

        Then what was recognised and what was not, the cost of both, and the axes. Once the step is
        compiled, the plan stands beside what the compiler made; where they are far apart, that is
        said first.
        """
        call = self._call(args, named)
        program, key = self._program(call), self._key(call)
        executable, beside = self._executables.get(key), self._beside_plan(key, program)
        lines = [*not_done(program), *differences(beside)]
        for step in program.history:
            lines.append(f"{step.text}  (keeps {step.keeps})")
            lines += [f"  {note}" for note in step.notes]
        lines += [program.plan.explain()] if program.plan is not None else []
        reports = [plan_table(beside)] if beside else []
        explained = self._explained[key]
        reports += explained.moved(executable.compiled, self.mesh) if executable else []
        reports += explained.tables()
        return "\n".join([*lines, *([as_text(reports)] if reports else [])])

    def lower(self, *args: Any, **named: Any) -> Lowered:
        """A `jax.stages.Lowered` for the step's mesh: for a TPU too, where there is none.

        Its executable is called as the step is, with arguments of these shapes.
        """
        call = self._call(args, named)
        lowered = self._compilable(self._program(call)).lower()
        return Lowered(lowered, functools.partial(self._executable, call), self._run_on)

    # Running it.

    def prepare(
        self, *args: Any, donate: bool = False, like: Packed | None = None, **named: Any
    ) -> Packed:
        """Packs the parameters once, part by part: `prepare(params, *other_arguments)`.

        Parameters come first, wherever the function takes them, and the other arguments in their
        order; or all of them by name. Of the others shapes will do. Without them, and before any
        call has shown their shapes, packing waits for the first call.

        - params: arrays on devices or in the host's memory, or `Lazy` ones, read part by part.
        - donate: arrays on devices are deleted as soon as nothing else is packed from them, so
          that two full copies never exist. What is in the host's memory is the caller's to free.
        - like: what another step packed of these parameters; arrays that both have are kept once.
        """
        must_be_outside("step.prepare", [args, named])
        if len(args) + len(named) == 1:
            (params,) = (*args, *named.values())
            if not self._executables:
                return Packed([], raw=params, donate=donate)
            self._must_be_here()
            return next(iter(self._executables.values())).packed(params, donate)
        call = self.callee.call_to_prepare(args, named)
        try:
            executable = self._attached(call)
        except TraceError as error:
            if call.params and args:
                error.hint = (
                    "parameters come first here, or all by name: prepare(params=params, ...)"
                )
            raise
        return executable.packed(call.values[call.params], donate, like)

    def load(self, path: str | Path, *args: Any, **named: Any) -> Packed:
        """The packed parameters that `packed.save(path)` wrote, laid out on the mesh.

        args: those of the step; shapes will do. Without them, those of its first call.

        Raises PackedError, with the difference, where the file was packed for another plan, dtype
        or model.
        """
        if args or named:
            return self._attached(self._call(args, named)).loaded(path)
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
        must_be_outside("step.adapt", state)
        fitting = (known for known in self._executables.values() if known.takes(state))
        executable = next(fitting, None)
        return state if executable is None else executable.adapted(state)

    def init_state(self, init: Callable[[], Any]) -> Any:
        """The state that `init()` makes, in the program's layout at once, and on the mesh.

        The user's form of it is never in memory. A new step waits for a call.
        """
        executable = next(iter(self._executables.values()), None)
        return init() if executable is None else executable.fresh(init)

    def restore(self, state: Any) -> Any:
        """The user's state back from the program's."""
        must_be_outside("step.restore", state)
        executable = next(iter(self._executables.values()), None)
        return state if executable is None else executable.restored(state)

    def __call__(self, *args: Any, **named: Any) -> Any:
        call = self.callee.call(args, named)
        params = call.values[call.params]
        left_out = {*call.static, call.params}
        others = [value for n, value in enumerate(call.values) if n not in left_out]
        if is_traced([params, others]):
            return self.callee.trimmed(call, self._composed(call, params, others))
        executable = self._attached(call)
        results = executable(self._packed(executable, params), others)
        return self.callee.trimmed(call, results)

    def _run_on(self, executable: Executable, args: Any, named: Any) -> Any:
        """The results of an executable that `lower` gave."""
        call = self.callee.call(args, named)
        if self._executables.get(self._key(call)) is not executable:
            raise TraceError(
                "the executable was compiled for arguments of other shapes",
                hint="step.lower(...).compile() for these, or call the step itself",
            )
        return self(*args, **named)

    def _composed(self, call: Call, params: Any, others: list[Any]) -> Any:
        """The results under a tracer, where the step is its program."""
        key = self._key(call)
        if key not in self._composable:
            with jax.ensure_compile_time_eval():
                self._composable[key] = Composed(self._compilable(self._program(call)))
        is_packed = isinstance(params, Packed) and params.raw is None
        given = params.raw if isinstance(params, Packed) and not is_packed else params
        composed = self._composable[key]
        leaves = params.all_of(composed.schema) if is_packed else jax.tree.leaves(given)
        return composed(leaves, is_packed, others)

    # Inside.

    def _call(self, args: Any, named: Mapping[str, Any]) -> Call:
        """The call with these arguments; without any, the last one, of which shapes are known."""
        if args or named:
            return self.callee.call(args, named)
        if self._last not in self._calls:
            raise TraceError(
                "the shapes of the step's arguments are not known before a call",
                where=first_line(self.function),
                hint="give the arguments: jax.ShapeDtypeStructs will do",
            )
        return self._calls[self._last]

    def _program(self, call: Call) -> Program:
        key = self._key(call)
        if key not in self._programs:
            call = self._calls[key] = call.with_values(
                value if n in call.static else _shapes(value) for n, value in enumerate(call.values)
            )
            listener = self._explained[key] = Explained()
            with self._told_where():
                with jax.disable_jit(False):
                    traced = trace_call(call, self.roles, self.axes)
                with apart(), jax.transfer_guard("allow"):
                    program = self.pipeline.run(traced, self.target, self.phase, (listener,))
                must_have_begun(program)
                must_be_empty(not_done(program) if self.strict else ())
            self._programs[key] = program
        self._last = key
        return self._programs[key]

    def _key(self, call: Call) -> Any:
        """What a program is made for: names, structures and types, settings; parameters aside."""
        parts: list[Any] = [settings(), call.names, call.positional]
        for number, argument in enumerate(call.values):
            if number in call.static:
                parts.append(frozen(argument))
            elif number != call.params:
                leaves, tree = jax.tree.flatten(argument, is_leaf=is_state)
                parts.append((tree, tuple(map(_shape, leaves))))
        return tuple(parts)

    def _attached(self, call: Call) -> Executable:
        """The executable of a call. Raises TargetError where its machine is not here."""
        self._must_be_here()
        return self._executable(call)

    def _must_be_here(self) -> None:
        """Raises TargetError where there are no such devices to run on."""
        if self._given is None:
            must_be_attached(Topology.parse(self.target.topology))
        must_be_here(self.mesh)

    def _executable(self, call: Call, lowered: Any = None) -> Executable:
        key = self._key(call)
        self._last = key
        executable = self._executables.get(key)
        if executable is None:
            began = time.perf_counter()
            program = self._program(call)
            if self._newest is not None:
                tell_of(self._newest, program, self._seconds, self.buckets)
            tree = jax.tree.structure(_shapes(call.values[call.params]))
            with self._told_where():
                executable = Executable(self._compilable(program), tree, lowered)
                if self.strict:
                    must_be_empty(differences(beside_plan(program, executable.compiled, self.mesh)))
            self._executables[key], self._newest = executable, program
            self._seconds = time.perf_counter() - began
        return executable

    @contextmanager
    def _told_where(self) -> Iterator[None]:
        """Errors that name no line of the user's name the one where the function begins."""
        try:
            yield
        except ShardwrightError as error:
            error.where = error.where or first_line(self.function)
            raise

    def _beside_plan(self, key: Any, program: Program) -> list[Beside]:
        """The plan beside the executable, once there is one."""
        executable = self._executables.get(key)
        return beside_plan(program, executable.compiled, self.mesh) if executable else []

    def _compilable(self, program: Program) -> Compilable:
        return Compilable(program, self.mesh, self.donate_state)

    def _packed(self, executable: Executable, params: Any) -> Packed:
        if isinstance(params, Packed):
            if params.raw is not None:
                params.become(executable.packed(params.raw, params.donate))
            return params
        leaves = jax.tree.leaves(params)
        if self._known is None or not self._known[0].are(leaves):
            self._known = (Seen(leaves), executable.packed(params))
        return self._known[1]


def _shapes(value: Any) -> Any:
    """An argument for tracing: shapes in the place of arrays, parameters as before packing."""
    value = value.originals() if isinstance(value, Packed) else value
    return jax.tree.map(_struct, value, is_leaf=is_state)


def _struct(leaf: Any) -> Any:
    if is_state(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return shape_of_lazy(leaf) if is_lazy(leaf) else shape_of(leaf) if is_array(leaf) else leaf


def _shape(leaf: Any) -> Any:
    dtype = getattr(leaf, "dtype", None)
    return (leaf.shape, dtype) if dtype is not None else type(leaf)
