"""Whether a program still computes what it did before a pass, in the class that the pass claims."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dialect import dtypes
from dialect.checked.compared import Difference, difference
from dialect.checked.evaluated import magnitude
from dialect.checked.lifted import NotLiftable, lifted, lifted_type
from rewrite.program import Program

# Rounding errors add up over the ops of a program; a wrong formula is wrong by more than so many.
_ROUNDINGS = 16


class Before:
    """The results of a program on some arrays, to compare those of rewritten ones with.

    `bits` is compared op by op, for a compiler may fuse; `reals` in f64, where the programs can be
    computed so, to the precision of their constants. `approx` promises types alone.
    """

    def __init__(self, program: Program, leaves: Sequence[Any]) -> None:
        self.program, self.leaves = program, list(leaves)
        self.wide = [widened(leaf) for leaf in leaves]

    @cached_property
    def results(self) -> list[Any]:
        return results(self.program, self.leaves)

    @cached_property
    def lifted_results(self) -> list[Any] | None:
        """In f64; None where the program cannot be computed so."""
        try:
            return results(lifted_program(self.program), self.wide)
        except NotLiftable:
            return None

    def departure(self, after: Program, keeps: str) -> Difference | None:
        """Where the results of `after` leave the class `keeps` of those of before, or None."""
        if keeps == "bits":
            return difference(self.results, results(after, self.leaves), "bits")
        if keeps == "approx":
            wrong = difference(self.results, results(after, self.leaves), "reals", math.inf)
            return wrong if wrong is not None and wrong.what == "type" else None
        with jax.enable_x64(True):
            got = None if self.lifted_results is None else self.lifted(after)
        if got is not None:
            tolerance = precision((self.program, after), constants_only=True)
            return self.compared(self.lifted_results, got, tolerance)
        got = results(after, self.leaves)
        return self.compared(self.results, got, precision((self.program, after)))

    def lifted(self, after: Program) -> list[Any] | None:
        try:
            return results(lifted_program(after), self.wide)
        except NotLiftable:
            return None

    def compared(
        self, expected: list[Any], got: list[Any], tolerance: float
    ) -> Difference | None:
        largest = max((magnitude(array) for array in (*self.leaves, *expected)), default=0.0)
        return difference(expected, got, "reals", tolerance, largest)


def results(program: Program, leaves: list[Any]) -> list[Any]:
    """The results of the program, computed op by op, those of loops too."""
    with jax.disable_jit():
        return program.run(leaves)


def lifted_program(program: Program) -> Program:
    """All graphs of a program over the reals (see `lifted`)."""
    inputs = tuple(replace(each, type=lifted_type(each.type)) for each in program.inputs)
    stages = program.stages
    if stages is not None:
        stages = replace(
            stages,
            prepare=lifted(stages.prepare),
            adapt=lifted(stages.adapt),
            restore=lifted(stages.restore),
            inputs=tuple(replace(each, type=lifted_type(each.type)) for each in stages.inputs),
        )
    return replace(program, graph=lifted(program.graph), inputs=inputs, stages=stages)


def widened(leaf: Any) -> Any:
    """An array in f64 or c128, where it is a float of 16 bits or more."""
    name = dtypes.type_of(leaf).dtype
    wider = lifted_type(dtypes.type_of(leaf)).dtype
    return leaf if wider == name else np.asarray(leaf).astype(dtypes.dtype_of(wider))


def precision(programs: Sequence[Program], constants_only: bool = False) -> float:
    """How far results may be off: so many roundings of the narrowest float dtype that is there.

    Over the reals only constants are rounded, where rules computed with them.
    """
    ops = [op for each in programs for graph in each.graphs.values() for op, _ in graph.walk()]
    names = {
        type_.dtype for op in ops if op.name == "const" or not constants_only for type_ in op.types
    }
    floats = [dtypes.dtype_of(name) for name in names if dtypes.is_dtype(name)]
    narrowest = [jnp.finfo(each).eps for each in floats if jnp.issubdtype(each, jnp.inexact)]
    return _ROUNDINGS * float(max(narrowest, default=np.finfo(np.float64).eps))
