"""Functions of one real number as formulas in a normal form, so that they can be compared.

    x * (1 + tanh(x / 2)) / 2,   x * logistic(x)   and   x / (1 + exp(-x))   are one formula

A formula is a quotient of sums of products. The factors of a product are powers of x and of exp,
erf and log of such sums; tanh and logistic are expressed by exp. A formula is valid on one side of
zero, where |x|, max(x, 0) and other choices by the sign of x are decided. Equal formulas are equal
functions of every real x on that side; some equal functions have formulas that differ.
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
Product = tuple[tuple[Atom, float], ...]  # atoms and their powers, sorted
Sum = dict[Product, float]  # products and their coefficients

SIDES = (1, -1)  # the two sides of zero, as signs of x
_ONE: Product = ()
_X: Product = ((("x",), 1.0),)
_NOISE = 1e-13  # rounding errors of f64 where terms cancel, relative to the terms
_LARGEST_EXPONENT = 700.0  # exp of it, and of minus it, is a finite number of f64 and not zero
_SMALLEST_POWER = 1e-6  # powers are rounded to thirteen decimals
_LARGEST = 1e300
# The numbers that libraries write rounded in their formulas of activations.
_KNOWN = (
    *(math.sqrt(2 / math.pi), 0.044715, math.sqrt(2 / math.pi) * 0.044715),
    *(math.sqrt(0.5), 1.702),
)


class NoFormula(Exception):
    """The function has no formula of this kind."""


@dataclass(frozen=True)
class Formula:
    """top / bottom, valid on one side of zero: `side` is 1 or -1, the sign of x."""

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
                raise NoFormula("the divisor may be zero")
            reciprocal = {tuple((atom, -power) for atom, power in product): 1 / factor}
            return self * Formula(_times(reciprocal, other.bottom), self.side, {_ONE: 1.0})
        if other.sign() == 0:
            raise NoFormula("the divisor may be zero")
        return self * Formula(other.bottom, self.side, other.top)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Formula) or self.side != other.side:
            return False
        crossed = _times(other.top, self.bottom)
        return not _added(_times(self.top, other.bottom), _times(crossed, {_ONE: -1.0}))

    def number(self, value: float) -> Formula:
        """The formula of a constant, on the same side."""
        return Formula({_ONE: value} if value else {}, self.side, {_ONE: 1.0})

    def power(self, exponent: int) -> Formula:
        """The formula to an integer power. Raises NoFormula if it may divide by zero."""
        result = self.number(1.0)
        for _ in range(abs(exponent)):
            result = result * self
        return result if exponent >= 0 else self.number(1.0) / result

    def sign(self) -> int:
        """1 or -1 if all values have that sign; 0 if that is unknown, or for the formula 0."""
        return _sign(self.top, self.side) * _sign(self.bottom, self.side)

    @property
    def sum(self) -> Sum:
        """The formula as a sum. Raises NoFormula if it is a quotient."""
        if set(self.bottom) != {_ONE}:
            raise NoFormula("a function of a quotient")
        return {product: factor / self.bottom[_ONE] for product, factor in self.top.items()}


def _added(*sums: Sum) -> Sum:
    total: Sum = {}
    magnitude: Sum = {}
    for terms in sums:
        for product, factor in terms.items():
            total[product] = total.get(product, 0.0) + factor
            magnitude[product] = magnitude.get(product, 0.0) + abs(factor)
    return {product: x for product, x in total.items() if abs(x) > _NOISE * magnitude[product]}


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
    """A sum as part of an atom, hashable: its coefficients to fourteen digits."""
    rounded = ((product, float(f"{x:.13e}")) for product, x in terms.items())
    return tuple(sorted(rounded, key=repr))


def _leading(terms: Sum) -> float:
    return terms[max(terms, key=repr)]


def _of_atom(atom: Atom, power: float = 1.0) -> Sum:
    return {((atom, round(power, 13)),): 1.0}


def _exp(x: Formula) -> Formula:
    """exp(number + i * log(a) + rest)  =  exp(number) * a^i * exp(rest)"""
    result, rest = x.number(1.0), {}
    for product, factor in x.sum.items():
        is_logarithm = len(product) == 1 and product[0][0][0] == "log" and product[0][1] == 1
        if product == _ONE:
            if abs(factor) > _LARGEST_EXPONENT:
                raise NoFormula("a power of e that is out of the range of f64")
            result = result * x.number(math.exp(factor))
        elif is_logarithm and factor == int(factor):
            argument = Formula(dict(product[0][0][1]), x.side, {_ONE: 1.0})
            result = result * argument.power(int(factor))
        else:
            rest[product] = factor
    if not rest:
        return result
    scale = _leading(rest)
    if abs(scale) < _SMALLEST_POWER:
        raise NoFormula("a power so small that it is rounded away")
    atom = ("exp", _key({product: factor / scale for product, factor in rest.items()}))
    return result * Formula(_of_atom(atom, scale), x.side, {_ONE: 1.0})


def _log(x: Formula) -> Formula:
    """log(c * a^i * b^j * (1 + ...))  =  log(c) + i log(a) + j log(b) + log(1 + ...)"""
    if x.sign() != 1:
        raise NoFormula("the logarithm of a number that may not be positive")
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
    """The sign of the difference; None if that depends on x or is unknown."""
    difference = left - right
    return (difference.sign() or None) if difference.top else 0


def _test(holds: Callable[[int], bool]) -> Callable[[Formula, Formula], bool | None]:
    """The comparison that holds for these signs of the difference."""

    def test(left: Formula, right: Formula) -> bool | None:
        sign = _difference(left, right)
        return None if sign is None else holds(sign)

    return test


def _selected(test: Any, *values: Formula) -> Formula:
    """`values[test]`, for a test that has the same result for all x."""
    if isinstance(test, Formula):
        raise NoFormula("a selection by a number")
    if test is None and values[0] != values[1]:
        raise NoFormula("a selection that depends on x")
    return values[bool(test)]


def _extreme(takes_second: Callable[[int], bool]) -> Callable[[Formula, Formula], Formula]:
    """The larger or the smaller one, by the sign of the difference."""
    return lambda x, y: _selected(_test(takes_second)(x, y), x, y)


def _to_power(base: Formula, exponent: Formula) -> Formula:
    terms = exponent.sum
    value = terms.get(_ONE, 0.0)
    if set(terms) - {_ONE} or value != int(value) or abs(value) > 8:
        raise NoFormula("a power that is not a small integer")
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
    "select_n": _selected,
    "convert_element_type": lambda x: x,
    "stop_gradient": lambda x: x,
    "copy": lambda x: x,
}


def formula_of(rows: Iterable[tuple], side: int) -> Formula:
    """The formula of a chain of elementwise ops, in rows as `activations.Row`, on one side of zero.

    Raises NoFormula with the reason.
    """
    x = Formula({_X: 1.0}, side, {_ONE: 1.0})
    results: list[Any] = []

    def argument(what: str, value: Any, dtype: str) -> Any:
        if what == "number":
            return x.number(_exact(value, dtype))
        return results[value] if value >= 0 else x

    for name, args, attrs, dtype in rows:
        values = [argument(*arg) for arg in args]
        if name == "integer_pow":
            results.append(values[0].power(dict(attrs)["y"]))
        elif name not in _OPS or dtype not in ("bool", "f64", "f32", "bf16", "f16"):
            raise NoFormula(f"{name} with a result of {dtype}")
        else:
            results.append(_OPS[name](*values))
    if not isinstance(results[-1], Formula):
        raise NoFormula("a boolean")
    return results[-1]


def _exact(value: float, dtype: str) -> float:
    """The known number, times a power of two, that a constant is the rounded form of; else itself.

    A constant of 32 bits and more may differ by a rounding error or two; of 16 bits by none.
    """
    if not abs(value) < _LARGEST:
        raise NoFormula("a constant that is infinite or nearly so")
    for known in _KNOWN if value else ():
        power_of_two = 2.0 ** round(math.log2(abs(value) / known))
        exact, dtype_ = math.copysign(known * power_of_two, value), dtype_of(dtype)
        epsilon = float(jnp.finfo(dtype_).eps) if dtype_.itemsize > 2 else 0.0
        with np.errstate(over="ignore"):  # the least float32, of a mask
            rounded = float(np.asarray(exact, dtype_))
        if abs(value - rounded) <= epsilon * abs(exact) or np.asarray(value, dtype_) == rounded:
            return exact
    return float(value)
