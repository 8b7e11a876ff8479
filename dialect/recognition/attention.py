"""Attention, found by its shape: a softmax between two products.

    softmax(mask(scale * (q . k))) . v  ->  attend(q, k, v, mask)

Whatever order the library keeps its axes in, the op names them once, in the order of the query:
`s` is the context (the softmax's axis), `k` is summed between query and key, `v` is the value's
own. What a library reshaped, transposed, broadcast or scaled on the way to a product is undone, so
that every spelling is the same op of the same arrays.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import jax

from dialect.matching.operands import Operand, bare, combined, laid_out, named
from dialect.matching.values import REALS, in_dtype, in_shape, through, unrounded
from dialect.recognition.logits import (
    Logits,
    added_mask,
    factor_of,
    number_where_false,
    read_logits,
)
from rewrite.ir import Op, Symbol, Value, bits
from rewrite.opdef import make, traits, with_args
from rewrite.rules import Miss, Outcome, local
from rewrite.signature import Array, Signature, letters

_CONVERT = "convert_element_type"
_LAYOUT = ("reshape", "transpose", "slice", _CONVERT)
_SHARED = "bghicdef"  # what query and key share: batch, KV heads
_ALONE = "tjlmopqruwxyz"  # what only the query has: time, query heads


@local(
    "contract",
    example=lambda q, k, v: jax.nn.softmax(q @ k.T * 0.5) @ v,
    types=("f32[3,4]", "f32[5,4]", "f32[5,4]"),
    keeps="reals",
)
def attend(op: Op) -> Outcome:
    """softmax(mask(scale * (q . k))) . v  ->  attend(q, k, v, mask)"""
    if not op.types[0].size:
        return None  # axes without elements lie in no order
    for position, arg in enumerate(op.args):
        weights = through(arg, "rounded")
        if not _made_of_softmax(weights):
            continue
        found = read_logits(weights)
        if isinstance(found, Miss):
            return found
        if weights != arg and not _rounded_to_integers(arg.op, found):
            return Miss("the weights are rounded, but not to integers over the context", 4)
        return _attend(op, position, found)
    return None


def _made_of_softmax(value: Value) -> bool:
    """Whether a softmax lies behind layout, conversions and numbers where a mask is false."""
    inner = through(value, *_LAYOUT)
    kept = [x for _, x, _ in number_where_false(inner.op)]
    return inner.op.name == "softmax" or any(map(_made_of_softmax, kept))


def _rounded_to_integers(op: Op, found: Logits) -> bool:
    """Whether weights are rounded as `attend` rounds them."""
    over = [found.axes[d] for d in op["axes"]]
    return over == [(found.context,)] and op.get("form", "int8") == "int8"


def _attend(op: Op, position: int, found: Logits) -> Outcome:
    """The op, from the product with the values and what its other argument was found to be."""
    sides = [named(*each) for each in zip(found.product.args, _spec(found.product).inputs)]
    at = [i for i, side in enumerate(sides) if (found.context,) in side.axes]
    if len(at) != 1:
        return Miss("the softmax is not over the keys", 4)
    query, key = sides[1 - at[0]], sides[at[0]]
    kept = letters(_spec(found.product).outputs[0])
    summed = [x for x in letters(query.axes) if x not in kept]
    if len(summed) != 1:
        return Miss("query and key share not exactly one summed axis", 4)
    if not set(letters(key.axes)) <= {*letters(query.axes), found.context}:
        return Miss("the key has an axis that the query lacks", 4)
    if found.columns:
        return Miss("the sink's weights are not dropped", 4)
    order = [x for x in letters(query.axes) if x != summed[0]]
    values = _values(op, position, found, order)
    if isinstance(values, Miss):
        return values
    value, out = values
    if _is_mixture(key, value, found.context):
        return Miss("its keys are the same for all rows and its values are not: a mixture", 4)
    (query, query_scale), (key, key_scale) = unscaled(query), unscaled(key)
    query, key = narrowed(query, key, found.product.types[0].dtype)
    scale = found.scale * query_scale * key_scale
    name = _letters(query, key, summed[0], found.context)
    if name is None:
        return Miss("it has more axes than there are letters for", 4)
    found, added = _with_added_mask(found)
    beside = _beside(found, [*order, found.context])
    arrays = [query, key, value, *beside.values()]
    own = ("value",) if "value" in letters(value.axes) else ()
    made_axes = tuple(own if axis == (summed[0],) else axis for axis in query.axes)
    axes = Signature(
        tuple(_renamed(each.axes, name) for each in arrays), (_renamed(made_axes, name),)
    )
    made = make(
        "attend",
        *(each.value for each in arrays),
        axes=str(axes),
        **_attributes(op, position, found, query, arrays[2]),
        **({"added": True} if added else {}),
        **({"scale": scale} if scale != 1.0 else {}),
        **({"given": " ".join(beside)} if beside else {}),
    )
    return laid_out(Operand(made, made_axes), out, op.types[0].shape)


def _spec(op: Op) -> Signature:
    return Signature.parse(op["spec"])


def _values(op: Op, position: int, found: Logits, order: list[str]) -> tuple[Operand, Array] | Miss:
    """The value and the result in the letters of the logits; `value` is the value's own axis."""
    spec, value = _spec(op), op.args[1 - position]
    known = {x: axis for (x,), axis in zip(spec.inputs[position], found.axes)}
    own = [x for (x,) in spec.inputs[1 - position] if x not in known]
    known |= dict.fromkeys(own, ("value",))
    axes = tuple(known[x] for (x,) in spec.inputs[1 - position])
    out = named(op.results[0], tuple(known[x] for (x,) in spec.outputs[0])).axes
    if len(own) != 1 or set(letters(out)) - {"value"} != set(order):
        return Miss("the weights and the value are not summed over the context alone", 4)
    size = value.type.shape[axes.index(("value",))]
    before = bare(named(value, axes), found.sizes | {"value": size})
    misfit = _misfit_of_values(before, out, found.context)
    return Miss(misfit, 4) if misfit else (before, out)


