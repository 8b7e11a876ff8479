"""Attention over caches in pages, of which a block of keys is read at a time: `attend_pages`.

attend(q, paged(k, table, layer), paged(v, table, layer), ..)
  ->  attend_pages(q, k, table, v, table, layer, ..)

What `paged` would gather whole, a loop over blocks reads page by page, so that every page is read
once and no copy of the cache is there (PagedAttention, Kwon et al. 2023, section 4.3).
"""

from __future__ import annotations

from typing import Any

from dialect.ops.attend import ATTRIBUTES, attend, needed_rows
from dialect.ops.lookups import PROMISED
from dialect.ops.pages import PagedArray
from dialect.ops.scores import CONTEXT
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
    given: str = "",
    layers: int = 0,
    pooled: str = "",
    mode: Any = PROMISED,
    **more: Any,
) -> Any:
    """`attend` with `blocks`, whose keys and values are in pages.

    Pools and tables: as in `paged`, with a layer, the first of `operands`, where `layers` are more
    than 0. Those of the operands `given` that are `pooled` are in pages too, a pool and a table in
    the place of each. `axes` names the axes of the caches, not of their pools; `mode` is that of
    `paged`. What else: as in `attend`.
    """
    layer, operands = (operands[:1], operands[1:]) if layers else ((), operands)
    arrays = iter((query, key_pool, key_table, value_pool, value_table, *operands))
    how = {"layers": layers, "mode": mode}
    read = [
        PagedArray.of(next(arrays), next(arrays), *layer, behind=_behind(named), **how)
        if lies_in_pages
        else next(arrays)
        for named, lies_in_pages in _arrays(axes, given, pooled)
    ]
    return attend(*read, axes=axes, given=given, **more)


def _arrays(axes: str, given: str = "", pooled: str = "") -> list[tuple[Array, bool]]:
    """The axes of all arrays of an attention, and whether they lie in pages."""
    names = ("query", "key", "value", *given.split())
    in_pages = {"key", "value", *pooled.split()}
    inputs = Signature.parse(axes).inputs
    return [(array, name in in_pages) for name, array in zip(names, inputs, strict=True)]


def _behind(cache: Array) -> int:
    """How many axes of a cache are behind its places."""
    return len(cache) - 1 - cache.index(CONTEXT)


def _axes(op: Op) -> Signature:
    how = {name: op[name] for name in ("axes", "given", "pooled") if op.get(name) is not None}
    parts = [_in_pages(array) if paged else (array,) for array, paged in _arrays(**how)]
    arrays = [array for part in parts for array in part]
    layer = [()] if op.get("layers") else []
    outputs = Signature.parse(op["axes"]).outputs
    need = frozenset({"k", "pages", "page", "n"}) | needed_rows(op)
    return Signature((*arrays[:5], *layer, *arrays[5:]), outputs, need)


def _in_pages(cache: Array) -> tuple[Array, Array]:
    """The axes of the pool and of the table of a cache with these axes."""
    pool = tuple(("page",) if axis == CONTEXT else axis for axis in cache[1:])
    return (("pages",), *pool), (cache[0], ("n",))


word(attend_pages, _axes, (*ATTRIBUTES, "layers", "pooled", "mode"), "axes")
