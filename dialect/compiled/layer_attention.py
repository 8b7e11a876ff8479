"""Attention over a layer of stacked caches, of which it reads parts: these come from the stack.

attend{blocks}(q, cache_read(k, layer), cache_read(v, layer))  ->  attend_layer(q, k, v, layer)

Only where they are read once, by a single block of queries or one window: what many blocks of
queries read is better copied next to the chip.
"""

from __future__ import annotations

import jax

from dialect.matching.attend_bounds import window_read
from dialect.ops import attend_layer  # noqa: F401  (defines it)
from dialect.ops.attend_sparq import SECOND_KEYS
from dialect.ops.nn import Traced
from dialect.ops.scores import loop_axes
from rewrite.ir import Op
from rewrite.opdef import make
from rewrite.rules import Miss, Outcome, local
from rewrite.signature import Signature


def _layer(stack: jax.Array) -> jax.Array:
    return Traced["cache_read"](stack, 1)


@local(
    "attend",
    keeps="reals",
    example=lambda q, k, v: Traced["attend"](
        q, _layer(k), _layer(v), axes="b t k, b s k, b s v -> b t v", blocks=(8, 4)
    ),
    types=("f32[2,4,2]", "f32[3,2,8,2]", "f32[3,2,8,2]"),
)
def attend_in_stack(op: Op) -> Outcome:
    """attend{blocks}(q, cache_read(k, l), cache_read(v, l))  ->  attend_layer(q, k, v, l)"""
    query, *caches = op.args[:3]
    keys, values = (cache.op for cache in caches)
    is_read = keys.name == values.name == "cache_read" and keys.args[1] == values.args[1]
    if not is_read or not (window_read(op) or _is_one_block(op) or op.get("sparq")):
        return None
    layers = keys.args[0].type.shape[0]
    if values.args[0].type.shape[0] != layers:
        return Miss("its keys and values are stacked with other layers", 4)
    operands, given, stacked = list(op.args[3:]), op.get("given", "").split(), []
    for number, name in enumerate(given):
        inner = operands[number].op
        is_layer = inner.name == keys.name and inner.args[1] == keys.args[1]
        if name == SECOND_KEYS and is_layer and inner.args[0].type.shape[0] == layers:
            operands[number], stacked = inner.args[0], [name]
    stacks, more = (keys.args[0], *values.args), {"stacked": stacked[0]} if stacked else {}
    return make("attend_layer", query, *stacks, *operands, **dict(op.attrs), **more)


def _is_one_block(op: Op) -> bool:
    """Whether all queries of a sequence are in one block."""
    named = Signature.parse(op["axes"])
    sizes = dict(zip(named.inputs[0], op.args[0].type.shape))
    time = loop_axes(named, sizes).time
    return bool(op.get("blocks")) and op["blocks"][0] >= sizes.get(time, 1)
