"""A step whose sequences share a position, as one in which every sequence has its own.

    step(params, cache, tokens)  ->  vmap(step on a batch of one)(params, cache of rows, tokens)

A decoder keeps one position for its whole batch, and other state that the sequences share. A server
needs sequences at different places (Orca, Yu et al. 2022, section 3). The decoder is run on a batch
of one and batched by JAX's own rules. Rows stay where the decoder has the axis of its batch; what
its sequences shared gets an axis of rows in front. Keeps reals.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dialect.arrays.dtypes import struct_of
from dialect.arrays.evaluate import evaluate
from dialect.jaxprs.framework import treedef
from dialect.normal.expert_products import experts_of_all_rows
from dialect.user.tracing import trace
from rewrite.driver import rewrite
from rewrite.errors import TraceError
from rewrite.ir import Graph


@dataclass(frozen=True)
class _Rows:
    """The axis of an array that counts rows, None where all rows share it, and whether the step
    has an axis for its batch there."""

    axis: int | None
    is_batch: bool = True


class _Traced(NamedTuple):
    """A step on a batch of one: its graph, the tree of its results, and where these have rows."""

    graph: Graph
    tree: Any
    results: Any


class PerRow:
    """`step(params, cache, ...)` with a position, and all other state, for every row.

    `init_cache(batch)` gives the decoder's cache: the axis that differs between a batch of one and
    of two counts its sequences. An argument's rows are its first axis of as many elements; without
    one it is shared by all rows. Results have their rows where the step has its batch.

    once: whether a step that was traced is not traced again for another number of rows. It may then
    close over nothing that is being traced.
    """

    def __init__(
        self, step: Callable[..., Any], init_cache: Callable[[int], Any], once: bool = False
    ) -> None:
        functools.update_wrapper(self, step)
        self.step, self.init_cache = step, init_cache
        self.known: dict[Any, _Traced] | None = {} if once else None

    @functools.cached_property
    def cache_rows(self) -> Any:
        """Where the cache has its rows: a pytree like the cache. Raises TraceError."""
        return _batches(*(jax.eval_shape(lambda n=n: self.init_cache(n)) for n in (1, 2)))

    def init(self, rows: int) -> Any:
        """A new cache: `{"k": [layers, rows, ...], "position": i32[rows]}`.

        What the sequences of a batch shared is repeated; typed random keys are split.
        """
        return jax.tree.map(
            lambda leaf, at: leaf if at.is_batch else _repeated(leaf, rows),
            self.init_cache(rows),
            self.cache_rows,
        )

    def __call__(self, params: Any, cache: Any, *args: Any) -> Any:
        """The step on all rows. Raises TraceError where a batch of one cannot be traced."""
        sizes = jax.tree.map(lambda leaf, at: leaf.shape[at.axis], cache, self.cache_rows)
        count = jax.tree.leaves(sizes)[0]
        given = (cache, *args)
        at = (self.cache_rows, *jax.tree.map(lambda leaf: _rows_of(leaf, count), args))
        one, two = (jax.tree.map(_sized(batch), given, at) for batch in (1, 2))
        graph, tree, results = self._traced(params, one, two)

        def of_row(*row: Any) -> Any:
            leaves = jax.tree.leaves((params, *jax.tree.map(_with_batch, row, at)))
            computed = tree.unflatten(evaluate(graph, leaves))
            return jax.tree.map(_without_batch, computed, results)

        read, written = (jax.tree.map(lambda rows: rows.axis, named) for named in (at, results))
        return jax.vmap(of_row, in_axes=read, out_axes=written)(*given)

    def _traced(self, params: Any, one: Any, two: Any) -> _Traced:
        """The step on a batch of one, and where its results have the rows of a batch of two."""
        leaves, structure = jax.tree.flatten((jax.tree.map(jax.typeof, params), one))
        key = structure, *leaves
        if self.known is not None and key in self.known:
            return self.known[key]
        program = trace(self.step, params, *one, state=1)
        graph = rewrite(program.graph, [experts_of_all_rows])
        tree = treedef(program.tree[1])
        of_one = tree.unflatten([struct_of(value.type) for value in graph.outputs])
        traced = _Traced(graph, tree, _batches(of_one, jax.eval_shape(self.step, params, *two)))
        if self.known is not None:
            self.known[key] = traced
        return traced


def _batches(of_one: Any, of_two: Any) -> Any:
    """`_Rows` of every array whose shapes for a batch of one and of two are given."""
    return jax.tree_util.tree_map_with_path(_batch, of_one, of_two)


def _batch(path: Any, one: Any, two: Any) -> _Rows:
    differ = [axis for axis, sizes in enumerate(zip(one.shape, two.shape)) if sizes[0] != sizes[1]]
    if not differ and one.ndim == two.ndim:
        return _Rows(0, is_batch=False)
    if len(differ) == 1 and (one.shape[differ[0]], two.shape[differ[0]]) == (1, 2):
        return _Rows(differ[0])
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    shapes = f"{list(one.shape)} for one sequence and {list(two.shape)} for two"
    hint = "every array has one axis that counts sequences, or is shared by them"
    raise TraceError(f"no axis of {name or 'the result'} counts sequences: {shapes}", hint=hint)


def _rows_of(leaf: Any, count: int) -> _Rows:
    """Where an argument of the step has its rows."""
    axes = [axis for axis, size in enumerate(jnp.shape(leaf)) if size == count]
    return _Rows(axes[0] if axes else None, is_batch=bool(axes))


def _sized(batch: int) -> Callable[[Any, _Rows], Any]:
    """What the step takes for a batch of this size, from an array of rows."""

    def shape(leaf: Any, rows: _Rows) -> jax.ShapeDtypeStruct:
        sizes = list(jnp.shape(leaf))
        if rows.axis is not None:
            sizes[rows.axis : rows.axis + 1] = [batch] * rows.is_batch
        return jax.ShapeDtypeStruct(tuple(sizes), jax.typeof(leaf).dtype)

    return shape


def _with_batch(leaf: Any, rows: _Rows) -> Any:
    return jnp.expand_dims(leaf, rows.axis) if rows.is_batch else leaf


def _without_batch(leaf: Any, rows: _Rows) -> Any:
    return jnp.squeeze(leaf, rows.axis) if rows.is_batch else leaf


def _repeated(leaf: Any, rows: int) -> Any:
    leaf = jnp.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.split(leaf, rows)
    return jnp.broadcast_to(leaf, (rows, *leaf.shape))


def per_row(
    step: Callable[..., Any], init_cache: Callable[[int], Any], once: bool = False
) -> PerRow:
    """`step(params, cache, ...)` with rows at places of their own; see `PerRow`."""
    return PerRow(step, init_cache, once)
