"""Attention over caches in pages, of which a block of keys is read at a time: `attend_pages`.

attend(q, paged(k, table, layer), paged(v, table, layer), ..)  ->  attend_pages(q, k, table, v, ..)

What `paged` would gather whole, a loop over blocks reads page by page, so that every page is read
once and no copy of the cache is there (PagedAttention, Kwon et al. 2023, section 4.3).
"""

from __future__ import annotations

from typing import Any

from dialect.ops.attend import ATTRIBUTES, attend
from dialect.ops.pages import PagedArray
from dialect.ops.vocabulary import word
from rewrite.ir import Op
from rewrite.signature import Array, Signature


def attend_pages(
    query: Any,
    key_pool: Any,
    key_table: Any,
    value_pool: Any,
    value_table: Any,
    *operands: Any,
    axes: str,
    layers: int = 0,
    **more: Any,
) -> Any:
    """`attend` with `blocks`, whose keys and values are in pages.

    Pools and tables: as in `paged`, with a layer, the first of `operands`, where `layers` are more
    than 0. `axes` names the axes of the caches, not of their pools. What else: as in `attend`.
    """
    layer, operands = (operands[:1], operands[1:]) if layers else ((), operands)
    key = PagedArray.of(key_pool, key_table, *layer, layers=layers)
    value = PagedArray.of(value_pool, value_table, *layer, layers=layers)
    return attend(query, key, value, *operands, axes=axes, **more)


def _axes(op: Op) -> Signature:
    query, key, value, *operands = (named := Signature.parse(op["axes"])).inputs
    layer = [()] if op.get("layers") else []
    arrays = (query, *_in_pages(key), *_in_pages(value), *layer, *operands)
    return Signature(arrays, named.outputs, frozenset({"k", "pages", "page", "n"}))


def _in_pages(cache: Array) -> tuple[Array, Array]:
    """The axes of the pool and of the table of a cache with these axes."""
    rows, *heads, _, width = cache
    return (("pages",), *heads, ("page",), width), (rows, ("n",))


word(attend_pages, _axes, (*ATTRIBUTES, "layers"), "axes")
