"""Parameter-only factors and shifts are folded into the weights that they meet.

Rules read the marks of `dialect.staging.marks`: `known` is a parameter-only value. All are exact
over the reals; a weight is rounded once more. None moves a factor across a conversion to integers,
nor into f16, whose small range a weight could leave.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax.numpy as jnp

from dialect.arrays.attributes import decode
from dialect.arrays.dtypes import dtype_of
from dialect.jaxprs.jaxpr import constant
from dialect.matching.operands import Operand, bare, laid_out, named
from dialect.matching.values import REALS, in_dtype, number, reshaped, through, unrounded
from dialect.ops.attend import names_of, pairs_of
from dialect.ops.lookups import CLIP
from dialect.ops.nn import Traced
from dialect.staging import marks as _  # noqa: F401  (defines the marks)
from rewrite.ir import Op, Symbol, Type, Value
from rewrite.opdef import make, traits, with_args
from rewrite.rules import Miss, Outcome, local
from rewrite.signature import Array, Signature, letters

Known = Traced["known"]
_WIDE = ("bf16", "f32", "f64")  # a product of moderate numbers is in their range
_NARROW = "f16 has too small a range for scaled weights"


@local(
    "contract",
    example=lambda x, s, w: (x * Known(s[None], alone=False)) @ Known(w, alone=True),
    types=("f32[3,4]", "f32[4]", "f32[4,5]"),
    keeps="reals",
)
def scale_of_input(op: Op) -> Outcome:
    """contract(x * known(s), known(w))  ->  contract(x, known(s * w))"""
    place = _weight(op)
    source = unrounded(op.args[1 - place], "shared") if place is not None else None
    if source is None or source.op.name != "mul" or not _are_floats(source, op.args[1 - place]):
        return None
    if not op.args[place].op["alone"]:
        return Miss("the weight has other readers: both copies would be stored", 2)
    if op.args[place].type.dtype not in _WIDE:
        return Miss(_NARROW, 2)
    summed = Signature.parse(op["spec"]).inputs[1 - place]
    for x, scale in (source.op.args, source.op.args[::-1]):
        weight = _scaled(op, place, scale, summed)
        if weight is not None and x.type.shape == source.type.shape:
            return _product(op, place, in_dtype(x, op.args[1 - place].type.dtype), weight)
    return Miss("its factor is not along the contracted axes", 2)


@local(
    "contract",
    example=lambda x, b, w: (x + Known(b[None], alone=False)) @ Known(w, alone=True),
    types=("f32[3,4]", "f32[4]", "f32[4,5]"),
    keeps="reals",
    needs=("finite parameters",),
)
def shift_of_input(op: Op) -> Outcome:
    """contract(x + known(b), known(w))  ->  contract(x, known(w)) + known(contract(b, w))"""
    place = _weight(op)
    source = unrounded(op.args[1 - place], "shared") if place is not None else None
    if source is None or source.op.name != "add" or not _are_wide(source, op.results[0]):
        return None
    for x, shift in (source.op.args, source.op.args[::-1]):
        if shift.op.name != "known" and number(shift) is None:
            continue
        operand = _operand(op, shift, Signature.parse(op["spec"]).inputs[1 - place])
        if x.type.shape != source.type.shape or _missing(operand, op, place):
            continue
        if not _is_summed(op, operand):
            continue
        row = in_dtype(_row(op, place, operand), op.types[0].dtype)
        dtype = op.args[1 - place].type.dtype
        product = _product(op, place, in_dtype(x, dtype), op.args[place])
        return make("add", product, make("known", row, alone=True))
    return None


@local(
    "mul",
    example=lambda x, w, s: (x @ Known(w, alone=True)) * Known(s[None], alone=True),
    types=("f32[3,4]", "f32[4,5]", "f32[5]"),
    keeps="reals",
    needs=("finite parameters",),
)
def scale_of_product(op: Op) -> Outcome:
    """contract(x, known(w)) * s  ->  contract(x, known(w * s))"""
    for product, scale in _orders(op):
        if product.op.name == "contract":
            folded = _scaled_product(product, scale)
            if folded is not None:
                return folded
    return None


@local(
    "mul",
    example=lambda x, s, c: (x * Known(s[None], alone=True)) * 0.5,
    types=("f32[3,4]", "f32[4]", "f32[]"),
    keeps="reals",
)
def scale_of_scaled(op: Op) -> Outcome:
    """x * known(s) * c  ->  x * known(s * c)"""
    return _into_known(_orders(op), "mul", _times)


@local(
    "add",
    example=lambda x, a, b: (x + Known(a[None], alone=True)) + Known(b[None], alone=True),
    types=("f32[3,4]", "f32[4]", "f32[4]"),
    keeps="reals",
)
def shift_of_shifted(op: Op) -> Outcome:
    """x + known(a) + known(b)  ->  x + known(a + b)"""
    return _into_known(_orders(op), "add", partial(make, "add"))


@local(
    "mul",
    example=lambda x, b: (x @ Known(x.T, alone=True) + Known(b[None], alone=True)) * 0.5,
    types=("f32[3,4]", "f32[3]"),
    keeps="reals",
)
def scale_of_shifted(op: Op) -> Outcome:
    """(contract(x, w) + known(b)) * c  ->  contract(x, w) * c + known(b * c)"""
    for value, scale in _orders(op):
        if not _is_moderate(scale) or value.op.name != "add":
            continue
        for product, shift in (value.op.args, value.op.args[::-1]):
            fits = product.op.name == "contract" and product.type == value.type
            if fits and shift.op.name == "known" and _are_wide(shift):
                return make("add", _times(product, scale), _known_times(shift, scale))
    return None


@local(
    "mul",
    example=lambda x, s, w: ((x * Known(s[None], alone=True)) @ Known(w, alone=False)) * 0.5,
    types=("f32[3,4]", "f32[4]", "f32[4,5]"),
    keeps="reals",
)
def scale_before_product(op: Op) -> Outcome:
    """contract(x * known(s), w) * c  ->  contract(x * known(s * c), w), w having other readers"""
    for value, scale in _orders(op):
        if value.op.name != "contract" or not _is_moderate(scale) or not _are_wide(value):
            continue
        moved = _into_known([(value.op.args[0], _one(scale))], "mul", _times)
        if moved is not None:
            return make("contract", moved, *value.op.args[1:], **dict(value.op.attrs))
    return None


@local(
    "mul",
    example=lambda table: (
        Traced["take"](Known(table, alone=True), jnp.array([1, 0]), mode=CLIP) * 0.5
    ),
    types=("f32[3,4]",),
    keeps="reals",
)
def scale_of_rows(op: Op) -> Outcome:
    """take(known(table), ids) * c  ->  take(known(table * c), ids), the table's only reader"""
    for rows, scale in _orders(op):
        if rows.op.name != "take" or not _is_moderate(scale):
            continue
        if scale.type.shape:
            return Miss("the scale is no scalar", 2)
        table, ids = rows.op.args
        if not _are_wide(table) or rows.op.get("fill") is not None:
            return Miss(_NARROW if table.type.dtype == "f16" else "it has a fill value", 2)
        if table.op.name != "known":
            continue
        if not table.op["alone"]:
            return Miss("the table has other readers", 2)
        return make("take", _known_times(table, scale), ids, **dict(rows.op.attrs))
    return None


