"""What attention caches of a position, where that is less than the keys and values of its heads.

Multi-head latent attention (DeepSeek-AI 2024, arXiv:2405.04434, section 2.1) caches a latent, from
which a weight expands all keys and values, and a rotary key that all heads share.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from dialect.naming.axes import HEADS, Axes, leaves_of
from dialect.ops.attend import names_of, pairs_of
from dialect.planning.decoder_shape import Attention, Projection
from rewrite.ir import Op, Value
from rewrite.opdef import traits

_PLACES = {"batch", "time", "context", "layers"}


def with_latents(
    attention: Attention, op: Op, axes: Axes, weights: Iterable[tuple[Op, Value]]
) -> Attention:
    """An attention with the widths of its latents, what expands them, and its weights of these
    products; as it is where it caches the keys and values of its heads, or has no cache."""
    named = dict(zip(names_of(op), op.args))
    attended = [*(named[f"key{pair}"] for pair in pairs_of(op)), named["value"]]
    cached, between = _cached(attended, axes)
    names = {leaf.name for value in cached for leaf in leaves_of(axes.at(value))}
    widths = tuple(_width(axes, value) for value in cached)
    if names & {*HEADS, "d_model"} or not 0 < sum(widths) < attention.kv_width:
        return attention
    products = {product for product, _ in weights if product in between}
    return replace(
        attention,
        latent=widths,
        is_shared=named["key"] == named["value"],
        d_value=_width(axes, op.args[2]) // _heads(axes, op.args[2]),
        expanded=sum(_width(axes, product.results[0]) for product in products),
        relaid=sum(_relaid(axes, other, between) for other in between if other not in products),
        projections=tuple(
            _projection(axes, product, weight, product in between) for product, weight in weights
        ),
    )


def _cached(values: Sequence[Value], axes: Axes) -> tuple[list[Value], list[Op]]:
    """The arrays over the context that keys and values are computed from, and the ops between."""
    key = axes.at(values[0])
    context = {leaf for leaf in leaves_of(key) if leaf.name in ("context", "time")}
    cached: dict[Value, None] = {}
    between: dict[Op, None] = {}
    stack = [*values][::-1]
    while stack:
        value = stack.pop()
        op = value.op
        within = [x for x in op.args if context & {*leaves_of(axes.at(x))}]
        if not within or traits(op).writes or traits(op).picks:
            cached[value] = None
        elif op not in between:
            between[op] = None
            stack += within[::-1]
    return list(cached), list(between)


def _relaid(axes: Axes, op: Op, between: Sequence[Op]) -> int:
    """The numbers that an op writes and reads for each position, where it makes an array of another
    width of what was expanded: the rotary key of every head, or a key of two parts."""
    width = _width(axes, op.results[0])
    widths = {arg: _width(axes, arg) for arg in op.args}
    if width in widths.values():
        return 0
    return width + sum(n for arg, n in widths.items() if arg.op in between)


def _width(axes: Axes, value: Value) -> int:
    """The numbers that an array holds for each position."""
    leaves = leaves_of(axes.at(value))
    return math.prod(leaf.size for leaf in leaves if leaf.name not in _PLACES)


def _heads(axes: Axes, value: Value) -> int:
    return math.prod(leaf.size for leaf in leaves_of(axes.at(value)) if leaf.name in HEADS)


def _projection(axes: Axes, product: Op, weight: Value, expands: bool) -> Projection:
    names = {leaf.name for leaf in leaves_of(axes.at(weight))}
    return Projection(weight.type.size, bool(names & {*HEADS}), "d_model" in names, expands)