def _is_mixture(key: Operand, value: Operand, context: str) -> bool:
    """Whether keys that no row owns choose among values that every row computes: a router, which
    mixes the results of experts by a softmax."""
    shared = set(letters(key.axes)) & set(letters(value.axes)) == {context}
    return shared and bool(set(letters(value.axes)) - {context, "value"})


def _misfit_of_values(value: Operand, out: Array, context: str) -> str:
    """Why these are no values of attention; "" where they are."""
    if context not in letters(value.axes):
        return "the values are the same for all keys"
    if "value" in letters(out) and "value" not in letters(value.axes):
        return "the values are the same along their heads"
    return "" if value.value.type.dtype in REALS else "the values are no floats"


def _with_added_mask(found: Logits) -> tuple[Logits, bool]:
    """The first bias that is a mask in numbers taken as the mask, and whether there is one."""
    for i, each in enumerate(found.biases if not found.masks else ()):
        if (read := added_mask(each)) is not None:
            mask, fill = read
            rest = found.biases[:i] + found.biases[i + 1 :]
            masks = (bare(mask, found.sizes),)
            return replace(found, masks=masks, fill=fill, biases=rest), True
    return found, False


def _beside(found: Logits, order: list[str]) -> dict[str, Operand]:
    """Mask, bias and sink, each one operand."""
    beside = {}
    if found.masks:
        beside["mask"] = combined("and", found.masks, order)
    if found.biases:
        wide = [Operand(in_dtype(x.value, found.inner), x.axes) for x in found.biases]
        beside["bias"] = combined("add", wide if len(wide) > 1 else found.biases, order)
    if found.sink:
        beside["sink"] = found.sink
    return beside


