"""The executables of an engine: steps of a few shapes, one that chooses tokens, one that copies
pages.

All are compiled before the first request, in parallel. Nothing else is ever compiled: a step runs
in the smallest that holds it, and the scheduler makes none that has no room in the largest. A step
gives the logits of as many rows as tokens can be chosen, whatever its shape, so choosing them is
compiled once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dialect.arrays.dtypes import short, struct_of
from dialect.compiled.compiling import Compilable, callable_with
from dialect.prepared.streaming import Preparation
from dialect.serving.policy import ServingError
from dialect.serving.shapes import Shape, rows_of
from dialect.staging.prepare_parts import prepare_of
from dialect.token_rows import packing, sampling
from dialect.token_rows.packing import Packed
from dialect.token_rows.sampling import Logits
from rewrite.ir import Type
from rewrite.program import Program

MOST_STEPS = 4  # of at most six executables, with the two that every engine has


class Executables:
    """The pools of a decoder, and the steps that run on them.

    programs: of the shapes of steps, and of one plan; pages: of every layer, in the pools; tables:
    of what counts (`dialect.token_rows.states`); copies: the pages that are copied at a time;
    choices: the tokens that are chosen at a time; groups: of chips that own rows; draft: the
    decoder that drafts, on the same pools.
    """

    def __init__(
        self,
        programs: Mapping[Shape, Program],
        mesh: Any,
        pages: int,
        tables: Sequence[Any],
        copies: int,
        choices: int,
        groups: int = 1,
        draft: Program | None = None,
    ) -> None:
        self.mesh, self.pages, self.copies = mesh, pages, copies
        self.choices = choices
        self.shapes, every = sorted(programs, key=rows_of), [*programs.values()]
        self.width = _table(every[0]).shape[1]
        self.whole = NamedSharding(mesh, PartitionSpec())
        self.tables = list(tables)
        first = Compilable(every[0], mesh)
        _must_share(every, ("param", "state"))
        _must_share([every[0], draft] if draft else [], ("state",))
        self.pool_types = [struct_of(input_.type) for input_ in first.inputs("state")]
        self.pool_shardings = first.shardings("state")
        self.logits = Logits.of(every[0], mesh, choices, groups)
        started = time.perf_counter()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            largest_first = {shape: programs[shape] for shape in reversed(self.shapes)}
            steps = {shape: pool.submit(self._step, each) for shape, each in largest_first.items()}
            drafting = pool.submit(self._step, draft) if draft else None
            choosing, copy = pool.submit(self._choosing), pool.submit(self._copying)
            self.steps = {shape: step.result() for shape, step in steps.items()}
            self.drafting = drafting.result() if drafting else None
            self.copy, self.choosing = copy.result(), choosing.result()
        self.compile_s = time.perf_counter() - started

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.steps) + 2 + (self.drafting is not None)

    def fresh(self) -> None:
        """Empty pools, and no results that a step could take tokens from. Call it first."""
        self.tables = jax.device_put(self.tables, self.whole)
        self.pools = [
            _zeros(struct, sharding)
            for struct, sharding in zip(self.pool_types, self.pool_shardings)
        ]
        self.results = _zeros(self._results, self.whole)

    def run(self, params: Any, step: Packed) -> Any:
        """Queues a step; its results, i32[choices, RESULTS], are there when it has run."""
        self.results = self._queued(self.steps[step.shape], params, step, self.results)
        return self.results

    def draft(self, params: Any, step: Packed, last: Any = None) -> Any:
        """Queues a step of the decoder that drafts; `last`: the results that it takes tokens from.
        Its parameters are its own."""
        return self._queued(self.drafting, params, step, self.results if last is None else last)

    def _queued(self, executable: Any, params: Any, step: Packed, last: Any) -> Any:
        """Queues a step, and what chooses its tokens."""
        given = self.tables, last, step.rows, step.choices
        logits, self.pools = executable(params, self.pools, *given)
        return self.choosing(logits, step.choices)

    def copied(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Queues copies of pages: (page, its copy), none of which another writes."""
        for at in range(0, len(pairs), self.copies):
            part = pairs[at : at + self.copies]
            array = np.full((self.copies, 2), self.pages, np.int32)
            array[: len(part)] = part
            self.pools = self.copy(self.pools, array)

    # Compiling.

    @property
    def _results(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.choices, sampling.RESULTS), jnp.int32)

    @property
    def _choices(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.choices, sampling.COLUMNS), jnp.int32)

    def _step(self, program: Program) -> Any:
        """step(packed, pools, tables, results of the last, rows, choices) -> logits, pools"""
        compilable = Compilable(program, self.mesh)

        def step(
            packed: Any, pools: Any, tables: Any, results: Any, rows: Any, choices: Any
        ) -> Any:
            source, position = rows[:, packing.SOURCE], rows[:, packing.POSITION]
            tokens = jnp.where(source < 0, rows[:, packing.TOKEN], results[source, 0])
            args = [*tables, position, tokens, rows[:, packing.PAGES :]]
            logits, *kept = compilable.function()(packed, pools, [], args)
            return self.logits.of_choices(logits, choices[:, sampling.ROW]), kept

        rows = jax.ShapeDtypeStruct(
            (_table(program).shape[0], packing.PAGES + self.width), jnp.int32
        )
        jitted = jax.jit(
            step,
            in_shardings=(compilable.shardings("param"), self.pool_shardings, *[self.whole] * 4),
            out_shardings=(self.logits.sharding, self.pool_shardings),
            donate_argnums=1,
            keep_unused=True,
        )
        tables = [jax.ShapeDtypeStruct(table.shape, table.dtype) for table in self.tables]
        packed = [struct_of(declared.type) for declared in compilable.inputs("param")]
        given = (packed, self.pool_types, tables, self._results, rows, self._choices)
        dtypes = [short(leaf.dtype) for leaf in packed]
        return callable_with(jitted, jitted.lower(*given).compile(), dtypes)

    def _choosing(self) -> Any:
        """choosing(logits, choices) -> results"""

        def choosing(logits: Any, choices: Any) -> Any:
            return sampling.results(logits[:, : self.logits.vocab], choices)

        jitted = jax.jit(
            choosing, in_shardings=(self.logits.sharding, self.whole), out_shardings=self.whole
        )
        return jitted.lower(self.logits.struct, self._choices).compile()

    def _copying(self) -> Any:
        """copy(pools, pairs) -> pools"""

        def copy(pools: Any, pairs: Any) -> Any:
            source, target = pairs[:, 0], pairs[:, 1]
            return [
                (of_layers := pool.reshape(self.pages, -1, *pool.shape[1:]))
                .at[target]
                .set(of_layers[source], mode="drop")
                .reshape(pool.shape)
                for pool in pools
            ]

        pairs = jax.ShapeDtypeStruct((self.copies, 2), jnp.int32)
        jitted = jax.jit(
            copy,
            in_shardings=(self.pool_shardings, self.whole),
            out_shardings=self.pool_shardings,
            donate_argnums=0,
        )
        return jitted.lower(self.pool_types, pairs).compile()


