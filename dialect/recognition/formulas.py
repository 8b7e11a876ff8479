"""Functions of one number as formulas, written so that equal ones are found equal.

    x * (1 + tanh(x / 2)) / 2,   x * logistic(x)   and   x / (1 + exp(-x))   are one formula

A formula is a quotient of sums of products. What it multiplies are powers of x, and of exp, erf
and log of such sums; tanh and logistic are written with exp. It holds on one side of zero, where
|x|, max(x, 0) and every choice by the sign of x say plainly what they give. Equal formulas are
equal functions, for every real x on that side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from dialect.arrays.dtypes import dtype_of

Atom = tuple  # ("x",), or ("exp", sum), ("erf", sum), ("log", sum)
Product = tuple[tuple[Atom, float], ...]  # powers of atoms, in order
Sum = dict[Product, float]  # products and their factors

SIDES = (1, -1)  # of zero: the signs of x
_ONE: Product = ()
_X: Product = ((("x",), 1.0),)
_NOISE = 1e-13  # what is left, of the terms that cancel, by arithmetic in f64
_FARTHEST = 700.0  # e to this power, and to minus this, is a number of f64
_NEAREST = 1e-6  # of powers to zero: they are kept to thirteen digits behind the point
_LARGEST = 1e300
# What the constants of spellings stand for; one that rounds to the same number is the same.
_KNOWN = (
    *(math.sqrt(2 / math.pi), 0.044715, math.sqrt(2 / math.pi) * 0.044715),
    *(math.sqrt(0.5), 1.702),
)


class NoFormula(Exception):
    """The function is not written as a formula here."""


@dataclass(frozen=True)
class Formula:
    """top / bottom, on one side of zero: `side` is 1 or -1, the sign of x."""

    top: Sum
    side: int
    bottom: Sum

    def __add__(self, other: Formula) -> Formula:
        if self.bottom == other.bottom:
            return Formula(_added(self.top, other.top), self.side, self.bottom)
        top = _added(_times(self.top, other.bottom), _times(other.top, self.bottom))
        return Formula(top, self.side, _times(self.bottom, other.bottom))

    def __mul__(self, other: Formula) -> Formula:
        return Formula(_times(self.top, other.top), self.side, _times(self.bottom, other.bottom))

    def __neg__(self) -> Formula:
        return self * self.number(-1.0)

    def __sub__(self, other: Formula) -> Formula:
        return self + -other

    def __truediv__(self, other: Formula) -> Formula:
        if not other.top:
            raise NoFormula("division by zero")
        if len(other.top) == 1:
            ((product, factor),) = other.top.items()
            if any(atom[0] not in ("x", "exp") for atom, _ in product):
                raise NoFormula("division by what may be zero")
            upside = {tuple((atom, -power) for atom, power in product): 1 / factor}
            return self * Formula(_times(upside, other.bottom), self.side, {_ONE: 1.0})
        if other.sign() == 0:
            raise NoFormula("division by what may be zero")
        return self * Formula(other.bottom, self.side, other.top)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Formula) or self.side != other.side:
            return False
        crossed = _times(other.top, self.bottom)
        return not _added(_times(self.top, other.bottom), _times(crossed, {_ONE: -1.0}))

    def number(self, value: float) -> Formula:
        """A constant, on the same side."""
        return Formula({_ONE: value} if value else {}, self.side, {_ONE: 1.0})

    def power(self, exponent: int) -> Formula:
        """The formula to a whole power."""
        result = self.number(1.0)
        for _ in range(abs(exponent)):
            result = result * self
        return result if exponent >= 0 else self.number(1.0) / result

    def sign(self) -> int:
        """1 or -1 where that is every value's sign, 0 where it is unknown, or zero."""
        return _sign(self.top, self.side) * _sign(self.bottom, self.side)

    @property
    def sum(self) -> Sum:
        """The formula where it is no quotient."""
        if set(self.bottom) != {_ONE}:
            raise NoFormula("a function of a quotient")
        return {product: factor / self.bottom[_ONE] for product, factor in self.top.items()}


