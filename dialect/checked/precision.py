"""How exactly two sides of a rule can be compared, read off their graphs."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from dialect.arrays import attributes, dtypes
from rewrite.ir import Graph, Op
from rewrite.opdef import traits


def jumps(graph: Graph) -> bool:
    """Whether some result is not a continuous function of the floats that it depends on."""
    return any(traits(op).jumps or _to_integers(op) for op, _ in graph.walk())


def _to_integers(op: Op) -> bool:
    """Whether an op has integer or boolean results that depend on floats."""
    read, written = (
        {type_.dtype for type_ in types} for types in ([a.type for a in op.args], op.types)
    )
    return not op.regions and any(map(_is_inexact, read)) and not all(map(_is_inexact, written))


def _is_inexact(dtype: str) -> bool:
    return dtypes.is_float(dtype) or dtypes.is_complex(dtype)


def _step(dtype: str) -> float:
    if dtype == "c64":
        return _step("f32")
    return float(jnp.finfo(dtypes.dtype_of(dtype)).eps) if dtypes.is_float(dtype) else 0.0


def new_constants(before: Graph, after: Graph) -> float:
    """The relative error that results may have from constants that a rewrite computed."""
    return 32 * step_of_new_constants(before, after)


def step_of_new_constants(before: Graph, after: Graph) -> float:
    """The machine epsilon of the narrowest constant that a rewrite computed or rounded; 0 if it did
    none."""
    old = _constants(before)
    numbers = {number for number, _ in old}
    new = _constants(after) - old
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
            values = array.astype(np.float64).ravel().tolist()
        else:
            values = [value for _, value in op.attrs if _is_rounded(value, dtype)]
        numbers.update((number, dtype) for number in values)
    return numbers


def _is_rounded(number: Any, dtype: str) -> bool:
    """Whether it is a number that a float dtype does not hold."""
    return isinstance(number, float) and float(np.asarray(number, dtypes.dtype_of(dtype))) != number
