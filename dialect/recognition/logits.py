"""Reads what stands between the product of query and key and the product with the values.

Every op that libraries put there is a step in the table at the end: it says what it does to the
logits (scales, caps, masks, biases, gives them a sink, normalises them) or how it lays them out.
The axes keep the letters of the product, however heads are merged and split on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np

from dialect.arrays.dtypes import dtype_of
from dialect.jaxprs.jaxpr import constant
from dialect.matching.operands import Operand, bare, named
from dialect.matching.proofs import is_finite
from dialect.matching.values import REALS, number, unrounded
from dialect.ops.lax import reshape_signature
from rewrite.ir import Op, Value, bits
from rewrite.opdef import make
from rewrite.rules import Miss
from rewrite.signature import Array, Signature, letters


@dataclass(frozen=True)
class Logits:
    """What was done to a product, up to some value; `axes` are that value's, in its letters."""

    product: Op
    axes: Array
    inner: str  # the widest dtype up to the softmax
    scale: float = 1.0
    cap: float | None = None
    masks: tuple[Operand, ...] = ()
    fill: float | None = None  # what the logits are where one of the masks is false
    dropped: bool = False  # whether the weights are zero there, in rows that keep no key too
    biases: tuple[Operand, ...] = ()
    sink: Operand | None = None
    columns: tuple[str, int, int] | None = None  # where the keys lie beside the sink: axis, a, b
    context: str = ""  # the axis of the softmax, once it is done

    @property
    def sizes(self) -> dict[str, int]:
        """The size of each letter of the product."""
        (array,) = Signature.parse(self.product["spec"]).outputs
        return dict(zip(letters(array), self.product.types[0].shape))


Read = Callable[[Value], Logits | Miss]
NOTHING = -1e9  # a logit from here down is meant to have no weight


def number_where_false(op: Op) -> Iterator[tuple[float, Value, bool]]:
    """(number, x, keep) for each way to read select(mask, number, x), or select(mask, x, number).

    `keep` tells whether x stands where the mask is true.
    """
    if op.name != "select_n" or len(op.args) != 3 or op.args[0].type.dtype != "bool":
        return
    for dropped, kept, keep in ((1, 2, True), (2, 1, False)):
        fill = number(op.args[dropped])
        if fill is not None:
            yield fill, op.args[kept], keep


def added_mask(bias: Operand) -> tuple[Operand, float] | None:
    """The mask and the number where a bias is 0 where the mask is true, elsewhere the number."""
    inner = unrounded(bias.value).op
    for fill, kept, keep in number_where_false(inner):
        dtype = dtype_of(kept.type.dtype)  # in 16 bits the lowest is -65504, or -65500 for short
        lowest = float(jnp.finfo(dtype).min)
        if number(kept) == 0 and float(np.asarray(fill, dtype)) <= max(NOTHING, lowest):
            mask = inner.args[0] if keep else make("not", inner.args[0])
            return replace(bias, value=mask), fill
    return None


def read_logits(value: Value) -> Logits | Miss:
    """What a value is to the product of query and key behind it, or why that cannot be told."""
    known: dict[Value, Logits | Miss] = {}

    def read(value: Value) -> Logits | Miss:
        if value not in known:
            step = _STEPS.get(value.op.name, _unknown)
            known[value] = step(value.op, read)
        return known[value]

    return read(value)


def _unknown(op: Op, read: Read) -> Miss:
    return Miss(f"the softmax is over {op.name}, not over masked and scaled logits", 2)


def _started(op: Op, read: Read) -> Logits | Miss:
    spec = Signature.parse(op["spec"])
    if any(each.dtype not in REALS for each in (*(arg.type for arg in op.args), *op.types)):
        return Miss("the softmax is over a product of what are no floats", 2)
    axes = named(op.results[0], spec.outputs[0]).axes
    return Logits(op, axes, op.types[0].dtype)


def _converted(op: Op, read: Read) -> Logits | Miss:
    found = read(op.args[0])
    if isinstance(found, Miss):
        return found
    if unrounded(op.results[0]) == op.results[0]:
        return Miss(f"the logits or weights are converted to {op.types[0].dtype}", 4)
    if found.context:
        return found
    return replace(found, inner=_wider(found.inner, op.types[0].dtype))


