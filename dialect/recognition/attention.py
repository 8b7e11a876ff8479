"""Attention, recognised by its structure: a softmax between two products.

    softmax(mask(scale * (q . k))) . v  ->  attend(q, k, v, mask)

Libraries keep axes in any order, and reshape, transpose, broadcast or scale operands on their way
to a product. All of this is undone, so that every spelling is the same op of the same arrays. The
op names the axes in the order of the query: `s` is the context (the axis of the softmax), `k` is
contracted between query and key, `v` is the axis that only the value has.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import jax

from dialect.matching.operands import Operand, bare, combined, laid_out, named
from dialect.matching.values import REALS, in_dtype, in_shape, rounding, unrounded
from dialect.ops.quant import FORMS
from dialect.ops.scores import PAIRS
from dialect.recognition.logits import (
    Logits,
    added_mask,
    factor_of,
    number_where_false,
    read_logits,
)
from dialect.recognition.parted_logits import Pair
from rewrite.ir import Op, Symbol, Value, bits
from rewrite.opdef import make, traits, with_args
from rewrite.rules import Miss, Outcome, local
from rewrite.signature import Array, Signature, letters

_SHARED_LETTERS = "bghicdef"  # for axes of both query and key: batch, KV heads
_QUERY_LETTERS = "tjlmouwxyz"  # for axes of the query alone: time, query heads


@local(
    "contract",
    example=lambda q, k, v: jax.nn.softmax(q @ k.T * 0.5) @ v,
    types=("f32[3,4]", "f32[5,4]", "f32[5,4]"),
    keeps="reals",
)
def attend(op: Op) -> Outcome:
    """softmax(mask(scale * (q . k))) . v  ->  attend(q, k, v, mask)"""
    if not op.types[0].size:
        return None  # an empty array does not tell its axes apart
    for position, arg in enumerate(op.args):
        steps = rounding(arg)
        weights = steps.args[0] if steps else arg
        if not is_softmax(weights):
            continue
        logits = read_logits(weights)
        if isinstance(logits, Miss):
            return logits
        if steps and not _rounded_to_integers(steps, logits):
            return Miss("the weights are rounded, but not to integers over the context", 4)
        return _attend(op, position, logits)
    return None


def is_softmax(value: Value) -> bool:
    """Whether a value is a softmax, seen through layout, conversions and masks."""
    while _only_moves(value.op) or traits(value.op).converts:
        value = value.op.args[0]
    masked = [x for _, x, _ in number_where_false(value.op)]
    return value.op.name == "softmax" or any(map(is_softmax, masked))


def _only_moves(op: Op) -> bool:
    """Whether the elements of a result are those of the one argument, at other places."""
    return len(op.args) == 1 and traits(op).moves


def _rounded_to_integers(op: Op, logits: Logits) -> bool:
    """Whether weights are rounded as `attend` rounds them."""
    scaled_axes = [logits.axes[d] for d in op["axes"]]
    return scaled_axes == [(logits.context,)] and op["form"] == "int8"


def _attend(op: Op, position: int, logits: Logits) -> Outcome:
    """The op in place of a product whose argument at `position` is the softmax of the logits."""
    factors = _query_and_key(logits)
    if isinstance(factors, Miss):
        return factors
    order = [x for x in letters(factors.query.axes) if x != factors.contracted]
    values = _values(op, position, logits, order)
    if isinstance(values, Miss):
        return values
    value, out = values
    if _is_mixture(factors.key, value, logits.context):
        return Miss("its keys are the same for all rows and its values are not: a mixture", 4)
    pairs = [factors, *(_further(pair, logits.context, order) for pair in logits.pairs)]
    for pair in pairs:
        if isinstance(pair, Miss):
            return pair
    pairs, scale = _factored(pairs, logits)
    letter = _letters(pairs, logits.context)
    if letter is None:
        return Miss("it has more axes than there are letters for", 4)
    logits, is_added = _with_added_mask(logits)
    optional = _optional_operands(logits, [*order, logits.context], pairs[1:])
    query, key, contracted = pairs[0]
    operands = [query, key, value, *optional.values()]
    value_axis = ("value",) if "value" in letters(value.axes) else ()
    result_axes = tuple(value_axis if axis == (contracted,) else axis for axis in query.axes)
    axes = Signature(
        tuple(_renamed(operand.axes, letter) for operand in operands),
        (_renamed(result_axes, letter),),
    )
    result = make(
        "attend",
        *(operand.value for operand in operands),
        axes=str(axes),
        **_attributes(op, position, logits, query, value),
        **({"added": True} if is_added else {}),
        **({"scale": scale} if scale != 1.0 else {}),
        **({"given": " ".join(optional)} if optional else {}),
    )
    return laid_out(Operand(result, result_axes), out, op.types[0].shape)


class _Pair(NamedTuple):
    """A query, a key, and the letter of the axis that their product contracts."""

    query: Operand
    key: Operand
    contracted: str


def _query_and_key(logits: Logits) -> _Pair | Miss:
    """The first pair, which has all axes of the logits."""
    spec = _spec(logits.product)
    operands = [named(*pair) for pair in zip(logits.product.args, spec.inputs)]
    having_context = [i for i, operand in enumerate(operands) if (logits.context,) in operand.axes]
    if len(having_context) != 1:
        return Miss("the softmax is not over the keys", 4)
    (key_place,) = having_context
    query, key = operands[1 - key_place], operands[key_place]
    result_letters = letters(spec.outputs[0])
    contracted = [x for x in letters(query.axes) if x not in result_letters]
    if len(contracted) != 1:
        return Miss("query and key share not exactly one contracted axis", 4)
    if not set(letters(key.axes)) <= {*letters(query.axes), logits.context}:
        return Miss("the key has an axis that the query lacks", 4)
    if logits.columns:
        return Miss("the weights of the sink are not dropped", 4)
    return _Pair(query, key, contracted[0])


def _further(pair: Pair, context: str, order: list[str]) -> _Pair | Miss:
    """A pair whose product is added to that of the first, of which `order` has the axes."""
    keys = [operand for operand in pair if (context,) in operand.axes]
    if len(keys) != 1:
        return Miss("of a product that is added to the logits, one factor is no key", 4)
    (key,), (query,) = keys, (operand for operand in pair if operand is not keys[0])
    contracted = {*letters(query.axes)} - {*order}
    if len(contracted) != 1 or {*letters(key.axes)} - {*order} != {*contracted, context}:
        return Miss("the products of the logits have different axes", 4)
    return _Pair(query, key, *contracted)


def _factored(pairs: list[_Pair], logits: Logits) -> tuple[list[_Pair], float]:
    """The pairs without conversions of both factors, and without a number that all have in common;
    the scale with it."""
    dtype = logits.product.types[0].dtype
    factors = [(unscaled(pair.query), unscaled(pair.key)) for pair in pairs]
    scales = {query_scale * key_scale for (_, query_scale), (_, key_scale) in factors}
    if len(scales) == 1:
        pairs = [
            _Pair(query, key, pair.contracted)
            for ((query, _), (key, _)), pair in zip(factors, pairs)
        ]
    narrow = [_Pair(*narrowed(*pair[:2], dtype), pair.contracted) for pair in pairs]
    return narrow, logits.scale * (scales.pop() if len(scales) == 1 else 1.0)


def _spec(op: Op) -> Signature:
    return Signature.parse(op["spec"])


def _values(
    op: Op, position: int, logits: Logits, order: list[str]
) -> tuple[Operand, Array] | Miss:
    """The value and the axes of the result, in the letters of the logits.

    `value` names the axis that only the value has.
    """
    spec, value = _spec(op), op.args[1 - position]
    letter = {x: axis for (x,), axis in zip(spec.inputs[position], logits.axes)}
    value_letters = [x for (x,) in spec.inputs[1 - position] if x not in letter]
    letter |= dict.fromkeys(value_letters, ("value",))
    axes = tuple(letter[x] for (x,) in spec.inputs[1 - position])
    out = named(op.results[0], tuple(letter[x] for (x,) in spec.outputs[0])).axes
    if len(value_letters) != 1 or set(letters(out)) - {"value"} != set(order):
        return Miss("the weights and the value are not contracted over the context alone", 4)
    size = value.type.shape[axes.index(("value",))]
    operand = bare(named(value, axes), logits.sizes | {"value": size})
    misfit = _misfit_of_values(operand, out, logits.context)
    return Miss(misfit, 4) if misfit else (operand, out)


def _is_mixture(key: Operand, value: Operand, context: str) -> bool:
    """Whether keys without rows weight values that have rows: a softmax router mixes the results of
    experts so."""
    shares_context = set(letters(key.axes)) & set(letters(value.axes)) == {context}
    return shares_context and bool(set(letters(value.axes)) - {context, "value"})


def _misfit_of_values(value: Operand, out: Array, context: str) -> str:
    """The reason why these are not values of attention; "" if they are."""
    if context not in letters(value.axes):
        return "the values are the same for all keys"
    if "value" in letters(out) and "value" not in letters(value.axes):
        return "the values are the same along their heads"
    return "" if value.value.type.dtype in REALS else "the values are not floats"


def _with_added_mask(logits: Logits) -> tuple[Logits, bool]:
    """The logits with the first bias that is an additive mask as their mask, and whether there is
    one."""
    for i, bias in enumerate(logits.biases if not logits.masks else ()):
        if (mask_and_fill := added_mask(bias)) is not None:
            mask, fill = mask_and_fill
            biases = logits.biases[:i] + logits.biases[i + 1 :]
            masks = (bare(mask, logits.sizes),)
            return replace(logits, masks=masks, fill=fill, biases=biases), True
    return logits, False


def _optional_operands(logits: Logits, order: list[str], pairs: list[_Pair]) -> dict[str, Operand]:
    """Mask, fill, bias and sink, one operand of each if there is any, and the further pairs."""
    optional = {}
    if logits.masks:
        optional["mask"] = combined("and", logits.masks, order)
    if isinstance(logits.fill, Value):
        optional["fill"] = Operand(logits.fill, ())
    if logits.biases:
        wide = [Operand(in_dtype(x.value, logits.inner), x.axes) for x in logits.biases]
        optional["bias"] = combined("add", wide if len(wide) > 1 else logits.biases, order)
    if logits.sink:
        optional["sink"] = logits.sink
    for name, pair in zip([*PAIRS][1:], pairs):
        optional |= {f"query{name}": pair.query, f"key{name}": pair.key}
    return optional


def _attributes(
    op: Op, position: int, logits: Logits, query: Operand, value: Operand
) -> dict[str, Any]:
    """The attributes that differ from the defaults of `attend`."""
    product_dtype = logits.product.types[0].dtype
    is_attribute = logits.fill != -math.inf and not isinstance(logits.fill, Value)
    attributes_and_defaults = {
        "cap": (logits.cap, None),
        "fill": (logits.fill if is_attribute else None, None),
        "dropped": (logits.dropped, False),
        "logits": (Symbol(product_dtype), Symbol(query.value.type.dtype)),
        "inner": (Symbol(logits.inner), Symbol(product_dtype)),
        "weights": (Symbol(op.args[position].type.dtype), Symbol(value.value.type.dtype)),
        "dtype": (Symbol(op.types[0].dtype), Symbol(query.value.type.dtype)),
        "key_precision": (logits.product.get("precision"), None),
        "value_precision": (op.get("precision"), None),
        "rounds": (_rounds(rounding(op.args[position])), None),
    }
    return {name: x for name, (x, default) in attributes_and_defaults.items() if x != default}


def _rounds(steps: Op | None) -> tuple[float, float] | None:
    """(largest, least) of the op that rounds the weights; None if it does not."""
    if steps is None:
        return None
    return steps.get("largest", FORMS[steps["form"]].largest), steps.get("least", 0.0)


def unscaled(operand: Operand) -> tuple[Operand, float]:
    """(x, c) where a query or key is c * x; x without its layout."""
    value, factor = _without_factor(operand.value)
    return _same_axes(Operand(value, operand.axes)), factor


def _same_axes(operand: Operand) -> Operand:
    """The operand without its layout, unless a broadcast adds an axis to it."""
    inner = bare(operand, {})
    return inner if set(letters(inner.axes)) == set(letters(operand.axes)) else operand


def _without_factor(value: Value) -> tuple[Value, float]:
    """(x, c) where the value is c * x, seen through ops that are linear in x."""
    op = value.op
    if op.name not in ("mul", "div"):
        if not _is_linear_in_first(op) and unrounded(value) == value:
            return value, 1.0
        inner, factor = _without_factor(op.args[0])
        return with_args(op, (inner, *op.args[1:])).results[value.index], factor
    for x, scalar in (op.args, op.args[::-1]) if traits(op).commutes else (op.args,):
        factor = factor_of(op.name, scalar)
        if factor:
            inner, inner_factor = _without_factor(x)
            return in_shape(inner, value.type.shape), inner_factor * factor
    return value, 1.0


def _is_linear_in_first(op: Op) -> bool:
    """Whether op(c * x, ...) = c * op(x, ...) but for rounding; not for conversions of integers."""
    known = traits(op)
    alone = len(op.args) == 1 and known.linear == "all" and not known.converts
    return alone or known.linear == "first"


def narrowed(query: Operand, key: Operand, dtype: str) -> tuple[Operand, Operand]:
    """Query and key before a conversion to the dtype of their product, if both had a narrower one.

    (The product converts its operands itself.)
    """
    narrow = [_before_widening(operand.value, dtype) for operand in (query, key)]
    if None in narrow or len({value.type.dtype for value in narrow}) != 1:
        return query, key
    query, key = (_same_axes(Operand(x, y.axes)) for x, y in zip(narrow, (query, key)))
    return query, key


def _before_widening(value: Value, dtype: str) -> Value | None:
    """The value in the narrower float dtype that it was converted from, with the same layout."""
    op = value.op
    if traits(op).converts:
        narrow = op.args[0].type.dtype
        wider = op.types[0].dtype == dtype and narrow in REALS and bits(narrow) < bits(dtype)
        return op.args[0] if wider else None
    if not _only_moves(op):
        return None
    inner = _before_widening(op.args[0], dtype)
    return None if inner is None else with_args(op, (inner,)).results[value.index]


def _letters(pairs: list[_Pair], context: str) -> dict[str, str] | None:
    """The new letter of each axis: b, g, ... for those of both query and keys; t, j, ... for those
    of the query alone. None if there are too many axes."""
    query, of_keys = pairs[0].query, {x for pair in pairs for x in letters(pair.key.axes)}
    if len(query.axes) > len(_SHARED_LETTERS) or len(pairs) > len(PAIRS):
        return None
    shared_letters, query_letters = iter(_SHARED_LETTERS), iter(_QUERY_LETTERS)
    letter = {context: "s", "value": "v", "sink": "n"}
    letter |= {pair.contracted: name for pair, name in zip(pairs, PAIRS.values())}
    for place, axis in enumerate(query.axes):
        if not axis and place:
            next(query_letters)  # probably time in decode: heads get the same letter as in prefill
        for x in axis:
            if x not in letter:
                letter[x] = next(shared_letters if x in of_keys else query_letters)
    return letter


def _renamed(axes: Array, letter: dict[str, str]) -> Array:
    return tuple(tuple(letter[x] for x in axis) for axis in axes)