@local(
    "attend",
    example=lambda x, w, k, v: Traced["attend"](
        x @ Known(w, alone=True), k, v, axes="b k, b s k, b s v -> b v", scale=0.5
    ),
    types=("f32[2,3]", "f32[3,4]", "f32[2,5,4]", "f32[2,5,4]"),
    keeps="reals",
)
def scale_of_query(op: Op) -> Outcome:
    """attend(contract(x, known(w)), k, v) {scale=c}  ->  attend(contract(x, known(w * c)), k, v)

    Where no operand is among the logits c includes log2(e), and the softmax has base 2.
    """
    attrs, scale = dict(op.attrs), op.get("scale", 1.0)
    fill = op.get("fill")
    added = {"bias", "sink", "fill"} & set(op.get("given", "").split()) or op.get("cap") is not None
    of_two = not added and op.get("base") is None and not isinstance(fill, Symbol)
    if scale == 1.0 and not of_two:
        return None
    dtype = "f64" if op.args[0].type.dtype == "f64" else "f32"
    factor = constant(scale * math.log2(math.e) if of_two else scale, Type(dtype, ()))
    places = [names_of(op).index(f"query{pair}") for pair in pairs_of(op)]
    queries = [_pushed(op.args[i], factor) if _is_moderate(factor) else None for i in places]
    if None in queries:
        return Miss("its query is not a product with a weight, or it has other readers", 1)
    attrs |= {"scale": 1.0, **({"base": 2.0} if of_two else {})}
    if of_two and fill is not None:
        attrs["fill"] = _of_two(fill, op)
    args = {**dict(enumerate(op.args)), **dict(zip(places, queries))}
    return make("attend", *args.values(), **attrs)