def _wider(one: str, other: str) -> str:
    return one if bits(one) >= bits(other) else other


def factor_of(name: str, value: Value) -> float | None:
    """The number by which a mul or div with this value multiplies, if no sum minds."""
    factor = number(value)
    if not factor:
        return None
    factor = factor if name == "mul" else 1 / factor
    return factor if math.isfinite(factor) and factor else None


def _scaled(op: Op, read: Read) -> Logits | Miss:
    """By a number; a mask stays a mask."""
    left, right = op.args
    if op.name == "mul" and number(right) is None:
        left, right = right, left
    factor = factor_of(op.name, right)
    if factor is None:
        return Miss(f"the softmax is over {op.name} with an array", 2)
    found = read(left)
    if isinstance(found, Miss):
        return found
    if found.sink or found.masks or factor < 0:
        return Miss("the logits are scaled behind their sink or their mask", 4)
    cap = found.cap if found.cap is None else found.cap * factor
    biases = tuple(replace(each, value=_times(each.value, factor)) for each in found.biases)
    return replace(found, scale=found.scale * factor, cap=cap, biases=biases)


def _times(value: Value, factor: float) -> Value:
    return make("mul", value, constant(np.asarray(factor, dtype_of(value.type.dtype))))


def _capped(op: Op, read: Read) -> Logits | Miss:
    """tanh, with a cap of one until it is scaled."""
    found = read(op.args[0])
    if isinstance(found, Miss):
        return found
    if found.masks or found.biases or found.sink or found.cap is not None:
        return Miss("the logits are capped behind their mask or their bias", 4)
    return replace(found, cap=1.0)


def _biased(op: Op, read: Read) -> Logits | Miss:
    """By an array, or by a sum of arrays and masks."""
    left, right = op.args
    sides = [(left, right), (right, left)] if op.name == "add" else [(left, right)]
    both = [(read(logits), bias) for logits, bias in sides if logits.type.size == op.types[0].size]
    found = [(logits, bias) for logits, bias in both if not isinstance(logits, Miss)]
    if len(found) != 1:
        reason = "cannot tell the logits from the mask that is added to them"
        return Miss(reason, 3) if found or not both else both[0][0]
    logits, bias = found[0]
    if logits.columns:
        return Miss("the logits are biased beside their sink", 4)
    if op.name == "sub":
        bias = make("neg", bias)
    return _with_bias(logits, named(bias, logits.axes))


def _with_bias(found: Logits, bias: Operand) -> Logits | Miss:
    """Parts of a sum are biases of their own."""
    bias = bare(bias, found.sizes)
    if bias.value.op.name == "add":
        for part in bias.value.op.args:
            found = _with_bias(found, named(part, bias.axes))
            if isinstance(found, Miss):
                return found
        return found
    if found.masks:
        return Miss("the logits are biased behind their mask", 4)
    return replace(found, biases=(*found.biases, bias))


def _masked(op: Op, read: Read) -> Logits | Miss:
    """By a number where a mask is false, or true."""
    for fill, kept, keep in number_where_false(op):
        found = read(kept)
        if isinstance(found, Miss):
            return found
        masks = _masks(op.args[0], found.axes, keep, found.sizes)
        if found.context:
            return _dropped(found, masks, fill)
        if found.columns:
            return Miss("the weights are masked beside their sink", 4)
        if found.masks and found.fill != fill:
            return Miss("the logits are masked twice, with different constants", 4)
        return replace(found, masks=(*found.masks, *masks), fill=fill)
    return Miss("the softmax is over select_n of two arrays", 2)


def _dropped(found: Logits, masks: tuple[Operand, ...], fill: float) -> Logits | Miss:
    """Weights that are zero, behind the softmax, where its own masks are false."""
    if fill != 0 or {*map(_told, masks)} != {*map(_told, found.masks)}:
        return Miss("the weights are masked behind the softmax", 4)
    return replace(found, dropped=True)


def _told(mask: Operand) -> tuple[Value, Array, bool]:
    """What a mask, or its negation, is made of: the same for masks that are."""
    negated = mask.value.op.name == "not"
    return mask.value.op.args[0] if negated else mask.value, mask.axes, negated


