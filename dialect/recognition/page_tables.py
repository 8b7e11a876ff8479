"""Caches that a decoder keeps in pages itself, with a table of its own (see `dialect.ops.pages`).

pool[table], the places of its pages side by side   ->  paged(pool, table)
pool.at[pages, places in these].set(new)             ->  page_put

`take` gives the pages of a row one after another. That they are one context, only their reader
says: it has pages and their places as one axis, or does the same with both. Heads stay where the
pool has them.
"""

from __future__ import annotations

import math

import jax.numpy as jnp

from dialect.matching.operands import transposed, untransposed
from dialect.matching.values import columns, counts_modulo, reshaped, shaped
from dialect.ops import pages  # noqa: F401  (defines them)
from dialect.ops.lookups import DROP
from dialect.recognition.caches import (
    indexed_axes,
    numbers_of,
    scatter_axes,
    writes_whole_rows,
)
from dialect.recognition.stacked_pools import behind, is_written, one_pool
from rewrite.ir import Op, Value
from rewrite.opdef import make, signature
from rewrite.rules import Miss, Outcome, local
from rewrite.signature import Array, Dimension, Signature, numbered

_POOL, _ROW, _TABLE = "f32[6,3,4,2]", "f32[2,3,2]", "i32[2,2]"


@local(
    "reshape",
    example=lambda pool, new, table: (
        pool.at[table[0], :, 0].set(new)[table].transpose(0, 2, 1, 3, 4).reshape(2, 3, 8, 2)
    ),
    types=(_POOL, _ROW, _TABLE),
)
def paged_of_take(op: Op) -> Outcome:
    """reshape(transpose(take(pool, table)): n page -> (n page))  ->  paged(pool, table)"""
    source, order = untransposed(*op.args)
    taken = source.op
    if not _is_by_table(taken):
        return None
    cut, axes = signature(op), numbered(len(order))
    before = {axes[axis]: dimension for axis, dimension in zip(order, cut.inputs[0])}
    n, *of_page = axes[_table_rank(taken) - 1 :]
    places = [axis for axis in of_page if _are_merged(cut, before[n], before[axis])]
    if len(places) != 1:
        return Miss("no axis of a page is merged with that of the pages", 3)
    cache, held = _paged(taken, axes.index(*places)), _of_cache(axes, n, *places)
    kept = [held.index(axes[axis]) for axis in order if axes[axis] not in places]
    return shaped(transposed(cache, kept), op.types[0].shape)


@local(
    "contract",
    keeps="reals",
    example=lambda w, pool, new, table: jnp.einsum(
        "bhnp,bnhpd->bhd", w, pool.at[table[0], :, 0].set(new)[table]
    ),
    types=("f32[2,3,2,4]", _POOL, _ROW, _TABLE),
)
def product_of_pages(op: Op) -> Outcome:
    """contract "n p, n p d" (w, take(pool, table))  ->  contract "s, s d" (w, paged(pool, table))

    The axes of pages and of their places become one, which counts all places.
    """
    spec = Signature.parse(op["spec"])
    for number, arg in enumerate(op.args):
        if not _is_by_table(arg.op):
            continue
        array, first = spec.inputs[number], _table_rank(arg.op)
        n = array[first - 1]
        places = [
            axis for axis in array[first:] if _use(spec, number, axis) == _use(spec, number, n)
        ]
        if len(places) != 1:
            return Miss("it does not do the same with pages and their places", 3)
        return _over_places(op, spec, number, n, *places)
    return None


def _use(spec: Signature, number: int, axis: Dimension) -> tuple[bool, bool]:
    """Whether the other factor has an axis of this one, and whether the product has."""
    return axis in spec.inputs[1 - number], axis in spec.outputs[0]


def _over_places(op: Op, spec: Signature, number: int, n: Dimension, place: Dimension) -> Value:
    """The product whose axis `n` of one factor, its pages, and that of their places are one."""
    factors, arrays, out = list(op.args), list(spec.inputs), spec.outputs[0]
    factors[number] = _paged(op.args[number].op, arrays[number].index(place))
    arrays[number] = _of_cache(arrays[number], n, place)
    axes = arrays[1 - number]
    factors[1 - number] = _merged(factors[1 - number], axes, n, place)
    arrays[1 - number] = _without(axes, place)
    now = Signature(tuple(arrays), (_without(out, place),))
    product = make("contract", *factors, **dict(op.attrs) | {"spec": str(now)})
    if n not in out:
        return product
    wanted, sizes = _side_by_side(out, n, place), dict(zip(out, op.types[0].shape))
    apart = reshaped(product, tuple(sizes[axis] for axis in wanted))
    return transposed(apart, [wanted.index(axis) for axis in out])


