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
    query, *caches = op.args[:3]
    keys, values = (cache.op for cache in caches)
    if op.get("blocks") is None or {keys.name, values.name} != {"paged"}:
        return None
    layers, layer = keys["layers"], keys.args[2:]
    if (layers, layer) != (values["layers"], values.args[2:]) or bool(layers) != bool(layer):
        return Miss("its keys and values are not of one layer", 4)
    if keys.args[0].type.shape[0] != values.args[0].type.shape[0]:
        return Miss("its keys and values have pools of different sizes", 4)
    pools = (*keys.args[:2], *values.args[:2], *layer)
    return make("attend_pages", query, *pools, *op.args[3:], **dict(op.attrs), layers=layers)
