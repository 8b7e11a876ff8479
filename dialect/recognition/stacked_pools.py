"""Pools of pages that a decoder stacks, one for each layer: to their readers they are one pool.

pools[layer][table], pools[layer, table]  ->  take(pool of all layers, pages_behind(table, layer))

No pool of a layer is cut out then, and none is written back.
"""

from __future__ import annotations

import jax

from dialect.matching.values import columns, reshaped, through
from dialect.normal.trips import row_read
from dialect.ops import pages  # noqa: F401  (defines pages_behind)
from dialect.ops.lookups import DROP, PROMISED
from dialect.recognition.caches import clamped
from dialect.recognition.indexing import fills_otherwise
from rewrite.ir import Op, Value
from rewrite.opdef import make, traits
from rewrite.rules import Miss, Outcome, local

_POOLS, _NEW, _TABLE = "f32[2,6,4,2]", "f32[2,2]", "i32[2,2]"


@local(
    "take",
    "paged",
    example=lambda pools, new, table: jax.lax.dynamic_index_in_dim(
        pools.at[0, table[0], 1].set(new), table[0, 0], keepdims=False
    )[table],
    types=(_POOLS, _NEW, _TABLE),
)
def pages_of_layer(op: Op) -> Outcome:
    """take(pools[layer], table)  ->  take(pool of all, pages_behind(table, layer)), or paged"""
    pool, table, *more = op.args
    pools, layer = _layer(through(pool, "reshape").op)
    if pools is None or more or not is_written(pools):
        return None
    layers, *shape = pools.type.shape
    if pool.type.shape != tuple(shape):
        return None
    layer = clamped(reshaped(layer, ()), layers - 1)
    numbers = behind(table, layer, pools, op.get("mode", PROMISED))
    return make(op.name, one_pool(pools), numbers, **dict(op.attrs))


def _layer(row: Op) -> tuple[Value | None, Value | None]:
    """(stack, layer) of an op that reads one layer, the nearest one where there is no such."""
    known = traits(row)
    if row.get("mode") == DROP:
        return None, None
    return row.args if known.of_cache and known.picks else row_read(row)


@local(
    "gather",
    example=lambda pools, new, table: pools.at[0, table[0], 1].set(new)[1, table],
    types=(_POOLS, _NEW, _TABLE),
)
def pages_of_gather(op: Op) -> Outcome:
    """gather(pools, stack(layer, table))  ->  take(pool of all, pages_behind(table, layer))"""
    pools, indices = op.args
    numbers, found = dict(op["dimension_numbers"].fields), columns(indices)
    if found is None or numbers["start_index_map"] != (0, 1) or not is_written(pools):
        return None
    count, rank = indices.type.rank - 1, op.types[0].rank
    is_whole = op["slice_sizes"] == (1, 1, *pools.type.shape[2:])
    in_order = numbers["offset_dims"] == tuple(range(count, rank))
    if numbers["collapsed_slice_dims"] != (0, 1) or not is_whole or not in_order:
        return Miss("it gathers parts of pages", 3)
    if fills_otherwise(op):
        return Miss("it has another fill value than NaN", 3)
    layer, table = (reshaped(column, indices.type.shape[:-1]) for column in found)
    return make("take", one_pool(pools), behind(table, layer, pools, op["mode"]), mode=op["mode"])


def is_written(pools: Value) -> bool:
    """Whether a step has written these."""
    return traits(through(pools, "reshape").op).writes > 0


def one_pool(pools: Value) -> Value:
    """The pools [layers, pages, ..] of all layers as one, [layers * pages, ..]."""
    layers, count, *page = pools.type.shape
    return reshaped(pools, (layers * count, *page))


def behind(table: Value, layer: Value, pools: Value, mode: object) -> Value:
    """The numbers of pages of a layer in that pool."""
    layers, count = pools.type.shape[:2]
    return make("pages_behind", table, layer, pages=count, layers=layers, mode=mode)
