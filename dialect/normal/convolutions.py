"""A convolution that mixes no channels is elementwise: a sum of its inputs, each shifted.

State spaces and gated recurrences have one over their last inputs. So its channels are an axis like
any other, which may be cut, named and sharded.
"""

from __future__ import annotations

from functools import reduce

import jax

from dialect.jaxprs.jaxpr import constant
from dialect.matching.operands import transposed
from dialect.matching.values import REALS, cut, in_dtype, reshaped
from rewrite.ir import Op, Symbol, Type, Value
from rewrite.opdef import make
from rewrite.rules import Miss, Outcome, local

_LONGEST = 16  # a sum of more terms is left to the compiler


@local(
    "conv_general_dilated",
    keeps="reals",
    example=lambda x, k: jax.lax.conv_general_dilated(
        x, k, (1,), ((2, 0),), dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=3
    ),
    types=("f32[2,5,3]", "f32[3,1,3]"),
    needs=("finite parameters", "finite activations"),  # XLA multiplies other channels by zero
)
def convolution_of_channels(op: Op) -> Outcome:
    """conv(x, k) of every channel by itself  ->  x[0:t] k[0] + x[1:t+1] k[1] + ..."""
    if not _is_of_channels(op):
        return None
    dtype, width = op.types[0].dtype, op.args[1].type.shape[_specs(op)[1][2]]
    if width > _LONGEST or dtype not in REALS:
        return Miss(f"a sum of {width} terms of {dtype}", 2)
    return _at_one_place(op) if op.types[0].shape[_specs(op)[2][2]] == 1 else _shifted(op)


def _at_one_place(op: Op) -> Value:
    """The product of the input and the kernel at the one place of the result, as in a decode step:
    sum over w of x[b, w, c] k[w, c]."""
    x, weights = _in_order(op)
    letters = dict(zip(_specs(op)[2], "bcw"))
    read, out = (
        " ".join(letters[d] for d in range(3) if letters[d] in kept) for kept in ("bcw", "bc")
    )
    spec, dtype = f"{read}, w c -> {out}", Symbol(op.types[0].dtype)
    precision = {} if op.get("precision") is None else {"precision": op["precision"]}
    product = make("contract", x, weights, spec=spec, dtype=dtype, **precision)
    return reshaped(product, op.types[0].shape)


def _shifted(op: Op) -> Value:
    """The sum of the input shifted by every place of the kernel, times the weights there."""
    x, weights = _in_order(op)
    dtype, (_, channels, place) = op.types[0].dtype, _specs(op)[2]
    length = op.types[0].shape[place]
    shape = tuple(op.types[0].shape[d] if d == channels else 1 for d in range(3))
    wide = dtype if dtype == "f64" else "f32"
    terms = (
        make(
            "mul",
            in_dtype(cut(x, place, start, start + length), wide),
            in_dtype(reshaped(cut(weights, 0, start, start + 1), shape), wide),
        )
        for start in range(weights.type.shape[0])
    )
    return in_dtype(reduce(lambda one, other: make("add", one, other), terms), dtype)


def _specs(op: Op) -> tuple[tuple[int, ...], ...]:
    """The dimensions of (batch, channels, place) of the input, of (channels out, channels in,
    place) of the kernel, and of the result."""
    known = dict(op["dimension_numbers"].fields)
    return known["lhs_spec"], known["rhs_spec"], known["out_spec"]


def _is_of_channels(op: Op) -> bool:
    """Whether it is along one axis, by steps of one, mixes no channels, and has a result: an input
    shorter than the kernel has none."""
    _, kernel, out = _specs(op)
    if len(out) != 3 or op["batch_group_count"] != 1 or not op.types[0].size:
        return False
    channels = {op.args[1].type.shape[kernel[0]], op.types[0].shape[out[1]]}
    steps = (*op["window_strides"], *op["lhs_dilation"], *op["rhs_dilation"])
    inner = op.args[1].type.shape[kernel[1]]
    return channels == {op["feature_group_count"]} and inner == 1 and set(steps) == {1}


def _in_order(op: Op) -> tuple[Value, Value]:
    """The input, with its padding, its axes as those of the result; the kernel as [place,
    channel]."""
    (x, kernel), (given, of_kernel, out) = op.args, _specs(op)
    source = dict(zip(out, given))
    x = transposed(x, tuple(source[d] for d in range(3)))
    low, high = op["padding"][0]
    if low or high:
        config = tuple((low, high, 0) if d == out[2] else (0, 0, 0) for d in range(3))
        x = make("pad", x, constant(0, Type(x.type.dtype, ())), padding_config=config)
    channel, one, place = of_kernel
    kernel = transposed(kernel, (place, channel, one))
    return x, reshaped(kernel, kernel.type.shape[:2])
