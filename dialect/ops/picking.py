"""Some places of an axis, and which of them matter most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dialect.ops.vocabulary import word
from rewrite.ir import Op
from rewrite.opdef import Traits
from rewrite.signature import Signature, letters, numbered


def picked(x: Any, places: Any, *, axis: int) -> Any:
    """x at `places` of an axis.

    places: i32, of as many axes as x: `axis` is as long as there are places, each other one as in
    x, or of size one where the places are the same along it.
    """
    return jnp.take_along_axis(x, places, axis=axis, mode="clip")


def largest(scores: Any, *, count: int) -> Any:
    """scores: [.., n]  ->  i32[.., count], the places of the largest in ascending order; of equal
    scores the first."""
    return jnp.sort(jax.lax.top_k(scores, count)[1], axis=-1).astype(jnp.int32)


def some_rows(x: Any, *, rows: tuple[int, ...], size: int) -> Any:
    """x at some rows of its first axis, of which there are `size`.

    Raises ValueError where there are not, or no such rows, or rows that do not ascend.
    """
    _must_be(x.shape[0], size, rows, size)
    return x[np.asarray(rows)]


def all_rows(x: Any, *, rows: tuple[int, ...], size: int) -> Any:
    """x as `rows` of an array of `size`, whose others are zero: `some_rows` turned back."""
    _must_be(x.shape[0], len(rows), rows, size)
    return jnp.zeros((size, *x.shape[1:]), x.dtype).at[np.asarray(rows)].set(x)


def masked(x: Any, scores: Any, *, axis: int, keep: int, of: int) -> Any:
    """x, with all but the `keep` of the largest scores among every `of` along an axis set to zero;
    of equal scores the first stay.

    Raises ValueError where `of` does not divide the axis.
    """
    if not 0 < keep <= of or x.shape[axis] % of:
        raise ValueError(f"{keep} of every {of} cannot be kept of {x.shape[axis]}")
    moved = jnp.moveaxis(scores, axis, -1)
    groups = moved.reshape(*moved.shape[:-1], -1, of)
    order = jnp.argsort(groups, axis=-1, stable=True, descending=True)
    kept = jnp.argsort(order, axis=-1) < keep
    return jnp.where(jnp.moveaxis(kept.reshape(moved.shape), -1, axis), x, jnp.zeros_like(x))


def _must_be(count: int, wanted: int, rows: tuple[int, ...], size: int) -> None:
    if count != wanted or list(rows) != sorted({*rows} & {*range(size)}):
        raise ValueError(f"there are {count} rows, and not {wanted}: {rows} of {size}")


def _picked_axes(op: Op) -> Signature:
    at, whole = op["axis"], numbered(op.types[0].rank, prefix="x")
    result = (*whole[:at], ("y",), *whole[at + 1 :])
    sizes = zip(result, op.args[1].type.shape)
    places = tuple(axis if size > 1 else () for axis, size in sizes)
    return Signature((whole, places), (result,), frozenset((whole[at][0], "y")))


def _largest_axes(op: Op) -> Signature:
    whole = numbered(op.types[0].rank, prefix="x")
    result = (*whole[:-1], ("y",))
    return Signature((whole,), (result,), frozenset((whole[-1][0], "y")))


def _rows_axes(op: Op) -> Signature:
    whole = numbered(op.types[0].rank, prefix="x")
    result = (("y",), *whole[1:])
    return Signature((whole,), (result,), frozenset((whole[0][0], "y")))


def _masked_axes(op: Op) -> Signature:
    whole = numbered(op.types[0].rank)
    return Signature((whole, whole), (whole,), frozenset(letters((whole[op["axis"]],))))


def _turned(name: str) -> Callable[[Op], tuple[str, dict[str, Any]]]:
    return lambda op: (name, {"rows": op["rows"], "size": op["size"]})


_ROWS = ("rows", "size")
word(some_rows, _rows_axes, _ROWS, inverse=_turned("all_rows"), traits=Traits(moves=True))
word(all_rows, _rows_axes, _ROWS, inverse=_turned("some_rows"), traits=Traits(moves=True))
word(masked, _masked_axes, ("axis", "keep", "of"), traits=Traits(axes="axis"))
word(picked, _picked_axes, ("axis",), traits=Traits(moves=True, picks=True, linear="first"))
word(largest, _largest_axes, ("count",))