def _attributes(
    op: Op, position: int, found: Logits, query: Operand, value: Operand
) -> dict[str, Any]:
    """What is not as `attend` takes it to be where nothing is said."""
    logits = found.product.types[0].dtype
    said = {
        "cap": (found.cap, None),
        "fill": (found.fill if found.fill != -math.inf else None, None),
        "dropped": (found.dropped, False),
        "logits": (Symbol(logits), Symbol(query.value.type.dtype)),
        "inner": (Symbol(found.inner), Symbol(logits)),
        "weights": (Symbol(op.args[position].type.dtype), Symbol(value.value.type.dtype)),
        "dtype": (Symbol(op.types[0].dtype), Symbol(query.value.type.dtype)),
        "key_precision": (found.product.get("precision"), None),
        "value_precision": (op.get("precision"), None),
        "rounds": (_rounds(op.args[position].op), None),
    }
    return {name: value for name, (value, unsaid) in said.items() if value != unsaid}


def _rounds(op: Op) -> tuple[float, float] | None:
    """In which steps the weights are rounded on their way to the values."""
    return (op["largest"], op["least"]) if op.name == "rounded" else None


def unscaled(operand: Operand) -> tuple[Operand, float]:
    """A query or key without its layout and the number that it is multiplied by; that number."""
    value, factor = _without_factor(operand.value)
    return _same_axes(Operand(value, operand.axes)), factor


def _same_axes(operand: Operand) -> Operand:
    """The operand without its layout, unless it has an axis by a broadcast alone."""
    before = bare(operand, {})
    return before if set(letters(before.axes)) == set(letters(operand.axes)) else operand


_LINEAR = ("reshape", "transpose", "slice", "rope", "broadcast_in_dim")


def _without_factor(value: Value) -> tuple[Value, float]:
    """x and c where the value is c * x, seen through what is linear in x."""
    op = value.op
    if op.name in _LINEAR or unrounded(value) != value:
        inner, factor = _without_factor(op.args[0])
        return with_args(op, (inner, *op.args[1:])).results[0], factor
    if op.name not in ("mul", "div"):
        return value, 1.0
    for one, other in (op.args, op.args[::-1]) if traits(op).commutes else (op.args,):
        factor = factor_of(op.name, other)
        if factor:
            inner, rest = _without_factor(one)
            return in_shape(inner, value.type.shape), rest * factor
    return value, 1.0


def narrowed(query: Operand, key: Operand, dtype: str) -> tuple[Operand, Operand]:
    """Query and key before both were widened to the dtype in which they are multiplied anyway."""
    both = [_before_widening(each.value, dtype) for each in (query, key)]
    if None in both or len({each.type.dtype for each in both}) != 1:
        return query, key
    query, key = (_same_axes(Operand(x, y.axes)) for x, y in zip(both, (query, key)))
    return query, key


def _before_widening(value: Value, dtype: str) -> Value | None:
    """The value in the narrower float from which it was converted, seen through its layout."""
    op = value.op
    if op.name == _CONVERT:
        narrow = op.args[0].type.dtype
        wider = op.types[0].dtype == dtype and narrow in REALS and bits(narrow) < bits(dtype)
        return op.args[0] if wider else None
    if op.name not in _LAYOUT:
        return None
    inner = _before_widening(op.args[0], dtype)
    return None if inner is None else with_args(op, (inner,)).results[0]


def _letters(query: Operand, key: Operand, summed: str, context: str) -> dict[str, str] | None:
    """b, g, ... for what query and key share; t, j, ... for what only the query has."""
    if len(query.axes) > len(_SHARED):
        return None
    shared, alone = iter(_SHARED), iter(_ALONE)
    found = {summed: "k", context: "s", "value": "v", "sink": "n"}
    for place, axis in enumerate(query.axes):
        if not axis and place:
            next(alone)  # most likely time in a decode step: heads keep their letter of prefill
        for x in axis:
            if x != summed:
                found[x] = next(shared if x in letters(key.axes) else alone)
    return found


def _renamed(axes: Array, name: dict[str, str]) -> Array:
    return tuple(tuple(name[x] for x in axis) for axis in axes)
