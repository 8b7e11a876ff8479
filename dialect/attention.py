"""Attention, found by its shape: a softmax between two products.

softmax(mask(scale * (q . k))) . v  ->  attend(q, k, v, mask)

Whatever order the library keeps its axes in, the op's subscript names them once: `s` is the
context (the softmax's axis), `k` is summed between query and key, `v` is the value's own.
"""

from __future__ import annotations

from dataclasses import dataclass

from dialect.normal_form import is_splat
from rewrite.ir import Op, Symbol, Value
from rewrite.opdef import make
from rewrite.rules import Miss, Outcome
from rewrite.signature import Array, Signature


@dataclass
class _Logits:
    """What stands between the product of query and key and the softmax."""

    product: Op
    scale: float = 1.0
    mask: Value | None = None
    fill: float | None = None
    dtype: str = ""


def attend_of_softmax(op: Op) -> Outcome:
    """softmax(mask(scale * (q . k))) . v  ->  attend(q, k, v, mask)"""
    for position, arg in enumerate(op.args):
        weights, inner = arg, arg
        while inner.op.name == "convert_element_type":
            inner = inner.op.args[0]
        if inner.op.name != "softmax":
            continue
        logits = _logits(inner.op.args[0])
        if isinstance(logits, Miss):
            return logits
        return _attend(op, position, weights, inner, logits)
    return None


def _logits(value: Value) -> _Logits | Miss:
    """Reads the chain from the softmax's argument down to the product."""
    found = _Logits(value.op, dtype=value.type.dtype)
    while value.op.name != "contract":
        name, args = value.op.name, value.op.args
        if name == "convert_element_type":
            value = args[0]
            continue
        if value.type.dtype != found.dtype:
            return Miss(f"{name} is done in {value.type.dtype}, before the softmax's conversion", 3)
        masked = found.mask is not None or found.scale != 1.0
        if name == "select_n" and not masked and _fill(args[1]) is not None:
            found.mask, found.fill, value = args[0], _fill(args[1]), args[2]
        elif name in ("mul", "div") and is_splat(args[1]):
            factor = args[1].op["value"]
            found.scale *= factor if name == "mul" else 1 / factor
            value = args[0]
        elif name == "mul" and is_splat(args[0]):
            found.scale, value = found.scale * args[0].op["value"], args[1]
        elif name == "add" and not masked:
            towards = [_reaches_product(arg) for arg in args]
            if sum(towards) != 1:
                return Miss("cannot tell the logits from the mask that is added to them", 3)
            value, found.mask = args if towards[0] else args[::-1]
        else:
            return Miss(f"the softmax is over {name}, not over masked and scaled logits", 2)
    found.product = value.op
    return found


def _fill(value: Value) -> float | None:
    """The constant that a mask writes, through its broadcast."""
    if value.op.name == "broadcast_in_dim":
        value = value.op.args[0]
    return value.op["value"] if is_splat(value) else None


def _reaches_product(value: Value) -> bool:
    while value.op.name in ("convert_element_type", "mul", "div") and value.op.args:
        value = next((arg for arg in value.op.args if not is_splat(arg)), value.op.args[0])
    return value.op.name == "contract"


def _attend(op: Op, position: int, weights: Value, inner: Value, logits: _Logits) -> Outcome:
    first = Signature.parse(logits.product["spec"])
    second = Signature.parse(op["spec"])
    if any(
        len(d) != 1
        for spec in (first, second)
        for array in (*spec.inputs, *spec.outputs)
        for d in array
    ):
        return Miss("its products have compound axes", 4)
    logit_axes = [d[0] for d in first.outputs[0]]
    context = logit_axes[-1]
    value_axes = [d[0] for d in second.inputs[1 - position]]
    out_axes = [d[0] for d in second.outputs[0]]
    # The second product in the letters of the first.
    rename = {d[0]: logit_axes[i] for i, d in enumerate(second.inputs[position])}
    own = [x for x in value_axes if x not in rename]
    if len(own) != 1 or rename.get(value_axes[0]) is None and len(value_axes) < 2:
        return Miss("the value has not exactly one axis of its own", 4)
    rename[own[0]] = "value"
    sides = [[d[0] for d in array] for array in first.inputs]
    key_at = next((i for i, side in enumerate(sides) if context in side), None)
    if key_at is None or context in sides[1 - key_at]:
        return Miss("the softmax is not over the keys", 4)
    summed = [x for x in sides[0] if x in sides[1] and x not in logit_axes]
    if len(summed) != 1:
        return Miss("query and key share not exactly one summed axis", 4)
    query, key = sides[1 - key_at], sides[key_at]
    if any(x not in query for x in key if x != context):
        return Miss("the key has an axis that the query lacks", 4)
    if context not in (rename[x] for x in value_axes) or context in (rename[x] for x in out_axes):
        return Miss("the weights are not summed over the context", 4)
    kept = [x for x in query if x != summed[0]]
    if sorted(rename[x] for x in out_axes) != sorted([*kept, "value"]):
        return Miss("its result does not keep every axis of the query", 4)
    precision = logits.product.get("precision")
    if op.get("precision") != precision:
        return Miss("its two products ask for different precisions", 5)
    letters = _letters(query, key, summed[0], context)
    letters["value"] = "v"
    arrays = [query, key, [rename[x] for x in value_axes]]
    args = [logits.product.args[1 - key_at], logits.product.args[key_at], op.args[1 - position]]
    if logits.mask is not None:
        mask, mask_axes = _mask(logits.mask, logit_axes)
        arrays.append(mask_axes)
        args.append(mask)
    named = Signature(
        tuple(_array(axes, letters) for axes in arrays),
        (_array([rename[x] for x in out_axes], letters),),
    )
    if args[0].type.dtype != op.types[0].dtype:
        return Miss("its result has another dtype than its query", 5)
    return make(
        "attend",
        *args,
        axes=str(named),
        scale=logits.scale,
        fill=logits.fill,
        dtypes=tuple(
            Symbol(dtype)
            for dtype in (logits.product.types[0].dtype, logits.dtype, weights.type.dtype)
        ),
        **({"precision": precision} if precision is not None else {}),
    )


def _letters(query: list[str], key: list[str], summed: str, context: str) -> dict[str, str]:
    """b, g, ... for what query and key share; t, j, ... for what only the query has."""
    shared = iter("bghicdef")
    alone = iter("tjlmnopqruwxyz")
    named = {summed: "k", context: "s"}
    for axis in query:
        if axis != summed:
            named[axis] = next(shared if axis in key else alone)
    return named


def _mask(mask: Value, logit_axes: list[str]) -> tuple[Value, list[str | None]]:
    """The mask before it was broadcast, and its axes: where it has size one it lacks the axis."""
    places = range(len(logit_axes))
    while mask.op.name == "broadcast_in_dim":
        places = [places[i] for i in mask.op["broadcast_dimensions"]]
        mask = mask.op.args[0]
    sizes = mask.type.shape
    return mask, [logit_axes[p] if size > 1 else None for p, size in zip(places, sizes)]


def _array(axes: list[str | None], letters: dict[str, str]) -> Array:
    return tuple((letters[axis],) if axis is not None else () for axis in axes)
