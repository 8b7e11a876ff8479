"""For the rules about places: gathers, writes into a cache, their indices, and rope."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dialect.ops.lookups import DROP
from dialect.ops.vocabulary import Traced
from dialect.recognition import rotary
from rewrite.ir import Symbol
from rewrite.rules import Rule
from tests.more_examples.forms import left_alone

Example = tuple[Callable[..., Any], tuple[str, ...]]

CLIP = "clip"
_TAKES_LONGER = "a constant that only takes longer to evaluate"
CACHE, ROWS = "f32[2,8,4]", "f32[2,3,4]"
TABLE, IDS = "f32[5,4]", "i32[3]"
NO_ZERO = "float8_e8m0fnu"  # a format of powers of two


def _rotated(rule: Rule, angles: int, x: str = "f32", sizes: str = "8") -> list[Example]:
    """Tables of other shapes, and those that are not beside what they turn."""
    shapes = (
        (f"f32[1,{angles}]",) * 2,
        ("f32[2,1]",) * 2,
        (f"f32[2,{angles}]", "f32[2,1]"),
        (f"f32[3,{angles}]",) * 2,
    )
    return [
        (rule.example, (f"{x}[{rows},{sizes}]", *tables))
        for rows, tables in zip((2, 2, 2, 1), shapes)
    ]


def _columns(rule: Rule, x: str = "f32") -> list[Example]:
    """The same for columns of pairs, of no rows, and for what is no pairs."""
    more = [
        ((f"{x}[4,2]", *("f32[4]",) * 2)),
        ((f"{x}[2,4,3]", *("f32[2,4]",) * 2)),
    ]
    one_pair = (lambda x, c, s: _turned_pair(x.astype(c.dtype), c, s), (f"{x}[2]", *("f32[]",) * 2))
    return [*_rotated(rule, 4, x, "4,2"), *((rule.example, types) for types in more), one_pair]


def _turned_pair(pair: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    left, right = pair
    return jnp.stack([left * cos - right * sin, right * cos + left * sin]).reshape(1, 2)


def _places() -> jax.Array:
    return lax.iota("float32", 8)[:, None]


def _times(count: int) -> jax.Array:
    """The places of a table of 8 rows after so many products."""
    return functools.reduce(lambda x, _: x * 0.9, range(count), lax.iota("float32", 8))


def _row(table: jax.Array, ids: jax.Array) -> jax.Array:
    return Traced["take"](table, ids, mode=Symbol("GatherScatterMode.CLIP"))


def _wrapped(rest: Any, other: Any = None, test: Any = lax.lt, size: int = 8) -> Any:
    """A remainder with the size added where it, or another number, is negative."""
    added = (rest if other is None else other) + size
    return jnp.where(test(rest, jnp.zeros_like(rest)), added, rest)


def _scattered(
    window: tuple[int, ...],
    inserted: tuple[int, ...],
    places: tuple[int, ...],
    *types: str,
    mode: str = CLIP,
    index: Callable[[Any], Any] = lambda index: index,
    cache: str = CACHE,
    mapped: tuple[tuple[int, ...], tuple[int, ...]] = ((), ()),
) -> Example:
    """A scatter of updates into a cache: the axes of a window, and of what an index names; then
    those that the cache and its indices are taken apart along, together."""
    numbers = lax.ScatterDimensionNumbers(window, inserted, places, *mapped)
    return (
        lambda cache, new, i: lax.scatter(cache, index(i), new, numbers, mode=mode),
        (cache, *types),
    )


def _mapped(*arguments: Any, **more: Any) -> Example:
    """A scatter under `vmap`, which takes the sequences one by one."""
    return _scattered(*arguments, mapped=((0,), (0,)), **more)


def _updates(start: Callable[[Any], Any], *types: str) -> Example:
    """A block that is written into each sequence, from the place that `start` makes of a number."""

    def update(cache: Any, new: Any, i: Any) -> Any:
        return lax.dynamic_update_slice(cache, new, start(i))

    return jax.vmap(update), types


def _gathered(
    sizes: tuple[int, ...],
    offset: tuple[int, ...],
    collapsed: tuple[int, ...],
    *types: str,
    places: tuple[int, ...] = (0,),
    index: Callable[[Any], Any] = lambda i: i[..., None],
    **more: Any,
) -> Example:
    """A gather of blocks: their sizes, where their axes come to lie, and those left out."""
    numbers = lax.GatherDimensionNumbers(offset, collapsed, places)
    return (
        lambda table, i: lax.gather(table, index(i), numbers, sizes, **{"mode": CLIP, **more}),
        types or (TABLE, IDS),
    )


def _twice(index: Any) -> Any:
    return jnp.stack([index, index], axis=-1)


def _one_hot(ids: Any, dtype: Any = "float32") -> Any:
    return jax.nn.one_hot(ids, 5, dtype=dtype)


def _positive(x: Any) -> Any:
    return (x > 0).astype("float32")


def _over(x: Any, y: Any, i: int, j: int) -> Any:
    """A product summed over one axis of each."""
    return lax.dot_general(x, y, (((i,), (j,)), ((), ())))


def _masked(mask: Callable[[Any], Any], *types: str) -> Example:
    """A cache with what is new where a mask is true, the mask made of places."""
    return lambda cache, new, i: jnp.where(mask(i), new, cache), types


def _at(places: Any) -> Any:
    """Whether each of eight places is that of a sequence."""
    return places[:, None] == jnp.arange(8)


def _counted(index: Any) -> Any:
    """The number of a sequence beside its place."""
    return jnp.stack([jnp.arange(2, dtype=index.dtype), index], axis=-1)


def _left_alone(example: Example) -> Example:
    function, types = example
    return left_alone(function), types


def _zero_and(index: Any) -> Any:
    """Places in an axis of one, at 0, beside others."""
    return jnp.stack([jnp.zeros_like(index), index], axis=-1)


_ONE = "f32[1,8,4]"

MORE: dict[str, list[Example]] = {
    "scatter_into_axis_of_one": [
        (
            lambda cache, new, i, j: cache.at[jnp.arange(1), i, j].set(new),
            ("f32[1,8,4,2]", "f32[1,2]", "i32[1]", "i32[1]"),
        ),
        (
            lambda cache, new, i, j: cache.at[i, jnp.arange(1), j].set(new),
            ("f32[8,1,4,2]", "f32[1,2]", "i32[1]", "i32[1]"),
        ),
        # near misses
        (left_alone(lambda cache, new: cache.at[jnp.arange(1)].set(new)), (_ONE, _ONE)),
        (left_alone(lambda cache, new, i: cache.at[i, i].set(new)), (_ONE, "f32[1,4]", "i32[1]")),
        (
            left_alone(lambda cache, new: cache.at[jnp.arange(1), jnp.arange(1)].set(new)),
            ("f32[1,1,4]", "f32[1,4]"),
        ),
        _left_alone(
            _scattered((1, 2, 3), (), (0, 1), "f32[3,1,2,4]", "i32[3]", index=_zero_and, cache=_ONE)
        ),
    ],
    "scatter_at_one_place": [
        (lambda cache, new, i, j: cache.at[i, j].set(new), (CACHE, "f32[1,4]", "i32[1]", "i32[1]")),
        # near misses
        _left_alone(_scattered((1, 2), (0,), (0,), "f32[3,8,4]", "i32[3,1]")),
        _left_alone(_scattered((1,), (0, 1), (0, 1), "f32[1,4]", "i32[1,2]")),
        _left_alone(
            _mapped((1,), (1,), (1,), "f32[1,4]", "i32[1,1]", cache=_ONE),
        ),
    ],
    "blend_to_select": [
        *(
            (
                lambda x, y, m: (
                    x.astype("float32") * (1 - (m := (m > 0).astype("float32")))
                    + y.astype("float32") * m
                ),
                types,
            )
            for types in (
                ("i8[1,4]", "i8[3,4]", "f32[3,4]"),
                ("f32[4]", "i8[4]", "f32[4]"),
                ("i8[4]", "f32[4]", "f32[4]"),
                ("i8[3,4]", "i8[3,4]", "f32[1,4]"),
            )
        ),
        (
            lambda x, y, m: (
                x.astype("float32") * (1 - (m := _positive(m).reshape(2, 2)))
                + y.astype("float32") * m
            ),
            ("i8[2,2]", "i8[2,2]", "f32[4]"),
        ),
        # near misses
        (lambda x, y, m: x * (1 - m) + y * m, ("i32[4]",) * 3),
        (
            lambda x, y, m: (
                x.astype("float32") * (1 - (m := (m > 0).astype(NO_ZERO).astype("float32")))
                + y.astype("float32") * m
            ),
            ("i8[4]", "i8[4]", "f32[4]"),
        ),
    ],
    "cache_write_of_update": [
        (
            lambda c, n, i: lax.dynamic_update_slice(c, n, (i, i, i)),
            (CACHE, "f32[2,1,4]", "i32[]"),
        ),
        (left_alone(lambda c, n: lax.dynamic_update_slice(c, n, (0, 0))), ("f32[2,8]",) * 2),
    ],
    "leading_part": [
        (
            lambda x, c, s: jnp.concatenate(
                [
                    Traced["rope"](x[:, :4].astype("float32"), c, s),
                    x[:, 4:].astype("float32"),
                ],
                axis=-1,
            ),
            ("bf16[2,8]", "f32[2,2]", "f32[2,2]"),
        ),
        *(
            (
                lambda x, c, s, head=head, rest=rest: jnp.concatenate(
                    [Traced["rope"](x[:, head], c, s), *(x[:, each] for each in rest)], axis=-1
                ),
                ("f32[2,8]", "f32[2,2]", "f32[2,2]"),
            )
            for head, rest in (
                (slice(4), (slice(4, 6), slice(4, 6))),
                (slice(0, 8, 2), (slice(4, 8),)),
                (slice(4), (slice(3, 7),)),
                (slice(1, 5), (slice(4, 8),)),
            )
        ),
    ],
    "row_of_computed": [
        (
            lambda i, x: _row(jnp.where(jnp.arange(8)[:, None] > 3, x, _places() * x), i),
            ("i32[2,2]", "f32[1,4]"),
        ),
        (left_alone(lambda i: _row(lax.broadcasted_iota("int32", (8, 4), 0), i)), ("i32[2,2]",)),
        (lambda i: _row(_times(12), i), ("i32[8]",)),
        (lambda i: _row(jnp.sin(_places()), i), ("u32[3]",)),
        (left_alone(lambda i: _row(_times(13), i)), ("i32[8]",)),
        (left_alone(lambda i: _row(jnp.sin(_places()), i)), ("i32[9]",)),
        (left_alone(lambda i: _row(jnp.sin(_places()), i)), ("i32[0]",)),
        (left_alone(lambda i: _row(jnp.sin(_places()), i)), ("i8[3]",)),
        (left_alone(lambda i: _row(jnp.sin(_places()).reshape(4, 2), i)), ("i32[3]",)),
        (left_alone(lambda i: _row(lax.broadcasted_iota("int32", (8, 4), 1), i)), ("i32[3]",)),
    ],
    "put_of_mapped_scatter": [
        (jax.vmap(lambda c, n, i: c.at[i].set(n)), (CACHE, ROWS, "i32[2,3]")),
        (jax.vmap(lambda c, n, i: c.at[:, i].set(n)), ("f32[2,4,8]", "f32[2,4]", "i32[2]")),
        (jax.vmap(lambda c, n, i: c.at[:, i].set(n)), ("f32[2,4,8]", "f32[2,4,3]", "i32[2,3]")),
        # near misses
        (lambda cache, new, i: cache.at[:, i].set(new), (CACHE, ROWS, "i32[3]")),
        (jax.vmap(lambda c, n, i, j: c.at[i, j].set(n)), (CACHE, "f32[2]", *["i32[2]"] * 2)),
        _mapped((1, 2), (), (1,), CACHE, "i32[2,1]"),
        _mapped((1,), (1,), (1,), "f32[2,3]", "i32[2,1]"),
        _mapped((0,), (1,), (1,), "f32[4,2]", "i32[2,1]"),
        _mapped((1,), (1,), (2,), "f32[2,4]", "i32[2,1]", cache="f32[2,4,4]"),
        _scattered(
            *((1,), (1,), (1,), "f32[4,4]", "i32[4,1]"),
            cache="f32[4,8,4]",
            mapped=((2,), (0,)),
        ),
        _scattered(
            *((2,), (1,), (1,), "f32[2,2,4]", "i32[2,2,1]"),
            mapped=((0,), (1,)),
        ),
    ],
    "put_of_mapped_update": [
        _updates(lambda i: (0, i), "f32[2,4,8]", "f32[2,4,3]", "i32[2]"),
        _updates(lambda i: (i, i), CACHE, ROWS, "i32[2]"),
        _updates(lambda i: (i, i), CACHE, ROWS, "i8[2]"),
        _updates(lambda i: (i, i), "f32[2,150,1]", "f32[2,2,1]", "i8[2]"),
        # near misses
        (jax.vmap(lambda c, n, i: c.at[i].set(n, mode=CLIP)), (CACHE, "f32[2,4]", "i32[2]")),
        _mapped((1, 2), (), (1,), ROWS, "i32[2,1]", mode="drop"),
        _mapped((1, 2), (), (1, 2), ROWS, "i32[2,2]"),
        _mapped((1, 2), (), (1,), "f32[2,8,3]", "i32[2,1]"),
        _mapped((0, 2), (), (1,), "f32[2,2,4]", "i32[2,1]"),
        _mapped((2, 3), (), (1,), "f32[2,3,1,4]", "i32[2,3,1]"),
        _scattered((1, 2, 3), (), (2,), "f32[3,4,4,1]", "i32[3,1]", cache="f32[4,4,8]"),
    ],
    "put_over_last_part": [
        *(
            (
                lambda x, y, new, axis=axis, at=at: Traced["cache_put"](
                    jnp.concatenate([x, y], axis), new, jnp.array(at), axis=1, mode=DROP
                ),
                (x, y, new),
            )
            for x, y, new, axis, at in (
                ("f32[2,6,4]", "f32[2,2,4]", "f32[2,2,4]", 1, [6, 7]),
                # near misses
                ("f32[2,6,4]", "f32[2,2,4]", "f32[2,1,4]", 1, [[6], [7]]),
                ("f32[2,6,4]", "f32[2,2,4]", "f32[2,2,4]", 1, [7, 6]),
                ("f32[1,2,4]", "f32[1,2,4]", "f32[2,1,4]", 0, [1]),
                ("f32[0,2,4]", "f32[2,2,4]", "f32[2,2,4]", 0, [0, 1]),
            )
        ),
    ],
    "write_over_last_part": [
        *(
            (
                lambda x, y, new, axes=axes, at=at: Traced["cache_write"](
                    jnp.concatenate([x, y], axes[0]),
                    new,
                    *(jnp.int32(start) for start in at),
                    axes=axes,
                ),
                (x, y, new),
            )
            for x, y, new, axes, at in (
                ("f32[2,6,4]", "f32[2,1,4]", "f32[2,1,4]", (1,), (6,)),
                # near misses
                ("f32[2,6,4]", "f32[2,2,4]", "f32[2,1,4]", (1,), (6,)),
                ("f32[2,6,4]", "f32[2,2,4]", "f32[2,2,4]", (1,), (5,)),
                ("f32[2,6,4]", "f32[2,2,4]", "f32[2,2,2]", (1, 2), (6, 1)),
            )
        ),
        (
            lambda x, y, new: Traced["cache_write"](
                jnp.concatenate([x, y], 0), new, jnp.int32(0), axes=(1,)
            ),
            ("f32[0,2,4]", "f32[2,2,4]", "f32[2,2,4]"),
        ),
        (
            lambda x, new, start: Traced["cache_write"](jnp.roll(x, -1, 1), new, start, axes=(1,)),
            (CACHE, "f32[2,1,4]", "i32[]"),
        ),
    ],
    "put_of_one_hot": [
        _masked(lambda i: (jnp.arange(8) == i)[:, None], CACHE, "f32[2,1,4]", "i32[]"),
        _masked(lambda i: (jnp.arange(8) == i)[:, None], CACHE, "f32[1,4]", "i32[]"),
        (
            lambda cache, new, i: jnp.where(
                lax.broadcast_in_dim(_at(i), (8, 8, 4), (1, 0)), new, cache
            ),
            ("f32[8,8,4]", "f32[8,1,4]", "i32[8]"),
        ),
        _masked(lambda i: _at(i)[:, :, None], CACHE, "f32[2,1,4]", "i32[2]"),
        _masked(
            lambda i: i == lax.broadcasted_iota("int32", (1, 8, 1), 1),
            CACHE,
            "f32[2,1,4]",
            "i32[2,1,1]",
        ),
        _masked(lambda i: _at(i)[:, None, :, None], "f32[2,3,8,4]", "f32[2,3,1,4]", "i32[2]"),
        _masked(lambda i: _at(i)[:, :, None], CACHE, "f32[2,1,4]", "i32[1]"),
        _masked(lambda i: _at(i).T, "f32[8,4]", "f32[1,4]", "i32[1]"),
        # near misses
        _masked(lambda i: _at(i).reshape(16, 1), "f32[16,4]", "f32[1,4]", "i32[2]"),
        _masked(lambda i: _at(i).reshape(8, 2, 1), "f32[8,2,4]", "f32[8,1,4]", "i32[2]"),
        _masked(lambda i: _at(i)[:, :, None], CACHE, "f32[2,8,1]", "i32[2]"),
        (lambda cache, i: lax.select_n(_at(i), cache), ("f32[2,8]", "i32[2]")),
        (
            lambda cache, new, i: jnp.where(
                lax.broadcast_in_dim(_at(i)[:, :, None], (8, 8, 4), (1, 0, 2)), new, cache
            ),
            ("f32[8,8,4]", "f32[8,1,4]", "i32[8]"),
        ),
        (
            lambda cache, new, i: jnp.where(
                _at(i)[:, :, None], lax.broadcast_in_dim(new, (4, 8, 4), (2, 1, 0)), cache
            ),
            ("f32[4,8,4]", "f32[4,1,4]", "i32[4]"),
        ),
    ],
    "put_of_scatter": [
        (lambda cache, new, i: cache.at[:, i].set(new), (CACHE, "f32[2,4]", "i32[]")),
        # near misses
        (lambda cache, i: cache.at[:, i].apply(jnp.sin), (CACHE, "i32[3]")),
        (lambda cache, new, i: cache.at[i, i].set(new), (CACHE, "f32[3,4]", "i32[3]")),
        (lambda cache, new, i: cache.at[:, i].set(new), (CACHE, "f32[2,3,2,4]", "i32[3,2]")),
        (
            lambda cache, new, i: jax.vmap(lambda c, n, j: c.at[j].set(n))(cache, new, i),
            (CACHE, "f32[2,4]", "i32[2]"),
        ),
        _scattered((0, 1, 2), (), (1,), ROWS, "i32[1]"),
        _scattered((0, 2), (1,), (1,), "f32[2,3,2]", "i32[3,1]"),
        _scattered((1, 2), (1,), (1,), "f32[3,2,4]", "i32[3,1]"),
        _scattered((0, 2), (1,), (0,), ROWS, "i32[3,1]"),
    ],
    "put_of_scatter_by_row": [
        (
            lambda cache, new, i: cache.at[jnp.arange(2)[:, None], i].set(new),
            (CACHE, ROWS, "i32[2,3]"),
        ),
        # near misses
        (lambda cache, i: cache.at[jnp.arange(2), i].apply(jnp.sin), (CACHE, "i32[2]")),
        *(
            (
                lambda cache, new, i, n=n: cache.at[jnp.arange(n), i].set(new),
                (CACHE, f"f32[{n},4]", f"i32[{n}]"),
            )
            for n in (1, 4)
        ),
        (
            lambda cache, new, i, j: cache.at[jnp.arange(2), i, j].set(new),
            (CACHE, "f32[2]", "i32[2]", "i32[2]"),
        ),
        (
            lambda cache, new, i: cache.at[jnp.arange(2)[:, None], :, i].set(new),
            (CACHE, "f32[2,3,8]", "i32[2,3]"),
        ),
        _scattered((1,), (1, 2), (1, 2), "f32[2,2]", "i32[2]", index=_counted),
        _scattered((1,), (0, 1), (0, 1), "f32[2,4]", "i32[2]", index=lambda i: _counted(i).T),
        _scattered(
            (1,),
            (0, 1),
            (0, 1),
            "f32[2,4]",
            "i32[2]",
            index=lambda i: jnp.stack([jnp.arange(2, dtype="int32"), i]),
        ),
        _scattered((1,), (0, 1), (0, 1), "f32[2,2]", "i32[2]", index=_counted),
        _scattered((0,), (0, 1), (0, 1), "f32[4,2]", "i32[2]", index=_counted),
        _scattered((1,), (0, 1), (1, 0), "f32[2,4]", "i32[2]", index=_counted),
    ],
    "remainder": [
        (lambda i: _wrapped(lax.rem(i, 8)), ("i32[3]",)),
        (lambda i: lax.rem(i, 8), ("i32[3]",)),
        (lambda i: jnp.remainder(i, 1), ("i32[3]",)),
        (lambda i, j: _wrapped(lax.rem(i, 8), j), ("i32[3]",) * 2),
        (lambda i: _wrapped(r := lax.rem(i, 8), r, lax.gt), ("i32[3]",)),
        (lambda i: _wrapped(lax.rem(i, 8), size=7), ("i32[3]",)),
        (lambda i: _wrapped(lax.rem(i, -8), size=-8), ("i32[3]",)),
        (lambda i: lax.select_n(i < 0, lax.rem(i, 8)), ("i32[3]",)),
        (
            lambda i, which: lax.select_n(which, r := lax.rem(i, 8), r + 8, r),
            ("i32[3]", "i32[3]"),
        ),
        *(
            (lambda i, j, test=test: jnp.where(test(i, j), (r := lax.rem(i, 8)) + 8, r), types)
            for test in (
                lambda i, j: lax.rem(i, 8) != 0,
                lambda i, j: (lax.rem(i, 8) < 0) & (j > 0),
                lambda i, j: (lax.rem(i, 8) < 0) & (j != 0),
                lambda i, j: j < 0,
                lambda i, j: lax.rem(i, 8) < 1,
                lambda i, j: (lax.rem(i, 8) < 0) == False,  # noqa: E712
            )
            for types in (("i32[3]", "i32[3]"),)
        ),
        (lambda i, b: jnp.where(b, (r := lax.rem(i, 8)) + 8, r), ("i32[3]", "bool[3]")),
    ],
    "rope": _rotated(rotary.halves, 4),
    "rope_columns": _columns(rotary.columns),
    "rope_columns_converted": _columns(rotary.columns_converted, "bf16"),
    "rope_columns_converted_to_halves": _columns(rotary.columns_converted_to_halves, "bf16"),
    "rope_columns_to_halves": _columns(rotary.columns_to_halves),
    "rope_converted": _rotated(rotary.halves_converted, 4, "bf16"),
    "rope_neighbours": _rotated(rotary.neighbours, 4),
    "rope_neighbours_wide": _rotated(rotary.neighbours_wide, 8),
    "rope_wide": _rotated(rotary.halves_wide, 8),
    "take_of_gather": [
        (lambda table, i: table[:, i], (TABLE, "i32[3]")),
        (lambda table, i: table[:, i], ("f32[2,5,3]", "i32[3,4]")),
        (lambda table, i: jnp.take(table, i, axis=0, mode="fill"), (TABLE, IDS)),
        _gathered((1, 4), (0,), (0,)),
        # near misses
        (lambda table, i: table[i, i], (TABLE, IDS)),
        (jax.vmap(lambda row, i: row[i]), ("f32[1,5]", "i32[1,3]")),
        _gathered((1, 2), (1,), (0,)),
        _gathered((1, 4), (1, 2), ()),
        _gathered((1, 4), (1,), (0,), mode="fill", fill_value=-3.0),
        _gathered((1, 4), (1,), (0,), "i32[5,4]", IDS, mode="fill", fill_value=7),
        _gathered((1, 4), (1,), (0,), "i32[5,4]", IDS, mode="fill", fill_value=jnp.nan),
    ],
    "take_of_mapped_slice": [
        _gathered((4, 1), (1, 2), (), "f32[4,5]", "i32[2,3]", places=(1,)),
        _gathered((2, 1, 3), (0, 1, 2), (), "f32[2,5,3]", IDS, places=(1,)),
        _gathered((1, 4), (0, 2), ()),
        _gathered((1, 4), (1, 2), (), mode="fill", fill_value=jnp.nan),
        # near misses
        _gathered((1, 4), (1,), (0,)),
        _gathered((2, 4), (1, 2), ()),
        _gathered((5, 1), (1, 2), (), index=lambda i: jnp.zeros_like(i)[..., None]),
        _gathered((1, 4), (1, 2), (), mode="fill", fill_value=-3.0),
        _gathered((1, 4), (1, 2), (), "i32[5,4]", IDS, mode="fill", fill_value=jnp.nan),
        _gathered((1, 4), (1, 2), (), places=(0, 1), index=_twice, mode="fill"),
    ],
    "take_of_one_hot": [
        (lambda i, t: _over(_positive(t), _one_hot(i), 0, 1), (IDS, TABLE)),
        (lambda i, t: _over(_one_hot(i), _positive(t), 1, 1), (IDS, "f32[4,5]")),
        (lambda i, t: _over(_one_hot(i), _positive(t), 2, 1), ("i32[3,2]", "f32[4,5,2]")),
        # near misses
        (left_alone(lambda i, t: _one_hot(i) @ t), (IDS, TABLE)),
        (left_alone(lambda i, t: _one_hot(i) @ _positive(t)), ("i64[3]", TABLE)),
        (lambda i, t: _one_hot(i, NO_ZERO).astype("float32") @ _positive(t), (IDS, TABLE)),
    ],
    "turn_of_converted": [
        (lambda x: rotary.quarter_turn(x, "neighbours").astype("float32"), ("bf16[2,8]",)),
        (lambda x: rotary.quarter_turn(x, "halves").astype("bfloat16"), ("f16[2,8]",)),
        # near misses
        (
            lambda x: jnp.concatenate([-jnp.sin(x), jnp.sin(x)], axis=-1).astype("float32"),
            ("bf16[2,8]",),
        ),
        (
            left_alone(lambda x: jnp.concatenate([x[:, 4:], x[:, :4]], axis=-1).astype("float32")),
            ("bf16[2,8]",),
        ),
    ],
    "wrap_of_modulo": [
        *(
            (lambda i, n=n: Traced["wrap"](Traced["modulo"](i, size=n), size=8), ("i32[3]",))
            for n in (1, -8)
        ),
        (
            left_alone(lambda i: Traced["wrap"](Traced["modulo"](i, size=0), size=8)),
            ("i32[3]",),
        ),
    ],
    "wrapped": [
        (lambda i: lax.select_n(i < 0, i), ("i32[3]",)),
    ],
    "write_of_scatter": [
        (lambda cache, new: cache.at[:, -1:].set(new), (CACHE, "f32[2,1,4]")),
        (lambda cache, new: cache.at[:, :2].set(new), (CACHE, "f32[2,2,4]")),
        # near misses
        (
            lambda cache, new: lax.scatter(
                cache,
                jnp.array([7]),
                new,
                lax.ScatterDimensionNumbers((0, 1, 2), (), (1,)),
                mode="drop",
            ),
            (CACHE, "f32[2,2,4]"),
        ),
        _scattered((0, 1, 2), (), (1,), ROWS, "i32[1]", mode="drop"),
        _scattered((0, 1), (1,), (1,), "f32[2,4]", "i32[1]"),
        _scattered((0, 1, 2), (), (1,), "f32[1,3,4]", "i32[1]"),
        (
            lambda cache, i: lax.scatter_apply(
                cache,
                i,
                jnp.sin,
                lax.ScatterDimensionNumbers((0, 1, 2), (), (1,)),
                update_shape=(2, 3, 4),
                mode=CLIP,
            ),
            (CACHE, "i32[1]"),
        ),
    ],
}
_NOT_GONE = "an axis that stays is none of those that go"
EQUAL: dict[str, dict[str, str]] = {
    "put_of_mapped_update": {
        "`last < jnp.iinfo(dtype_of(start.type.dtype)).max`": "no start is larger than the largest"
    },
    "scatter_into_axis_of_one": {"`d <= axis`": _NOT_GONE},
    "scatter_at_one_place": {
        "`d <= axis`": _NOT_GONE,
        "without `if axis not in gone`": "what goes is no axis of a window, and none of a batch",
    },
    "rope_neighbours_wide": {"`x.shape[-1] * parts`": "the whole is one part"},
    "rope_wide": {"`x.shape[-1] * parts`": "the whole is one part"},
    "put_of_scatter_by_row": {
        "without `value.type.size > 1000000`": _TAKES_LONGER,
        "`value.type.size >= 1000000`": _TAKES_LONGER,
        "1000001 for 1000000": _TAKES_LONGER,
    },
}
