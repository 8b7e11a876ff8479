"""Softmax in parts: each part of the context has its own shift and sum, by which they are merged.

    sum_p exp(c_p - m) (exp(x_p - c_p) . v_p) / sum_p exp(c_p - m) sum(exp(x_p - c_p))
      ->  softmax(concat(x_1, x_2, ...)) . concat(v_1, v_2, ...)

Flash attention (Dao et al. 2022) and ring attention (Liu et al. 2023) do so, and decoders that keep
the keys of the prompt apart from those of the answer. The factors are spelled in many ways: with
maxima, with running maxima, with logarithms of sums. Here each is read as a power of e, and each
sum as terms exp(l) sum(exp(x)). What all terms of a fraction share cancels, whatever it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import jax.numpy as jnp

from dialect.matching.operands import Operand, bare, laid_out, named, regrouped, unlaid
from dialect.matching.proofs import holds_no_number, is_finite
from dialect.matching.values import REALS, in_dtype, number, through, unrounded
from dialect.ops import lax
from dialect.recognition.softmaxes import Exponent, exponent_of, masked_once, softmax_along
from rewrite.ir import Op, Value
from rewrite.opdef import make, traits
from rewrite.rules import Miss, Outcome, local
from rewrite.signature import Array, Signature, letters

_DEEPEST = 24  # ops between a result and the products that it sums
_CONTEXT = "context"


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


def _example(x: Any, y: Any, v: Any, w: Any) -> Any:
    pairs = ((x, v), (y, w))
    maxima = [jnp.max(each, axis=-1, keepdims=True) for each, _ in pairs]
    factors = [jnp.exp(each - jnp.maximum(*maxima)) for each in maxima]
    weights = [jnp.exp(each - top) for (each, _), top in zip(pairs, maxima)]
    sums = [jnp.sum(each, axis=-1, keepdims=True) for each in weights]
    total = sum(factor * each for factor, each in zip(factors, sums))
    results = zip(factors, weights, pairs)
    return sum(factor / total * (each @ value) for factor, each, (_, value) in results)


@local(
    "add",
    "mul",
    "div",
    keeps="reals",
    example=_example,
    types=("f32[2,8]", "f32[2,5]", "f32[8,3]", "f32[5,3]"),
    needs=("finite activations",),
)
def softmax_in_parts(op: Op) -> Outcome:
    """sum_p f_p (exp(x_p - c_p) . v_p), f_p = exp(c_p) / sum_q exp(c_q) sum(exp(x_q - c_q))
    ->  softmax(concat(x_1, x_2, ...)) . concat(v_1, v_2, ...)"""
    first = _first_product(op.results[0])
    if first is None or op.types[0].dtype not in REALS:
        return None
    axes, sizes = first
    reader = _Reader(sizes)
    terms = reader.terms(Operand(op.results[0], axes), _PRODUCTS)
    if terms is None or len(terms) < 2:
        return None
    parts = [part for part, _ in terms]
    whole = Total.of((part.x, Log()) for part in parts)
    if any(log != Log([(whole, -1)]) for _, log in terms):
        return Miss("the parts are not divided by the sum of all their weights", 4)
    masked = any(_may_be_minus_infinity(part.x.value) for part in parts)
    if masked and not reader.shifts_are_finite(whole):
        return Miss("where a part keeps no key it is NaN", 4)
    merged = _merged(parts, sizes)
    if isinstance(merged, Miss):
        return merged
    return in_dtype(laid_out(merged, axes, op.types[0].shape), op.types[0].dtype)


# Where the letters come from: the first product, followed to the result.

Followed = tuple[
    Array, dict[str, int]
]  # the axes of a value in the letters of a product, and sizes


def _first_product(value: Value, steps: int = _DEEPEST) -> Followed | None:
    """The axes of a value that a product with exponentials is a term of."""
    name = value.op.name
    if not steps:
        return None
    return _of_product(value) if name in _PRODUCTS else _passed_on(value, steps)


def _of_product(value: Value) -> Followed | None:
    """A product with exponentials names its own axes."""
    op, spec = value.op, Signature.parse(value.op["spec"])
    layout = ("reshape", "transpose", "convert_element_type")
    if not any(exponent_of(through(unrounded(arg), *layout)) for arg in op.args):
        return None
    arrays = zip(op.args, spec.inputs)
    sizes = {x: size for arg, axes in arrays for (x,), size in zip(axes, arg.type.shape)}
    return named(value, spec.outputs[0]).axes, sizes


def _passed_on(value: Value, steps: int) -> Followed | None:
    """Through elementwise ops and layout."""
    op = value.op
    if op.name not in lax.MAPS and not traits(op).moves:
        return None
    for arg in op.args:
        found = _first_product(arg, steps - 1) if arg.type.size == value.type.size else None
        if found is None:
            continue
        axes, sizes = found
        order = op.get(traits(op).order, range(len(axes)))
        ordered = tuple(axes[place] for place in order)
        laid = regrouped(Operand(arg, ordered), value, sizes)
        return None if laid is None else (laid.axes, sizes)
    return None


# What a value is, read from the result towards the products.


class _Reader:
    """Reads values as sums of terms exp(l) * leaf; `sizes` are those of the letters."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = sizes
        self.known: dict[Operand, tuple[Operand, Log] | None] = {}
        self.seen: set[Operand | Total] = set()

    def plain(self, operand: Operand, context: int = 1) -> Operand:
        """An operand before its layout and its rounding."""
        sizes = {**self.sizes, _CONTEXT: context}
        operand = unlaid(named(operand.value, operand.axes), sizes)
        while (inner := unrounded(operand.value)) != operand.value:
            operand = unlaid(Operand(inner, operand.axes), sizes)
        return operand

    def args(self, operand: Operand) -> list[Operand]:
        """The arguments of an elementwise op, by their axes."""
        return [named(arg, operand.axes) for arg in operand.value.op.args]

    # Sums.

    def terms(self, operand: Operand, leaves: Leaves, steps: int = _DEEPEST) -> Terms | None:
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
        axes = (*operand.axes[:axis], (_CONTEXT,), *operand.axes[axis:])
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
        names[spec.summed[0]] = (_CONTEXT,)
        lie = (tuple(names[x] for (x,) in axes) for axes in spec.inputs)
        sides = [named(arg, axes) for arg, axes in zip(op.args, lie)]
        if not all((_CONTEXT,) in side.axes for side in sides):
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
        context = _size_along(operand, _CONTEXT)
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
            if _CONTEXT in letters(shift.axes):
                break
            x, log = x.op.args[0], log.plus(self.logarithm(shift), -1)
        x = masked_once(Exponent(x, mask))
        return self.plain(named(x, axes), context), log

    # Factors and logarithms.

    def factor(self, operand: Operand, steps: int = _DEEPEST) -> Log | None:
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

    def logarithm(self, operand: Operand, steps: int = _DEEPEST) -> Log:
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
Leaves = Mapping[str, Callable[[_Reader, Operand], Terms | None]]
_PRODUCTS: Leaves = {"contract": _Reader.part}
_WEIGHTS: Leaves = {"reduce_sum": _Reader.summed, "exp": _Reader.power}
_SUMS: dict[str, Callable[[_Reader, Operand, Leaves, int], Terms | None]] = {
    "add": _Reader.added,
    "mul": _Reader.scaled,
    "div": _Reader.scaled,
}
_FACTORS: dict[str, Callable[[_Reader, Operand, int], Log | None]] = {
    "exp": _Reader.of_exp,
    "mul": _Reader.of_product,
    "div": _Reader.of_product,
}
_LOGARITHMS: dict[str, Callable[[_Reader, Operand, int], Log | None]] = {
    "add": _Reader.of_sum,
    "sub": _Reader.of_sum,
    "log": _Reader.of_log,
}


