"""Export: a graph is run by applying each op's reference, under tracing or on real arrays.

This is all there is to lowering: evaluated inside `jax.jit`, a graph becomes a jaxpr again, in
which every operation is named after the user's line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from dialect.source_lines import under_line
from rewrite import opdef
from rewrite.ir import Graph, Value


def evaluate(graph: Graph, arrays: Sequence[Any]) -> list[Any]:
    """The outputs of `graph` for its inputs, in order. Traceable; loops over ops, no recursion."""
    if len(arrays) != len(graph.inputs):
        raise ValueError(f"{len(graph.inputs)} inputs, but {len(arrays)} arrays were given")
    found: dict[Value, Any] = dict(zip(graph.inputs, arrays))
    for op in graph.ops:
        args = [found[arg] for arg in op.args]
        options = {"regions": op.regions} if op.regions else {}
        with under_line(op.origin.source):
            out = opdef.lookup(op.name).reference(*args, **dict(op.attrs), **options)
        if len(op.types) == 1 and not isinstance(out, list):
            out = [out]
        found.update(zip(op.results, out))
    return [_array(found[value]) for value in graph.outputs]


def _array(result: Any) -> Any:
    """A weakly typed constant is a Python number to ops, but a result is an array."""
    return result if hasattr(result, "dtype") else jnp.asarray(result)