def _of_two(fill: float, op: Op) -> float:
    """The fill value of masked logits for a softmax of base 2, in the range of their dtype."""
    dtype = decode(op.get("inner") or op.get("logits")) or dtype_of(op.args[0].type.dtype)
    most = float(jnp.finfo(dtype).max)
    return fill if abs(fill) > most else max(-most, min(most, fill * math.log2(math.e)))


def _weight(op: Op) -> int | None:
    """The number of the operand that is a weight, the only one; None if there is none."""
    places = [i for i, arg in enumerate(op.args) if arg.op.name == "known"]
    return places[0] if len(places) == 1 else None


def _orders(op: Op) -> list[tuple[Value, ...]]:
    """(value, factor) in both orders, where the value has the type of the result."""
    return [pair for pair in (op.args, op.args[::-1]) if pair[0].type == op.types[0]]


def _operand(op: Op, value: Value, axes: Array) -> Operand:
    """A value that is elementwise with an array of these axes of the product."""
    value = through(value, "known")
    spec = Signature.parse(op["spec"])
    arrays = zip((*op.args, op.results[0]), (*spec.inputs, *spec.outputs))
    sizes = {x: size for v, a in arrays for (x,), size in zip(a, v.type.shape)}
    return bare(named(value, axes), sizes)


def _missing(operand: Operand, op: Op, place: int) -> bool:
    """Whether the operand has an axis that the weight lacks."""
    weight_letters = letters(Signature.parse(op["spec"]).inputs[place])
    return any(x not in weight_letters for x in letters(operand.axes))


def _is_summed(op: Op, operand: Operand) -> bool:
    """Whether the operand has every contracted axis."""
    return set(Signature.parse(op["spec"]).summed) <= set(letters(operand.axes))


def _scaled(op: Op, place: int, scale: Value, axes: Array) -> Value | None:
    """The weight times a factor of an array with these axes; None where it lacks one of them."""
    operand = _operand(op, scale, axes)
    if _missing(operand, op, place) or not _may_scale(op.args[place], scale):
        return None
    return _times_known(op, place, operand)


def _may_scale(weight: Value, scale: Value) -> bool:
    stored = weight.op.args[0].op.name != "dequantize"
    return stored and _are_wide(weight) and (scale.op.name == "known" or _is_moderate(scale))


def _are_floats(*values: Value) -> bool:
    """Whether these are floats, and not empty."""
    return all(value.type.dtype in REALS and value.type.size for value in values)


def _are_wide(*values: Value) -> bool:
    """Whether these are floats whose range a moderate factor does not leave."""
    return all(value.type.dtype in _WIDE and value.type.size for value in values)


def _is_moderate(value: Value) -> bool:
    """Whether a value is one number, and as a factor keeps weights in the range of f32."""
    factor = number(value)
    return factor is not None and (factor == 0 or 2.0**-64 <= abs(factor) <= 2.0**64)


def _one(value: Value) -> Value:
    """A number that is broadcast over an array, as a scalar."""
    return constant(number(value), Type(value.type.dtype, ())) if value.type.shape else value


