"""A step that is compiled: what it holds between calls, and how arrays go in and come out.

Parameters are packed once. State that the program keeps in another form than the user does is a
`State` leaf of the user's pytree (`dialect.state`).
"""

from __future__ import annotations

from typing import Any

import jax

from dialect.compiling import Compilable, compiled, compiled_stage
from dialect.framework import treedef
from dialect.state import Form, is_state
from rewrite.errors import TraceError


class Packed:
    """Parameters as a step wants them: quantised, merged, precomputed, laid out on the mesh.

    Made by `prepare`. Until the step has seen the shapes of its other arguments it holds the
    user's own parameters, and packs them at the first call.
    """

    def __init__(self, leaves: list[Any], names: tuple[str, ...] = (), raw: Any = None) -> None:
        self.leaves, self.names, self.raw = leaves, names, raw


jax.tree_util.register_pytree_node(
    Packed,
    lambda packed: ((packed.leaves, packed.raw), packed.names),
    lambda names, children: Packed(children[0], names, children[1]),
)


class Executable:
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
        self.form, stages = Form(program), program.stages
        self.prepare = (
            compiled_stage(stages.prepare, compilable.shardings("param")) if stages else None
        )

    def __call__(self, packed: list[Any], others: list[Any]) -> Any:
        given = list(zip(jax.tree.leaves(others, is_leaf=is_state), self.roles))
        state = self.form.parts([leaf for leaf, role in given if role == "state"])
        rest = [leaf for leaf, role in given if role == "arg"]
        try:
            results = self.compiled(packed, state, rest)
        except (ValueError, TypeError):
            # Arrays that live elsewhere are moved; anything else fails again, and says why.
            groups = zip((packed, state, rest), ("param", "state", "arg"))
            results = self.compiled(*(self.placed(group, role) for group, role in groups))
        return jax.tree.unflatten(self.out_tree, self.form.collected(results))

    def placed(self, leaves: list[Any], role: str) -> list[Any]:
        return jax.device_put(leaves, self.formats[role])

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
        leaves, tree = jax.tree.flatten(state, is_leaf=is_state)
        # A copy: the step gives its state away, and the user's own array must live on.
        parts = self.placed(self.form.parts(leaves, copy=True), "state")
        return jax.tree.unflatten(tree, self.form.states(parts))

    def restored(self, state: Any) -> Any:
        leaves, tree = jax.tree.flatten(state, is_leaf=is_state)
        return jax.tree.unflatten(tree, self.form.restored(leaves))
