"""For the rules of caches (stacked, in pages, in parts, kept twice) and of what reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dialect.ops.vocabulary import Traced
from rewrite.ir import Symbol
from tests.more_examples.forms import CLIP, Example, left_alone

_ROWS = "b t k, b s k, b s v -> b t v"


def _read(stack: Any, layer: Any = 1) -> Any:
    return Traced["cache_read"](stack, layer)


# Caches that a loop sees as views, and without an axis of size one.


def _viewed(step: Callable[..., Any], *more: str, carries: bool = False) -> Example:
    """A loop over the rows of a cache that are written in another shape."""

    def example(c: Any, x: Any, *others: Any) -> Any:
        def body(carry: Any, row: Any) -> Any:
            return step(carry, row, row.reshape(4, 1, 2), x, *others)

        return jax.lax.scan(body, c[0] if carries else None, c)

    return example, ("f32[3,4,2]", "f32[1,1,2]", *more)


def _new_row(view: Any, x: Any) -> Any:
    return Traced["cache_write"](view, x, 1, axes=(0,)).reshape(4, 2)


def _views() -> list[Example]:
    return [
        _viewed(lambda _, row, view, x: (None, (view * 2.0, _new_row(view, x)))),
        # near misses
        *(
            (left_alone(example), types)
            for example, types in (
                _viewed(lambda _, row, view, x: (_new_row(view, x), view * 2.0), carries=True),
                _viewed(lambda _, row, view, x: (row, _new_row(view, x)), carries=True),
                _viewed(lambda _, row, view, x: (None, (row * 2.0, _new_row(view, x)))),
                _viewed(
                    lambda _, row, view, x, y: (None, (view * 2.0, _new_row(y, x))), "f32[4,1,2]"
                ),
                _viewed(lambda _, row, view, x: (None, (view * 2.0).reshape(4, 2))),
            )
        ),
    ]


def _without_axis(axes: str, query: str, cache: str = "f32[2,5,4]") -> Example:
    """Attention over caches that get an axis of size one."""

    def example(q: Any, k: Any, v: Any) -> Any:
        keys, values = (Traced["axis_of_one"](cache, axis=1) for cache in (k, v))
        return Traced["attend"](q, keys, values, axes=axes)

    return example, (query, cache, cache)


# Attention over a layer of stacked caches.


def _of_stacks(
    key: Callable[[Any], Any] = _read,
    value: Callable[[Any], Any] = _read,
    query: str = "f32[2,4,2]",
    axes: str = _ROWS,
    stacks: tuple[str, str] = ("f32[3,2,8,2]",) * 2,
    **how: Any,
) -> Example:
    """Attention over what is read of stacked caches."""

    def example(q: Any, k: Any, v: Any, *more: Any) -> Any:
        return Traced["attend"](q, key(k), value(v), axes=axes, **how)

    return example, (query, *stacks)


def _beside(operand: Callable[..., Any], *types: str, axes: str, query: str, **how: Any) -> Example:
    """Attention over stacked caches that is given something beside them."""
    return (
        lambda q, k, v, *more: Traced["attend"](
            q, _read(k), _read(v), *operand(*more), axes=axes, **how
        ),
        (query, "f32[3,2,8,2]", "f32[3,2,8,2]", *types),
    )


def _last(*last: Any) -> Any:
    return [*map(jnp.int32, last)]


_SPARQ = {
    "axes": "b k, b s k, b s v, b k s, 1 -> b v",
    "query": "f32[2,2]",
    "sparq": (2, 3, 1, False),
}
_WINDOW = {"axes": "b t k, b s k, b s v, 1 -> b t v", "query": "f32[2,4,2]", "given": "last"}


def _of_columns(read: Callable[[Any], Any], stack: str = "f32[3,2,2,8]") -> Example:
    """Attention to chosen positions, whose keys are kept a second time."""
    return _beside(
        lambda columns: [read(columns), jnp.array([6])], stack, given="columns last", **_SPARQ
    )


def _in_stack() -> list[Example]:
    last = jnp.array([6])
    masked = {"axes": "b t k, b s k, b s v, t s -> b t v", "query": "f32[2,4,2]"}
    return [
        # one block of queries, or no axis of them; the longest axis of the query's own counts
        _of_stacks(blocks=(4, 4)),
        _of_stacks(query="f32[2,2]", axes="b k, b s k, b s v -> b v", blocks=(1, 4)),
        _of_stacks(query="f32[2,4,3,2]", axes="b t h k, b s k, b s v -> b t h v", blocks=(4, 4)),
        _beside(lambda m: [_read(m) > 0], "f32[3,4,8]", given="mask", blocks=(4, 4), **masked),
        # one window
        _beside(lambda: [last], window=3, **_WINDOW),
        # chosen positions, with keys that are kept twice: read of the same stack, or made
        _beside(lambda: [last], given="last", **_SPARQ | {"axes": "b k, b s k, b s v, 1 -> b v"}),
        _of_columns(_read),
        _of_columns(lambda columns: columns[1] * 2.0),
        # near misses
        *(
            (left_alone(example), types)
            for example, types in (
                _of_stacks(),
                _of_stacks(blocks=(2, 4)),
                _of_stacks(query="f32[2,1,2]"),
                _of_stacks(key=lambda k: k[1] * 2.0, blocks=(4, 4)),
                _of_stacks(value=lambda v: v[1] * 2.0, blocks=(4, 4)),
                _of_stacks(value=lambda v: _read(v, 2), blocks=(4, 4)),
                _of_stacks(stacks=("f32[3,2,8,2]", "f32[4,2,8,2]"), blocks=(4, 4)),
                _beside(lambda: [last], window=8, **_WINDOW),
                _of_columns(lambda columns: _read(columns, 2)),
                _of_columns(_read, "f32[4,2,2,8]"),
            )
        ),
    ]


# Attention over caches in pages.


def _paged(pool: Any, *layer: Any, page: int = 4, layers: int = 0, **behind: int) -> Any:
    """A cache of two rows of eight places, from the first pages of a pool."""
    table = jnp.arange(16 // page).reshape(2, -1)
    return Traced["paged"](pool, table, *layer, page=page, layers=layers, **behind)


def _scales(pool: Any, *layer: Any, page: int = 4, layers: int = 0) -> Any:
    """The scales of such a cache: a number for every place."""
    return _paged(pool, *layer, page=page, layers=layers, behind=0)


def _of_pages(
    key: Callable[[Any], Any] = _paged,
    value: Callable[[Any], Any] = _paged,
    pools: tuple[str, str] = ("f32[4,3,4,2]",) * 2,
    query: str = "f32[2,3,4,2]",
    **how: Any,
) -> Example:
    """Attention over caches made of pools."""
    how = {"axes": "b g t k, b g s k, b g s v -> b g t v", "blocks": (4, 4)} | how
    return (
        lambda q, k, v, *more: Traced["attend"](q, key(k), value(v), *more, **how),
        (query, *pools),
    )


def _by_page() -> list[Example]:
    stacked, wide = ("f32[8,3,4,2]",) * 2, ("f32[4,3,4,2]", "f32[2,3,8,2]")
    masked, masks = "b g t k, b g s k, b g s v, t s -> b g t v", "bool[4,8]"
    in_layers = {
        "axes": "l b g t k, l b g s k, l b g s v -> l b g t v",
        "query": "f32[2,2,3,4,2]",
    }

    def of_layer(*layer: int, layers: int = 2) -> Callable[[Any], Any]:
        return lambda pool: _paged(pool, *layer, layers=layers)

    def with_scales(scales: Callable[[Any], Any], pool: str) -> Example:
        """Keys with scales, which are made of a pool."""
        axes = "b g t k, b g s k, b g s v, b g s -> b g t v"

        def example(q: Any, k: Any, v: Any, s: Any) -> Any:
            more = {"axes": axes, "blocks": (4, 4), "given": "key_scale"}
            return Traced["attend"](q, _paged(k), _paged(v), scales(s), **more)

        return example, ("f32[2,3,4,2]", *("f32[4,3,4,2]",) * 2, pool)

    example, types = _of_pages(axes=masked, given="mask")
    return [
        (example, (*types, masks)),
        with_scales(_scales, "f32[4,3,4]"),
        with_scales(lambda s: s * 2.0, "f32[2,3,8]"),
        _of_pages(of_layer(1), of_layer(1), stacked),
        # near misses
        *(
            (left_alone(example), types)
            for example, types in (
                _of_pages(blocks=None),
                _of_pages(blocks=(4, 2)),
                with_scales(lambda s: _scales(s, 1, layers=2), "f32[8,3,4]"),
                with_scales(_scales, "f32[5,3,4]"),
                with_scales(lambda s: _scales(s, page=8), "f32[4,3,8]"),
                _of_pages(key=lambda k: _paged(k) * 2.0),
                _of_pages(value=lambda v: _paged(v) * 2.0),
                _of_pages(of_layer(1), of_layer(0), stacked),
                _of_pages(of_layer(1), _paged, (stacked[0], "f32[4,3,4,2]")),
                _of_pages(of_layer(), of_layer(), stacked, **in_layers),
                _of_pages(pools=("f32[4,3,4,2]", "f32[6,3,4,2]")),
                _of_pages(value=lambda v: _paged(v, page=8), pools=wide, blocks=(4, 8)),
            )
        ),
    ]


# Caches in pages, written and read.

_POOL, _POOLS = "f32[4,3,4,2]", "f32[8,3,4,2]"


def _written(
    cache: Callable[[Any], Any], axes: tuple[int, ...], *places: int, pool: str = _POOL, new: str
) -> Example:
    """A cache of which new rows are written at these places."""
    return lambda p, x: Traced["cache_write"](cache(p), x, *places, axes=axes), (pool, new)


def _put(
    cache: Callable[[Any], Any], axis: int, *layer: int, pool: str = _POOL, new: str, rows: int = 2
) -> Example:
    """A cache into which every row is put at places of its own."""
    places = jnp.array([[5, 6], [0, 4], [1, 2]])[:rows]
    return (
        lambda p, x: Traced["cache_put"](cache(p), x, places, *layer, axis=axis, mode=CLIP),
        (pool, new),
    )


def _twice(pool: Any) -> Any:
    return _paged(pool) * 2.0


def _in_layers(pool: Any) -> Any:
    return _paged(pool, layers=2)


def _of_second(pool: Any) -> Any:
    return _paged(pool, 1, layers=2)


def _writes_of_pages() -> dict[str, list[Example]]:
    return {
        "write_of_paged": [
            _written(_in_layers, (0, 3), 1, 3, pool=_POOLS, new="f32[1,2,3,3,2]"),
            _written(_scales, (2,), 3, pool="f32[4,3,4]", new="f32[2,3,3]"),
            # near misses
            *(
                (left_alone(example), types)
                for example, types in (
                    _written(_twice, (2,), 3, new="f32[2,3,3,2]"),
                    _written(_of_second, (2,), 3, pool=_POOLS, new="f32[2,3,3,2]"),
                    _written(_of_second, (0, 2), 1, 3, pool=_POOLS, new="f32[1,3,3,2]"),
                    _written(_paged, (), new="f32[2,3,8,2]"),
                    _written(_paged, (1,), 1, new="f32[2,1,8,2]"),
                    _written(_paged, (0, 2), 1, 3, new="f32[1,3,3,2]"),
                    _written(_in_layers, (3,), 3, pool=_POOLS, new="f32[2,2,3,3,2]"),
                    _written(_in_layers, (0,), 1, pool=_POOLS, new="f32[1,2,3,8,2]"),
                    _written(_in_layers, (0, 3), 0, 3, pool=_POOLS, new="f32[2,2,3,3,2]"),
                )
            ),
        ],
        "put_of_paged": [
            _put(_paged, 2, new="f32[2,3,2,2]"),
            _put(_scales, 2, pool="f32[4,3,4]", new="f32[2,3,2]"),
            # near misses
            *(
                (left_alone(example), types)
                for example, types in (
                    _put(_twice, 2, new="f32[2,3,2,2]"),
                    _put(_of_second, 2, pool=_POOLS, new="f32[2,3,2,2]"),
                    _put(_of_second, 2, 1, pool=_POOLS, new="f32[3,2,2]", rows=3),
                    _put(_paged, 1, new="f32[2,2,8,2]"),
                    _put(_paged, 2, 1, new="f32[3,2,2]", rows=3),
                    _put(_in_layers, 3, pool=_POOLS, new="f32[2,2,3,2,2]"),
                )
            ),
        ],
        "read_of_paged": [
            (left_alone(lambda p: _read(_twice(p))), (_POOL,)),
            (left_alone(lambda p: _read(_paged(p))), (_POOL,)),
            (left_alone(lambda p: _read(_of_second(p))), (_POOLS,)),
        ],
        "pages_of_paged": [
            (left_alone(lambda p: Traced["pages"](_twice(p), page=4, layers=0)[0]), (_POOL,)),
            (left_alone(lambda p: Traced["pages"](_paged(p), page=2, layers=0)[0]), (_POOL,)),
            (left_alone(lambda p: Traced["pages"](_paged(p), page=4, layers=0)[0]), (_POOLS,)),
        ],
        "quantize_of_paged": [
            _in_integers(_in_layers, 4, _POOLS),
            # near misses
            *(
                (left_alone(example), types)
                for example, types in (
                    _in_integers(_twice, 3),
                    _in_integers(_of_second, 3, _POOLS),
                    _in_integers(_paged, 1),
                    _in_integers(_scales, 2, "f32[4,3,4]"),
                )
            ),
        ],
        "pages_of_dequantize": [
            _from_integers(3, "f32[2,3,8]", page=4, layers=0, of=1),
            # near misses
            *(
                (left_alone(example), types)
                for example, types in (
                    _from_integers(1, "f32[2,8,2]", page=4, layers=0),
                    _from_integers(3, "f32[2,3,8]", page=2, layers=0, behind=0),
                    (lambda q: Traced["pages"](q * 2, page=4, layers=0)[0], ("i8[2,3,8,2]",)),
                )
            ),
        ],
    }


def _in_integers(cache: Callable[[Any], Any], axis: int, pool: str = _POOL) -> Example:
    """A cache made of a pool, kept in integers that share scales along an axis."""
    return lambda p: Traced["quantize"](cache(p), axes=(axis,), form="int8")[0], (pool,)


def _from_integers(axis: int, scales: str, of: int = 0, **how: int) -> Example:
    """The pool or the table of a cache of integers with these scales."""

    def example(q: Any, s: Any) -> Any:
        cache = Traced["dequantize"](q, s, axes=(axis,), dtype=Symbol("f32"))
        return Traced["pages"](cache, **how)[of]

    return example, ("i8[2,3,8,2]", scales)


# Caches that keep their sum, or themselves in another order.

_VALUES = "f32[2,3,8,4]"


def _summed(values: Any) -> Any:
    """Values of which the first three places hold something, with their sum over the places."""
    held = jnp.where(jnp.arange(values.shape[2])[:, None] < 3, values, 0)
    return Traced["with_total"](held, jnp.sum(held, 2, dtype="float32"), axis=2)


def _sum_after(axes: tuple[int, ...], *places: Any, new: str, values: str = _VALUES) -> Example:
    """The sum of values after new ones are written behind what they hold."""

    def example(v: Any, x: Any, *layer: Any) -> Any:
        cache = Traced["cache_write"](_summed(v), x, *places, axes=axes)
        return Traced["total"](cache, axis=2)[1]

    return example, (values, new)


def _writes_of_total() -> list[Example]:
    of_integers = ("i32[2,3,8,4]", "f32[2,3,4]", "i32[2,3,1,4]")
    return [
        _sum_after((2,), 3, new="f32[2,3,2,4]"),
        _sum_after((2,), 3, new="bf16[2,3,2,4]", values="bf16[2,3,8,4]"),
        _sum_after((0, 2), 1, 3, new="f32[1,3,2,4]"),
        _sum_after((0, 2), jnp.uint8(1), 3, new="f32[1,3,2,4]"),
        # near misses
        *(
            (left_alone(example), types)
            for example, types in (
                _sum_after((0,), 1, new="f32[1,3,8,4]"),
                _sum_after((0, 1), 1, 1, new="f32[1,2,8,4]"),
                _sum_after((2, 3), 3, 1, new="f32[2,3,2,2]"),
                _sum_after((1, 2), 1, 3, new="f32[2,1,2,4]"),
                _sum_after((0, 2), 0, 3, new="f32[2,3,2,4]"),
                _sum_after((), new=_VALUES),
                (
                    lambda v, t, x: Traced["cache_write"](
                        Traced["with_total"](v, t, axis=2), x, 3, axes=(2,)
                    ),
                    of_integers,
                ),
                (
                    lambda v, x: Traced["cache_write"](v * 2.0, x, 3, axes=(2,)),
                    (_VALUES, "f32[2,3,1,4]"),
                ),
            )
        ),
    ]


def _of_kept(
    keep: Callable[..., Any], wrap: Callable[..., Any] = lambda x: x, **how: Any
) -> Example:
    """Attention over keys and values of which some are kept with more."""

    def example(q: Any, k: Any, v: Any) -> Any:
        keys, values = keep(k, v)
        axes = "b k, b s k, b s v, 1 -> b v"
        return Traced["attend"](q, keys, values, jnp.array([4]), axes=axes, given="last", **how)

    return wrap(example), ("f32[2,4]", "f32[2,5,4]", "f32[2,5,4]")


def _attends_to_kept() -> list[Example]:
    def columns(k: Any) -> Any:
        return Traced["with_columns"](k, jnp.moveaxis(k, 1, -1), axis=1)

    def total(v: Any) -> Any:
        return Traced["with_total"](v, v.sum(1), axis=1)

    chosen = {"sparq": (2, 3, 1, True)}
    return [
        _of_kept(lambda k, v: (columns(k), v), **chosen),
        _of_kept(lambda k, v: (k, total(v)), **chosen),
        # near misses
        _of_kept(lambda k, v: (k * 2.0, v), left_alone, **chosen),
        _of_kept(lambda k, v: (columns(k), total(v)), left_alone),
    ]


# Attention over a context in parts.


def _of_parts(
    *operands: str,
    axes: str = "t k, s k, s v -> t v",
    key: Callable[..., Any] = lambda k, j: jnp.concatenate([k, j]),
    value: Callable[..., Any] = lambda v, w: jnp.concatenate([v, w]),
    sizes: tuple[int, int] = (5, 2),
    dtype: str = "f32",
    **how: Any,
) -> Example:
    """Attention over keys and values that are put together of two."""
    types = [f"{dtype}[{size},{width}]" for width in (4, 6) for size in sizes]
    return (
        lambda q, k, j, v, w, *more: Traced["attend"](
            q, key(k, j), value(v, w), *more, axes=axes, **how
        ),
        (f"{dtype}[3,4]", *types, *operands),
    )


def _together(*parts: Any) -> Any:
    return jnp.concatenate(parts)


def _attends_to_parts() -> list[Example]:
    masked = {"axes": "t k, s k, s v, t s -> t v", "given": "mask"}
    last = {"axes": "t k, s k, s v, 1 -> t v", "given": "last"}
    example, types = _of_parts("bool[3,5]", "bool[3,2]", **masked)
    return [
        # masks that are put together as the keys are, otherwise, and whole; what has no context
        (
            lambda *arrays: example(*arrays[:5], jnp.concatenate(arrays[5:], 1)),
            types,
        ),
        (
            lambda *arrays: example(*arrays[:5], jnp.concatenate(arrays[:4:-1], 1)),
            types,
        ),
        _of_parts("bool[3,7]", **masked),
        _of_parts("i32[1]", **last),
        _of_parts("i32[1]", window=3, **last),
        # three parts
        _of_parts(key=lambda k, j: _together(k, j, k), value=lambda v, w: _together(v, w, v)),
        # near misses
        *(
            (left_alone(example), types)
            for example, types in (
                _of_parts(sizes=(3, 4), value=lambda v, w: _together(w, v)),
                _of_parts(sizes=(4, 4), value=lambda v, w: _together(v, w) * 2.0),
                _of_parts(sizes=(4, 4), key=lambda k, j: _together(k, j) * 2.0),
                _of_parts(key=lambda k, j: k * 2.0, value=lambda v, w: v * 2.0),
                _of_parts(
                    key=lambda k, j: jnp.concatenate([k[:, :2], j[:, :2]], 1),
                    value=lambda v, w: v * 2.0,
                    sizes=(5, 5),
                ),
                _of_parts(rounds=(127.5, 1e-19)),
                _of_parts("i32[1]", blocks=(3, 7), **last),
                _of_parts(dtype="i32"),
                _of_parts(
                    "i32[1]",
                    axes="t k, s k, s v, 1 -> t v",
                    given="last",
                    sparq=(2, 3, 1, False),
                ),
            )
        ),
    ]


# Stacks in loops that count.


def _row(stack: Any, i: Any, keepdims: bool = False) -> Any:
    return jax.lax.dynamic_index_in_dim(stack, i, keepdims=keepdims)


def _with_row(stack: Any, row: Any, i: Any) -> Any:
    return jax.lax.dynamic_update_index_in_dim(stack, row, i, 0)


def _new(row: Any, x: Any) -> Any:
    return Traced["cache_write"](row, x, 1, axes=(0,))


def _updated(c: Any, x: Any, i: Any) -> Any:
    return _with_row(c, _new(_row(c, i), x), i)


def _and_sum(stack: Any, total: Any) -> Any:
    return stack, total + stack.sum()


def _counted(
    step: Callable[..., Any], *more: str, rows: int = 3, first: int = 0, of_stack: bool = False
) -> Example:
    """A loop over the rows of a stack that carries a number beside it, or another stack."""

    def example(c: Any, x: Any, *others: Any) -> Any:
        def body(i: Any, carry: Any) -> Any:
            return step(i, *carry, x, *others)

        return jax.lax.fori_loop(
            first, rows, body, (c, jnp.zeros_like(c) if of_stack else jnp.float32(0))
        )

    return example, (f"f32[{rows},4,2]", "f32[1,2]", *more)


def _in_loops() -> list[Example]:
    whole = "f32[3,4,2]"

    def in_place(i: Any, c: Any, s: Any, x: Any) -> Any:
        row = Traced["cache_write"](_row(c, i, True), x[None], 1, axes=(1,))
        return Traced["cache_write"](c, row, i, axes=(0,)), s

    return [
        _counted(in_place),
        _counted(lambda i, c, s, x: (_updated(c, x, i), s + _row(c, i).sum())),
        # near misses
        *(
            (left_alone(example), types)
            for example, types in (
                _counted(lambda i, c, s, x: (_with_row(c, _row(c, i) * 2.0, i), s)),
                _counted(
                    lambda i, c, s, x, y: (_with_row(c, _new(y, x), i), s + _row(c, i).sum()),
                    "f32[4,2]",
                ),
                _counted(lambda i, c, s, x: (_updated(c, x, i), c), of_stack=True),
                _counted(lambda i, c, s, x: (_updated(c, x, i), s + c.sum())),
                _counted(lambda i, c, s, x, y: (_with_row(y, _new(_row(c, i), x), i), s), whole),
                _counted(lambda i, c, s, x: (_updated(c, x, i),) * 2, of_stack=True),
                _counted(lambda i, c, s, x: _and_sum(_updated(c, x, i), s)),
                _counted(
                    lambda i, c, s, x: (
                        jax.lax.dynamic_update_slice(
                            c, _new(_row(c, i), x).reshape(2, 2, 2), (i, 0, 0)
                        ),
                        s,
                    )
                ),
                _counted(
                    lambda i, c, s, x: (
                        Traced["cache_write"](c, _new(_row(c, i), x)[None], i, axes=(1,)),
                        s,
                    ),
                    rows=1,
                ),
                _counted(lambda i, c, s, x: (_updated(c, x, i), s), first=1),
                _counted(lambda i, c, s, x: (_updated(c, x, 2 - i), s)),
                _counted(lambda i, c, s, x: (_with_row(c, _new(_row(c, 2 - i), x), i), s)),
            )
        ),
    ]


def _key(change: Callable[..., Any], *types: str) -> Example:
    """Keys of some dtype whose scales are behind their product with a query."""
    return lambda q, k, s: change(q @ k.astype(q.dtype)) * s, types


def _value(change: Callable[..., Any], *types: str) -> Example:
    """Values of some dtype whose scales are at weights of attention."""
    return lambda w, v, s: (change(w) * s) @ v.astype(w.dtype), types


def _same(x: Any) -> Any:
    return x


_SCALED_KEYS = [
    _key(lambda x: x.astype("float32"), "bf16[2,3]", "i8[3,4]", "f32[1,4]"),
    _key(_same, "f32[2,3]", "i4[3,4]", "f32[1,4]"),
    (
        left_alone(
            lambda q, k, s: (
                jax.lax.dot(q, k.astype("uint8"), preferred_element_type=jnp.float32) * s
            )
        ),
        ("f32[2,3]", "i8[3,4]", "f32[1,4]"),
    ),
    *(
        (left_alone(example), types)
        for example, types in (
            _key(_same, "f32[2,3]", "i16[3,4]", "f32[1,4]"),
            _key(_same, "f32[2,3]", "u8[3,4]", "f32[1,4]"),
            _key(_same, "f32[2,3]", "f32[3,4]", "f32[1,4]"),
            _key(_same, "f32[2,3]", "i8[3,4]", "f32[1,1]"),
            _key(_same, "f32[2,3]", "i8[3,4]", "f32[2,1]"),
            _key(_same, "f32[1,3]", "i8[3,4]", "f32[5,4]"),
        )
    ),
]
_SCALED_VALUES = [
    (
        lambda w, v, s: v.T.astype("float32") @ (jax.nn.softmax(w) * s).T,
        ("f32[2,3]", "i8[3,4]", "f32[1,3]"),
    ),
    _value(jnp.exp, "f32[2,3]", "i8[3,4]", "f32[1,3]"),
    (
        lambda w, v, s: (jnp.exp(w).reshape(2, 3) * s) @ v.astype("float32"),
        ("f32[2,1,3]", "i8[3,4]", "f32[1,3]"),
    ),
    *(
        (left_alone(example), types)
        for example, types in (
            _value(jax.nn.softmax, "f32[2,3]", "i16[3,4]", "f32[1,3]"),
            _value(jax.nn.softmax, "f32[2,3]", "u8[3,4]", "f32[1,3]"),
            _value(jax.nn.softmax, "f32[2,3]", "i8[3,4]", "f32[1,1]"),
            _value(jax.nn.softmax, "f32[2,3]", "i8[3,4]", "f32[2,1]"),
            _value(jax.nn.softmax, "f32[2,3]", "i8[3]", "f32[1,3]"),
            _value(jax.nn.softmax, "f32[1,3]", "i8[3,4]", "f32[2,3]"),
            _value(jnp.tanh, "f32[2,3]", "i8[3,4]", "f32[1,3]"),
        )
    ),
]
MORE: dict[str, list[Example]] = {
    "part_of_joined": [
        (
            left_alone(
                lambda x, y: jax.lax.slice(Traced["joined"](x, y, axis=0), (0, 0), (4, 3), (2, 1))
            ),
            ("f32[2,3]", "f32[4,3]"),
        ),
    ],
    "scale_behind_integers": _SCALED_KEYS,
    "scale_before_integers": _SCALED_VALUES,
    "views_of_rows": _views(),
    "attend_without_axis": [
        _without_axis("b 1 t k, b 1 s k, b 1 s v -> b 1 t v", "f32[2,1,3,4]"),
        _without_axis("b t k, b 1 s k, b 1 s v -> b t v", "f32[2,3,4]"),
        (
            lambda q, k, s: Traced["attend"](
                *(q, k, k, s.reshape(2, 1, 5)),
                axes="b g t k, b s k, b s v, b g s -> b g t v",
                given="key_scale",
            ),
            ("f32[2,1,3,4]", "f32[2,5,4]", "f32[2,5,1]"),
        ),
        # near misses: an axis of the values alone
        (
            left_alone(
                lambda q, k, v: Traced["attend"](
                    q, k * 2.0, Traced["axis_of_one"](v, axis=2), axes=_ROWS
                )
            ),
            ("f32[2,3,4]", "f32[2,5,4]", "f32[2,5]"),
        ),
    ],
    "stack_of_trips": _in_loops(),
    "attend_to_parts": _attends_to_parts(),
    "attend_to_kept": _attends_to_kept(),
    **_writes_of_pages(),
    "write_of_total": _writes_of_total(),
    "attend_by_page": _by_page(),
    "attend_in_stack": _in_stack(),
}
_NARROW = {"9 for 8": "no dtype has nine bits"}
_WRITTEN_OUT = "JAX writes the broadcast out, which the normal form does not"
EQUAL: dict[str, dict[str, str]] = {
    "scale_behind_integers": _NARROW
    | {
        "`used <= set(letters(axes))`": "a result has no axis that is summed",
        "without `scaled.type.shape != op.types[0].shape`": _WRITTEN_OUT,
    },
    "scale_before_integers": _NARROW
    | {"without `weights.type.shape != arg.type.shape`": _WRITTEN_OUT},
}
