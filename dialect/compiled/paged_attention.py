"""Attention over caches in pages, which reads them page by page.

attend{blocks}(q, paged(k, table), paged(v, table))  ->  attend_pages(q, k, table, v, table)
"""

from __future__ import annotations

import jax

from dialect.ops import attend_pages  # noqa: F401  (defines it)
from dialect.ops.attend import names_of
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
    named = dict(zip(names_of(op), op.args))
    caches = {
        name: value.op
        for name, value in named.items()
        if name.startswith(("key", "value")) and value.op.get("page")
    }
    if op.get("blocks") is None or not {"key", "value"} <= caches.keys():
        return None
    first = caches["key"]
    layers, page, layer = first["layers"], first["page"], first.args[2:]
    if bool(layers) != bool(layer) or any(
        (cache["layers"], cache.args[2:]) != (layers, layer) for cache in caches.values()
    ):
        return Miss("its keys and values are not of one layer", 4)
    if any(cache.get("mode") != first.get("mode") for cache in caches.values()):
        return Miss("pages that no pool has are not the same to its keys and values", 4)
    pools = {(cache["page"], cache.args[0].type.shape[0]) for cache in caches.values()}
    if len(pools) > 1:
        return Miss("its keys and values have pools of different sizes", 4)
    if op["blocks"][1] % page:
        return Miss("its blocks of keys are no whole pages", 4)
    arrays = [
        array
        for name, value in named.items()
        for array in (caches[name].args[:2] if name in caches else (value,))
    ]
    more = " ".join(name for name in caches if name not in ("key", "value"))
    how = dict(op.attrs) | ({"pooled": more} if more else {}) | {"layers": layers}
    how |= {} if first.get("mode") is None else {"mode": first["mode"]}
    return make("attend_pages", *arrays[:5], *layer, *arrays[5:], **how)
