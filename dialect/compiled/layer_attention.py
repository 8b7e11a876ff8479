"""Attention over a layer of stacked caches, of which it reads parts: these come from the stack.

attend{blocks}(q, cache_read(k, layer), cache_read(v, layer))  ->  attend_layer(q, k, v, layer)

Only where they are read once, by a single block of queries or one window: what many blocks of
queries read is better copied next to the chip.
"""

from __future__ import annotations

import jax

from dialect.matching.attend_bounds import window_read
from dialect.ops import attend_layer  # noqa: F401  (defines it)
from dialect.ops.attend import names_of
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
    operands = dict(zip(names_of(op), op.args))
    reads = {name: operands[name].op for name in ("key", "value", SECOND_KEYS) if name in operands}
    reads = {name: read for name, read in reads.items() if read.name == "cache_read"}
    if not {"key", "value"} <= {*reads}:
        return None
    if not (window_read(op) or op.get("sparq") or _is_one_block(op)):
        return Miss("many blocks of queries read its keys and values", 3)
    if len({(read.args[0].type.shape[0], read.args[1]) for read in reads.values()}) > 1:
        return Miss("its keys and values are of different layers", 4)
    operands |= {name: read.args[0] for name, read in reads.items()}
    query, key, value, *more = operands.values()
    stacked = {"stacked": SECOND_KEYS} if SECOND_KEYS in reads else {}
    layer = reads["key"].args[1]
    return make("attend_layer", query, key, value, layer, *more, **dict(op.attrs), **stacked)


def _is_one_block(op: Op) -> bool:
    """Whether all queries of a sequence are in one block."""
    named = Signature.parse(op["axes"])
    sizes = dict(zip(named.inputs[0], op.args[0].type.shape))
    time = loop_axes(named, sizes).time
    return op.get("blocks", (0,))[0] >= sizes.get(time, 1)