def _masks(mask: Value, axes: Array, keep: bool, sizes: dict[str, int]) -> tuple[Operand, ...]:
    """The masks of which one is the conjunction, each without its layout."""
    operand = bare(named(mask, axes), sizes)
    if not keep:
        return (replace(operand, value=make("not", operand.value)),)
    if operand.value.op.name != "and":
        return (operand,)
    parts = operand.value.op.args
    return tuple(each for part in parts for each in _masks(part, operand.axes, True, sizes))


def _with_sink(op: Op, read: Read) -> Logits | Miss:
    """Columns beside the keys, which are dropped again behind the softmax."""
    axis = op["dimension"]
    both = [read(arg) for arg in op.args]
    at = [i for i, each in enumerate(both) if isinstance(each, Logits)]
    if len(at) != 1 or len(op.args) != 2:
        return Miss("the softmax is over concatenated logits", 2)
    found, sink = both[at[0]], op.args[1 - at[0]]
    if found.sink or len(found.axes[axis]) != 1:
        return Miss("the logits have two sinks", 4)
    size, first = found.sizes[found.axes[axis][0]], sink.type.shape[axis] * at[0]
    axes = tuple(("sink",) if i == axis else each for i, each in enumerate(found.axes))
    sizes = found.sizes | {"sink": sink.type.shape[axis]}
    columns = (found.axes[axis][0], first, first + size)
    return replace(found, sink=bare(named(sink, axes), sizes), columns=columns)


def _normalised(op: Op, read: Read) -> Logits | Miss:
    found = read(op.args[0])
    if isinstance(found, Miss):
        return found
    last = found.axes[-1]
    if found.context or len(last) != 1 or (found.columns and found.columns[0] != last[0]):
        return Miss("the softmax is not over one axis of the product", 3)
    if found.sink and op.get("guarded") and not is_finite(found.sink.value):
        return Miss("an infinite sink is not subtracted", 4)
    return replace(found, context=last[0], inner=_wider(found.inner, op.types[0].dtype))


def _without_sink(op: Op, read: Read) -> Logits | Miss:
    found = read(op.args[0])
    if isinstance(found, Miss):
        return found
    cut = zip(op["start_indices"], op["limit_indices"], op.args[0].type.shape)
    kept = {i: (start, stop) for i, (start, stop, size) in enumerate(cut) if stop - start != size}
    if not found.columns or op.get("strides") or not found.context:
        return Miss("some of the weights are cut away", 3)
    letter, *place = found.columns
    if kept != {found.axes.index((letter,)): tuple(place)}:
        return Miss("the weights that are cut away are not those of the sink", 4)
    return replace(found, columns=None)


def _reshaped(op: Op, read: Read) -> Logits | Miss:
    """Axes merge and come apart again; an axis of the product is never cut."""
    found = read(op.args[0])
    if isinstance(found, Miss):
        return found
    flat = letters(found.axes)
    if found.columns:
        return Miss("the logits are reshaped beside their sink", 3)
    whole = reshape_signature(tuple(found.sizes[x] for x in flat), op.types[0].shape)
    if whole.need or any(len(parts) != 1 for parts in whole.inputs[0]):
        return Miss("a reshape cuts an axis of the logits apart", 3)
    letter = {part: x for x, (part,) in zip(flat, whole.inputs[0])}
    axes = tuple(tuple(letter[x] for x in axis if x in letter) for axis in whole.outputs[0])
    return replace(found, axes=axes)


def _transposed(op: Op, read: Read) -> Logits | Miss:
    found = read(op.args[0])
    if isinstance(found, Miss):
        return found
    return replace(found, axes=tuple(found.axes[i] for i in op["permutation"]))


_STEPS: dict[str, Callable[[Op, Read], Logits | Miss]] = {
    "contract": _started,
    "convert_element_type": _converted,
    "mul": _scaled,
    "div": _scaled,
    "tanh": _capped,
    "add": _biased,
    "sub": _biased,
    "select_n": _masked,
    "concatenate": _with_sink,
    "softmax": _normalised,
    "slice": _without_sink,
    "reshape": _reshaped,
    "transpose": _transposed,
}
