"""Export: a graph is run by applying the reference of every op, under tracing or on real arrays.

This is all there is to lowering: evaluated inside `jax.jit`, a graph becomes a jaxpr again, in
which every operation is named after the user's line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from dialect.arrays.source_lines import under_line
from rewrite import opdef
from rewrite.ir import Graph, Op, Value


def evaluate(graph: Graph, arrays: Sequence[Any]) -> list[Any]:
    """The outputs of `graph` for its inputs, in order. Traceable; loops over ops, no recursion."""
    if len(arrays) != len(graph.inputs):
        raise ValueError(f"{len(graph.inputs)} inputs, but {len(arrays)} arrays were given")
    results_of: dict[Value, Any] = dict(zip(graph.inputs, arrays))
    for op in graph.ops:
        with under_line(op.origin.source):
            results = applied(op, [results_of[arg] for arg in op.args])
        results_of.update(zip(op.results, results))
    return [_array(results_of[value]) for value in graph.outputs]


def applied(op: Op, args: Sequence[Any]) -> Sequence[Any]:
    """The results of one op: its reference on these arguments, with its attributes and regions."""
    options = {"regions": op.regions} if op.regions else {}
    out = opdef.lookup(op.name).reference(*args, **dict(op.attrs), **options)
    return [out] if len(op.types) == 1 and not isinstance(out, list) else out


def _array(result: Any) -> Any:
    """A weakly typed constant is a Python number to ops, but a result is an array."""
    return result if hasattr(result, "dtype") else jnp.asarray(result)
