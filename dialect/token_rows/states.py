"""What a decoder keeps between steps: a cache of keys and values, and what merely counts.

    position + 1, an index for every layer, a random key that is split: the same for every sequence
    that has read as many tokens, so it is computed once for every number of tokens

All other state is a cache, and has to lie in pages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from dialect.arrays.evaluate import evaluate
from dialect.user.tracing import trace
from rewrite.dataflow import known_values
from rewrite.ir import Graph
from rewrite.program import Program


@dataclass(frozen=True)
class States:
    """The leaves of a decoder's state, in order.

    - names: their paths
    - counted: for each that counts, its values after 0, 1, .. `context` tokens,
      [context + 1, ..]; None for a cache
    """

    tree: Any
    names: tuple[str, ...]
    counted: tuple[Any, ...]

    @staticmethod
    def of(step: Callable[..., Any], params: Any, init: Callable[[], Any], context: int) -> States:
        """Those of `step(params, state, tokens)`, where `init()` is the state of one sequence."""
        cache = jax.eval_shape(init)
        token = jax.ShapeDtypeStruct((1,), jnp.int32)
        program = trace(step, params, cache, token, state=1)
        known, graph = _counting(program)
        paths, tree = jax.tree.flatten_with_path(cache)
        counted: list[Any] = [None] * len(paths)
        if known:
            first = jax.jit(lambda: [jax.tree.leaves(init())[number] for number in known])()
            rows = _iterated(graph, first, context)
            counted = [dict(zip(known, rows)).get(number) for number in range(len(paths))]
        names = tuple(jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths)
        return States(tree, names, tuple(counted))

    @property
    def tables(self) -> list[Any]:
        """The values of what counts."""
        return [values for values in self.counted if values is not None]

    def caches(self, leaves: list[Any]) -> dict[str, Any]:
        """Those of the leaves that are caches, by their names."""
        named = zip(self.names, leaves, self.counted)
        return {name: leaf for name, leaf, values in named if values is None}

    def of_counted(self, leaves: list[Any]) -> list[Any]:
        """Those of the leaves that count."""
        return [leaf for leaf, values in zip(leaves, self.counted) if values is not None]

    def whole(self, caches: dict[str, Any], counted: list[Any]) -> Any:
        """The decoder's state from its caches and what counts."""
        values = iter(counted)
        pairs = zip(self.names, self.counted)
        leaves = [caches[name] if held is None else next(values) for name, held in pairs]
        return jax.tree.unflatten(self.tree, leaves)


def _counting(program: Program) -> tuple[list[int], Graph]:
    """The leaves of the state, by number, that follow from one another alone; and how."""
    graph, states = (
        program.graph,
        [number for number, declared in enumerate(program.inputs) if declared.role == "state"],
    )
    new = {
        out.updates: value
        for value, out in zip(graph.outputs, program.outputs)
        if out.updates is not None
    }
    chosen = list(states)
    while True:
        known = known_values(graph, [graph.inputs[number] for number in chosen])
        left = [number for number in chosen if new[number] in known]
        if left == chosen:
            break
        chosen = left
    inputs = tuple(graph.inputs[number] for number in chosen)
    return [states.index(number) for number in chosen], Graph(
        inputs, tuple(new[number] for number in chosen)
    )


def _iterated(graph: Graph, first: list[Any], times: int) -> list[Any]:
    """The values before each of so many steps, and behind the last: [times + 1, ..] of each."""

    def advance(values: Any, _: Any) -> tuple[Any, Any]:
        return evaluate(graph, values), values

    def run() -> Any:
        return jax.lax.scan(advance, first, None, length=times + 1)[1]

    return jax.jit(run)()