def _zeros(struct: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.Array:
    """Zeros, of which every process makes what its devices hold."""
    part = np.zeros(sharding.shard_shape(struct.shape), struct.dtype)
    return jax.make_array_from_callback(struct.shape, sharding, lambda index: part)


def _must_share(programs: Sequence[Program], roles: Sequence[str]) -> None:
    """Raises ServingError unless all programs take the same inputs of some roles: packed
    parameters, pools."""
    kept = [
        [str(input_) for input_ in program.step_inputs if input_.role in roles]
        for program in programs
    ]
    for program, inputs in zip(programs, kept):
        for one, other in zip(kept[0], inputs, strict=True):
            if one != other:
                rows = _table(program).shape[0]
                message = f"steps of {rows} tokens would keep {other}, and not {one}"
                raise ServingError(message, hint="give passes such as pad the sizes they choose")


def _table(program: Program) -> Type:
    """[rows, pages of each]"""
    return program.step_inputs[-1].type


def packed_params(program: Program, mesh: Any, params: Any) -> list[Any]:
    """The parameters as every program of one plan takes them, packed once."""
    originals = [input_ for input_ in program.inputs if input_.role == "param"]
    shardings = Compilable(program, mesh).shardings("param")
    return Preparation(prepare_of(program), originals, shardings)(jax.tree.leaves(params))
