"""What attention caches of a position, where that is less than the keys and values of its heads.

Multi-head latent attention (DeepSeek-AI 2024, arXiv:2405.04434, section 2.1) caches a latent, from
which a weight expands all keys and values, and a rotary key that all heads share.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
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
    """An attention with the widths of its latents, and its weights of these products; as it is
    where it caches the keys and values of its heads, or has no cache."""
    cached = list(dict.fromkeys(x for value in _keys_and_values(op) for x in _cached(value, axes)))
    names = {leaf.name for value in cached for leaf in leaves_of(axes.at(value))}
    widths = tuple(_width(axes, value) for value in cached)
    if names & {*HEADS, "d_model"} or not 0 < sum(widths) < attention.kv_width:
        return attention
    return replace(
        attention,
        latent=widths,
        d_value=_width(axes, op.args[2]) // _heads(axes, op.args[2]),
        projections=tuple(_projection(axes, *weight) for weight in weights),
    )


def _keys_and_values(op: Op) -> list[Value]:
    named = dict(zip(names_of(op), op.args))
    return [*(named[f"key{pair}"] for pair in pairs_of(op)), named["value"]]


def _cached(value: Value, axes: Axes) -> Iterator[Value]:
    """The arrays over the context that a key or value is computed from."""
    op = value.op
    within = [x for x in op.args if any("context" in axis for axis in axes.of(x))]
    if not within or traits(op).writes or traits(op).picks:
        yield value
        return
    for arg in within:
        yield from _cached(arg, axes)


def _width(axes: Axes, value: Value) -> int:
    """The numbers that an array holds for each position."""
    leaves = leaves_of(axes.at(value))
    return math.prod(leaf.size for leaf in leaves if leaf.name not in _PLACES)


def _heads(axes: Axes, value: Value) -> int:
    return math.prod(leaf.size for leaf in leaves_of(axes.at(value)) if leaf.name in HEADS)


def _projection(axes: Axes, product: Op, weight: Value) -> Projection:
    names, given = (
        {leaf.name for leaf in leaves_of(axes.at(value))} for value in (weight, product.results[0])
    )
    is_over_heads, is_over_d_model = bool(names & {*HEADS}), "d_model" in names
    return Projection(weight.type.size, is_over_heads, is_over_d_model, "context" in given)
