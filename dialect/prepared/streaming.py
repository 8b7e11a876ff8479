"""`prepare` at size: part by part over the mesh, so that two full copies never exist.

A part brings onto the mesh what it reads, in the layout that the compiler wants for it, packs it,
and lets it go before the next begins. Parts of equal structure are compiled once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dialect.arrays.dtypes import dtype_of, struct_of
from dialect.arrays.evaluate import evaluate
from dialect.compiled.compiling import compiled_alone
from dialect.display.progress import tracked
from dialect.prepared.originals import fetched, nbytes, original_type
from dialect.staging.prepare_parts import GRAIN_BYTES, Part, Read, in_order, parts
from rewrite.errors import TraceError
from rewrite.ir import Graph
from rewrite.program import Input


class Preparation:
    """`prepare` of a program as a function of the original parameters, in their order.

    inputs: the originals; shardings: of what is made. Parts hold at least `grain_bytes`.
    """

    def __init__(
        self,
        graph: Graph,
        inputs: Sequence[Input],
        shardings: Sequence[Any],
        grain_bytes: int = GRAIN_BYTES,
    ) -> None:
        self.graph, self.inputs, self.shardings = graph, tuple(inputs), list(shardings)
        self.parts = parts(graph, grain_bytes)
        self._compiled: dict[Any, Any] = {}

    def __call__(self, originals: Sequence[Any], donate: bool = False) -> list[jax.Array]:
        """The packed parameters. With `donate`, originals on devices are deleted as it goes.

        Raises TraceError where an original is not what the program was made for.
        """
        self.check(originals)
        run = _Run(self, originals, donate)
        freed = [nbytes(each) if donate else 0 for each in originals]
        ordered = in_order(self.parts, freed)
        work = [(part, unit) for part in ordered for unit in range(part.units)]
        last = run.last_readers(work)
        run.free(set(range(len(originals))).difference(*last.values()))
        for place, (part, unit) in enumerate(tracked(work, "packing parameters")):
            run.step(part, unit)
            run.free(last.get(place, ()))
        return run.made

    def check(self, originals: Sequence[Any]) -> None:
        """Raises TraceError unless the originals have the types that the program was made for."""
        if len(originals) != len(self.inputs):
            raise TraceError(
                f"the program has {len(self.inputs)} parameters, {len(originals)} were given"
            )
        wrong = []
        for each, original in zip(self.inputs, originals):
            found = original_type(original)
            if (found.dtype, found.shape) != (each.type.dtype, each.type.shape):
                wrong.append(f"{each.name} is {found}, the program was made for {each.type}")
        if wrong:
            more = f"\n  and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise TraceError(
                "\n  ".join(wrong[:3]) + more,
                hint="prepare them with the step's other arguments: step.prepare(params, *rest)",
            )

    def whole(self, part: Part) -> Any:
        """The executable of a part that runs in one step: reads -> results."""
        shardings = [self.shardings[number] for number in part.makes]
        return self.once(part, partial(evaluate, part.graph), [_structs(part)], shardings)

    def layer(self, part: Part) -> Any:
        """The executable of one layer: (results so far, layer number, reads) -> results."""

        def step(made: list[Any], number: Any, arrays: list[Any]) -> list[Any]:
            layer = evaluate(part.graph, arrays)
            put = partial(jax.lax.dynamic_update_index_in_dim, index=number, axis=0)
            return [put(whole, own) for whole, own in zip(made, layer)]

        made = [self.struct(number) for number in part.makes]
        number = jax.ShapeDtypeStruct((), np.int32)
        shardings = [self.shardings[number] for number in part.makes]
        return self.once(part, step, [made, number, _structs(part)], shardings, donate=(0,))

    def once(
        self,
        part: Part,
        function: Any,
        arguments: list[Any],
        shardings: list[Any],
        donate: tuple[int, ...] = (),
    ) -> Any:
        key = (part.graph, len(part.layers), tuple(shardings))
        if key not in self._compiled:
            self._compiled[key] = compiled_alone(function, arguments, shardings, donate)
        return self._compiled[key]

    def struct(self, number: int) -> jax.ShapeDtypeStruct:
        type_ = self.graph.outputs[number].type
        return jax.ShapeDtypeStruct(
            type_.shape, dtype_of(type_.dtype), sharding=self.shardings[number]
        )


class _Run:
    """One run of a preparation: the originals that are left, and what is made."""

    def __init__(self, preparation: Preparation, originals: Sequence[Any], donate: bool) -> None:
        self.preparation, self.donate = preparation, donate
        self.originals = list(originals)
        self.made: list[Any] = [None] * len(preparation.shardings)
        self.buffers: set[tuple[Any, int]] = set()  # what the results lie in

    def last_readers(self, work: Sequence[tuple[Part, int]]) -> dict[int, list[int]]:
        """After which step which originals are no longer read. One array may be several."""
        last: dict[int, int] = {}
        for place, (part, unit) in enumerate(work):
            for read in part.reads(unit):
                last[id(self.originals[read.number])] = place
        found: dict[int, list[int]] = {}
        for number, original in enumerate(self.originals):
            if id(original) in last:
                found.setdefault(last[id(original)], []).append(number)
        return found

    def step(self, part: Part, unit: int) -> None:
        reads = part.reads(unit)
        if part.layers:
            self.layer(part, unit, reads)
        elif part.graph.ops:
            call, (wanted,) = self.preparation.whole(part)
            self.keep(part, call([self.fetch(*each) for each in zip(reads, wanted)]))
        else:
            held = dict(zip(part.graph.inputs, reads))
            wanted = [self.preparation.shardings[number] for number in part.makes]
            values = zip(part.graph.outputs, wanted)
            self.keep(part, [self.fetch(held[value], each) for value, each in values])

    def layer(self, part: Part, unit: int, reads: tuple[Read, ...]) -> None:
        call, (_, _, wanted) = self.preparation.layer(part)
        made = [self.made[number] for number in part.makes]
        if unit == 0:
            structs = map(self.preparation.struct, part.makes)
            made = [jnp.zeros(s.shape, s.dtype, device=s.sharding) for s in structs]
        arrays = [self.fetch(*each) for each in zip(reads, wanted)]
        made = call(made, np.int32(unit), arrays)
        self.keep(part, made, finished=unit + 1 == part.units)

    def fetch(self, read: Read, sharding: Any) -> jax.Array:
        original, each = self.originals[read.number], self.preparation.inputs[read.number]
        array = fetched(original, each.type, read.rows, sharding)
        if each.finite and not jnp.isfinite(array).all():
            raise TraceError(
                f"{each.name} holds NaN or infinity, where the program takes finite numbers",
                hint="mend it, or leave out the rules that `explain` says need it finite",
            )
        return array

    def keep(self, part: Part, made: Sequence[Any], finished: bool = True) -> None:
        """Waited for: what is only asked for holds its memory, and that of what it reads."""
        for number, array in zip(part.makes, jax.block_until_ready(list(made))):
            self.made[number] = array
        if finished and self.donate:
            self.buffers.update(*(_buffers(self.made[number]) for number in part.makes))

    def free(self, numbers: Iterable[int]) -> None:
        """Lets originals go, and deletes what is ours to delete, unless a result lives in it."""
        for number in numbers:
            original, self.originals[number] = self.originals[number], None
            if self.donate and is_live(original) and not self.buffers & _buffers(original):
                original.delete()


def _structs(part: Part) -> list[Any]:
    return [struct_of(value.type) for value in part.graph.inputs]


def is_live(original: Any) -> bool:
    """Whether an original is an array that still lies on devices."""
    return isinstance(original, jax.Array) and not original.is_deleted()


def _buffers(array: jax.Array) -> set[tuple[Any, int]]:
    """Where an array lies: each device with an address there."""
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    shards = (each.data for each in array.addressable_shards)
    return {(each.device, each.unsafe_buffer_pointer()) for each in shards}
