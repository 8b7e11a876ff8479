"""A graph evaluated op by op, with the largest magnitude among its intermediate results.

Sums may cancel: 1e8 - 1e8 + 1 is 1 in the reals, and anything near 1 once its terms are rounded.
The largest number on the way to an output says how far off a correct result may be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dialect.arrays.dtypes import struct_of
from dialect.arrays.evaluate import applied
from dialect.checked.arrays import finite
from dialect.checked.sensitivity import Disturb, magnitude, terms
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import traits

Evaluator = Callable[..., list[Any]]  # graph, arrays, how to disturb results -> outputs


def evaluated(
    graph: Graph, arrays: Sequence[Any], evaluate: Evaluator | None = None
) -> tuple[list[Any], float]:
    """The outputs, and the largest finite magnitude of a float among the arrays and on the way.

    `evaluate` runs the graph: op by op, unless it is given.
    """
    largest = [0.0, *map(magnitude, arrays)]

    def noted(name: str, args: list[Any], results: list[Any]) -> list[Any]:
        largest.extend(map(magnitude, results))
        return results

    return (evaluate or op_by_op)(graph, arrays, noted), max(largest)


def _given(graph: Graph, arrays: Sequence[Any]) -> dict[Value, Any]:
    """The arrays by the graph's inputs: JAX's, whose methods a reference may call."""
    given = (array if isinstance(array, jax.Array) else jnp.asarray(array) for array in arrays)
    return dict(zip(graph.inputs, given, strict=True))


def op_by_op(graph: Graph, arrays: Sequence[Any], disturb: Disturb | None = None) -> list[Any]:
    """The outputs, each top-level op applied alone; `disturb` may change its results."""
    results = _given(graph, arrays)
    for op in graph.ops:
        dtype, arrays_read = struct_of(op.types[0]).dtype, [results[arg] for arg in op.args]
        args = terms(disturb, op.name, arrays_read, dtype)
        computed = applied(op, args)
        results.update(zip(op.results, disturb(op.name, args, computed) if disturb else computed))
    return [results[value] for value in graph.outputs]


# Ops that reach infinity from finite numbers only where f64 has no larger number.
_GROWS = frozenset(
    """add sub mul square integer_pow pow exp exp2 expm1 cosh sinh contract dot_general
    ragged_dot_general expert_product reduce_sum reduce_prod cumsum cumprod sqrt softmax""".split()
)


def means_nothing(graph: Graph, arrays: Sequence[Any]) -> bool:
    """Whether results say nothing about the reals, which neither overflow nor underflow.

    An op of `_GROWS` gives infinity for finite numbers, or all exponentials along an axis are zero,
    or a product's counts of rows are negative, or have a sum beyond 32-bit integers.
    """
    results = _given(graph, arrays)
    for op in graph.ops:
        args = [results[arg] for arg in op.args]
        results.update(zip(op.results, applied(op, args)))
        counts = traits(op).counts
        if counts and not _are_sizes(args[counts]):
            return True
        if op.name in _GROWS:
            if not all(finite(array).all() for array in applied(op, [*map(_finite, args)])):
                return True
        exponents = _exponents(op, results)
        if exponents is not None and _vanishes_along_an_axis(exponents, results[op.results[0]]):
            return True
    return False


def _exponents(op: Op, results: dict[Value, Any]) -> Any:
    """The exponents of an `exp`, or of a choice with one; -infinity where another is chosen."""
    if op.name != "select_n":
        return _exponent(op.results[0], results)
    choices = [_exponent(choice, results) for choice in op.args[1:]]
    if all(choice is None for choice in choices):
        return None
    nothing = jnp.full_like(results[op.results[0]], -jnp.inf)
    chosen = (nothing if choice is None else choice for choice in choices)
    return applied(op, [results[op.args[0]], *chosen])[0]


def _exponent(value: Value, results: dict[Value, Any]) -> Any:
    return results[value.op.args[0]] if value.op.name == "exp" else None


def _finite(array: Any) -> Any:
    """The array with ones where it is not finite."""
    is_finite = finite(array)
    return array if is_finite.all() else np.where(is_finite, array, 1).astype(array.dtype)


def _are_sizes(counts: Any) -> bool:
    sizes = [int(size) for size in np.asarray(counts).flatten()]
    return min(sizes, default=0) >= 0 and sum(sizes) <= np.iinfo(np.int32).max


def _vanishes_along_an_axis(exponents: Any, results: Any) -> bool:
    """Whether an exponential underflows that another shift would show: along some axis none of its
    neighbours is 1 or more."""
    powers = np.asarray(results)
    vanished = np.isfinite(np.asarray(exponents)) & (powers == 0)
    axes = range(powers.ndim) if powers.size else ()
    return any((vanished.any(axis) & (powers.max(axis) < 1)).any() for axis in axes)
