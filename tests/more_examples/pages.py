"""For the rules of caches that a decoder keeps in pages itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dialect.ops.lookups import DROP
from dialect.ops.vocabulary import Traced
from rewrite.ir import Symbol
from tests.more_examples.forms import Example, left_alone

_HEADS_FIRST = ("f32[6,3,4,2]", "f32[2,3,2]", "i32[2,2]")
_PLACES_FIRST = ("f32[6,4,3,2]", "f32[2,3,2]", "i32[2,2]")


def _written(pool: Any, new: Any, table: Any) -> Any:
    """A pool with heads first that a step has written."""
    return pool.at[table[0], :, 0].set(new)


def _also_written(pool: Any, new: Any, table: Any) -> Any:
    """A pool with places first that a step has written."""
    return pool.at[table[0], 0].set(new)


def _read(pool: Any, table: Any) -> Any:
    return pool[table].transpose(0, 2, 1, 3, 4).reshape(2, 3, 8, 2)


def _scaled_pages(q: Any, s: Any, new: Any, table: Any, axis: int = 4) -> Any:
    """Pages of integers and of their scales, both of which a step has written."""
    written = _also_written(q, new, table), s.at[table[0], 0].set(1.0)
    read = (pool[table] for pool in written)
    return Traced["dequantize"](*read, axes=(axis,), dtype=Symbol("f32"))


def _takes() -> list[Example]:
    def fill(value: float | None) -> Callable[..., Any]:
        return lambda pool, new, table: (
            _also_written(pool, new, table).at[table].get(mode="fill", fill_value=value)
        )

    return [
        # the pages of one row; places before heads, which are merged too; scales
        (
            lambda pool, new, table: (
                _written(pool, new, table)[table[1]].transpose(1, 0, 2, 3).reshape(3, 8, 2)
            ),
            _HEADS_FIRST,
        ),
        (
            lambda pool, new, table: _also_written(pool, new, table)[table].reshape(2, 8, 3, 2),
            _PLACES_FIRST,
        ),
        (
            lambda pool, new, table: _also_written(pool, new, table)[table].reshape(2, 8, 6),
            _PLACES_FIRST,
        ),
        (
            lambda pool, new, table: pool.at[table[0], 0].set(new)[table].reshape(2, 8),
            ("f32[6,4]", "f32[2]", "i32[2,2]"),
        ),
        # places before heads where the pool has heads first
        (
            lambda pool, new, table: (
                _written(pool, new, table)[table].transpose(0, 1, 3, 2, 4).reshape(2, 8, 3, 2)
            ),
            _HEADS_FIRST,
        ),
        (
            lambda pool, new, table: (
                _written(pool, new, table)[table[1]].transpose(0, 2, 1, 3).reshape(8, 3, 2)
            ),
            _HEADS_FIRST,
        ),
        # pages that the pool has not
        (
            lambda pool, new, table: fill(None)(pool, new, table).reshape(2, 8, 3, 2),
            _PLACES_FIRST,
        ),
        (
            left_alone(lambda pool, new, table: fill(0.0)(pool, new, table).reshape(2, 8, 3, 2)),
            _PLACES_FIRST,
        ),
        (
            left_alone(
                lambda pool, new, table: Traced["take"](
                    _also_written(pool, new, table), table, mode=DROP, fill=0.0
                ).reshape(2, 8, 3, 2)
            ),
            _PLACES_FIRST,
        ),
        # integers and scales
        (
            lambda q, s, new, table: _scaled_pages(q, s, new, table).reshape(2, 8, 3, 2),
            ("i8[6,4,3,2]", "f32[6,4,3]", "i8[2,3,2]", "i32[2,2]"),
        ),
        (
            left_alone(
                lambda q, s, new, table: Traced["dequantize"](
                    _also_written(q, new, table)[table], s[table], axes=(4,), dtype=Symbol("f32")
                ).reshape(2, 8, 3, 2)
            ),
            ("i8[6,4,3,2]", "f32[6,4,3]", "i8[2,3,2]", "i32[2,2]"),
        ),
        (
            left_alone(
                lambda q, s, new, table: _scaled_pages(q, s, new, table, 3).reshape(2, 8, 3, 2)
            ),
            ("i8[6,4,3,2]", "f32[6,4,2]", "i8[2,3,2]", "i32[2,2]"),
        ),
        # what no step has written; places outside of pages; pages outside of rows
        (left_alone(lambda pool, new, table: _read(pool, table)), _HEADS_FIRST),
        (
            left_alone(
                lambda pool, new, table: (
                    _written(pool, new, table)[table].transpose(0, 2, 3, 1, 4).reshape(2, 3, 8, 2)
                )
            ),
            _HEADS_FIRST,
        ),
        (
            left_alone(
                lambda pool, new, table: _also_written(pool, new, table)[table].reshape(4, 4, 6)
            ),
            _PLACES_FIRST,
        ),
        (
            left_alone(
                lambda pool, new, table: _also_written(pool, new, table)[table[:, :, None]].reshape(
                    2, 2, 4, 3, 2
                )
            ),
            _PLACES_FIRST,
        ),
    ]


def _products() -> list[Example]:
    weights = ("f32[2,3,2,4]", *_HEADS_FIRST)

    def product(spec: str, pages_first: bool = False) -> Callable[..., Any]:
        def of(w: Any, pool: Any, new: Any, table: Any) -> Any:
            pages = _written(pool, new, table)[table]
            return jnp.einsum(spec, *((pages, w) if pages_first else (w, pages)))

        return of

    return [
        (product("bhpn,bnhpd->bhd"), ("f32[2,3,4,2]", *_HEADS_FIRST)),
        (product("bnhpd,bhnp->bhd", pages_first=True), weights),
        (product("bhd,bnhpd->bhnp"), ("f32[2,3,2]", *_HEADS_FIRST)),
        (product("bhd,bnhpd->bphn"), ("f32[2,3,2]", *_HEADS_FIRST)),
        (
            lambda w, q, s, new, table: jnp.einsum(
                "bhnp,bnphd->bhd", w, _scaled_pages(q, s, new, table)
            ),
            ("f32[2,3,2,4]", "i8[6,4,3,2]", "f32[6,4,3]", "i8[2,3,2]", "i32[2,2]"),
        ),
        (
            lambda w, pool, new, table: jnp.einsum(
                "hnp,nhpd->hd", w, _written(pool, new, table)[table[0]]
            ),
            ("f32[3,2,4]", *_HEADS_FIRST),
        ),
        (
            left_alone(
                lambda w, pool, new, table: jnp.einsum(
                    "bhnp,bnhpd->bhd",
                    w,
                    Traced["take"](_written(pool, new, table), table, mode=DROP, fill=0.0),
                )
            ),
            weights,
        ),
        (
            left_alone(
                lambda w, pool, new, table: jnp.einsum(
                    "bhnp,bnihpd->bihd", w, _written(pool, new, table)[table[:, :, None]]
                )
            ),
            weights,
        ),
        # pages and places are not alike, or something else is like them
        (left_alone(product("bhn,bnhpd->bhpd")), ("f32[2,3,2]", *_HEADS_FIRST)),
        (left_alone(product("bhnp,bnhpd->bd")), weights),
        (
            left_alone(lambda w, pool, new, table: jnp.einsum("bhnp,bnhpd->bhd", w, pool[table])),
            weights,
        ),
    ]


def _puts() -> list[Example]:
    stacked = ("f32[2,6,4,3,2]", "f32[2,3,2]", "i32[2]")
    pool, new, at = "f32[6,4,3,2]", "f32[2,3,2]", "i32[2]"

    def put(layer: int | None, size: int = 4, **how: str) -> Callable[..., Any]:
        def of(pool: Any, new: Any, at: Any) -> Any:
            front = () if layer is None else (at[0] if layer < 0 else layer,)
            return pool.at[(*front, at // 4, at % size)].set(new, **how)

        return of

    return [
        (put(None), (pool, new, at)),
        (put(None), (pool, "f32[2,5,3,2]", "i32[2,5]")),
        *((put(layer), stacked) for layer in (0, 1, 2, -1)),
        (
            lambda pools, new, at: pools.at[1, at // 4, :, at % 4].set(new),
            ("f32[2,6,3,4,2]", "f32[2,3,2]", "i32[2]"),
        ),
        # near misses
        (left_alone(put(None, 3)), (pool, new, at)),
        (left_alone(put(1, 2)), stacked),
        (left_alone(put(None, mode="clip")), (pool, new, at)),
        (
            left_alone(lambda pool, new, at: pool.at[:, at // 4, at % 4].set(new)),
            ("f32[2,6,4,2]", "f32[2,2,2]", "i32[2]"),
        ),
        (
            left_alone(lambda pool, new, at: pool.at[:, at // 4, :, at % 4].set(new)),
            ("f32[2,6,3,4,2]", "f32[2,2,3,2]", "i32[2]"),
        ),
        (
            left_alone(lambda pool, new, at: pool.at[at // 4, :, at // 4, at % 4].set(new)),
            ("f32[6,3,6,4,2]", "f32[2,3,2]", "i32[2]"),
        ),
        (
            left_alone(lambda pool, new, at: pool.at[at // 4, at % 4, 0].set(new)),
            ("f32[6,4,4,2]", "f32[2,2]", "i32[2]"),
        ),
        (
            left_alone(
                lambda pool, new, at: jax.lax.scatter(
                    pool,
                    jnp.stack([at // 4, at % 4], -1),
                    new,
                    jax.lax.ScatterDimensionNumbers((1, 2), (0, 1), (0, 1)),
                    mode="drop",
                )
            ),
            (pool, "f32[2,3,1]", at),
        ),
        (
            left_alone(
                lambda pool, new, at: jax.lax.scatter(
                    pool,
                    jnp.stack([at // 4, at % 4], -1),
                    new,
                    jax.lax.ScatterDimensionNumbers((0, 1), (0, 1), (0, 1)),
                    mode="drop",
                )
            ),
            (pool, "f32[3,2,2]", at),
        ),
    ]


_POOLS, _NEW, _TABLE = "f32[2,6,4,2]", "f32[2,2]", "i32[2,2]"


def _of_layers() -> list[Example]:
    types = (_POOLS, _NEW, _TABLE)

    def of(layer: Callable[..., Any], *, is_written: bool = True, **how: Any) -> Callable[..., Any]:
        def read(pools: Any, new: Any, table: Any) -> Any:
            pools = pools.at[0, table[0], 1].set(new) if is_written else pools
            return layer(pools, table).at[table].get(**how)

        return read

    def cache_read(pools: Any, table: Any) -> Any:
        return Traced["cache_read"](pools, table[0, 0])

    def paged(pools: Any, table: Any, layer: Any = 1, **how: Any) -> Any:
        return Traced["paged"](Traced["cache_read"](pools, layer), table, page=4, layers=0, **how)

    def written(pools: Any, new: Any, table: Any) -> Any:
        return pools.at[0, table[0], 1].set(new)

    return [
        (of(cache_read), types),
        (of(cache_read, mode="fill"), types),
        (of(lambda pools, table: jnp.take(pools, table[:1, 0], axis=0, mode="clip")[0]), types),
        (of(lambda pools, table: cache_read(pools, table).reshape(6, 4, 2)), types),
        (
            lambda pools, new, table: cache_read(
                jax.lax.dynamic_update_slice(pools, new[None, None], (0, 1, 0, 0)), table
            )[table],
            types,
        ),
        (lambda pools, new, table: paged(written(pools, new, table), table), types),
        (lambda pools, new, table: paged(written(pools, new, table), table, mode=DROP), types),
        (
            lambda pools, new, table: paged(
                written(pools.reshape(2, 6, 4, 2), new, table).reshape(2, 6, 4, 2), table
            ),
            ("f32[12,4,2]", _NEW, _TABLE),
        ),
        # near misses
        (left_alone(of(cache_read, is_written=False)), types),
        (
            left_alone(
                lambda pool, new, table: Traced["cache_write"](pool, new[None], 1, axes=(0,))[table]
            ),
            ("f32[6,2,2]", _NEW, _TABLE),
        ),
        (left_alone(of(lambda pools, table: cache_read(pools, table).reshape(12, 2, 2))), types),
        (left_alone(of(lambda pools, table: jnp.take(pools, table[:1, 0], axis=0)[0])), types),
        (left_alone(of(lambda pools, table: pools[:, 1])), types),
        (left_alone(of(lambda pools, table: jnp.take(pools, table[0], axis=0)[1])), types),
        (
            left_alone(
                lambda pools, new, table: Traced["paged"](
                    Traced["cache_read"](written(pools, new, table), 1),
                    abs(table) % 3,
                    1,
                    page=4,
                    layers=2,
                )
            ),
            types,
        ),
    ]


def _of_gathers() -> list[Example]:
    types = (_POOLS, _NEW, _TABLE)

    def of(read: Callable[..., Any], is_written: bool = True) -> Callable[..., Any]:
        return lambda pools, new, table: read(
            pools.at[0, table[0], 1].set(new) if is_written else pools, table
        )

    def in_order(
        *offsets: int, gone: tuple[int, ...] = (0, 1), by: tuple[int, ...] = (0, 1), size: int = 4
    ) -> Callable[..., Any]:
        return lambda pools, table: jax.lax.gather(
            pools,
            jnp.stack([table[0] % 2, table[0] % 2], -1),
            jax.lax.GatherDimensionNumbers(offsets, gone, by),
            (1, 1, size, 2),
        )

    return [
        (of(lambda pools, table: pools.at[1, table].get(mode="fill")), types),
        (of(lambda pools, table: pools.at[2, table].get(mode="fill")), types),
        (of(lambda pools, table: pools.at[table, table].get(mode="fill")), types),
        (of(lambda pools, table: pools.at[1, table].get(mode="clip")), types),
        (of(in_order(1, 2)), types),
        (
            lambda pools, new, table: (
                pools.at[0, table[0], 1].set(new).reshape(2, 6, 8).at[1, table].get(mode="fill")
            ),
            types,
        ),
        (
            lambda pools, new, table: (
                jax.lax.dynamic_update_slice(pools, new[None, None], (0, 1, 0, 0))
                .at[1, table]
                .get(mode="fill")
            ),
            types,
        ),
        # near misses
        (left_alone(of(in_order(0, 1))), types),
        (left_alone(of(in_order(1, 2, by=(1, 0)))), types),
        (left_alone(of(in_order(1, 2, size=2))), types),
        (left_alone(of(in_order(1, 2, 3, gone=(0,)))), types),
        (left_alone(of(lambda pools, table: pools[1, table], is_written=False)), types),
        (left_alone(of(lambda pools, table: pools[1, table, 0])), types),
        (left_alone(of(lambda pools, table: pools[1, :, table % 4])), types),
        (
            left_alone(
                of(lambda pools, table: pools.at[1, table].get(mode="fill", fill_value=0.0))
            ),
            types,
        ),
    ]


def _merges() -> list[Example]:
    x, w = "f32[3,5]", "f32[5,8]"

    def product(spec: str, shape: tuple[int, ...], result: tuple[int, ...]) -> Callable[..., Any]:
        return lambda x, w: jnp.einsum(spec, x, w.reshape(shape)).reshape(result)

    return [
        (product("ab,bhk->ahk", (5, 2, 4), (3, 8)), (x, w)),
        (product("ab,bhkj->ahkj", (5, 2, 2, 2), (3, 8)), (x, w)),
        (product("ab,bhkij->hkaij", (5, 2, 4, 2, 3), (8, 3, 6)), (x, "f32[5,8,6]")),
        (
            lambda x, w: jnp.einsum("bhk,ab->ahk", w.reshape(5, 2, 4), x).reshape(3, 8),
            (x, w),
        ),
        # what is merged was not split, or is split in the other factor
        (left_alone(lambda x, w: jnp.einsum("ab,bhk->ahk", x, w).reshape(3, 8)), (x, "f32[5,2,4]")),
        (left_alone(product("ab,bhk->ahk", (5, 2, 4), (6, 4))), (x, w)),
        (left_alone(product("ab,bhkij->hkaij", (5, 2, 4, 2, 3), (8, 3, 2, 3))), (x, "f32[5,8,6]")),
        (left_alone(product("abh,bhk->ahk", (5, 2, 4), (3, 8))), ("f32[3,5,2]", w)),
    ]


MORE = {
    "paged_of_take": _takes(),
    "product_of_pages": _products(),
    "put_in_page": _puts(),
    "pages_of_layer": _of_layers(),
    "pages_of_gather": _of_gathers(),
    "merge_of_contract": _merges(),
}
_ONE = "axes of size one have no letters"
EQUAL: dict[str, dict[str, str]] = {
    "paged_of_take": {"without `len(pair) == 2`": _ONE},
    "product_of_pages": {
        "`axis not in spec.inputs[1 - number]`": "the answers are compared with one another",
        "`axis not in spec.outputs[0]`": "the answers are compared with one another",
    },
    "put_in_page": {"1 for 0": "a write without an index has no leading one"},
}
