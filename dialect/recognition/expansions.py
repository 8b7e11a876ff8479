"""Keys and values that a weight expands from a latent (DeepSeek-AI 2024, section 2.1.1).

    k = x . w,   x: [batch, context, latent],   w: [latent, heads, d_head]

The width of such a key comes from the weight alone, its context from the latent alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from dialect.matching.operands import Operand, bare, in_parts
from dialect.matching.values import cut, parts_along, reshaped
from dialect.ops.scores import CONTEXT
from rewrite.ir import Op, Symbol, Value
from rewrite.opdef import build, make, traits
from rewrite.signature import Array, Signature, letters


class Expansion(NamedTuple):
    """A latent and its weight, with their axes in the letters of what they give, and `summed`."""

    latent: Operand
    weight: Operand
    summed: str
    precision: object


def expansion(operand: Operand, sizes: Mapping[str, int], width: str) -> Expansion | None:
    """The latent and the weight of a key or value that is as wide as the axis `width`; None if it
    is no such product. `sizes` are those of the letters. Of a context in parts the latent is in
    parts, where one weight expands all."""
    known = bare(operand, sizes)
    value, axes = known.value, known.axes
    if parts := parts_of_context(known):
        return _of_parts([expansion(part, part.sizes, width) for part in parts], parts)
    product = _product(value)
    if product is None or len({x.type.dtype for x in (*product.args, value)}) != 1:
        return None
    spec = Signature.parse(product["spec"])
    if len(spec.summed) != 1:
        return None
    summed = f"summed {spec.summed[0]}"
    name = dict(zip(letters(spec.outputs[0]), axes)) | {spec.summed[0]: (summed,)}
    sides = [
        Operand(value, tuple(name[x] for (x,) in array))
        for value, array in zip(product.args, spec.inputs)
    ]
    for latent, weight in (sides, sides[::-1]):
        apart = CONTEXT in latent.axes and CONTEXT not in weight.axes
        if apart and (width,) in weight.axes and (width,) not in latent.axes:
            return Expansion(latent, weight, summed, product.get("precision"))
    return None


def parts_of_context(operand: Operand) -> list[Operand]:
    """The operands that one holds one after another along the context; none if it is no such."""
    if CONTEXT not in operand.axes:
        return []
    place = operand.axes.index(CONTEXT)
    return [Operand(part, operand.axes) for part in parts_along(operand.value, place)]


def one_context(parts: Sequence[Operand], lengths: Sequence[Operand]) -> Operand:
    """The parts one after another along the context, each as long as its operand of `lengths`."""
    (context,), order = CONTEXT, dict.fromkeys(x for part in parts for x in letters(part.axes))
    counts = [each.value.type.shape[each.along(context)] for each in lengths]
    return in_parts(parts, counts, context, [*order])


def _of_parts(found: Sequence[Expansion | None], parts: Sequence[Operand]) -> Expansion | None:
    """The expansion of all parts of a context by the weight that they share; else None."""
    if None in found or len({_apart_from_latent(each) for each in found}) > 1:
        return None
    return found[0]._replace(latent=one_context([each.latent for each in found], parts))


def _apart_from_latent(of: Expansion) -> tuple[object, ...]:
    """All else of an expansion. A weight may have been cut for each part anew."""
    op, index = of.weight.value
    made = (op.name, op.args, op.attrs, index) if op.args else op
    return made, of.weight.axes, of.latent.axes, of.precision


def _product(value: Value) -> Op | None:
    """The product that a value is, a part of a product as the product with a part of a factor."""
    op, known = value.op, traits(value.op)
    is_part = known.moves and (known.axes or (known.picks and known.linear))
    product = op.args[0].op if is_part else op
    if product.name != "contract" or op.get("strides") is not None:
        return None
    return _with_part(product, value) if is_part else product


def _with_part(product: Op, part: Value) -> Op | None:
    """The product with a part of one factor, of which a part of its result comes; None if there is
    no such factor."""
    op, spec = part.op, Signature.parse(product["spec"])
    args, inputs, (out,) = list(product.args), list(spec.inputs), spec.outputs
    cuts = [op[traits(op).axes]] if traits(op).axes else _cut_dimensions(op)
    holders = [(i, d) for d in cuts for i, axes in enumerate(inputs) if out[d] in axes]
    if len(holders) != 1:
        return None
    ((holder, dimension),) = holders
    factor, place = args[holder], inputs[holder].index(out[dimension])
    if traits(op).axes:
        args[holder] = build(op.name, factor, axis=place).results[part.index]
        inputs[holder], out = _without(inputs[holder], place), _without(out, dimension)
    else:
        ends = op["start_indices"][dimension], op["limit_indices"][dimension]
        args[holder] = cut(factor, place, *ends)
    spec = Signature(tuple(inputs), (out,))
    return build("contract", *args, **{**dict(product.attrs), "spec": str(spec)})


def _cut_dimensions(op: Op) -> list[int]:
    """The dimensions that a slice cuts."""
    sizes = enumerate(zip(op.args[0].type.shape, op.types[0].shape))
    return [dimension for dimension, (whole, part) in sizes if whole != part]


def _without(axes: Array, place: int) -> Array:
    return axes[:place] + axes[place + 1 :]


def multiplied(operand: Operand, by: Expansion, old: str, new: str) -> Value:
    """The operand with an axis `old` contracted with the weight, whose axis `new` is there then."""
    weight = _without_ones(by.weight)
    axes = tuple(axis or (f"one {place}",) for place, axis in enumerate(operand.axes))
    out = tuple((new,) if axis == (old,) else axis for axis in axes)
    used = dict.fromkeys(letters((*axes, *weight.axes)))
    letter = dict(zip(used, "abcdefghijklmnopqrstuvwxyz"))
    spec = Signature(*(_renamed(arrays, letter) for arrays in ((axes, weight.axes), (out,))))
    more = {} if by.precision is None else {"precision": by.precision}
    dtype = Symbol(operand.value.type.dtype)
    return make("contract", operand.value, weight.value, spec=str(spec), dtype=dtype, **more)


def _renamed(arrays: tuple[Array, ...], letter: Mapping[str, str]) -> tuple[Array, ...]:
    return tuple(tuple((letter[x],) for (x,) in axes) for axes in arrays)


def _without_ones(operand: Operand) -> Operand:
    sizes = zip(operand.axes, operand.value.type.shape)
    shape = tuple(size for axis, size in sizes if axis)
    if len(shape) == operand.value.type.rank:
        return operand
    return replace(
        operand,
        value=reshaped(operand.value, shape),
        axes=tuple(axis for axis in operand.axes if axis),
    )
