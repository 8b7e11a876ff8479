"""Products of scaled numbers: multiplied as they are stored, and scaled afterwards.

    contract(x, q * s)          ->  contract(x, q) * s           s: one per output channel
    contract(x, q * s)          ->  sum_g contract(x, q)_g * s   s: one per group g of a summed axis
    contract(r * t, q * s)      ->  contract(r, q) * t * s       r: activations, t: one per token

and likewise for a `partial_contract`.

So weights are read at their stored width, and a chip that multiplies eight bits does. Where the
contracted axis is sharded, each chip scales its own partial sum, so that the sums on the links have
the dtype of the result, not a wider one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod

from dialect.machine.chips import Chip
from dialect.matching.operands import Operand, arranged
from dialect.matching.values import REALS, in_dtype, reshaped
from dialect.normal.row_products import row_layout
from dialect.ops.nn import Traced
from dialect.ops.quant import FORMS, LONGEST_SUM
from dialect.ops.tensor import PRODUCTS
from dialect.quantized.ragged_products import (
    ragged_integers_multiplied,
    scale_behind_ragged_product,
)
from rewrite.ir import Op, Symbol, Value, bits
from rewrite.opdef import make
from rewrite.program import Layout
from rewrite.rules import Miss, Outcome, Rule, local
from rewrite.signature import Signature, letters

_quantize, _dequantize = Traced["quantize"], Traced["dequantize"]
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Form that a chip multiplies natively -> dtype of the sums.
_SUMS = {"int8": "i32", "fp8": "f32"}
_NOWHERE: Mapping[str, int] = {}
_ALONE = {"x": 2}  # where a rule is tried by itself


def scaled_products(chip: Chip | None = None, mesh: Mapping[str, int] = _NOWHERE) -> list[Rule]:
    """The rules for a chip: products of eight bits where it has them, of floats elsewhere.

    `mesh` gives the sizes of its axes. An unknown chip multiplies integers.
    """
    native = [form for form in _SUMS if (chip.multiplies(form) if chip else form == "int8")]
    rules = [_OF_EIGHT_BITS[form] for form in native] + [scale_behind_product]
    meshed = [replace(rule, apply=partial(rule.apply, mesh=mesh)) for rule in rules]
    ragged = [ragged_integers_multiplied] if "int8" in native else []
    return [*meshed, *ragged, scale_behind_ragged_product]


@local(
    *PRODUCTS,
    keeps="reals",
    needs=("finite parameters",),
    example=lambda x, q, s: Traced["contract"](
        _dequantize(*_quantize(x, axes=(1,), form="int8"), axes=(1,), dtype=Symbol("f32")),
        _dequantize(q, s, axes=(0,), dtype=Symbol("f32")),
        spec="b d, d f -> b f",
        dtype=Symbol("f32"),
    ),
    types=("f32[2,3]", "i8[3,4]", "f32[4]"),
)
def integers_multiplied(op: Op, mesh: Mapping[str, int] = _ALONE) -> Outcome:
    """contract(q * s, r * t) of integers q and r  ->  contract(q, r) * s * t"""
    return _multiplied(op, "int8", mesh)


@local(
    *PRODUCTS,
    keeps="reals",
    needs=("finite parameters",),
    example=lambda x, q, s: Traced["contract"](
        _dequantize(*_quantize(x, axes=(1,), form="fp8"), axes=(1,), dtype=Symbol("f32")),
        _dequantize(q, s, axes=(0,), dtype=Symbol("f32")),
        spec="b d, d f -> b f",
        dtype=Symbol("f32"),
    ),
    types=("f32[2,3]", "f8_e4m3fn[3,4]", "f32[4]"),
)
def narrow_floats_multiplied(op: Op, mesh: Mapping[str, int] = _ALONE) -> Outcome:
    """contract(q * s, r * t) of 8-bit floats q and r  ->  contract(q, r) * s * t"""
    return _multiplied(op, "fp8", mesh)


@local(
    *PRODUCTS,
    keeps="reals",
    needs=("finite parameters",),
    example=lambda x, q, s: Traced["contract"](
        x,
        _dequantize(q, s, axes=(0,), dtype=Symbol("f32")),
        spec="b d, d f -> b f",
        dtype=Symbol("f32"),
    ),
    types=("f32[2,3]", "i8[3,4]", "f32[4]"),
)
def scale_behind_product(op: Op, mesh: Mapping[str, int] = _ALONE) -> Outcome:
    """contract(x, dequantize(q, s))  ->  contract(x, q) * s, where s is one per output channel
    or one per group of a summed axis; each group is then summed by itself, and scaled"""
    product = _Product.of(op)
    if not product.scales:
        return None
    if product.shares_no_scale:
        return Miss("a scale varies along a contracted axis", 2)
    if _rows(product) > product.group_length:
        return Miss("it has more rows than a group has weights", 2)
    floats = [arg.type.dtype for arg in reversed(op.args)]  # each operand in the other's dtype
    dtype = op.types[0].dtype
    if not {*floats, dtype} <= set(REALS):
        return Miss("a dtype of its floats does not hold all 8-bit integers", 2)
    # Sums of integers may overflow f16 before they are scaled.
    sums = _wide(dtype) if product.groups or dtype == "f16" else dtype
    return product.in_dtypes(floats).built(sums, mesh)


_OF_EIGHT_BITS = {"int8": integers_multiplied, "fp8": narrow_floats_multiplied}
SCALES = tuple(scaled_products())


def _multiplied(op: Op, form: str, mesh: Mapping[str, int]) -> Outcome:
    """The product of two arrays of this form, or of narrower integers, with their scales."""
    product = _Product.of(op)
    dtypes = [factor.numbers.type.dtype for factor in product.factors]
    if len(product.scales) < 2 or not all(map(FORMS[form].holds, dtypes)):
        return None
    if op.types[0].dtype not in REALS:
        return Miss("its result is not of floats", 2)
    if product.shares_no_scale:
        return Miss("a scale varies along a contracted axis", 2)
    if form == "int8" and product.group_length > LONGEST_SUM:
        return Miss("its sum may overflow 32 bits", 2)
    return product.in_dtypes([FORMS[form].dtype for _ in dtypes]).built(_SUMS[form], mesh)


@dataclass(frozen=True)
class _Factor:
    """An operand of a product: numbers and their scale, the letters of the axes of both, and its
    sharding, if it is constrained."""

    numbers: Value
    scale: Value | None
    axes: tuple[str, ...]
    scaled: tuple[str, ...]
    layout: Layout

    @staticmethod
    def of(value: Value, axes: tuple[str, ...]) -> _Factor:
        parts = _Scaled.of(value)
        if parts is None:
            layout = value.op["layout"] if value.op.name == "constrain" else ()
            return _Factor(value, None, axes, (), layout)
        scaled = tuple(x for d, x in enumerate(axes) if d not in parts.shared)
        return _Factor(parts.numbers, parts.scale, axes, scaled, parts.layout)

    @property
    def sizes(self) -> dict[str, int]:
        return dict(zip(self.axes, self.numbers.type.shape))

    @property
    def varies(self) -> frozenset[str]:
        """The axes along which the scale is not the same."""
        sizes = self.scale.type.shape if self.scale is not None else ()
        return frozenset(x for x, size in zip(self.scaled, sizes) if size > 1)

    def in_dtype(self, dtype: str) -> _Factor:
        """With scaled numbers in another dtype."""
        if self.scale is None:
            return self
        return replace(self, numbers=in_dtype(self.numbers, dtype))

    def split_over(self, letter: str) -> tuple[str, ...] | None:
        return dict(zip(self.axes, self.layout)).get(letter)

    def cut(self, letter: str, ways: int, outer: str) -> _Factor:
        """The same numbers, an axis cut into `ways` parts: axis `outer`, then the rest."""

        def cut(value: Value | None, axes: tuple[str, ...]) -> tuple[Value | None, tuple[str, ...]]:
            if letter not in axes:
                return value, axes
            at, shape = axes.index(letter), value.type.shape
            cut = reshaped(value, (*shape[:at], ways, shape[at] // ways, *shape[at + 1 :]))
            return cut, (*axes[:at], outer, *axes[at:])

        numbers, axes = cut(self.numbers, self.axes)
        scale, scaled = cut(self.scale, self.scaled)
        return _Factor(numbers, scale, axes, scaled, ())


@dataclass(frozen=True)
class _Scaled:
    """Scaled numbers: integers, scales that lack the axes `shared`, and their partition spec."""

    numbers: Value
    scale: Value
    shared: tuple[int, ...]
    layout: Layout

    @staticmethod
    def of(value: Value) -> _Scaled | None:
        """What a value is made of, seen through constraints and reshapes that merge rows."""
        op = value.op
        if op.name == "dequantize":
            return _Scaled(*op.args, op["axes"], ())
        inner = _Scaled.of(op.args[0]) if op.name in ("constrain", "reshape") else None
        if inner is None:
            return None
        return inner.constrained(op) if op.name == "constrain" else inner.merged(op)

    def constrained(self, op: Op) -> _Scaled:
        """The same, both constrained as `op` constrains what they make."""
        layout = op["layout"]
        kept = tuple(axes for d, axes in enumerate(layout) if d not in self.shared)
        numbers, scale = (
            make("constrain", value, origin=op.origin, **{**dict(op.attrs), "layout": its})
            for value, its in ((self.numbers, layout), (self.scale, kept))
        )
        return _Scaled(numbers, scale, self.shared, layout)

    def merged(self, op: Op) -> _Scaled | None:
        """The same with its leading axes merged, as by `op`, of which the scale has all or none."""
        before, after = op.args[0].type.shape, op.types[0].shape
        front = len(before) - len(after) + 1
        rest = tuple(d - front + 1 for d in self.shared if d >= front)
        lacked = len(self.shared) - len(rest)
        if before[front:] != after[1:] or lacked not in (0, front):
            return None
        numbers, layout = reshaped(self.numbers, after), row_layout(self.layout, front)
        if lacked:
            return _Scaled(numbers, self.scale, (0, *rest), layout)
        scale = reshaped(self.scale, (after[0], *self.scale.type.shape[front:]))
        return _Scaled(numbers, scale, rest, layout)


@dataclass(frozen=True)
class _Product:
    """A contract with its operands as factors; the parts of a partial one are one more axis."""

    op: Op
    factors: tuple[_Factor, ...]
    out: tuple[str, ...]

    @staticmethod
    def of(op: Op) -> _Product:
        spec = Signature.parse(op["spec"])
        out = letters(spec.outputs[0])
        factors = tuple(map(_Factor.of, op.args, map(letters, spec.inputs)))
        if op.name == "partial_contract":
            factors = tuple(factor.cut(spec.summed[0], op["parts"], out[0]) for factor in factors)
        return _Product(op, factors, out)

    @property
    def scales(self) -> list[Value]:
        return [factor.scale for factor in self.factors if factor.scale is not None]

    @property
    def sizes(self) -> dict[str, int]:
        return self.factors[0].sizes | self.factors[1].sizes

    @property
    def summed(self) -> tuple[str, ...]:
        return tuple(x for x in self.sizes if x not in self.out)

    @property
    def groups(self) -> tuple[str, ...]:
        """Contracted axes along which a scale varies: they are summed after scaling."""
        varies = frozenset().union(*(factor.varies for factor in self.factors))
        return tuple(x for x in self.summed if x in varies)

    @property
    def group_length(self) -> int:
        return prod(self.sizes[x] for x in self.summed if x not in self.groups)

    @property
    def shares_no_scale(self) -> bool:
        """Whether every addend has a scale of its own."""
        return bool(self.groups) and self.group_length == 1

    def in_dtypes(self, dtypes: Sequence[str]) -> _Product:
        """With the numbers of each scaled factor in its dtype of these."""
        return replace(self, factors=tuple(map(_Factor.in_dtype, self.factors, dtypes)))

    def built(self, dtype: str, mesh: Mapping[str, int]) -> Value:
        """The product summed in `dtype`, scaled and summed over groups in f32 at least, and summed
        over chips in the dtype of the result."""
        result = self.op.types[0].dtype
        wide = _wide(result)
        wider = bits(dtype) > bits(result)
        product, chips = self.over_chips(mesh) if wider else (self, {})
        lead = (*chips, *self.groups)
        axes = (*lead, *self.out)
        attrs = dict(self.op.attrs) | {
            "spec": _spec(product.factors, axes),
            "dtype": Symbol(dtype),
        }
        attrs.pop("parts", None)
        numbers = (factor.numbers for factor in product.factors)
        value = in_dtype(make("contract", *numbers, **attrs), wide)
        for factor in product.factors:
            if factor.scale is not None:
                value = make("mul", value, in_dtype(_aligned(factor, axes), wide))
        value = in_dtype(_sum(value, range(len(chips), len(lead))), result)
        if not chips:
            return value
        layout = (*chips.values(), *((None,) * len(self.out)))
        why = "each chip scales its own sum"
        return _sum(make("constrain", value, layout=layout, why=why), range(len(chips)))

    def over_chips(self, mesh: Mapping[str, int]) -> tuple[_Product, dict[str, tuple[str, ...]]]:
        """The product with each sharded contracted axis cut into its shards, and the mesh axes of
        the new axes."""
        fresh = (x for x in _LETTERS if x not in self.sizes)
        split, factors = {}, self.factors
        for letter in self.summed:
            over = next(filter(None, (factor.split_over(letter) for factor in self.factors)), ())
            ways = prod(mesh.get(axis, 1) for axis in over)
            if ways > 1 and self.sizes[letter] % ways == 0:
                outer = next(fresh)
                split[outer] = over
                factors = tuple(factor.cut(letter, ways, outer) for factor in factors)
        return replace(self, factors=factors), split


def _rows(product: _Product) -> int:
    """The number of rows of activations that each group's scales multiply."""
    grouped = [factor.axes for factor in product.factors if factor.varies & set(product.groups)]
    return prod(product.sizes[x] for x in product.out if any(x not in axes for axes in grouped))


def _wide(dtype: str) -> str:
    """The dtype in which scales multiply, for a result of this dtype."""
    return "f64" if dtype == "f64" else "f32"


def _spec(factors: Sequence[_Factor], out: tuple[str, ...]) -> str:
    return f"{', '.join(' '.join(factor.axes) for factor in factors)} -> {' '.join(out)}"


def _sum(value: Value, axes: Iterable[int]) -> Value:
    axes = tuple(axes)
    return make("reduce_sum", value, axes=axes, out_sharding=None) if axes else value


def _aligned(factor: _Factor, out: tuple[str, ...]) -> Value:
    """The scale with the axes of the product, of size one where it does not vary."""
    axes = tuple((x,) if x in out else () for x in factor.scaled)
    return arranged(Operand(factor.scale, axes), out)
