"""Some places of an axis, and which of them matter most."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dialect.ops.vocabulary import word
from rewrite.ir import Op
from rewrite.opdef import Traits
from rewrite.signature import Signature, numbered


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


word(picked, _picked_axes, ("axis",), traits=Traits(moves=True, picks=True, linear="first"))
word(largest, _largest_axes, ("count",))
