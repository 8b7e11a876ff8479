"""Caches in pages: a pool that rows share, and a table of the pages of every row.

cache  ->  paged(pages(cache)), for the inputs and outputs of the step

`paged` moves through reads, writes and loops to attention, which reads page by page (see
`dialect.ops.pages`). Until a server fills the table, it gives every row its own pages in order.

The rules hold for tables in which no two rows write to the same page.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dialect.caching.commute import Form, loop_rule
from dialect.caching.quantized_cache import QUANTIZED
from dialect.caching.state_forms import Change
from dialect.matching.values import reshaped
from dialect.ops import pages  # noqa: F401  (defines them)
from dialect.ops.lookups import CLIP
from dialect.ops.nn import Traced
from dialect.staging.stored_states import undoes
from rewrite.ir import Op, Symbol, Value
from rewrite.opdef import build, make
from rewrite.rules import Miss, Outcome, Rule, local

_KEYS = 512  # about as many are read at a time


def in_pages(**how: int) -> Change:
    """A cache [layers, rows, heads.., context, d_head] in pages; `how` as those of `pages`: places
    of a page, 0 layers where it has no such axis, 0 axes behind where it has no d_head."""
    return Change(
        lambda cache: build("pages", cache, **how).results,
        lambda pool, table: make("paged", pool, table, **how),
    )


def keys_of_block(cache: Value) -> int:
    """The keys of a block of a cache in pages: whole pages that divide those of a row."""
    page, places = cache.op["page"], cache.type.shape[_context(cache.op)]
    most, count = max(1, _KEYS // page), places // page
    return page * max(some for some in range(1, most + 1) if count % some == 0)


def _cache(pool: jax.Array, table: jax.Array, layers: int = 0) -> jax.Array:
    """A cache from a pool of some pages, or of as many for each of several layers."""
    return Traced["paged"](pool, table, page=4, layers=layers)


def _in_pages(cache: jax.Array, layers: int = 0) -> jax.Array:
    """The cache, from its own pages in order."""
    return _cache(*Traced["pages"](cache, page=4, layers=layers), layers)


_CACHE, _LAYERS, _NEW = "f32[2,3,8,2]", "f32[2,2,3,8,2]", "f32[2,3,3,2]"


@local(
    "pages",
    keeps="approx",
    example=lambda cache: Traced["pages"](_in_pages(cache), page=4, layers=0)[0],
    types=(_CACHE,),
)
def pages_of_paged(op: Op) -> Outcome:
    """pages(paged(pool, table))  ->  pool, table: the same cache, its pages where they were"""
    inner = op.args[0].op
    return inner.args if undoes(inner, op) else None


@local(
    "cache_read",
    example=lambda cache: Traced["cache_read"](_in_pages(cache, 2), 1),
    types=(_LAYERS,),
)
def read_of_paged(op: Op) -> Outcome:
    """cache_read(paged(pool, table), layer)  ->  paged(pool, table, layer)"""
    cache = _whole(op.args[0])
    if cache is None or not cache["layers"]:
        return None
    return make("paged", *cache.args, op.args[1], **dict(cache.attrs))


@local(
    "cache_put",
    keeps="approx",
    example=lambda cache, new: Traced["cache_put"](
        _in_pages(cache, 2), new, jnp.array([[5, 6, 7], [0, 1, 4]]), 1, axis=3, mode=CLIP
    ),
    types=(_LAYERS, _NEW),
)
def put_of_paged(op: Op) -> Outcome:
    """cache_put(paged(pool, table), new, places)  ->  paged(page_put(pool, new, table, places))"""
    (_, new, places, *layer), cache = op.args, _whole(op.args[0])
    if cache is None:
        return None
    if op["axis"] != _context(cache) or bool(layer) != bool(cache["layers"]):
        return Miss("it writes along another axis than the context", 3)
    return _written(cache, new, places, layer, op["mode"])


@local(
    "cache_write",
    keeps="approx",
    example=lambda cache, new, place: Traced["cache_write"](
        _in_pages(cache), new, place[0], axes=(2,)
    ),
    types=(_CACHE, _NEW, "i32[1]"),
)
def write_of_paged(op: Op) -> Outcome:
    """cache_write(paged(pool, table), new, p)  ->  paged(page_put(pool, new, table, p))"""
    (_, new, *starts), cache = op.args, _whole(op.args[0])
    if cache is None:
        return None
    context = _context(cache)
    if op["axes"] != ((0, context) if cache["layers"] else (context,)):
        return Miss("it writes along another axis than the context", 3)
    *layer, place = starts
    if layer and new.type.shape[0] != 1:
        return Miss("it writes several layers", 3)
    new = reshaped(new, new.type.shape[1:]) if layer else new
    return _written(cache, new, place, layer, CLIP)


@local(
    "quantize",
    keeps="bits",
    example=lambda cache: Traced["quantize"](_in_pages(cache), axes=(3,), form="int8")[0],
    types=(_CACHE,),
)
def quantize_of_paged(op: Op) -> Outcome:
    """quantize(paged(pool, table))  ->  paged(q, table), paged(s, table), of the pool's q and s"""
    cache = _whole(op.args[0])
    if cache is None:
        return None
    if op["axes"] != (op.types[0].rank - 1,) or _context(cache) != op.types[0].rank - 2:
        return Miss("its scales are not those of d_head", 2)
    (pool, table), how = cache.args, dict(cache.attrs)
    attrs = dict(op.attrs) | {"axes": (pool.type.rank - 1,)}
    q, scale = build("quantize", pool, **attrs).results
    return [make("paged", q, table, **how), make("paged", scale, table, **how, behind=0)]


