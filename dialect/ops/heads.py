"""Neighbouring heads merged into one, and a head spread over several.

    merge_heads   n neighbours along an axis -> their mean, or the first of them
    spread_heads  every head n times, as jnp.repeat does: its inverse where neighbours are the same
    shared_heads  n neighbouring projections -> one in the directions that they have in common

Query head h of H reads the key-value head h // n of H / n, as in grouped-query attention.
"""

from __future__ import annotations

from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from dialect.ops.vocabulary import word
from rewrite.ir import Op
from rewrite.opdef import Traits
from rewrite.signature import Array, Signature, numbered


def _grouped(x: Any, axis: int, count: int) -> Any:
    """[.., g n, ..] -> [.., g, n, ..]; ValueError where `count` does not divide the axis."""
    groups, left = divmod(x.shape[axis], count)
    if left:
        raise ValueError(f"{x.shape[axis]} heads do not make groups of {count}")
    return x.reshape(*x.shape[:axis], groups, count, *x.shape[axis + 1 :])


def merge_heads(x: Any, *, axis: int, count: int, by: str) -> Any:
    """Every `count` neighbours along `axis` as one: the `first` of them, or the `mean`, in f32 at
    least. Of neighbours that are the `same` it is the first too; nothing is lost then."""
    groups = _grouped(x, axis, count)
    if by != "mean":
        return jax.lax.index_in_dim(groups, 0, axis + 1, keepdims=False)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.mean(groups, axis=axis + 1, dtype=wide).astype(x.dtype)


def spread_heads(x: Any, *, axis: int, count: int, by: str) -> Any:
    """Each place along `axis` `count` times, copies being neighbours; undoes a merge `by` that."""
    return jnp.repeat(x, count, axis=axis)


def shared_heads(w: Any, *, axis: int, count: int, summed: tuple[int, ...]) -> Any:
    """Every `count` neighbouring projections along `axis` as one: U U' times their mean.

    w: [.., heads, .., k] with d = the product of the axes `summed` by the product that reads it. U
    [d, k] are the leading left singular vectors of the group's projections side by side [d, n k]:
    the k directions of the input that carry most of what the group's heads read together, whose
    span gives the best approximation of rank k (Eckart and Young 1936). Each head would need a
    [k, k] matrix of its own to be approximated in them, which the queries would have to take up;
    with queries and outputs untouched there can be one for all, and the nearest in least squares
    is U' times the mean. So this is the mean without what is outside of those directions, and
    farther from the heads themselves than the mean, which is their least-squares optimum.
    Computed in f32.
    """
    axis, rank = axis % w.ndim, w.ndim
    rest = [d for d in range(rank) if d not in (*summed, axis)]
    order = (axis, *summed, *rest)
    moved = jnp.transpose(w.astype(jnp.float32), order)
    kept, size = moved.shape, prod(w.shape[d] for d in rest)
    groups = _grouped(moved.reshape(kept[0], -1, size), 0, count)  # g n d k
    side_by_side = jnp.transpose(groups, (0, 2, 1, 3)).reshape(groups.shape[0], -1, count * size)
    left = jnp.linalg.svd(side_by_side, full_matrices=False)[0][..., :size]
    mean = jnp.mean(groups, axis=1)
    projected = jnp.einsum("gdr,ger,gek->gdk", left, left, mean)
    projected = projected.reshape(kept[0] // count, *kept[1:])
    return jnp.transpose(projected, [order.index(d) for d in range(rank)]).astype(w.dtype)


def _merge_axes(op: Op) -> Signature:
    """(g n) -> g: the heads of a group are summed, or but one of them passed over."""
    return _joined(op, (("g", "n"),), (("g",),))


def _spread_axes(op: Op) -> Signature:
    return _joined(op, (("g",),), (("g", "n"),))


def _joined(op: Op, before: Array, after: Array) -> Signature:
    rest, at = numbered(op.args[0].type.rank), op["axis"]
    arrays = [(*rest[:at], *letters, *rest[at + 1 :]) for letters in (before, after)]
    need = {"n"}
    if op.name == "shared_heads":
        need.update(name for d, (name,) in enumerate(rest) if d != at)
    return Signature((arrays[0],), (arrays[1],), frozenset(need))


def _spread(op: Op) -> tuple[str, dict[str, Any]]:
    return "spread_heads", {"axis": op["axis"], "count": op["count"], "by": op["by"]}


_MERGES = Traits(sums=True, axes="axis")
word(merge_heads, _merge_axes, ("axis", "count", "by"), inverse=_spread, traits=_MERGES)
word(spread_heads, _spread_axes, ("axis", "count", "by"), traits=Traits(moves=True, axes="axis"))
word(shared_heads, _merge_axes, ("axis", "count", "summed"), traits=Traits(sums=True))
