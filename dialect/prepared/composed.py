"""A step inside a function that JAX transforms: under `jit`, `scan`, `vmap`, `grad`, `eval_shape`.

An executable takes no tracers, so there a step is its rewritten program, with its sharding
constraints. Parameters that are not packed are packed in place, and a state comes back in the form
in which it was given, so that it can be the carry of a loop.
"""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from dialect.arrays.evaluate import evaluate
from dialect.compiled.compiling import Compilable
from dialect.jaxprs.framework import treedef
from dialect.machine.caller import explicit_mesh, must_agree, must_be_of
from dialect.prepared.arguments import Arguments
from dialect.prepared.packed_schema import Schema
from dialect.prepared.state import is_state
from rewrite.errors import TraceError


class Composed:
    """The program of a step as a function that JAX can trace."""

    def __init__(self, compilable: Compilable) -> None:
        self.compilable, self.program = compilable, compilable.program
        self.arguments = Arguments(self.program)
        self.form = self.arguments.form
        # Derivatives of a jitted function have the types of its arguments, those of ops have not.
        self._jitted = jax.jit(self._under, static_argnames=("mesh", "is_packed"))

    @cached_property
    def schema(self) -> Schema:
        """That of the parameters that the program takes."""
        return Schema.of(self.program, self.compilable.mesh)

    def __call__(self, params: list[Any], is_packed: bool, others: list[Any]) -> Any:
        """The step's results. params: leaves of the packed parameters, or of the originals.

        Raises TargetError under a mesh of other devices, and inside a shard_map.
        """
        state, rest = self.arguments.state_and_rest(others)
        if not self.form.is_of(state):
            raise TraceError(
                "the state is in the form of another step, and could not be a loop's carry",
                hint="convert it before, outside of the traced function: step.adapt(state)",
            )
        explicit = explicit_mesh([params, state, rest])
        if explicit is None:
            outputs = self._outputs(params, is_packed, state, rest)
        else:
            outputs = self._jitted(params, state, rest, mesh=explicit, is_packed=is_packed)
        return jax.tree.unflatten(treedef(self.program.tree[1]), outputs)

    def _under(self, params: Any, state: Any, rest: Any, mesh: Any, is_packed: bool) -> list[Any]:
        """The outputs under Explicit axes: whole, and a state of the type that it came in as."""
        numbers = [i for i, input_ in enumerate(self.program.inputs) if input_.role == "state"]
        came_in = dict(zip(numbers, state))
        specs = [
            jax.tree.map(lambda leaf: jax.typeof(leaf).sharding.spec, came_in[output.updates])
            if output.updates is not None
            else PartitionSpec()
            for output in self.program.outputs
        ]
        must_be_of(mesh, state)
        with jax.sharding.use_abstract_mesh(mesh):
            params = jax.tree.map(partial(_typed, mesh), params)
            run = jax.sharding.auto_axes(
                lambda *given: self._outputs(given[0], is_packed, *given[1:]), out_sharding=specs
            )
            return run(params, state, rest)

    def _outputs(self, params: Any, is_packed: bool, state: Any, rest: Any) -> list[Any]:
        """The user's outputs, on the step's mesh whatever the caller's is."""
        must_agree(self.compilable.mesh)
        with jax.sharding.use_abstract_mesh(self.compilable.mesh.abstract_mesh):
            stages = self.program.stages
            packed = params if is_packed or stages is None else evaluate(stages.prepare, params)
            groups = self.arguments.groups(packed, state, rest)
            outputs = self.form.collected(self.compilable.function()(*groups))
            return outputs if any(map(is_state, state)) else self._restored(outputs)

    def _restored(self, outputs: list[Any]) -> list[Any]:
        """The outputs, the new state among them in the user's form."""
        numbers = [i for i, input_ in enumerate(self.program.inputs) if input_.role == "state"]
        declared = {out.updates: place for place, out in enumerate(self.program.outputs)}
        places = [declared[number] for number in numbers]
        restored = dict(zip(places, self.form.restored([outputs[place] for place in places])))
        return [restored.get(place, value) for place, value in enumerate(outputs)]


def _typed(mesh: AbstractMesh, array: Any) -> Any:
    """An array whose derivatives have its type; JAX's `auto_axes` would give them that inside.

    The mesh is named, since a backward pass may run under another than the step was called under.
    """
    if not jax.dtypes.issubdtype(array.dtype, np.inexact):
        return array
    sharding = NamedSharding(mesh, jax.typeof(array).sharding.spec)
    return jax.custom_derivatives.linear_call(
        lambda _, x: x, lambda _, x: jax.sharding.reshard(x, sharding), (), array
    )
