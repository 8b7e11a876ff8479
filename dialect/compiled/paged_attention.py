"""Attention over caches in pages, which reads them page by page.

attend{blocks}(q, paged(k, table), paged(v, table))  ->  attend_pages(q, k, table, v, table)
"""

from __future__ import annotations

import jax

from dialect.ops import attend_pages  # noqa: F401  (defines it)
from dialect.ops.nn import Traced
from rewrite.ir import Op
from rewrite.opdef import make
from rewrite.rules import Miss, Outcome, local


def _cache(pool: jax.Array, table: jax.Array) -> jax.Array:
    return Traced["paged"](pool, abs(table) % 6, page=4, layers=0)


@local(
    "attend",
    keeps="reals",
    example=lambda q, k, v, table: Traced["attend"](
        q,
        _cache(k, table),
        _cache(v, table),
        axes="b g t k, b g s k, b g s v -> b g t v",
        blocks=(8, 4),
    ),
    types=("f32[2,3,4,2]", "f32[6,3,4,2]", "f32[6,3,4,2]", "i32[2,2]"),
)
def attend_by_page(op: Op) -> Outcome:
    """attend{blocks}(q, paged(k, t), paged(v, u))  ->  attend_pages(q, k, t, v, u)"""
    query, key, value, *operands = op.args
    keys, values = key.op, value.op
    if op.get("blocks") is None or {keys.name, values.name} != {"paged"}:
        return None
    (pool, table, *layer), (other_pool, other_table, *other_layer) = keys.args, values.args
    layers = keys["layers"]
    if (layers, layer) != (values["layers"], other_layer) or bool(layers) != bool(layer):
        return Miss("its keys and values are not of one layer", 4)
    if (keys["page"], pool.type.shape[0]) != (values["page"], other_pool.type.shape[0]):
        return Miss("its keys and values have pools of different sizes", 4)
    if op["blocks"][1] % keys["page"]:
        return Miss("its blocks of keys are no whole pages", 4)
    pages = (pool, table, other_pool, other_table, *layer)
    return make("attend_pages", query, *pages, *operands, **dict(op.attrs), layers=layers)