def _merged(value: Value, axes: Array, n: Dimension, place: Dimension) -> Value:
    """A value whose axes `n` and `place` are one; the value itself if it has none."""
    if n not in axes:
        return value
    wanted = _side_by_side(axes, n, place)
    value, at = transposed(value, [axes.index(axis) for axis in wanted]), wanted.index(n)
    shape = value.type.shape
    return reshaped(value, (*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :]))


def _side_by_side(axes: Array, n: Dimension, place: Dimension) -> Array:
    """These axes, `place` behind `n`."""
    pairs = ((axis, place) if axis == n else (axis,) for axis in _without(axes, place))
    return tuple(axis for pair in pairs for axis in pair)


def _without(axes: Array, gone: Dimension) -> Array:
    return tuple(axis for axis in axes if axis != gone)


def _of_cache(axes: Array, n: Dimension, place: Dimension) -> Array:
    """The axes of a cache, of the axes of its pages: all places are where those of a page are."""
    return tuple(n if axis == place else axis for axis in axes if axis != n)


@local(
    "scatter",
    example=lambda pool, new, at: pool.at[at // 4, :, at % 4].set(new),
    types=(_POOL, _ROW, "i32[2]"),
)
def put_in_page(op: Op) -> Outcome:
    """pool.at[pages, places % page].set(new)  ->  page_put, each row into a table of one page"""
    pool, indices, new = op.args
    numbers, found = numbers_of(op), columns(indices)
    indexed, count = indexed_axes(numbers), indices.type.rank - 1
    *leading, at = indexed or (0,)
    if found is None or leading not in ([0], [0, 1]):
        return None
    if not counts_modulo(found[-1], pool.type.shape[at]):
        return Miss("its places are not those of a page", 3)
    if op["mode"] != DROP or scatter_axes(numbers, new) != [*range(count)]:
        return Miss("it clips, or its rows have their axes in another order", 3)
    if not writes_whole_rows(numbers, pool, new, indexed):
        return Miss("it writes parts of rows", 3)
    *layer, table, places = (reshaped(column, (column.type.size, 1)) for column in found)
    table = behind(table, *layer, pool, DROP) if layer else table
    split = count + at - len(leading)
    row, heads, width = new.type.shape[:count], new.type.shape[count:split], new.type.shape[split:]
    new = reshaped(new, (math.prod(row), *heads, 1, *width))
    how = {"layers": 0, "behind": len(width), "mode": DROP}
    put = make("page_put", one_pool(pool) if layer else pool, new, table, places, **how)
    return reshaped(put, pool.type.shape) if layer else put


def _is_by_table(taken: Op) -> bool:
    """Whether an op takes, by a table, pages of what a step has written; or numbers that integers
    and scales stand for, both of which it takes so."""
    if _is_scaled(taken):
        is_of_last = taken["axes"] == (taken.types[0].rank - 1,)
        return is_of_last and all(_is_by_table(arg.op) for arg in taken.args)
    if taken.name != "take" or taken.get("fill") is not None:
        return False
    return taken.args[1].type.rank in (1, 2) and is_written(taken.args[0])


def _is_scaled(op: Op) -> bool:
    return op.name == "dequantize"


def _table_rank(taken: Op) -> int:
    """The axes of the table that an op takes pages by."""
    return _table_rank(taken.args[0].op) if _is_scaled(taken) else taken.args[1].type.rank


def _are_merged(cut: Signature, outer: Dimension, inner: Dimension) -> bool:
    """Whether a reshape makes one axis of these two."""
    pair = (*outer, *inner)
    return len(pair) == 2 and any(pair in zip(axes, axes[1:]) for axes in cut.outputs[0])


def _paged(taken: Op, page: int) -> Value:
    """The cache of a `take`, one axis of which is that of the places of a page."""
    if _is_scaled(taken):
        q, scale = (_paged(arg.op, page) for arg in taken.args)
        attrs = dict(taken.attrs) | {"axes": (q.type.rank - 1,)}
        return make("dequantize", q, scale, **attrs)
    (pool, table), first = taken.args, taken.args[1].type.rank
    rows = table if first == 2 else reshaped(table, (1, *table.type.shape))
    behind = taken.types[0].rank - 1 - page
    how = {"page": taken.types[0].shape[page], "layers": 0, "behind": behind}
    cache = make("paged", pool, rows, **how, mode=taken["mode"])
    return cache if first == 2 else reshaped(cache, cache.type.shape[1:])
