"""Reads the ops between the product of query and key and the product with the values.

The table at the end has a step for every op that libraries use there. A step records what the op
does to the logits (it scales, caps, masks, biases or normalises them, or adds a sink) or how it
lays them out. Axes keep the letters of the product, however heads are merged and split on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from dialect.arrays.dtypes import dtype_of
from dialect.jaxprs.jaxpr import constant
from dialect.matching.operands import Operand, bare, named
from dialect.matching.proofs import is_finite
from dialect.matching.values import REALS, in_shape, number, shaped, through, unrounded
from dialect.ops.lax import reshape_signature
from dialect.recognition.parted_logits import Logits, of_one_query, of_several_pairs
from rewrite.ir import Op, Value, bits
from rewrite.opdef import make
from rewrite.rules import Miss
from rewrite.signature import Array, Signature, letters

Read = Callable[[Value], Logits | Miss]
NOTHING = -1e9  # a fill of at most this is meant as minus infinity


def number_where_false(op: Op) -> Iterator[tuple[float, Value, bool]]:
    """(number, x, keep) for each way to read a `select_n` of a number and x by a mask.

    `keep` tells whether it selects x where the mask is true.
    """
    for fill, x, keep in _scalar_where_false(op):
        if not isinstance(fill, Value):
            yield fill, x, keep


def _scalar_where_false(op: Op) -> Iterator[tuple[float | Value, Value, bool]]:
    """The same, where the number may also be a scalar that is known only when the program runs."""
    if op.name != "select_n" or len(op.args) != 3 or op.args[0].type.dtype != "bool":
        return
    _, if_false, if_true = op.args
    for fill, x, keep in ((if_false, if_true, True), (if_true, if_false, False)):
        scalar = through(fill, "broadcast_in_dim", "reshape")
        if (constant_fill := number(scalar)) is not None:
            yield constant_fill, x, keep
        elif scalar.type.size == 1:
            yield shaped(scalar, ()), x, keep


def added_mask(bias: Operand) -> tuple[Operand, float] | None:
    """(mask, fill) where a bias is 0 where the mask is true and elsewhere the fill; else None."""
    select = unrounded(bias.value).op
    for fill, x, keep in number_where_false(select):
        dtype = dtype_of(x.type.dtype)  # of f16 the lowest is -65504, which some write as -65500
        lowest = float(jnp.finfo(dtype).min)
        if number(x) == 0 and float(np.asarray(fill, dtype)) <= max(NOTHING, lowest):
            mask = select.args[0] if keep else make("not", select.args[0])
            return replace(bias, value=in_shape(mask, bias.value.type.shape)), fill
    return None


def read_logits(value: Value) -> Logits | Miss:
    """A value as logits or weights of attention, or a Miss with the reason why it is neither."""
    memo: dict[Value, Logits | Miss] = {}

    def read(value: Value) -> Logits | Miss:
        if value not in memo:
            step = _STEPS.get(value.op.name, _unknown)
            memo[value] = step(value.op, read)
        return memo[value]

    return read(value)


def _unknown(op: Op, read: Read) -> Miss:
    return Miss(f"the softmax is over {op.name}, not over masked and scaled logits", 2)


def _product(op: Op, read: Read) -> Logits | Miss:
    """The product of query and key, where reading ends."""
    spec = Signature.parse(op["spec"])
    if any(type_.dtype not in REALS for type_ in (*(arg.type for arg in op.args), *op.types)):
        return Miss("the softmax is over a product that is not of floats", 2)
    axes = named(op.results[0], spec.outputs[0]).axes
    return Logits(op, axes, op.types[0].dtype)


def _converted(op: Op, read: Read) -> Logits | Miss:
    logits = read(op.args[0])
    if isinstance(logits, Miss):
        return logits
    if unrounded(op.results[0]) == op.results[0]:
        return Miss(f"the logits or weights are converted to {op.types[0].dtype}", 4)
    if logits.context:
        return logits
    return replace(logits, inner=_wider(logits.inner, op.types[0].dtype))


def _wider(left: str, right: str) -> str:
    return left if bits(left) >= bits(right) else right


def factor_of(name: str, value: Value) -> float | None:
    """The factor of a `mul` or `div` by a scalar; None if it is an array, zero or not finite."""
    factor = number(value)
    if not factor:
        return None
    factor = factor if name == "mul" else 1 / factor
    return factor if math.isfinite(factor) and factor else None


def _scaled(op: Op, read: Read) -> Logits | Miss:
    """logits * number: their scale, cap and biases are multiplied too."""
    x, scalar = op.args
    if op.name == "mul" and number(scalar) is None:
        x, scalar = scalar, x
    factor = factor_of(op.name, scalar)
    if factor is None:
        return Miss(f"the softmax is over {op.name} with an array", 2)
    logits = read(x)
    if isinstance(logits, Miss):
        return logits
    if logits.sink or logits.masks or factor < 0:
        return Miss("the logits are scaled after their sink or their mask", 4)
    cap = logits.cap if logits.cap is None else logits.cap * factor
    biases = tuple(replace(bias, value=_times(bias.value, factor)) for bias in logits.biases)
    return replace(logits, scale=logits.scale * factor, cap=cap, biases=biases)


def _times(value: Value, factor: float) -> Value:
    return make("mul", value, constant(np.asarray(factor, dtype_of(value.type.dtype))))


def _capped(op: Op, read: Read) -> Logits | Miss:
    """tanh(logits): a cap of one, until they are scaled."""
    logits = read(op.args[0])
    if isinstance(logits, Miss):
        return logits
    if logits.masks or logits.biases or logits.sink or logits.cap is not None:
        return Miss("the logits are capped after their mask or their bias", 4)
    return replace(logits, cap=1.0)


def _biased(op: Op, read: Read) -> Logits | Miss:
    """logits + bias, or logits - bias: the bias is an array, or a sum of arrays and masks. What
    might be logits itself is another product of a query and a key."""
    left, right = op.args
    orders = [(left, right), (right, left)] if op.name == "add" else [(left, right)]
    pairs = [(read(x), bias) for x, bias in orders if x.type.size == op.types[0].size]
    candidates = [(logits, bias) for logits, bias in pairs if not isinstance(logits, Miss)]
    if len(candidates) == 2:
        return of_several_pairs(*(logits for logits, _ in candidates))
    if len(candidates) != 1:
        reason = "cannot tell the logits from the mask that is added to them"
        return Miss(reason, 3) if candidates or not pairs else pairs[0][0]
    ((logits, bias),) = candidates
    if logits.columns:
        return Miss("a bias is added to the logits and their sink", 4)
    if op.name == "sub":
        bias = make("neg", bias)
    return _with_bias(logits, named(bias, logits.axes))


def _with_bias(logits: Logits, bias: Operand) -> Logits | Miss:
    """The logits with one more bias, or with each addend of it."""
    bias = bare(bias, logits.sizes)
    sum_ = unrounded(bias.value).op
    if sum_.name == "add":
        for addend in sum_.args:
            logits = _with_bias(logits, named(addend, bias.axes))
            if isinstance(logits, Miss):
                return logits
        return logits
    if logits.masks:
        return Miss("the logits are biased after their mask", 4)
    return replace(logits, biases=(*logits.biases, bias))


def _masked(op: Op, read: Read) -> Logits | Miss:
    """select(mask, logits, scalar): one more mask; after the softmax, weights that are dropped."""
    choice = next(_scalar_where_false(op), None)
    if choice is None:
        return Miss("the softmax is over select_n of two arrays", 2)
    fill, x, keep = choice
    logits = read(x)
    if isinstance(logits, Miss):
        return logits
    masks = _conjuncts(op.args[0], logits.axes, keep, logits.sizes)
    if logits.context:
        return _dropped(logits, masks, fill)
    if logits.columns:
        return Miss("the logits and their sink are masked together", 4)
    if logits.masks and logits.fill != fill:
        return Miss("the logits are masked twice, with different numbers", 4)
    return replace(logits, masks=(*logits.masks, *masks), fill=fill)


def _dropped(logits: Logits, masks: tuple[Operand, ...], fill: float | Value) -> Logits | Miss:
    """Weights that are set to zero where a mask of their logits is false."""
    if fill != 0 or {*map(_key, masks)} != {*map(_key, logits.masks)}:
        return Miss("the weights are masked after the softmax", 4)
    return replace(logits, dropped=True)


def _key(mask: Operand) -> tuple[Value, Array, bool]:
    """(value, axes, whether it is negated): equal for equal masks."""
    negated = mask.value.op.name == "not"
    return mask.value.op.args[0] if negated else mask.value, mask.axes, negated


def _conjuncts(mask: Value, axes: Array, keep: bool, sizes: dict[str, int]) -> tuple[Operand, ...]:
    """The masks that `and` combines in a mask, without their layout; `keep=False` negates it."""
    operand = bare(named(mask, axes), sizes)
    if not keep:
        return (replace(operand, value=make("not", operand.value)),)
    if operand.value.op.name != "and":
        return (operand,)
    left, right = (_conjuncts(arg, operand.axes, True, sizes) for arg in operand.value.op.args)
    return left + right


def _concatenated(op: Op, read: Read) -> Logits | Miss:
    """The logits of several parts of the context, or those of one and a sink."""
    parts = [read(arg) for arg in op.args]
    if any(isinstance(part, Miss) for part in parts):
        return _with_sink(op, parts)
    return of_one_query(parts, op["dimension"])


def _with_sink(op: Op, parts: list[Logits | Miss]) -> Logits | Miss:
    """concat(logits, sink): columns beside the keys, which are dropped after the softmax."""
    axis = op["dimension"]
    places = [i for i, part in enumerate(parts) if isinstance(part, Logits)]
    if len(places) != 1 or len(op.args) != 2:
        return Miss("the softmax is over concatenated logits", 2)
    (place,) = places
    logits, sink = parts[place], op.args[1 - place]
    if logits.sink or len(logits.axes[axis]) != 1:
        return Miss("the logits have two sinks", 4)
    (context,) = logits.axes[axis]
    start = sink.type.shape[axis] * place
    axes = tuple(("sink",) if i == axis else letter for i, letter in enumerate(logits.axes))
    sizes = logits.sizes | {"sink": sink.type.shape[axis]}
    columns = (context, start, start + sizes[context])
    return replace(logits, sink=bare(named(sink, axes), sizes), columns=columns)


def _normalised(op: Op, read: Read) -> Logits | Miss:
    """softmax(logits): from here on they are weights."""
    logits = read(op.args[0])
    if isinstance(logits, Miss):
        return logits
    last = logits.axes[-1]
    if logits.context or len(last) != 1 or (logits.columns and logits.columns[0] != last[0]):
        return Miss("the softmax is not over one axis of the product", 3)
    if logits.sink and op.get("guarded") and not is_finite(logits.sink.value):
        return Miss("an infinite sink is not subtracted", 4)
    return replace(logits, context=last[0], inner=_wider(logits.inner, op.types[0].dtype))


def _without_sink(op: Op, read: Read) -> Logits | Miss:
    """slice(weights): those of the keys, without those of the sink."""
    weights = read(op.args[0])
    if isinstance(weights, Miss):
        return weights
    ranges = zip(op["start_indices"], op["limit_indices"], op.args[0].type.shape)
    cuts = {
        i: (start, stop) for i, (start, stop, size) in enumerate(ranges) if stop - start != size
    }
    if not weights.columns or op.get("strides") or not weights.context:
        return Miss("some of the weights are cut away", 3)
    letter, *keys = weights.columns
    if cuts != {weights.axes.index((letter,)): tuple(keys)}:
        return Miss("the weights that are cut away are not those of the sink", 4)
    return replace(weights, columns=None)


def _reshaped(op: Op, read: Read) -> Logits | Miss:
    """Axes may merge and split again; an axis of the product is never split."""
    logits = read(op.args[0])
    if isinstance(logits, Miss):
        return logits
    flat = letters(logits.axes)
    if logits.columns:
        return Miss("the logits are reshaped together with their sink", 3)
    reshape = reshape_signature(tuple(logits.sizes[x] for x in flat), op.types[0].shape)
    if reshape.need or any(len(parts) != 1 for parts in reshape.inputs[0]):
        return Miss("a reshape splits an axis of the logits", 3)
    letter = {part: x for x, (part,) in zip(flat, reshape.inputs[0])}
    axes = tuple(tuple(letter[x] for x in axis if x in letter) for axis in reshape.outputs[0])
    return replace(logits, axes=axes)


def _transposed(op: Op, read: Read) -> Logits | Miss:
    logits = read(op.args[0])
    if isinstance(logits, Miss):
        return logits
    return replace(logits, axes=tuple(logits.axes[i] for i in op["permutation"]))


_STEPS: dict[str, Callable[[Op, Read], Logits | Miss]] = {
    "contract": _product,
    "convert_element_type": _converted,
    "mul": _scaled,
    "div": _scaled,
    "tanh": _capped,
    "add": _biased,
    "sub": _biased,
    "select_n": _masked,
    "concatenate": _concatenated,
    "softmax": _normalised,
    "slice": _without_sink,
    "reshape": _reshaped,
    "transpose": _transposed,
}
