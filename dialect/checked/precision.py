"""How exactly two sides of a rule can be compared, told from their graphs."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from dialect.arrays import attributes, dtypes
from rewrite.ir import Graph

# Where the least rounding of an argument may turn a result altogether.
_TURNS = frozenset(
    """floor ceil round sign eq ne lt le gt ge argmax argmin sort rem is_finite quantize
    quantize_tokens rounded top_k weight_scale""".split()
)


def turns(graph: Graph) -> bool:
    """Whether some op takes steps: its result is no continuous function of its floats."""
    return any(op.name in _TURNS or _to_integers(op) for op, _ in graph.walk())


def _to_integers(op: Any) -> bool:
    converts = op.name == "convert_element_type"
    return (
        converts
        and dtypes.is_float(op.args[0].type.dtype)
        and not dtypes.is_float(op.types[0].dtype)
    )


def _step(dtype: str) -> float:
    if dtype == "c64":
        return _step("f32")
    return float(jnp.finfo(dtypes.dtype_of(dtype)).eps) if dtypes.is_float(dtype) else 0.0


def new_constants(before: Graph, after: Graph) -> float:
    """How far off results may be for the constants that a rewrite computed, and rounded."""
    return 32 * step_of_new_constants(before, after)


def step_of_new_constants(before: Graph, after: Graph) -> float:
    """The relative step of the narrowest constant that a rewrite computed, or rounded; 0 where it
    did none."""
    known = _constants(before)
    numbers = {number for number, _ in known}
    new = _constants(after) - known
    steps = (
        _step(dtype) for number, dtype in new if number not in numbers or _is_rounded(number, dtype)
    )
    return max(steps, default=0.0)


def _constants(graph: Graph) -> set[tuple[float, str]]:
    """Every number that a float constant holds, or that an op rounds to compute with it, and its
    dtype."""
    numbers: set[tuple[float, str]] = set()
    for op, _ in graph.walk():
        dtype = op.types[0].dtype
        if not dtypes.is_float(dtype):
            continue
        if op.name == "const":
            array = np.asarray(attributes.decode(op["value"]))
            held = array.astype(np.float64).ravel().tolist()
        else:
            held = [each for _, each in op.attrs if _is_rounded(each, dtype)]
        numbers.update((number, dtype) for number in held)
    return numbers


def _is_rounded(number: Any, dtype: str) -> bool:
    """Whether it is a number that a float dtype does not hold."""
    return isinstance(number, float) and float(np.asarray(number, dtypes.dtype_of(dtype))) != number
