"""Caches kept in pages: a pool of pages, and a table of the pages of every row.

    paged(pool, table)  ->  the cache;  pages(cache)  ->  [pool, table], in order

A row takes as many pages as it has tokens for, wherever they are free, and rows can share them
(PagedAttention, Kwon et al. 2023, section 4). The pool holds the pages of all layers, those of one
number side by side, so that chips which share its pages have them of all layers. Heads stand before
the places of a page, so that a page of one head is contiguous. Behind the places stands d_head, or
nothing: a number for every place, as the scales of integers are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from dialect.arrays.attributes import decode
from dialect.ops.caches import Index, in_int32, put_rows
from dialect.ops.lookups import DROP, PROMISED, take
from dialect.ops.vocabulary import word
from rewrite.ir import Op
from rewrite.opdef import Traits
from rewrite.signature import Array, Signature, numbered


def paged(
    pool: Any,
    table: Any,
    *layer: Any,
    page: int,
    layers: int = 0,
    behind: int = 1,
    mode: Any = PROMISED,
) -> Any:
    """The cache whose pages a table names.

    pool: [pages, heads.., page, d_head], table: i32[rows, n]  ->  [rows, heads.., n * page, d_head]
    With `layers` the pool is of as many layers, in order for every page: the cache is
    [layers, rows, ..], or that of one `layer`, a scalar. `behind` are the axes behind the places: 0
    where there is no d_head, 2 where heads are there, too. `mode` says what a page is that the pool
    has not, as in `take`. Raises ValueError for another `page`.
    """
    if (size := pool.shape[-1 - behind]) != page:
        raise ValueError(f"pages of {size} places are none of {page}")
    if layers:
        table = _of_layer(table, layer[0] if layer else jnp.arange(layers)[:, None, None], layers)
    return _read(pool, table, behind, mode)


def _read(pool: Any, table: Any, behind: int, mode: Any) -> Any:
    """The pages of a table side by side: [.., n] -> [.., heads.., n * page, d_head]."""
    read = take(pool, table, mode=mode)
    array = jnp.moveaxis(read, table.ndim - 1, -2 - behind)
    at = array.ndim - 2 - behind  # of the pages, and of their places behind them
    return array.reshape(*array.shape[:at], -1, *array.shape[at + 2 :])


def _of_layer(table: Any, layer: Any, layers: int) -> Any:
    """The table of a layer: a page is behind those of the layers before it, and all of them behind
    the page before."""
    layer = jnp.clip(jnp.asarray(layer), 0, layers - 1).astype(table.dtype)
    return table * layers + layer


def pages_here(table: Any, *, pages: int, here: int) -> Any:
    """A table of pages, in the numbers of one that holds `here` of them: the first, or the next ..

    All pages of a row are there; -1 for what is no page.
    """
    return jnp.where((table >= 0) & (table < pages), jax.lax.rem(table, here), -1)


def pages_behind(table: Any, layer: Any, *, pages: int, layers: int, mode: Any) -> Any:
    """The numbers of a layer's pages in the pool of all layers, the pages of one behind another's.

    table: integers of any shape; layer: a scalar, or of that shape; `pages` of every layer. For
    what is no page of a layer it is the nearest; or -1 where `mode` fills or drops.
    """
    page, layer = in_int32(table), in_int32(layer)
    near = jnp.clip(layer, 0, layers - 1) * pages + jnp.clip(page, 0, pages - 1)
    if decode(mode) != decode(DROP):
        return near
    return jnp.where((page >= 0) & (page < pages) & (layer >= 0) & (layer < layers), near, -1)


@dataclass(frozen=True)
class PagedArray:
    """The cache of one layer, [rows, heads.., n * page, d_head], of which only parts are read.

    `sizes` is its shape, without some axes of size one.
    """

    pool: Any
    table: Any
    sizes: tuple[int, ...]
    axes: tuple[int, ...]  # of the whole cache: those that it has
    behind: int
    mode: Any

    @staticmethod
    def of(
        pool: Any,
        table: Any,
        *layer: Any,
        layers: int = 0,
        behind: int = 1,
        mode: Any = PROMISED,
    ) -> PagedArray:
        """As `paged` gives it."""
        table, at = _of_layer(table, *layer, layers) if layers else table, pool.ndim - 1 - behind
        places = table.shape[1] * pool.shape[at]
        sizes = (len(table), *pool.shape[1:at], places, *pool.shape[at + 1 :])
        return PagedArray(pool, table, sizes, tuple(range(len(sizes))), behind, mode)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        return self.sizes

    @property
    def dtype(self) -> Any:
        """That of the pool."""
        return self.pool.dtype

    def squeeze(self, axes: tuple[int, ...]) -> PagedArray:
        """Without these axes, of size one."""
        kept = [number for number in range(len(self.sizes)) if number not in axes]
        sizes, whole = (tuple(facts[i] for i in kept) for facts in (self.sizes, self.axes))
        return replace(self, sizes=sizes, axes=whole)

    def of_rows(self, which: slice) -> PagedArray:
        """That of some rows."""
        table = self.table[which]
        return replace(self, table=table, sizes=(len(table), *self.sizes[1:]))

    def part(self, start: Any, size: int, axis: int) -> Any:
        """So many elements of an axis from `start` on: rows of it, or places, read as an array."""
        sizes = (*self.sizes[:axis], size, *self.sizes[axis + 1 :])
        if self.axes[axis] == 0:
            rows = jax.lax.dynamic_slice_in_dim(self.table, start, size, 0)
            return replace(self, table=rows, sizes=sizes)
        page = self.pool.shape[-1 - self.behind]
        if size % page:
            raise ValueError(f"blocks of {size} keys are no whole pages of {page}")
        table = jax.lax.dynamic_slice_in_dim(self.table, start // page, size // page, 1)
        return _read(self.pool, table, self.behind, self.mode).reshape(sizes)


def pages(cache: Any, *, page: int, layers: int, behind: int = 1) -> list[Any]:
    """[pool, table] of a cache: its rows' pages in order, as many as it has.

    The inverse of `paged`. Raises ValueError if `page` does not divide the places of a row.
    """
    at = cache.ndim - 1 - behind
    front, context, width = cache.shape[:at], cache.shape[at], cache.shape[at + 1 :]
    if context % page:
        raise ValueError(f"pages of {page} places do not divide {context}")
    rows, count = front[1 if layers else 0], context // page
    split = cache.reshape(*front, count, page, *width)
    pool = jnp.moveaxis(split, (0, at), (2, 1)) if layers else jnp.moveaxis(split, at, 1)
    table = jnp.arange(rows * count, dtype=jnp.int32).reshape(rows, count)
    return [pool.reshape(-1, *pool.shape[3 if layers else 2 :]), table]


def page_put(
    pool: Any,
    new: Any,
    table: Any,
    places: Any,
    *layer: Any,
    layers: int = 0,
    behind: int = 1,
    mode: Any,
) -> Any:
    """Writes every row of `new` at its place in the pages that the table gives its sequence.

    pool, table, behind: as in `paged`; new: [rows, heads.., t, d_head]; places: integers [rows, t],
    or [t] that all rows share, or the first of t. `mode` says what a place beyond the last page
    does; the first of t is as far as they all fit. Nothing is written to a page that the pool has
    not.
    """
    at = pool.ndim - 1 - behind  # of the places, in a page and in `new`
    count, page = new.shape[at], pool.shape[at]
    last = table.shape[1] * page - 1
    places = in_int32(places)
    if places.ndim == 0:
        places = jnp.clip(places, 0, last + 1 - count) + jnp.arange(count)
    elif decode(mode) == jax.lax.GatherScatterMode.CLIP:
        places = jnp.clip(places, 0, last)
    places = jnp.broadcast_to(places, (new.shape[0], count))
    number = in_int32(jnp.take_along_axis(table, jnp.clip(places, 0, last) // page, axis=1))
    is_there = (places >= 0) & (places <= last) & (number >= 0)
    if layers:
        number = _of_layer(number, layer[0], layers)
    number = jnp.where(is_there, number, pool.shape[0])
    along = (0, at)
    index: Index = {0: (number, along), at: (places % page, along)}
    return put_rows(pool, new, index, along, jax.lax.GatherScatterMode.FILL_OR_DROP)


def _axes(op: Op, pool_rank: int) -> tuple[Array, Array, Array]:
    """The axes of a pool of this rank, of a table, and of a cache without layers."""
    width: Array = numbered(op.get("behind", 1), "d")
    heads = tuple((f"h{i}",) for i in range(pool_rank - 2 - len(width)))
    pool = (("pages",), *heads, ("page",), *width)
    return pool, (("rows",), ("n",)), (("rows",), *heads, ("places",), *width)


_INDEXED = frozenset({"pages", "page", "n", "places", "layers"})


def _paged_axes(op: Op) -> Signature:
    pool, table, cache = _axes(op, op.args[0].type.rank)
    layer = len(op.args) - 2
    front = (("layers",),) if op.get("layers") and not layer else ()
    return Signature((pool, table, *[()] * layer), ((*front, *cache),), _INDEXED)


def _pages_axes(op: Op) -> Signature:
    front = (("layers",),) if op["layers"] else ()
    pool, table, cache = _axes(op, op.args[0].type.rank - len(front))
    return Signature(((*front, *cache),), (pool, table), _INDEXED | {"rows"})


def _put_axes(op: Op) -> Signature:
    pool, table, cache = _axes(op, op.args[0].type.rank)
    new = tuple(("t",) if axis == ("places",) else axis for axis in cache)
    places = (cache[0], ("t",))[2 - op.args[3].type.rank :]
    layer = [()] * (len(op.args) - 4)
    need = _INDEXED | {"rows", "t"}
    return Signature((pool, new, table, places, *layer), (pool,), need)


def _behind_axes(op: Op) -> Signature:
    table = numbered(op.args[0].type.rank)
    return Signature((table, table if op.args[1].type.rank else ()), (table,))


def _undone(op: Op) -> tuple[str, dict[str, Any]]:
    return "paged", dict(op.attrs)


FORM = ("page", "layers", "behind")
word(paged, _paged_axes, (*FORM, "mode"), traits=Traits(moves=True))
word(pages, _pages_axes, FORM, inverse=_undone, traits=Traits(moves=True))
word(
    pages_here,
    lambda op: Signature(((("rows",), ("n",)),), ((("rows",), ("n",)),)),
    ("pages", "here"),
)
word(pages_behind, _behind_axes, ("pages", "layers", "mode"), traits=Traits(batches=True))
word(
    page_put,
    _put_axes,
    ("layers", "behind", "mode"),
    traits=Traits(moves=True, writes=1, of_cache=True),
)