@local(
    "pages",
    keeps="bits",
    example=lambda q, s: Traced["pages"](_scaled(q, s), page=4, layers=0)[0],
    types=("i8[2,3,8,2]", "bf16[2,3,8]"),
)
def pages_of_dequantize(op: Op) -> Outcome:
    """pages(dequantize(q, s))  ->  dequantize(pool of q, pool of s), table"""
    inner = op.args[0].op
    if inner.name != QUANTIZED.op:
        return None
    last = op.args[0].type.rank - 1
    if inner["axes"] != (last,) or op.get("behind", 1) != 1:
        return Miss("its scales are not those of d_head", 2)
    q, scale = inner.args
    how = dict(op.attrs)
    pool, table = build("pages", q, **how).results
    scales, _ = build("pages", scale, **{**how, "behind": 0}).results
    attrs = dict(inner.attrs) | {"axes": (pool.type.rank - 1,)}
    return [make("dequantize", pool, scales, **attrs), table]


def _scaled(q: jax.Array, s: jax.Array) -> jax.Array:
    return Traced["dequantize"](q, s, axes=(3,), dtype=Symbol("f32"))


def _context(paged: Op) -> int:
    """The axis of a cache in pages that counts its places."""
    return paged.types[0].rank - 1 - paged.get("behind", 1)


def _whole(cache: Value) -> Op | None:
    """The `paged` that gives a cache with all of its layers; None if another op does."""
    return cache.op if cache.op.name == "paged" and len(cache.op.args) == 2 else None


def _written(paged: Op, new: Value, places: Value, layer: list[Value], mode: Symbol) -> Value:
    """The cache with new rows at their places, in pages."""
    pool, table = paged.args
    how = {name: value for name, value in paged.attrs if name not in ("page", "mode")}
    put = make("page_put", pool, new, table, places, *layer, **how, mode=mode)
    return make("paged", put, table, **dict(paged.attrs))


def _fits(op: Op) -> bool:
    """Whether `pages` would give a pool and a table of these types: without pages to spare."""
    pool, table = (arg.type for arg in op.args[:2])
    return table.dtype == "i32" and pool.shape[0] == table.size * (op["layers"] or 1)


PAGED = Form(
    "paged",
    undo="pages",
    parts=("pool", "table"),
    change=in_pages,
    example=lambda pool, table: _cache(pool, jnp.abs(table) % 4),
    types=lambda places: ("f32[4,3,4,2]", "i32[2,2]"),
    keeps="approx",
    fits=_fits,
)
RULES: tuple[Rule, ...] = (
    pages_of_paged,
    read_of_paged,
    put_of_paged,
    write_of_paged,
    quantize_of_paged,
    pages_of_dequantize,
    loop_rule(PAGED),
)
