"""Whether a pass keeps the results of a program in the class that it claims."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dialect.arrays import dtypes
from dialect.checked.compared import Difference, difference
from dialect.checked.lifted import NotLiftable, lifted, lifted_type, widened
from dialect.checked.sensitivity import magnitude
from rewrite.program import Program

# Rounding errors add up over the ops of a program; a wrong formula is off by more than so many.
_ROUNDINGS = 16


class Numbers:
    """The results of a program on some arrays, in its dtypes and over the reals, on demand."""

    def __init__(self, program: Program, leaves: Sequence[Any]) -> None:
        self.program, self.leaves = program, list(leaves)

    @cached_property
    def results(self) -> list[Any]:
        """The outputs on the drawn inputs, computed once."""
        return results(self.program, self.leaves)

    @cached_property
    def lifted_results(self) -> list[Any] | None:
        """In f64; None where the program cannot be computed so."""
        try:
            with jax.enable_x64(True):
                return results(lifted_program(self.program), list(map(widened, self.leaves)))
        except NotLiftable:
            return None

    def departure(self, after: Numbers, keeps: str) -> Difference | None:
        """Where the results of a rewritten program differ by more than `keeps` allows, or None.

        `bits` is compared op by op, for a compiler may fuse; `reals` in f64, where both programs
        can be lifted, to the precision of their constants. `approx` promises types alone.
        """
        if keeps == "bits":
            return difference(self.results, after.results, "bits")
        if keeps == "approx":
            wrong = difference(self.results, after.results, "reals", math.inf)
            return wrong if wrong is not None and wrong.what == "type" else None
        pair = self.lifted_results, after.lifted_results
        lifted_both = None not in pair
        expected, got = pair if lifted_both else (self.results, after.results)
        tolerance = precision((self.program, after.program), constants_only=lifted_both)
        largest = max((magnitude(array) for array in (*self.leaves, *expected)), default=0.0)
        return difference(expected, got, "reals", tolerance, largest)


def results(program: Program, leaves: list[Any]) -> list[Any]:
    """The results of the program, computed op by op, those of loops too."""
    with jax.disable_jit():
        return program.run(leaves)


def lifted_program(program: Program) -> Program:
    """All graphs of a program over the reals (see `lifted`)."""
    inputs = tuple(replace(entry, type=lifted_type(entry.type)) for entry in program.inputs)
    stages = program.stages
    if stages is not None:
        stages = replace(
            stages,
            prepare=lifted(stages.prepare),
            adapt=lifted(stages.adapt),
            restore=lifted(stages.restore),
            inputs=tuple(replace(entry, type=lifted_type(entry.type)) for entry in stages.inputs),
        )
    return replace(program, graph=lifted(program.graph), inputs=inputs, stages=stages)


def precision(programs: Sequence[Program], constants_only: bool = False) -> float:
    """The relative error allowed: some roundings of the narrowest float dtype.

    Over the reals only constants are rounded, by rules that computed with them.
    """
    ops = [
        op for program in programs for graph in program.graphs.values() for op, _ in graph.walk()
    ]
    names = {
        type_.dtype for op in ops if op.name == "const" or not constants_only for type_ in op.types
    }
    floats = [dtypes.dtype_of(name) for name in names if dtypes.is_dtype(name)]
    narrowest = [jnp.finfo(dtype).eps for dtype in floats if jnp.issubdtype(dtype, jnp.inexact)]
    return _ROUNDINGS * float(max(narrowest, default=np.finfo(np.float64).eps))