def _added(*sums: Sum) -> Sum:
    total: Sum = {}
    size: Sum = {}
    for each in sums:
        for product, factor in each.items():
            total[product] = total.get(product, 0.0) + factor
            size[product] = size.get(product, 0.0) + abs(factor)
    return {product: x for product, x in total.items() if abs(x) > _NOISE * size[product]}


def _times(left: Sum, right: Sum) -> Sum:
    return _added(*({_joined(a, b): x * y} for a, x in left.items() for b, y in right.items()))


def _joined(left: Product, right: Product) -> Product:
    powers = dict(left)
    for atom, power in right:
        powers[atom] = round(powers.get(atom, 0.0) + power, 13)
    return tuple(sorted(((atom, x) for atom, x in powers.items() if x), key=repr))


def _sign(terms: Sum, side: int) -> int:
    """The sign that all terms have, or 0."""
    signs = {_sign_of(product, side) * (1 if x > 0 else -1) for product, x in terms.items()}
    return signs.pop() if len(signs) == 1 else 0


def _sign_of(product: Product, side: int) -> int:
    sign = 1
    for atom, power in product:
        if atom[0] not in ("x", "exp"):
            return 0
        if atom[0] == "x" and power != int(power):
            return 0
        sign *= side if atom[0] == "x" and power % 2 else 1
    return sign


def _key(terms: Sum) -> tuple:
    """A sum as the name of an atom: its factors to fourteen digits."""
    rounded = ((product, float(f"{x:.13e}")) for product, x in terms.items())
    return tuple(sorted(rounded, key=repr))


def _leading(terms: Sum) -> float:
    return terms[max(terms, key=repr)]


def _of_atom(atom: Atom, power: float = 1.0) -> Sum:
    return {((atom, round(power, 13)),): 1.0}


def _exp(x: Formula) -> Formula:
    result, rest = x.number(1.0), {}
    for product, factor in x.sum.items():
        logarithm = len(product) == 1 and product[0][0][0] == "log" and product[0][1] == 1
        if product == _ONE:
            if abs(factor) > _FARTHEST:
                raise NoFormula("a power of e that is no number of f64")
            result = result * x.number(math.exp(factor))
        elif logarithm and factor == int(factor):
            inner = Formula(dict(product[0][0][1]), x.side, {_ONE: 1.0})
            result = result * inner.power(int(factor))
        else:
            rest[product] = factor
    if not rest:
        return result
    scale = _leading(rest)
    if abs(scale) < _NEAREST:
        raise NoFormula("a power that rounding leaves nothing of")
    atom = ("exp", _key({product: factor / scale for product, factor in rest.items()}))
    return result * Formula(_of_atom(atom, scale), x.side, {_ONE: 1.0})


def _log(x: Formula) -> Formula:
    """log(c * a^i * b^j * (1 + ...))  =  log(c) + i log(a) + j log(b) + log(1 + ...)"""
    if x.sign() != 1:
        raise NoFormula("the logarithm of what may not be positive")
    return _log_of_sum(x, x.top) - _log_of_sum(x, x.bottom)


def _log_of_sum(x: Formula, terms: Sum) -> Formula:
    scale = abs(_leading(terms))
    atoms = {atom for product in terms for atom, _ in product}
    least = {atom: min(dict(product).get(atom, 0.0) for product in terms) for atom in atoms}
    result = x.number(math.log(scale))
    for atom, power in least.items():
        if atom[0] != "exp":
            if power:
                raise NoFormula("the logarithm of a power of x")
            continue
        result = result + Formula(dict(atom[1]), x.side, {_ONE: 1.0}) * x.number(power)
    common = {tuple((atom, -power) for atom, power in least.items() if power): 1 / scale}
    rest = _times(terms, common)
    if rest.keys() == {_ONE}:
        return result
    return result + Formula(_of_atom(("log", _key(rest))), x.side, {_ONE: 1.0})


def _erf(x: Formula) -> Formula:
    terms = x.sum
    if not terms:
        return x
    sign = 1.0 if _leading(terms) > 0 else -1.0
    atom = ("erf", _key({product: sign * factor for product, factor in terms.items()}))
    return Formula({((atom, 1.0),): sign}, x.side, {_ONE: 1.0})