# Ops that are infinite where an argument of theirs, the one of this number, has a certain value.
_POLES: dict[str, int] = {"log": 0, "log1p": 0, "rsqrt": 0, "atanh": 0, "integer_pow": 0, "div": 1}


def _size_along(operand: Operand, axis: str) -> int:
    """The size of a dimension; 1 if the operand lacks it."""
    sizes = dict(zip(operand.axes, operand.value.type.shape))
    return sizes.get((axis,), 1)


def _may_be_minus_infinity(value: Value, steps: int = _DEEPEST) -> bool:
    """Whether a value may be minus infinity though all activations are finite."""
    op = value.op
    if is_finite(value):
        return False
    argument = _POLES.get(op.name)
    if argument is not None and not number(op.args[argument]):
        return True
    if holds_no_number(value) or not steps:
        return True
    inside = op.name in lax.MAPS or traits(op).moves
    return inside and any(_may_be_minus_infinity(arg, steps - 1) for arg in op.args)


# The parts as one.


def _merged(parts: list[Part], sizes: Mapping[str, int]) -> Operand | Miss:
    """softmax(concat(x_p)) . concat(v_p), laid out as the first part is."""
    first, *_ = parts
    if len({_said(part) for part in parts}) != 1:
        return Miss("the products of its parts differ", 4)
    xs, values = [part.x for part in parts], [part.v for part in parts]
    args, weights_at = list(first.product.args), first.position
    for operands, axes in ((xs, first.weights), (values, first.v.axes)):
        if any(set(letters(each.axes)) != set(letters(axes)) for each in operands):
            return Miss("its parts have different axes", 4)
    weights, axis = args[weights_at].type.dtype, first.weights.index((_CONTEXT,))
    args[weights_at] = softmax_along(_joined(xs, first.weights, sizes), axis, False, weights)
    args[1 - weights_at] = _joined(values, first.v.axes, sizes)
    return Operand(make("contract", *args, **dict(first.product.attrs)), first.result)


def _said(part: Part) -> tuple[Any, ...]:
    """What the products of all parts have in common: all but their axes."""
    attrs = (each for each in part.product.attrs if each[0] != "spec")
    return (*attrs, part.x.value.type.dtype, *(arg.type.dtype for arg in part.product.args))


def _joined(operands: list[Operand], axes: Array, sizes: Mapping[str, int]) -> Value:
    """Operands in the same axes, one after another along the context."""
    laid = []
    for operand in operands:
        known = {**sizes, _CONTEXT: _size_along(operand, _CONTEXT)}
        shape = tuple(known[axis[0]] if axis else 1 for axis in axes)
        laid.append(laid_out(bare(operand, known), axes, shape))
    return make("concatenate", *laid, dimension=axes.index((_CONTEXT,)))
