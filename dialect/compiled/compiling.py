"""From a staged program to an XLA executable, for the machine at hand or for a TPU far away.

Input shardings come from the program's own layouts, the state is donated, and for a TPU the
compiler chooses the state's memory layout: the largest single saving in memory traffic there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh

from dialect.arrays.dtypes import short, struct_of
from dialect.arrays.evaluate import evaluate
from dialect.compiled.executable import DoesNotFit, compile_quietly
from dialect.machine.mesh import TargetError
from dialect.ops.sharding import lowering_on, named_sharding
from rewrite.ir import Graph, bits
from rewrite.program import Input, Program

_ROLES = ("param", "state", "arg")
# What the user's own code may have bound to a machine.
_FOREIGN = {"sharding_constraint", "reshard", "device_put", "shard_map", "pallas_call"}
_NO_MESH = Mesh(np.empty((), dtype=object), ())


@dataclass(frozen=True)
class Compilable:
    """A step as a function of (packed parameters, packed state, arguments), ready to lower."""

    program: Program
    mesh: Any
    donate_state: bool = True

    def lower(self) -> Any:
        """The `jax.stages.Lowered` of the step.

        Raises TargetError where it cannot be had, and the program holds what may be the reason.
        """
        try:
            return self.traced().lower(lowering_platforms=(self.platform,))
        except Exception as error:  # JAX has many words for it
            held = sorted({op.name for op, _ in self.program.graph.walk()} & _FOREIGN)
            if not held:
                raise
            raise TargetError(
                f"cannot be lowered for {self.mesh}; it holds {', '.join(held)}, "
                f"which may be bound to another machine: {error}",
                hint="put `retarget` first in the pipeline, and read what it says (step.explain)",
            ) from error

    @property
    def platform(self) -> str:
        platform = self.mesh.devices.flat[0].platform
        return platform if platform in ("cpu", "tpu") else jax.default_backend()

    def traced(self) -> Any:
        arguments = [[struct_of(each.type) for each in self.inputs(role)] for role in _ROLES]
        with jax.set_mesh(_NO_MESH):  # the caller may be under one of explicit axes
            return self.jitted().trace(*arguments)

    def jitted(self) -> Any:
        """The step as a jitted function, for the mesh and in the formats of its executable."""
        return jax.jit(
            self.function(),
            in_shardings=tuple(self.formats(role) for role in _ROLES),
            out_shardings=self.output_formats(),
            donate_argnums=(1,) if self.donate_state else (),
            keep_unused=True,
        )

    def function(self) -> Callable[..., list[Any]]:
        """step(packed, state, args) -> outputs, on flat lists."""

        def step(packed: list[Any], state: list[Any], args: list[Any]) -> list[Any]:
            groups = {"param": iter(packed), "state": iter(state), "arg": iter(args)}
            with lowering_on(self.mesh):
                return evaluate(
                    self.program.graph, [next(groups[e.role]) for e in self.program.step_inputs]
                )

        step.__name__ = self.program.name if self.program.name.isidentifier() else "step"
        return step

    def inputs(self, role: str) -> list[Input]:
        return [each for each in self.program.step_inputs if each.role == role]

    def shardings(self, role: str) -> list[Any]:
        return [
            named_sharding(self.mesh, each.layout, each.type.rank) for each in self.inputs(role)
        ]

    def formats(self, role: str) -> list[Any]:
        """Shardings; for the state of a TPU program with the memory layout left to the compiler."""
        return [
            self.free(each, sharding)
            for each, sharding in zip(self.inputs(role), self.shardings(role))
        ]

    def free(self, each: Input, sharding: Any) -> Any:
        # On a CPU nothing is gained, and with jax 0.10.2 later steps came out wrong.
        chooses = self.platform == "tpu" and each.role == "state" and each.type.rank > 1
        return Format(Layout.AUTO, sharding) if chooses else sharding

    def output_formats(self) -> list[Any]:
        """The updated state where it came from, an output that is constrained as it is constrained.

        Any other output is replicated.
        """
        found = []
        for value, out in zip(self.program.graph.outputs, self.program.step_outputs):
            if out.updates is None:
                layout = value.op["layout"] if value.op.name == "constrain" else None
                found.append(named_sharding(self.mesh, layout, value.type.rank))
                continue
            source = self.program.step_inputs[out.updates]
            sharding = named_sharding(self.mesh, source.layout, source.type.rank)
            found.append(self.free(source, sharding))
        return found


def compiled(compilable: Compilable) -> tuple[Any, tuple[str, ...]]:
    """(executable, what the compiler had to say).

    Raises DoesNotFit, naming the largest arrays, where the program does not fit in memory.
    """
    try:
        return compile_quietly(compilable.lower())
    except DoesNotFit as error:
        largest = largest_inputs(compilable)
        raise DoesNotFit(error.needed_bytes, error.available_bytes, largest) from error


def largest_inputs(compilable: Compilable, count: int = 5) -> list[str]:
    """The step's largest inputs by their bytes on each chip."""
    sizes = dict(compilable.mesh.shape)
    per_chip = []
    for each in compilable.program.step_inputs:
        split = prod(sizes[axis] for axes in each.layout or () for axis in axes)
        per_chip.append((each.type.bytes / split, f"{each.name} {each.type}"))
    largest = sorted(per_chip, reverse=True)[:count]
    return [f"{name} ({size / 2**30:.2f} GiB)" for size, name in largest]


def compiled_stage(graph: Graph, shardings: Sequence[Any] | None) -> Callable[..., list[Any]]:
    """prepare, adapt or restore as a jitted function, its results laid out over the mesh."""
    return jax.jit(
        lambda arrays: evaluate(graph, arrays),
        out_shardings=list(shardings) if shardings is not None else None,
    )


def compiled_alone(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    shardings: Sequence[Any],
    donate: tuple[int, ...] = (),
) -> tuple[Callable[..., Any], Sequence[Any]]:
    """(a function of arrays as it can be called, the shardings in which it takes its arguments).

    Its results are laid out over the mesh. An argument that names no sharding gets the one that
    the compiler finds best for the results.
    """
    whole = jax.jit(
        function, out_shardings=list(shardings), donate_argnums=donate, keep_unused=True
    )
    with jax.set_mesh(_NO_MESH):  # the caller may be under one of explicit axes
        lowered = whole.lower(*arguments)
    executable, _ = compile_quietly(lowered)
    dtypes = [short(each.dtype) for each in jax.tree.leaves(arguments)]
    return callable_with(whole, executable, dtypes), executable.input_shardings[0]


def callable_with(jitted: Any, executable: Any, dtypes: Iterable[str]) -> Callable[..., Any]:
    """The executable, or the function that it was compiled from where arrays would be refused.

    On a CPU an executable wants int4 in a layout that no array has with jax 0.10.2; `jax.jit`
    does not ask.
    """
    platforms = {
        device.platform
        for sharding in jax.tree.leaves(executable.input_shardings)
        for device in sharding.device_set
    }
    if "cpu" not in platforms or all(bits(dtype) >= 8 for dtype in dtypes):
        return executable

    def call(*args: Any) -> Any:
        with jax.set_mesh(_NO_MESH):
            return jitted(*args)

    return call
