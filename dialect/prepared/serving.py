"""A step that is compiled: what it holds between calls, and how arrays go in and come out.

Parameters are packed once. State that the program keeps in another form than the user does is a
`State` leaf of the user's pytree (`dialect.prepared.state`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from dialect.arrays.dtypes import struct_of
from dialect.compiled.compiling import Compilable, callable_with, compiled
from dialect.jaxprs.framework import treedef
from dialect.prepared.packed_files import load, misfits, save
from dialect.prepared.packed_schema import PackedError, Schema, refuse
from dialect.prepared.state import Form, is_state
from dialect.prepared.streaming import Preparation
from dialect.staging.prepare_parts import prepare_of
from rewrite.ir import Type


class Packed:
    """Parameters as a step wants them: quantised, merged, precomputed, laid out on the mesh.

    Made by `step.prepare` or read by `step.load`. `schema` tells what the arrays are, `tree` is
    the pytree of the originals. Until the step has seen the shapes of its other arguments it holds
    those originals, `raw`, and packs them at the first call; `donate` says whether they may be
    deleted then.
    """

    def __init__(
        self,
        leaves: list[Any],
        schema: Schema | None = None,
        tree: Any = None,
        raw: Any = None,
        donate: bool = False,
    ) -> None:
        self.leaves, self.schema, self.tree = leaves, schema, tree
        self.raw, self.donate = raw, donate

    @property
    def names(self) -> tuple[str, ...]:
        """The path of each array: `params/layers/wq.quantize`."""
        return tuple(each.name for each in self.schema.packed) if self.schema else ()

    def originals(self) -> Any:
        """What is packed here, as the step's function takes it: shapes, where it was packed."""
        if self.schema is None:
            return self.raw
        structs = [struct_of(Type.parse(each.type)) for each in self.schema.model]
        return jax.tree.unflatten(self.tree, structs)

    def save(self, path: str | Path) -> None:
        """Writes a file that ends in `.safetensors`, or else a folder, by orbax; see `step.load`.

        A file replaces one of that name, a folder must be new. Raises PackedError.
        """
        if self.schema is None:
            raise PackedError(
                "these parameters are not packed yet",
                hint="give the step's other arguments too: step.prepare(params, *rest)",
            )
        save(path, self.leaves, self.schema)


jax.tree_util.register_pytree_node(
    Packed,
    lambda packed: (
        (packed.leaves, packed.raw),
        (packed.schema, packed.tree, packed.donate),
    ),
    lambda about, children: Packed(children[0], about[0], about[1], children[1], about[2]),
)


class Executable:
    """One program of a step, compiled for one set of shapes. `tree`: that of its parameters."""

    def __init__(self, compilable: Compilable, tree: Any) -> None:
        self.compilable, program = compilable, compilable.program
        self.program, self.tree = program, tree
        self.compiled, self.notes = compiled(compilable)
        self.call = callable_with(
            compilable.jitted(),
            self.compiled,
            (each.type.dtype for each in compilable.inputs("param")),
        )
        # With the memory layouts that the compiler chose for the state.
        self.formats = dict(zip(("param", "state", "arg"), self.compiled.input_formats[0]))
        self.schema = Schema.of(program, compilable.mesh)
        self._fitting = {id(self.schema): self.schema}  # held, so that no other gets its id
        self.roles = [each.role for each in program.inputs if each.role != "param"]
        self.out_tree = treedef(program.tree[1])
        self.form = Form(program)
        self.shardings = compilable.shardings("param")
        originals = [each for each in program.inputs if each.role == "param"]
        self.prepare = Preparation(prepare_of(program), originals, self.shardings)

    def __call__(self, packed: Packed, others: list[Any]) -> Any:
        """The step's results. Raises PackedError for parameters that are another program's."""
        if id(packed.schema) not in self._fitting:
            refuse("what the step was given", packed.schema.differences(self.schema))
            self._fitting[id(packed.schema)] = packed.schema
        given = list(zip(jax.tree.leaves(others, is_leaf=is_state), self.roles))
        state = self.form.parts([leaf for leaf, role in given if role == "state"])
        rest = [leaf for leaf, role in given if role == "arg"]
        try:
            results = self.call(packed.leaves, state, rest)
        except (ValueError, TypeError):
            wrong = misfits(self.schema, packed.leaves)
            if wrong:
                message = "\n  ".join(["the packed parameters were changed", *wrong[:4]])
                raise PackedError(message) from None
            # Arrays that live elsewhere are moved; anything else fails again, and says why.
            groups = zip((packed.leaves, state, rest), ("param", "state", "arg"))
            results = self.call(*(self.placed(group, role) for group, role in groups))
        return jax.tree.unflatten(self.out_tree, self.form.collected(results))

    def placed(self, leaves: list[Any], role: str) -> list[Any]:
        return jax.device_put(leaves, self.formats[role])

    def packed(self, params: Any, donate: bool = False) -> Packed:
        """The parameters packed; with `donate`, those on devices are deleted as it goes."""
        leaves, tree = jax.tree.flatten(params)
        return Packed(self.prepare(leaves, donate), self.schema, tree)

    def loaded(self, path: str | Path) -> Packed:
        """What `Packed.save` wrote. Raises PackedError where it is another program's."""
        return Packed(load(path, self.schema, self.shardings), self.schema, self.tree)

    def adapted(self, state: Any) -> Any:
        leaves, tree = jax.tree.flatten(state, is_leaf=is_state)
        # A copy: the step gives its state away, and the user's own array must live on.
        parts = self.placed(self.form.parts(leaves, copy=True), "state")
        return jax.tree.unflatten(tree, self.form.states(parts))

    def restored(self, state: Any) -> Any:
        leaves, tree = jax.tree.flatten(state, is_leaf=is_state)
        return jax.tree.unflatten(tree, self.form.restored(leaves))
