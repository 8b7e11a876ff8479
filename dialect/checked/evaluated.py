"""A graph evaluated op by op, with the size of what it computed on the way.

Sums may cancel: 1e8 - 1e8 + 1 is 1 in the reals, and anything near 1 once its parts are rounded. The
largest number on the way to an output says how far off a correct result may be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from dialect.checked.sensitivity import Disturb
from dialect.evaluate import applied
from rewrite.ir import Graph, Value

Evaluator = Callable[..., list[Any]]  # graph, arrays, how to disturb what ops give -> its results


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


def op_by_op(graph: Graph, arrays: Sequence[Any], disturb: Disturb | None = None) -> list[Any]:
    """The outputs, each top-level op applied alone; `disturb` may change what it gives."""
    results: dict[Value, Any] = dict(zip(graph.inputs, arrays, strict=True))
    for op in graph.ops:
        args = [results[arg] for arg in op.args]
        made = applied(op, args)
        results.update(zip(op.results, disturb(op.name, args, made) if disturb else made))
    return [results[value] for value in graph.outputs]


def magnitude(array: Any) -> float:
    """The largest finite magnitude among the elements of a float array, else 0."""
    if not hasattr(array, "dtype") or not jnp.issubdtype(array.dtype, jnp.floating):
        return 0.0
    numbers = np.abs(np.asarray(array).astype(np.float64))
    numbers = numbers[np.isfinite(numbers)]
    return float(numbers.max()) if numbers.size else 0.0


# Ops that reach infinity from finite numbers only where f64 has no larger number.
_GROWS = frozenset(
    """add sub mul square integer_pow pow exp exp2 expm1 cosh sinh contract dot_general reduce_sum
    reduce_prod cumsum cumprod sqrt softmax""".split()
)


def overflows(graph: Graph, arrays: Sequence[Any]) -> bool:
    """Whether some op that only grows makes infinity of finite numbers."""
    results: dict[Value, Any] = dict(zip(graph.inputs, arrays, strict=True))
    for op in graph.ops:
        args = [results[arg] for arg in op.args]
        results.update(zip(op.results, applied(op, args)))
        if op.name in _GROWS and not all(map(_is_finite, applied(op, [*map(_finite, args)]))):
            return True
    return False


def _finite(array: Any) -> Any:
    """The array with ones where it is not finite."""
    return array if _is_finite(array) else jnp.where(jnp.isfinite(array), array, 1)


def _is_finite(array: Any) -> bool:
    if not hasattr(array, "dtype") or not jnp.issubdtype(array.dtype, jnp.inexact):
        return True
    return bool(jnp.isfinite(jnp.asarray(array)).all())
