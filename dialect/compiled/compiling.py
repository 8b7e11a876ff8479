"""Compiles a staged program with XLA, for attached devices or ahead of time for a TPU topology.

Input shardings come from the program's layouts, and the state is donated, but for its scalars:
nothing is saved by updating a position in place, and people keep it. On a TPU the compiler chooses
the state's memory layout, which saves more memory traffic than any other option.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
from jax.experimental.layout import Format, Layout

from dialect.arrays.dtypes import short, struct_of
from dialect.arrays.evaluate import evaluate
from dialect.compiled.compilation_cache import left_out
from dialect.compiled.executable import DoesNotFit, compile_quietly
from dialect.display.quantities import size
from dialect.machine.caller import apart
from dialect.machine.mesh import TargetError, is_here
from dialect.ops.sharding import laid_out, lowering_on, named_sharding
from rewrite.ir import Graph, bits
from rewrite.program import NOT_DONE, Input, Program

ARGUMENT_GROUPS = ("param", "state", "scalar", "arg")  # the arguments of a compiled step
# Ops that may bind the user's code to specific devices.
_DEVICE_BOUND = {"sharding_constraint", "reshard", "device_put", "shard_map", "pallas_call"}


@dataclass(frozen=True)
class Compilable:
    """A step as a function of (packed parameters, packed state, scalars of the state, arguments),
    ready to lower."""

    program: Program
    mesh: Any
    donate_state: bool = True

    def lower(self) -> Any:
        """The `jax.stages.Lowered` of the step.

        Raises TargetError if lowering fails and the program has ops that may be the reason.
        """
        try:
            return self.traced().lower(lowering_platforms=(self.platform,))
        except Exception as error:  # JAX raises many types
            bound = sorted({op.name for op, _ in self.program.graph.walk()} & _DEVICE_BOUND)
            if not bound:
                raise
            raise TargetError(
                f"cannot be lowered for {self.mesh}: it contains {', '.join(bound)}, "
                f"which may be bound to other devices: {error}",
                hint="; ".join(self.program.remarks_of(NOT_DONE))
                or "put `retarget` first in the pipeline, and read its notes (step.explain)",
            ) from error

    @property
    def platform(self) -> str:
        """The JAX platform to lower for."""
        platform = self.mesh.devices.flat[0].platform
        return platform if platform in ("cpu", "tpu") else jax.default_backend()

    def traced(self) -> Any:
        """The `jax.stages.Traced` of the step."""
        arguments = [
            [struct_of(input_.type) for input_ in self.inputs(group)] for group in ARGUMENT_GROUPS
        ]
        with apart():
            return self.jitted().trace(*arguments)

    def jitted(self) -> Any:
        """The step as a jitted function with the shardings and formats of its executable."""
        return jax.jit(
            self.function(),
            in_shardings=tuple(self.formats(group) for group in ARGUMENT_GROUPS),
            out_shardings=self.output_formats(),
            donate_argnums=(1,) if self.donate_state else (),
            keep_unused=True,
        )

    def function(self) -> Callable[..., list[Any]]:
        """step(packed, state, scalars, args) -> outputs, on flat lists."""

        def step(*arguments: list[Any]) -> list[Any]:
            groups = dict(zip(ARGUMENT_GROUPS, map(iter, arguments), strict=True))
            declared = self.program.step_inputs
            with lowering_on(self.mesh):
                return evaluate(
                    self.program.graph, [next(groups[group_of(input_)]) for input_ in declared]
                )

        step.__name__ = self.program.name if self.program.name.isidentifier() else "step"
        return step

    def inputs(self, group: str) -> list[Input]:
        """The step's inputs of one group (`ARGUMENT_GROUPS`)."""
        return [input_ for input_ in self.program.step_inputs if group_of(input_) == group]

    def shardings(self, group: str) -> list[Any]:
        """The `NamedSharding` of every input of one group."""
        return [
            named_sharding(self.mesh, input_.layout, input_.type.rank)
            for input_ in self.inputs(group)
        ]

    def formats(self, group: str) -> list[Any]:
        """Shardings; on a TPU the state also has the memory layout `Layout.AUTO`."""
        return [
            self.free(input_, sharding)
            for input_, sharding in zip(self.inputs(group), self.shardings(group))
        ]

    def free(self, input_: Input, sharding: Any) -> Any:
        """The sharding, with a memory layout of the compiler's choice for the state on a TPU.

        On a CPU it would gain nothing, and with jax 0.10.2 later steps gave wrong results.
        """
        is_free = self.platform == "tpu" and input_.role == "state" and input_.type.rank > 1
        return Format(Layout.AUTO, sharding) if is_free else sharding

    def output_formats(self) -> list[Any]:
        """Formats of the outputs: of the updated input for state, as constrained for an output with
        a sharding constraint, replicated for any other."""
        formats = []
        for value, out in zip(self.program.graph.outputs, self.program.step_outputs):
            if out.updates is None:
                formats.append(named_sharding(self.mesh, laid_out(value), value.type.rank))
                continue
            source = self.program.step_inputs[out.updates]
            sharding = named_sharding(self.mesh, source.layout, source.type.rank)
            formats.append(self.free(source, sharding))
        return formats


