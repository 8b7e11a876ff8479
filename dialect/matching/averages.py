"""Averages: a sum of real numbers over some axes, divided by a number, however it is spelled."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dialect.arrays.dtypes import dtype_of
from dialect.matching.values import REALS, number, through, unrounded
from rewrite.ir import Op, Value


@dataclass(frozen=True)
class Average:
    """`source` summed over axes by the op `total`, then divided by a scalar or multiplied with it.

    `quotient` is the name of that op, `div` or `mul`.
    """

    source: Value
    total: Op
    quotient: str
    scalar: Value

    @property
    def axes(self) -> tuple[int, ...]:
        """The dimensions that are averaged over."""
        return self.total["axes"]

    @property
    def terms(self) -> int:
        """The number of elements in each sum."""
        return math.prod(self.source.type.shape[axis] for axis in self.axes)

    @property
    def is_mean(self) -> bool:
        """Whether the sum is divided by the number of its terms, or multiplied with 1/n rounded."""
        if self.quotient == "div":
            return number(self.scalar) == self.terms
        dtype, reciprocal = dtype_of(self.scalar.type.dtype), 1 / max(1, self.terms)
        return np.asarray(number(self.scalar), dtype) == np.asarray(reciprocal, dtype)

    @property
    def miss(self) -> str:
        """Why it is no mean."""
        verb = "divides by" if self.quotient == "div" else "multiplies with"
        return f"it {verb} {number(self.scalar)}, where {self.terms} are summed"


def average_of(value: Value) -> Average | None:
    """The average of floats that the value is, its axes kept or not; None if it is none."""
    value = unrounded(value, "reshape")
    for quotient, scalar in _quotients(value.op):
        total = through(quotient, "reshape").op
        if total.name != "reduce_sum" or number(scalar) is None:
            continue
        if value.type.dtype in REALS and value.type.shape == quotient.type.shape:
            scalar = through(scalar, "broadcast_in_dim", "reshape")
            return Average(unrounded(total.args[0]), total, value.op.name, scalar)
    return None


def _quotients(op: Op) -> tuple[tuple[Value, ...], ...]:
    """(dividend, divisor) in each order that the op allows."""
    if op.name == "mul":
        return op.args, op.args[::-1]
    return (op.args,) if op.name == "div" else ()


def mean_of(value: Value) -> Value | None:
    """x where the value is mean(x) over some axes, kept or not, of real numbers; else None."""
    average = average_of(value)
    return average.source if average is not None and average.is_mean else None
