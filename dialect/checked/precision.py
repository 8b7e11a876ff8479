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
    """The relative step of the narrowest constant that a rewrite computed; 0 where it did none."""
    known = _constants(before)
    steps = (_step(dtype) for number, dtype in _constants(after).items() if number not in known)
    return max(steps, default=0.0)


def _constants(graph: Graph) -> dict[float, str]:
    """Every number that a float constant holds, and its dtype."""
    numbers: dict[float, str] = {}
    for op, _ in graph.walk():
        if op.name != "const" or not dtypes.is_float(op.types[0].dtype):
            continue
        array = np.asarray(attributes.decode(op["value"]))
        for number in array.astype(np.float64).ravel().tolist():
            numbers.setdefault(number, op.types[0].dtype)
    return numbers
