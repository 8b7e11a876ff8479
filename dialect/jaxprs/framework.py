"""JAX as the engine's framework: evaluation, pytrees, tracing. Registered on import."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from dialect.arrays import dtypes
from dialect.arrays.evaluate import evaluate
from dialect.jaxprs import jaxpr
from rewrite import runtime
from rewrite.errors import TraceError
from rewrite.ir import Graph, Opaque, Type, Value


class Jax(runtime.Framework):
    """Implements `rewrite.runtime.Framework`."""

    def evaluate(self, graph: Graph, arrays: Sequence[Any]) -> list[Any]:
        return evaluate(graph, arrays)

    def flatten(self, tree: Any, structure: Any) -> list[Any]:
        leaves, actual = jax.tree.flatten(structure)
        expected = treedef(tree)
        if actual != expected:
            raise TraceError(f"the arguments have the structure {actual}, expected {expected}")
        return leaves

    def unflatten(self, tree: Any, leaves: Sequence[Any]) -> Any:
        return jax.tree.unflatten(treedef(tree), leaves)

    def trace(self, function: Callable[..., Any], types: Sequence[Type]) -> Graph:
        return jaxpr.trace_graph(function, *(dtypes.struct_of(type_) for type_ in types))

    def check(self, type: Type) -> None:
        dtypes.check(type)

    def constant(self, value: Any, type: Type) -> Value:
        return jaxpr.constant(value, type)


def describe(tree: Any) -> Any:
    """A pytree's structure as plain data: its containers, a leaf as its number.

    Dicts, lists, tuples and None print and parse; any other container makes it an Opaque handle.
    """
    skeleton = jax.tree.unflatten(tree, range(tree.num_leaves))
    return skeleton if _plain(skeleton) else Opaque("PyTreeDef", tree, tree)


def treedef(tree: Any) -> Any:
    """The PyTreeDef that `describe` described."""
    return tree.payload if isinstance(tree, Opaque) else jax.tree.structure(tree)


def _plain(skeleton: Any) -> bool:
    if skeleton is None or isinstance(skeleton, int):
        return True
    if type(skeleton) is dict:
        return all(isinstance(key, (str, int)) and _plain(item) for key, item in skeleton.items())
    return type(skeleton) in (list, tuple) and all(_plain(item) for item in skeleton)


runtime.register(Jax())
