"""Sums of shifted exponentials, read as terms exp(l) * leaf from a result towards its products.

What is shifted and scaled in many ways, with maxima or with logarithms of sums, has one form here:
a factor is the power of e whose exponent is a sum of logarithms, each counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

from dialect.matching.operands import Operand, named, unlaid
from dialect.matching.proofs import is_finite
from dialect.matching.values import number, unrounded
from dialect.recognition.softmaxes import Exponent, exponent_of, masked_once
from rewrite.ir import Op
from rewrite.signature import Array, Signature, letters

DEEPEST = 24  # ops between a result and the products that it sums
CONTEXT = "context"


class Log(frozenset[tuple[Any, int]]):
    """A sum of logarithms: each with how often it is added. An `Operand` stands for its value, a
    `Total` for its logarithm."""

    def plus(self, other: Log, times: int = 1) -> Log:
        """self + times * other"""
        counts = dict(self)
        for key, count in other:
            counts[key] = counts.get(key, 0) + times * count
        return Log((key, count) for key, count in counts.items() if count)


@dataclass(frozen=True)
class Total:
    """sum_p exp(l_p) sum(exp(x_p)): every (x_p, l_p), with how often it is added."""

    terms: frozenset[tuple[tuple[Operand, Log], int]]

    @staticmethod
    def of(terms: Iterable[tuple[Operand, Log]]) -> Total:
        """The sum of these terms."""
        return Total(frozenset(Counter(terms).items()))


class Part(NamedTuple):
    """exp(x) . v: a product, which of its arguments the exponentials are, x and v by their axes,
    and the axes of the exponentials and of the result."""

    product: Op
    position: int
    x: Operand
    v: Operand
    weights: Array
    result: Array


Terms = Sequence[tuple[Any, Log]]  # what is multiplied by exp(l), and the l


# What a value is, read from the result towards the products.


class Reader:
    """Reads values as sums of terms exp(l) * leaf; `sizes` are those of the letters."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = sizes
        self.known: dict[Operand, tuple[Operand, Log] | None] = {}
        self.seen: set[Operand | Total] = set()

    def plain(self, operand: Operand, context: int = 1) -> Operand:
        """An operand before its layout and its rounding."""
        sizes = {**self.sizes, CONTEXT: context}
        operand = unlaid(named(operand.value, operand.axes), sizes)
        while (inner := unrounded(operand.value)) != operand.value:
            operand = unlaid(Operand(inner, operand.axes), sizes)
        return operand

    def args(self, operand: Operand) -> list[Operand]:
        """The arguments of an elementwise op, by their axes."""
        return [named(arg, operand.axes) for arg in operand.value.op.args]

    # Sums.

    def terms(self, operand: Operand, leaves: Leaves, steps: int = DEEPEST) -> Terms | None:
        """The terms that a value is the sum of; None if it is no such sum."""
        operand = self.plain(operand)
        name = operand.value.op.name
        if name in leaves:
            return leaves[name](self, operand)
        return _SUMS[name](self, operand, leaves, steps - 1) if steps and name in _SUMS else None

    def added(self, operand: Operand, leaves: Leaves, steps: int) -> Terms | None:
        """a + b: the terms of both."""
        addends = [arg for arg in self.args(operand) if number(arg.value) != 0]
        read = [self.terms(arg, leaves, steps) for arg in addends]
        return None if None in read else [*chain(*read)]

    def scaled(self, operand: Operand, leaves: Leaves, steps: int) -> Terms | None:
        """a * exp(l), exp(l) * a, a / exp(l): the terms of a."""
        pair, sign = self.args(operand), _SIGNS[operand.value.op.name]
        for inner, factor in (pair, pair[::-1]) if sign > 0 else (pair,):
            terms = self.terms(inner, leaves, steps)
            log = self.factor(factor) if terms else None
            if log is not None:
                return [(leaf, of_term.plus(log, sign)) for leaf, of_term in terms]
        return None

    def summed(self, operand: Operand) -> Terms | None:
        """sum(exp(x)) over the context."""
        op = operand.value.op
        if len(op["axes"]) != 1:
            return None
        (axis,) = op["axes"]
        axes = (*operand.axes[:axis], (CONTEXT,), *operand.axes[axis:])
        weights = self.weights(Operand(op.args[0], axes))
        return weights and [weights]

    def power(self, operand: Operand) -> Terms | None:
        """exp(l + log(total)): the terms of the total."""
        log = self.logarithm(*self.args(operand))
        totals = [key for key, count in log if isinstance(key, Total) and count == 1]
        if len(totals) != 1:
            return None
        rest, counted = log.plus(Log([(totals[0], 1)]), -1), totals[0].terms
        return [(x, of_term.plus(rest)) for (x, of_term), n in counted for _ in range(n)]

    def part(self, operand: Operand) -> Terms | None:
        """exp(x) . v"""
        op, spec = operand.value.op, Signature.parse(operand.value.op["spec"])
        if len(spec.summed) != 1 or len(op.args) != 2:
            return None
        names = {x: axis for (x,), axis in zip(spec.outputs[0], operand.axes)}
        names[spec.summed[0]] = (CONTEXT,)
        lie = (tuple(names[x] for (x,) in axes) for axes in spec.inputs)
        sides = [named(arg, axes) for arg, axes in zip(op.args, lie)]
        if not all((CONTEXT,) in side.axes for side in sides):
            return None
        for position, side in enumerate(sides):
            weights = self.weights(side)
            if weights is not None:
                x, log = weights
                v = sides[1 - position]
                return [(Part(op, position, x, v, side.axes, operand.axes), log)]
        return None

    def weights(self, operand: Operand) -> tuple[Operand, Log] | None:
        """(x, l) where an operand is exp(x + l), l being the same over the context."""
        context = size_along(operand, CONTEXT)
        operand = self.plain(operand, context)
        if operand not in self.known:
            exponent = exponent_of(operand.value)
            self.known[operand] = exponent and self.unshifted(exponent, operand.axes, context)
        return self.known[operand]

    def unshifted(self, exponent: Exponent, axes: Array, context: int) -> tuple[Operand, Log]:
        """The exponent before anything was subtracted, and the logarithm of that."""
        (x, mask), log = exponent, Log()
        while x.op.name == "sub" and x.op.args[0].type.shape == x.type.shape:
            shift = self.plain(named(x.op.args[1], axes), context)
            if CONTEXT in letters(shift.axes):
                break
            x, log = x.op.args[0], log.plus(self.logarithm(shift), -1)
        x = masked_once(Exponent(x, mask))
        return self.plain(named(x, axes), context), log

    # Factors and logarithms.

    def factor(self, operand: Operand, steps: int = DEEPEST) -> Log | None:
        """l where a value is exp(l); None if it is not known to be such a power."""
        operand = self.plain(operand)
        if number(operand.value) == 1:
            return Log()
        read = _FACTORS.get(operand.value.op.name) if steps else None
        log = read(self, operand, steps - 1) if read else None
        return self.total(operand, steps) if log is None else log

    def of_exp(self, operand: Operand, steps: int) -> Log:
        """exp(l)"""
        return self.logarithm(*self.args(operand), steps)

    def of_product(self, operand: Operand, steps: int) -> Log | None:
        """exp(l) * exp(k), exp(l) / exp(k)"""
        first, second = (self.factor(arg, steps) for arg in self.args(operand))
        if first is None or second is None:
            return None
        return first.plus(second, _SIGNS[operand.value.op.name])

    def total(self, operand: Operand, steps: int) -> Log | None:
        """The logarithm of a sum of weights: what its terms share, and that of the rest."""
        terms = self.terms(operand, _WEIGHTS, steps)
        if not terms:
            return None
        shared = Log(frozenset.intersection(*(log for _, log in terms)))
        rest = Total.of((x, log.plus(shared, -1)) for x, log in terms)
        self.seen.add(rest)
        return shared.plus(Log([(rest, 1)]))

    def logarithm(self, operand: Operand, steps: int = DEEPEST) -> Log:
        """A value as a sum of logarithms."""
        operand = self.plain(operand)
        read = _LOGARITHMS.get(operand.value.op.name) if steps else None
        log = read(self, operand, steps - 1) if read else None
        if log is None:
            self.seen.add(operand)
            return Log([(operand, 1)])
        return log

    def of_log(self, operand: Operand, steps: int) -> Log | None:
        """log(exp(l))"""
        return self.factor(*self.args(operand), steps)

    def of_sum(self, operand: Operand, steps: int) -> Log:
        """l + k, l - k"""
        first, second = (self.logarithm(arg, steps) for arg in self.args(operand))
        return first.plus(second, _SIGNS[operand.value.op.name])

    def shifts_are_finite(self, whole: Total) -> bool:
        """Whether all that cancels, but for the sum of all weights, is proven to be finite."""
        others = self.seen - {whole}
        return all(isinstance(key, Operand) and is_finite(key.value) for key in others)


_SIGNS: dict[str, int] = {"add": 1, "mul": 1, "sub": -1, "div": -1}
Leaves = Mapping[str, Callable[[Reader, Operand], Terms | None]]
PRODUCTS: Leaves = {"contract": Reader.part}
_WEIGHTS: Leaves = {"reduce_sum": Reader.summed, "exp": Reader.power}
_SUMS: dict[str, Callable[[Reader, Operand, Leaves, int], Terms | None]] = {
    "add": Reader.added,
    "mul": Reader.scaled,
    "div": Reader.scaled,
}
_FACTORS: dict[str, Callable[[Reader, Operand, int], Log | None]] = {
    "exp": Reader.of_exp,
    "mul": Reader.of_product,
    "div": Reader.of_product,
}
_LOGARITHMS: dict[str, Callable[[Reader, Operand, int], Log | None]] = {
    "add": Reader.of_sum,
    "sub": Reader.of_sum,
    "log": Reader.of_log,
}


def size_along(operand: Operand, axis: str) -> int:
    """The size of a dimension; 1 if the operand lacks it."""
    sizes = dict(zip(operand.axes, operand.value.type.shape))
    return sizes.get((axis,), 1)
