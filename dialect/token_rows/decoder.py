"""A decoder's step as one on token rows, each at a place of its own in pages that rows may share.

    step(params, cache, tokens [batch])
      ->  logits of token rows(params, pools, table [rows, pages], positions [rows], tokens [rows])

A token is a row. A sequence that decodes has one; a chunk of a prompt has one for each of its
tokens, and a sequence with drafts one for each of these, at consecutive positions and with the same
pages, which a group of rows reads together (`dialect.serving.shapes`). Every layer writes the keys
and values of all rows before it reads any, so a token sees those before it in its chunk. Prefill,
decode and whatever mixes them are therefore one program, of any step that takes one token at a
time.

Rows without a token have pages that no pool has: they write nothing, and nobody reads their result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from dialect.serving.policy import ServingError
from dialect.serving.shapes import Shape, rows_alone, rows_of
from dialect.token_rows.pooled import pooled, sharing
from dialect.token_rows.states import States
from dialect.user.per_row import PerRow, per_row
from dialect.user.tracing import trace
from rewrite import manager
from rewrite.passbase import Pass
from rewrite.program import Program
from rewrite.target import Target

PASSES = (
    "retarget, normalize, recognize, roll, carry_cache, pad, paged{{page={page}}}, "
    "plan, shard, stage, lower"
)
PAGE, PAGE_ON_TPU = 16, 128  # tokens: a TPU has tiles to fill
FEWEST = 2  # rows: a batch of one has no axis to be told by


@dataclass(frozen=True)
class Decoder:
    """What is served: `step(params, cache, tokens)`, `init_cache(batch)`, shapes of its params."""

    step: Callable[..., Any]
    init_cache: Callable[[int], Any]
    params: Any
    states: States
    known: dict[Any, Program] = field(default_factory=dict)  # before the plan, and staged

    @cached_property
    def of_rows(self) -> PerRow:
        """The step with a position for every row, traced once."""
        return per_row(self.step, self.init_cache, once=True)

    def traced(self, rows: int) -> Program:
        """step(params, caches, tables of what counts, positions, tokens) -> logits, caches."""
        of_rows = self.of_rows
        places = self.states.of_counted(jax.tree.leaves(of_rows.cache_rows))

        def step(params: Any, caches: Any, tables: Any, positions: Any, tokens: Any) -> Any:
            counted = [_at(positions, *row) for row in zip(tables, places)]
            logits, state = of_rows(params, self.states.whole(caches, counted), tokens)
            return logits, self.states.caches(jax.tree.leaves(state))

        caches = self.states.caches(jax.eval_shape(lambda: jax.tree.leaves(of_rows.init(rows))))
        number = jax.ShapeDtypeStruct((rows,), jnp.int32)
        return trace(step, self.params, caches, self.states.tables, number, number, state=1)

    def before_plan(self, rows: int, passes: tuple[Pass, ...], target: Target) -> Program:
        """The program as `plan` gets it. Raises ServingError for passes that do not serve."""
        names = [pass_.pass_name() for pass_ in passes]
        lacking = [name for name in ("paged", "plan", "stage", "lower") if name not in names]
        if lacking:
            hint = PASSES.format(page=PAGE_ON_TPU)
            raise ServingError(f"the pipeline lacks {', '.join(lacking)}", hint=hint)
        key = rows, passes[: names.index("plan")]
        if key not in self.known:
            self.known[key] = manager.run(self.traced(rows), key[1], target)[0]
        return self.known[key]

    def staged(self, rows: int, passes: tuple[Pass, ...], target: Target, plan: Any) -> Program:
        """The program up to `stage`, sharded as `plan` says; for None as the pass of that name."""
        program = self.before_plan(rows, passes, target)
        names = [pass_.pass_name() for pass_ in passes]
        first, last = names.index("plan"), names.index("stage") + 1
        if plan is not None:
            program, first = replace(program, plan=plan), first + 1
        key = rows, passes[:last], plan
        if key not in self.known:
            self.known[key] = manager.run(program, passes[first:last], target)[0]
        return self.known[key]

    def program(
        self,
        shape: Shape,
        pages: int,
        passes: tuple[Pass, ...],
        target: Target,
        plan: Any = None,
        drafts: bool = False,
    ) -> Program:
        """The rewritten program of the rows of a shape, on pools of so many pages; sharded as
        `plan` says, if given. `drafts`: of two decoders, the one that drafts.

        Raises ServingError where the passes leave a part of the decoder's state out of pages.
        """
        on_pools = pooled(self.staged(rows_of(shape), passes, target, plan), pages, drafts)
        if shape != rows_alone(rows_of(shape)):
            on_pools = on_pools.with_graph(sharing(on_pools.graph, shape))
        last = [pass_.pass_name() for pass_ in passes].index("stage") + 1
        return manager.run(on_pools, passes[last:], target)[0]


def _at(positions: Any, table: Any, rows: Any) -> Any:
    """What counts, of every row: its values [context + 1, ..] of a batch of one, at positions."""
    values = table[positions]
    if not rows.is_batch:
        return values
    return jnp.moveaxis(jnp.squeeze(values, 1 + rows.axis), 0, rows.axis)
