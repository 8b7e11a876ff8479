"""A compiled step: its packed parameters, its state, and its calls.

Parameters are packed once. State in a form other than the user's is a `State` leaf of the user's
pytree (`dialect.prepared.state`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import jax
from jax.sharding import SingleDeviceSharding

from dialect.arrays.dtypes import struct_of
from dialect.compiled.compiling import ARGUMENT_GROUPS, Compilable, callable_with, compiled
from dialect.display.quantities import size
from dialect.display.told import tell
from dialect.jaxprs.framework import treedef
from dialect.machine.caller import apart, handed, must_be_numbers
from dialect.prepared.arguments import Arguments
from dialect.prepared.fresh_state import fresh_state
from dialect.prepared.packed_files import load, misfits, save
from dialect.prepared.packed_schema import LIKE, PackedError, Schema, refuse
from dialect.prepared.state import is_state
from dialect.prepared.streaming import Preparation
from dialect.staging.prepare_parts import prepare_of
from rewrite.errors import ShardwrightError, TraceError
from rewrite.ir import Graph, Type
from rewrite.program import Input

_NAMED = 3  # paths that an error names


class Packed:
    """Packed parameters of a step: quantised, merged, precomputed, and sharded over the mesh.

    Returned by `step.prepare` and `step.load`. `schema` describes the arrays, and `tree` is the
    pytree of the originals. Before the step knows the shapes of its other arguments this holds the
    originals, `raw`; the first call packs them, and deletes them if `donate` is set.
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

    def __repr__(self) -> str:
        """`<packed parameters: 12 arrays, 9.91 GiB (i8 8.75 GiB, bf16 1.16 GiB)>`."""
        if self.schema is None:
            return f"<parameters to be packed by the first call: {len(jax.tree.leaves(self.raw))}>"
        types = [Type.parse(array.type) for array in self.schema.packed]
        sizes: dict[str, int] = {}
        for type_ in types:
            sizes[type_.dtype] = sizes.get(type_.dtype, 0) + type_.bytes
        shown = ", ".join(f"{dtype} {size(count)}" for dtype, count in sizes.items())
        total = size(sum(sizes.values()))
        return f"<packed parameters: {len(types)} arrays, {total} ({shown})>"

    @property
    def names(self) -> tuple[str, ...]:
        """The paths of the arrays: `params/layers/wq.quantized`."""
        return tuple(array.name for array in self.schema.packed) if self.schema else ()

    def originals(self) -> Any:
        """The originals as the step's function takes them; as shapes, if they are packed."""
        if self.schema is None:
            return self.raw
        structs = [struct_of(Type.parse(array.type)) for array in self.schema.model]
        return jax.tree.unflatten(self.tree, structs)

    def here_of(self, schema: Schema) -> list[Any]:
        """The arrays that another step takes, as far as they are here; None for all others.

        The same arrays are computed from the same originals by the same ops.
        """
        if self.schema == schema:
            return self.leaves
        assert self.schema is not None, "these are originals"
        places = self.schema.places(schema)
        return [None if place is None else self.leaves[place] for place in places]

    def all_of(self, schema: Schema) -> list[Any]:
        """The same, where all are here. Raises PackedError, with the difference, otherwise."""
        leaves = self.here_of(schema)
        if self.schema and any(leaf is None for leaf in leaves):
            refuse("the argument of the step", self.schema.differences(schema), LIKE)
        return leaves

    def become(self, packed: Packed) -> None:
        """Takes what the first call packed in the place of the originals."""
        self.leaves, self.schema, self.tree = packed.leaves, packed.schema, packed.tree
        self.raw = None

    def save(self, path: str | Path) -> None:
        """Writes a file if the path ends in `.safetensors`, else an orbax folder; see `step.load`.

        A file is replaced, a folder must not exist. Raises PackedError.
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


class DonatedError(ShardwrightError):
    """A state was given to a step a second time; the first step reused its memory."""


class Executable:
    """A program of a step, compiled for one set of shapes.

    tree: the pytree of its parameters; lowered: the program as it was lowered, where it was.
    """

    def __init__(self, compilable: Compilable, tree: Any, lowered: Any = None) -> None:
        self.compilable, program = compilable, compilable.program
        self.program, self.tree = program, tree
        self.compiled, self.notes = compiled(compilable, lowered)
        self.call = callable_with(
            compilable.jitted(),
            self.compiled,
            (input_.type.dtype for input_ in compilable.inputs("param")),
        )
        # With the memory layouts that the compiler chose for the state.
        self.formats = {
            group: [
                _placement(*pair) for pair in zip(formats, compilable.inputs(group), strict=True)
            ]
            for group, formats in zip(ARGUMENT_GROUPS, self.compiled.input_formats[0], strict=True)
        }
        self.schema = Schema.of(program, compilable.mesh)
        self._converted: WeakKeyDictionary[Packed, Packed] = WeakKeyDictionary()
        self.names = [input_.name for input_ in program.inputs if input_.role == "state"]
        self.out_tree = treedef(program.tree[1])
        self.arguments = Arguments(program)
        self.form = self.arguments.form
        self.shardings = compilable.shardings("param")
        self.prepare = self._preparation()

    def __call__(self, packed: Packed, others: list[Any]) -> Any:
        """The step's results.

        Raises PackedError for parameters of another program, DonatedError for a state that an
        earlier step was given: its memory is that of the state that came back.
        """
        outputs = self._outputs(packed, others)
        names = (output.name for output in self.program.outputs)
        must_be_numbers(outputs, names, self.program.name)
        results = [
            self._handed(value, output.updates is not None)
            for value, output in zip(outputs, self.program.outputs)
        ]
        return jax.tree.unflatten(self.out_tree, results)

    @apart()
    def _outputs(self, packed: Packed, others: list[Any]) -> list[Any]:
        packed = self.of_this_step(packed)
        state, rest = self.arguments.state_and_rest(others)
        _must_be_there(state, self.names)
        groups = self.arguments.groups(packed.leaves, state, rest)
        try:
            results = self.call(*groups)
        except (ValueError, TypeError):
            wrong = misfits(self.schema, packed.leaves)
            if wrong:
                message = "\n  ".join(["the packed parameters were changed", *wrong[:4]])
                raise PackedError(message) from None
            # Arrays on other devices are moved; any other error is raised again.
            placed = (
                self.placed(leaves, self.formats[name])
                for leaves, name in zip(groups, ARGUMENT_GROUPS)
            )
            results = self.call(*placed)
        return self.form.collected(results)

    def of_this_step(self, packed: Packed) -> Packed:
        """Parameters that another step packed, as this one takes them: the same arrays.

        Raises PackedError where an array is computed in another way.
        """
        if packed.schema is self.schema:
            return packed
        if packed not in self._converted:
            leaves = self._laid_out(packed.all_of(self.schema))
            self._converted[packed] = Packed(leaves, self.schema, packed.tree)
        return self._converted[packed]

    def _laid_out(self, leaves: list[Any]) -> list[Any]:
        """Arrays that another step packed, or None, as this step wants them on the mesh.

        Those that lie otherwise are copied, which is told.
        """
        moved = [
            number
            for number, (leaf, sharding) in enumerate(zip(leaves, self.shardings))
            if isinstance(leaf, jax.Array)
            and not leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
        ]
        for number in moved:
            leaves[number] = jax.device_put(leaves[number], self.shardings[number])
        if moved:
            copied = size(sum(leaves[number].nbytes for number in moved))
            tell(
                f"{self.program.name}: {len(moved)} of {len(leaves)} packed parameters lie "
                f"otherwise on the mesh than this step wants them, and were copied: {copied}"
            )
        return leaves

    def _handed(self, arrays: Any, updates: bool = True) -> Any:
        """Arrays as the caller's mesh wants them."""
        mesh = self.compilable.mesh
        return jax.tree.map(lambda array: handed(array, updates, mesh), arrays)

    def placed(self, leaves: list[Any], formats: list[Any]) -> list[Any]:
        """The leaves on the devices, in formats of the executable."""
        return jax.device_put(list(map(_on_its_devices, leaves, formats)), formats)

    @property
    def state_formats(self) -> list[Any]:
        """The formats of the state, its scalars included, in its order."""
        formats = {group: iter(self.formats[group]) for group in ("state", "scalar")}
        return [next(formats[group]) for group in self.arguments.state_groups]

    def packed(self, params: Any, donate: bool = False, like: Packed | None = None) -> Packed:
        """The packed parameters; with `donate`, originals on devices are deleted on the way.

        Arrays that `like`, of another step, has as well are taken from it.
        """
        leaves, tree = jax.tree.flatten(params)
        _must_be_as_many(params, [x.name for x in self.program.inputs if x.role == "param"])
        with apart():
            if like is None or like.schema is None:
                return Packed(self._handed(self.prepare(leaves, donate)), self.schema, tree)
            arrays = self._laid_out(like.here_of(self.schema))
            missing = [number for number, array in enumerate(arrays) if array is None]
            packed = self._preparation(missing)(leaves, donate)
        for number, array in zip(missing, packed):
            arrays[number] = array
        return Packed(self._handed(arrays), self.schema, tree)

    def _preparation(self, numbers: Sequence[int] | None = None) -> Preparation:
        """What packs the parameters, or those of these numbers alone."""
        graph = prepare_of(self.program)
        numbers = range(len(graph.outputs)) if numbers is None else numbers
        originals = [input_ for input_ in self.program.inputs if input_.role == "param"]
        outputs = tuple(graph.outputs[number] for number in numbers)
        shardings = [self.shardings[number] for number in numbers]
        return Preparation(Graph(graph.inputs, outputs), originals, shardings)

    def loaded(self, path: str | Path) -> Packed:
        """The parameters that `Packed.save` wrote. Raises PackedError for another program's."""
        with apart():
            arrays = load(path, self.schema, self.shardings)
        return Packed(self._handed(arrays), self.schema, self.tree)

    def takes(self, state: Any) -> bool:
        """Whether a state has the arrays, shapes and dtypes that the step was compiled for."""
        leaves = jax.tree.leaves(state, is_leaf=is_state)
        return [(leaf.shape, leaf.dtype) for leaf in map(_array, leaves)] == self.form.about

    def adapted(self, state: Any) -> Any:
        """The user's state in the step's form."""
        leaves, tree = jax.tree.flatten(state, is_leaf=is_state)
        with apart():
            # Copied, since the step donates its state and the user may keep the array.
            parts = self.placed(self.form.parts(leaves, copy=True), self.state_formats)
        return jax.tree.unflatten(tree, self.form.states(self._handed(parts)))

    def fresh(self, init: Callable[[], Any]) -> Any:
        """The state that `init()` makes, in the step's form at once."""
        with apart():
            state = fresh_state(self.form, self.state_formats, init)
        return self._handed(state)

    def restored(self, state: Any) -> Any:
        """The state in the user's form. Raises DonatedError for one that a step was given."""
        leaves, tree = jax.tree.flatten(state, is_leaf=is_state)
        _must_be_there(leaves, self.names)
        with apart():
            arrays = self.form.restored(leaves)
        return jax.tree.unflatten(tree, self._handed(arrays))


