"""A step inside a function that JAX transforms: under `jit`, `scan`, `vmap`, `grad`, `eval_shape`.

An executable takes no tracers, so there a step is its rewritten program, with its sharding
constraints. Parameters that are not packed are packed in place, and a state comes back in the form
in which it was given, so that it can be the carry of a loop.
"""

from __future__ import annotations

from typing import Any

import jax

from dialect.arrays.evaluate import evaluate
from dialect.compiled.compiling import Compilable
from dialect.jaxprs.framework import treedef
from dialect.prepared.arguments import Arguments
from dialect.prepared.state import is_state


def is_traced(leaves: Any) -> bool:
    """Whether any leaf of a pytree is a tracer."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(leaves))


class Composed:
    """The program of a step as a function that JAX can trace."""

    def __init__(self, compilable: Compilable) -> None:
        self.compilable, self.program = compilable, compilable.program
        self.arguments = Arguments(self.program)
        self.form = self.arguments.form

    def __call__(self, params: list[Any], is_packed: bool, others: list[Any]) -> Any:
        """The step's results. params: leaves of the packed parameters, or of the originals."""
        stages = self.program.stages
        packed = params if is_packed or stages is None else evaluate(stages.prepare, params)
        state, rest = self.arguments.state_and_rest(others)
        groups = self.arguments.groups(packed, state, rest)
        outputs = self.form.collected(self.compilable.function()(*groups))
        if not any(map(is_state, state)):
            outputs = self._restored(outputs)
        return jax.tree.unflatten(treedef(self.program.tree[1]), outputs)

    def _restored(self, outputs: list[Any]) -> list[Any]:
        """The outputs, the new state among them in the user's form."""
        numbers = [i for i, input_ in enumerate(self.program.inputs) if input_.role == "state"]
        declared = {out.updates: place for place, out in enumerate(self.program.outputs)}
        places = [declared[number] for number in numbers]
        restored = dict(zip(places, self.form.restored([outputs[place] for place in places])))
        return [restored.get(place, value) for place, value in enumerate(outputs)]
