"""Runs `prepare` part by part, so that memory never holds two full copies of the parameters.

A part places its originals on the mesh, in the shardings that the compiler chooses, packs them, and
frees them before the next part begins. Parts of equal structure are compiled once.
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

    inputs: the originals; shardings: of the packed parameters; grain_bytes: the least size of a
    part.
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
        """The packed parameters. With `donate`, originals on devices are deleted on the way.

        Raises TraceError if an original has another type than the program's.
        """
        self.check(originals)
        run = _Run(self, originals, donate)
        freed = [nbytes(original) if donate else 0 for original in originals]
        ordered = in_order(self.parts, freed)
        work = [(part, unit) for part in ordered for unit in range(part.units)]
        last = run.last_readers(work)
        run.free(set(range(len(originals))).difference(*last.values()))
        for place, (part, unit) in enumerate(tracked(work, "packing parameters")):
            run.step(part, unit)
            run.free(last.get(place, ()))
        return run.results

    def check(self, originals: Sequence[Any]) -> None:
        """Raises TraceError unless the originals have the types of the program's parameters."""
        if len(originals) != len(self.inputs):
            raise TraceError(
                f"the program has {len(self.inputs)} parameters, {len(originals)} were given"
            )
        wrong = []
        for input_, original in zip(self.inputs, originals):
            given = original_type(original)
            if (given.dtype, given.shape) != (input_.type.dtype, input_.type.shape):
                wrong.append(f"{input_.name} is {given}, the program has {input_.type}")
        if wrong:
            more = f"\n  and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise TraceError(
                "\n  ".join(wrong[:3]) + more,
                hint="prepare them with the step's other arguments: step.prepare(params, *rest)",
            )

    def at_once(self, part: Part) -> Any:
        """The executable of a part that runs in one step: reads -> results."""
        shardings = [self.shardings[number] for number in part.makes]
        return self.once(part, partial(evaluate, part.graph), [_structs(part)], shardings)

    def layer(self, part: Part) -> Any:
        """The executable of one layer: (results so far, layer number, reads) -> results."""

        def step(stacks: list[Any], number: Any, arrays: list[Any]) -> list[Any]:
            layer = evaluate(part.graph, arrays)
            put = partial(jax.lax.dynamic_update_index_in_dim, index=number, axis=0)
            return [put(stack, row) for stack, row in zip(stacks, layer)]

        stacks = [self.struct(number) for number in part.makes]
        number = jax.ShapeDtypeStruct((), np.int32)
        shardings = [self.shardings[number] for number in part.makes]
        return self.once(part, step, [stacks, number, _structs(part)], shardings, donate=(0,))

    def once(
        self,
        part: Part,
        function: Any,
        arguments: list[Any],
        shardings: list[Any],
        donate: tuple[int, ...] = (),
    ) -> Any:
        """The executable of a function of a part, compiled on first use."""
        key = (part.graph, len(part.layers), tuple(shardings))
        if key not in self._compiled:
            self._compiled[key] = compiled_alone(function, arguments, shardings, donate)
        return self._compiled[key]

    def struct(self, number: int) -> jax.ShapeDtypeStruct:
        """Shape, dtype and sharding of a packed parameter."""
        type_ = self.graph.outputs[number].type
        return jax.ShapeDtypeStruct(
            type_.shape, dtype_of(type_.dtype), sharding=self.shardings[number]
        )


class _Run:
    """One run of a preparation: the remaining originals, and the packed parameters so far."""

    def __init__(self, preparation: Preparation, originals: Sequence[Any], donate: bool) -> None:
        self.preparation, self.donate = preparation, donate
        self.originals = list(originals)
        self.results: list[Any] = [None] * len(preparation.shardings)
        self.buffers: set[tuple[Any, int]] = set()  # device buffers of the results

    def last_readers(self, work: Sequence[tuple[Part, int]]) -> dict[int, list[int]]:
        """{step: originals that no later step reads}. One array may be several originals."""
        last: dict[int, int] = {}
        for place, (part, unit) in enumerate(work):
            for read in part.reads(unit):
                last[id(self.originals[read.number])] = place
        freed: dict[int, list[int]] = {}
        for number, original in enumerate(self.originals):
            if id(original) in last:
                freed.setdefault(last[id(original)], []).append(number)
        return freed

    def step(self, part: Part, unit: int) -> None:
        reads = part.reads(unit)
        if part.layers:
            self.layer(part, unit, reads)
        elif part.graph.ops:
            call, (wanted,) = self.preparation.at_once(part)
            self.keep(part, call([self.fetch(*request) for request in zip(reads, wanted)]))
        else:
            sources = dict(zip(part.graph.inputs, reads))
            wanted = [self.preparation.shardings[number] for number in part.makes]
            values = zip(part.graph.outputs, wanted)
            self.keep(part, [self.fetch(sources[value], sharding) for value, sharding in values])

    def layer(self, part: Part, unit: int, reads: tuple[Read, ...]) -> None:
        call, (_, _, wanted) = self.preparation.layer(part)
        results = [self.results[number] for number in part.makes]
        if unit == 0:
            structs = map(self.preparation.struct, part.makes)
            results = [jnp.zeros(s.shape, s.dtype, device=s.sharding) for s in structs]
        arrays = [self.fetch(*request) for request in zip(reads, wanted)]
        results = call(results, np.int32(unit), arrays)
        self.keep(part, results, finished=unit + 1 == part.units)

    def fetch(self, read: Read, sharding: Any) -> jax.Array:
        original, input_ = self.originals[read.number], self.preparation.inputs[read.number]
        array = fetched(original, input_.type, read.rows, sharding)
        if input_.finite and not jnp.isfinite(array).all():
            raise TraceError(
                f"{input_.name} has NaN or infinity, and the program needs finite numbers",
                hint="correct it, or leave out the rules that need it finite (see `explain`)",
            )
        return array

    def keep(self, part: Part, results: Sequence[Any], finished: bool = True) -> None:
        """Stores results, after waiting for them: a pending computation would keep the memory of
        its inputs."""
        for number, array in zip(part.makes, jax.block_until_ready(list(results))):
            self.results[number] = array
        if finished and self.donate:
            self.buffers.update(*(_buffers(self.results[number]) for number in part.makes))

    def free(self, numbers: Iterable[int]) -> None:
        """Drops originals, and deletes donated ones unless a result shares their buffers."""
        for number in numbers:
            original, self.originals[number] = self.originals[number], None
            if self.donate and is_live(original) and not self.buffers & _buffers(original):
                original.delete()


def _structs(part: Part) -> list[Any]:
    return [struct_of(value.type) for value in part.graph.inputs]


def is_live(original: Any) -> bool:
    """Whether an original is an array on devices that is not deleted."""
    return isinstance(original, jax.Array) and not original.is_deleted()


def _buffers(array: jax.Array) -> set[tuple[Any, int]]:
    """The buffers of an array: (device, address)."""
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    shards = (shard.data for shard in array.addressable_shards)
    return {(shard.device, shard.unsafe_buffer_pointer()) for shard in shards}