def _must_be_as_many(params: Any, names: Sequence[str]) -> None:
    """Raises TraceError for more or fewer parameters than the step has, with their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if len(leaves) == len(names):
        return
    here = {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves}
    there = {name.partition("/")[2] for name in names}
    shown = [
        f"{what} {', '.join(sorted(paths)[:_NAMED])}{' ...' if len(paths) > _NAMED else ''}"
        for what, paths in (("they lack", there - here), ("and have", here - there))
        if paths
    ]
    raise TraceError(
        f"the step has {len(names)} parameters, {len(leaves)} were given: {' '.join(shown)}",
        hint="a step is for parameters of one structure: those of another decoder are for another "
        "step, auto_shard(...)",
    )


def _on_its_devices(leaf: Any, format_: Any) -> Any:
    """An array on other devices, moved: JAX does not change its layout as well."""
    sharding = getattr(format_, "sharding", format_)
    if not isinstance(leaf, jax.Array):
        return leaf
    here, alone = leaf.sharding.device_set, isinstance(leaf.sharding, SingleDeviceSharding)
    there = here <= sharding.device_set if alone else here == sharding.device_set
    return leaf if there else jax.device_put(leaf, sharding)


def _array(leaf: Any) -> Any:
    """A leaf of a state; a Python number as the array that it stands for."""
    return leaf if hasattr(leaf, "dtype") else jax.typeof(leaf)


def _placement(format_: Any, input_: Input) -> Any:
    """Where an input goes: in the compiler's memory layout, which PRNG keys do not take."""
    return format_.sharding if input_.type.dtype.startswith("key<") else format_


def _must_be_there(states: list[Any], names: list[str]) -> None:
    """Raises DonatedError, with its name, for a state whose arrays are deleted."""
    for state, name in zip(states, names):
        arrays = state.parts if is_state(state) else [state]
        if any(isinstance(array, jax.Array) and array.is_deleted() for array in arrays):
            raise DonatedError(
                f"{name} was donated to an earlier step, which updated it in place",
                hint="pass the state that the step returned, or build it with donate_state=False",
            )