def _times_known(op: Op, place: int, operand: Operand) -> Value:
    weight, axes = op.args[place].op.args[0], Signature.parse(op["spec"]).inputs[place]
    used = set(letters(operand.axes))
    shape = tuple(n if x in used else 1 for (x,), n in zip(axes, weight.type.shape))
    factor = operand.value
    if factor.type.shape:
        factor = laid_out(operand, axes, shape)
    alone = op.args[place].op["alone"]
    return make("known", _times(weight, factor), alone=alone)


def _times(value: Value, factor: Value) -> Value:
    """value * factor in the value's dtype, computed in f32 at least where their dtypes differ."""
    dtype = value.type.dtype
    wide = "f64" if "f64" in (dtype, factor.type.dtype) else "f32"
    wide = dtype if factor.type.dtype == dtype else wide
    return in_dtype(make("mul", in_dtype(value, wide), in_dtype(factor, wide)), dtype)


def _known_times(value: Value, factor: Value) -> Value:
    return make("known", _times(value.op.args[0], factor), alone=value.op["alone"])


def _into_known(
    pairs: Sequence[tuple[Value, ...]], name: str, combined: Callable[[Value, Value], Value]
) -> Value | None:
    """x . known(a . b) of the first pair that is x . known(a) and known(b), or a number b."""
    for value, last in pairs:
        fits = last.op.name == "known" or _is_moderate(last)
        if not fits or value.op.name != name:
            continue
        for x, first in (value.op.args, value.op.args[::-1]):
            if first.op.name != "known" or x.type != value.type or not _are_wide(first, value):
                continue
            second = last.op.args[0] if last.op.name == "known" else _one(last)
            merged = combined(first.op.args[0], second)
            return make(name, x, make("known", merged, alone=True))
    return None


def _scaled_product(product: Value, scale: Value) -> Value | None:
    """A product times a factor along axes of its weight, as one product; else None."""
    op = product.op
    place = _weight(op)
    if place is None or not op.args[place].op["alone"]:
        return None
    if op.types[0].dtype not in REALS:  # a scale does not go into a product of integers
        return None
    weight = _scaled(op, place, scale, Signature.parse(op["spec"]).outputs[0])
    return None if weight is None else _product(op, place, op.args[1 - place], weight)


def _product(op: Op, place: int, x: Value, weight: Value) -> Value:
    args = (weight, x) if place == 0 else (x, weight)
    return make("contract", *args, **dict(op.attrs))


def _row(op: Op, place: int, operand: Operand) -> Value:
    """The shift of a product for a shift of its input, with size one along axes of the input."""
    spec = Signature.parse(op["spec"])
    weight, out = spec.inputs[place], spec.outputs[0]
    shift = tuple((x,) for x in letters(operand.axes))
    kept_axes = tuple(axis for axis in out if axis in weight)
    wide = "f64" if op.types[0].dtype == "f64" else "f32"
    row = make(
        "contract",
        in_dtype(reshaped(operand.value, [n for n in operand.value.type.shape if n > 1]), wide),
        in_dtype(op.args[place].op.args[0], wide),
        spec=str(Signature((shift, weight), (kept_axes,))),
        dtype=Symbol(wide),
    )
    sizes = zip(out, op.types[0].shape)
    return reshaped(row, tuple(size if axis in kept_axes else 1 for axis, size in sizes))


def _pushed(value: Value, factor: Value) -> Value | None:
    """value * factor, the factor folded into the weights of the value; None where there are none.

    A factor passes whatever is linear: in all arguments together it goes into each of them.
    """
    op, linear = value.op, traits(value.op).linear
    if not _are_wide(value) or op.name == "shared" or len(op.types) > 1:
        return None
    if op.name == "known":
        return _known_times(value, factor)
    if op.name == "contract":
        return _scaled_product(value, factor)
    scaled = {"all": range(len(op.args)), "first": range(1)}.get(linear, ())
    if op.name == "mul":
        scaled = [i for i, arg in enumerate(op.args) if arg.op.name == "known"][:1]
    args = [_pushed(arg, factor) if i in scaled else arg for i, arg in enumerate(op.args)]
    return with_args(op, tuple(args)).results[0] if scaled and None not in args else None