def _tanh(x: Formula) -> Formula:
    one, e = x.number(1.0), _exp(x * x.number(-2.0))
    return (one - e) / (one + e)


def _logistic(x: Formula) -> Formula:
    one = x.number(1.0)
    return one / (one + _exp(-x))


def _difference(left: Formula, right: Formula) -> int | None:
    """Its sign; None where it has not one sign for every x."""
    difference = left - right
    return (difference.sign() or None) if difference.top else 0


def _test(holds: Callable[[int], bool]) -> Callable[[Formula, Formula], bool | None]:
    """A comparison, by the sign of the difference."""

    def test(left: Formula, right: Formula) -> bool | None:
        sign = _difference(left, right)
        return None if sign is None else holds(sign)

    return test


def _chosen(which: Any, *values: Formula) -> Formula:
    if isinstance(which, Formula):
        raise NoFormula("a choice by a number")
    if which is None and values[0] != values[1]:
        raise NoFormula("a choice that x decides")
    return values[bool(which)]


def _extreme(which: Callable[[int], bool]) -> Callable[[Formula, Formula], Formula]:
    return lambda x, y: _chosen(_test(which)(x, y), x, y)


def _to_power(base: Formula, exponent: Formula) -> Formula:
    terms = exponent.sum
    value = terms.get(_ONE, 0.0)
    if set(terms) - {_ONE} or value != int(value) or abs(value) > 8:
        raise NoFormula("a power that is no small whole number")
    return base.power(int(value))


_OPS: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "neg": lambda x: -x,
    "square": lambda x: x * x,
    "pow": _to_power,
    "exp": _exp,
    "expm1": lambda x: _exp(x) - x.number(1.0),
    "log": _log,
    "log1p": lambda x: _log(x + x.number(1.0)),
    "tanh": _tanh,
    "logistic": _logistic,
    "erf": _erf,
    "erfc": lambda x: x.number(1.0) - _erf(x),
    "abs": lambda x: _extreme(lambda sign: sign < 0)(x, -x),
    "max": _extreme(lambda sign: sign < 0),
    "min": _extreme(lambda sign: sign > 0),
    "eq": _test(lambda sign: sign == 0),
    "ne": _test(lambda sign: sign != 0),
    "lt": _test(lambda sign: sign < 0),
    "le": _test(lambda sign: sign <= 0),
    "gt": _test(lambda sign: sign > 0),
    "ge": _test(lambda sign: sign >= 0),
    "select_n": _chosen,
    "convert_element_type": lambda x: x,
    "stop_gradient": lambda x: x,
    "copy": lambda x: x,
}


def formula_of(rows: Iterable[tuple], side: int) -> Formula:
    """The formula of elementwise ops, one of which reads only those before it: see `Row`."""
    x = Formula({_X: 1.0}, side, {_ONE: 1.0})
    results: list[Any] = []
    for name, args, attrs, dtype in rows:
        values = [
            x.number(_meant(each, of)) if what == "number" else results[each] if each >= 0 else x
            for what, each, of in args
        ]
        if name == "integer_pow":
            results.append(values[0].power(dict(attrs)["y"]))
        elif name not in _OPS or dtype not in ("bool", "f64", "f32", "bf16", "f16"):
            raise NoFormula(f"{name} that gives {dtype}")
        else:
            results.append(_OPS[name](*values))
    if not isinstance(results[-1], Formula):
        raise NoFormula("a boolean")
    return results[-1]


def _meant(value: float, dtype: str) -> float:
    """What a constant stands for: a known number, where it is that one but for its rounding.

    One that was computed in 32 bits may be off by a step or two; in 16 bits a step is too much.
    """
    if not abs(value) < _LARGEST:
        raise NoFormula("an infinite constant, or nearly")
    for known in _KNOWN if value else ():
        two = 2.0 ** round(math.log2(abs(value) / known))
        exact, kind = math.copysign(known * two, value), dtype_of(dtype)
        step = float(jnp.finfo(kind).eps) if kind.itemsize > 2 else 0.0
        nearest = float(np.asarray(exact, kind))
        if abs(value - nearest) <= step * abs(exact) or np.asarray(value, kind) == nearest:
            return exact
    return float(value)