def group_of(input_: Input) -> str:
    """The argument of a compiled step that holds an input (`ARGUMENT_GROUPS`)."""
    return "scalar" if input_.role == "state" and input_.type.rank == 0 else input_.role


def compiled(compilable: Compilable, lowered: Any = None) -> tuple[Any, tuple[str, ...]]:
    """(executable, the compiler's messages); `lowered` where it has been lowered already.

    Raises DoesNotFit, with the largest arrays, if the program does not fit into memory.
    """
    try:
        lowered = lowered or compilable.lower()
        with nullcontext() if is_here(compilable.mesh) else left_out():
            return compile_quietly(lowered)
    except DoesNotFit as error:
        largest = largest_inputs(compilable)
        raise DoesNotFit(error.needed_bytes, error.available_bytes, largest) from error


def largest_inputs(compilable: Compilable, count: int = 5) -> list[str]:
    """The step's largest inputs by bytes per chip."""
    sizes = dict(compilable.mesh.shape)
    per_chip = []
    for input_ in compilable.program.step_inputs:
        per_chip.append((bytes_per_chip(input_, sizes), f"{input_.name} {input_.type}"))
    largest = sorted(per_chip, reverse=True)[:count]
    return [f"{name} ({size(count)})" for count, name in largest]


def bytes_per_chip(input_: Input, sizes: Mapping[str, int]) -> float:
    """Bytes of an input on one chip, without padding. sizes: chips along every mesh axis."""
    shards = prod(sizes[axis] for dimension in input_.layout or () for axis in dimension)
    return input_.type.bytes / shards


def compiled_stage(graph: Graph, shardings: Sequence[Any] | None) -> Callable[..., list[Any]]:
    """prepare, adapt or restore as a jitted function with these output shardings."""
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
    """(the compiled function, its argument shardings); `shardings` are those of its results.

    An argument without a sharding gets the one that the compiler chooses.
    """
    jitted = jax.jit(
        function, out_shardings=list(shardings), donate_argnums=donate, keep_unused=True
    )
    with apart():
        lowered = jitted.lower(*arguments)
    executable, _ = compile_quietly(lowered)
    dtypes = [short(leaf.dtype) for leaf in jax.tree.leaves(arguments)]
    return callable_with(jitted, executable, dtypes), executable.input_shardings[0]


def callable_with(jitted: Any, executable: Any, dtypes: Iterable[str]) -> Callable[..., Any]:
    """The executable, or the jitted function if the executable would reject its arguments.

    On a CPU an executable expects int4 in a layout that no array has with jax 0.10.2; `jax.jit`
    does not check.
    """
    platforms = {
        device.platform
        for sharding in jax.tree.leaves(executable.input_shardings)
        for device in sharding.device_set
    }
    if "cpu" not in platforms or all(bits(dtype) >= 8 for dtype in dtypes):
        return executable

    def call(*args: Any) -> Any:
        with apart():
            return jitted(*args)

    return call
