"""Rotary position embedding (Su et al. 2021), in the spellings of the field.

Pairs of values are turned by an angle. Which values form a pair differs (`pairs=halves`: i and
i + k/2; `neighbours`: 2i and 2i + 1), whether the tables of cosines hold each angle once or twice
does, and some models turn only the leading part of a head. `rope` covers all of it.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from dialect.ops.vocabulary import word
from rewrite.ir import Op
from rewrite.opdef import Traits
from rewrite.signature import Array, Signature, numbered


def rope(x: Any, cos: Any, sin: Any, *, pairs: str = "halves", turned: int | None = None) -> Any:
    """Rotary embedding. x: [..., k]; cos, sin: broadcast to [..., k/2], or to [..., k].

    `pairs` says which values are turned together, `turned` how many leading ones of k are.
    """
    if turned is not None:
        rest = x[..., turned:]
        done = rope(x[..., :turned], cos, sin, pairs=pairs)
        return jnp.concatenate([done, rest], axis=-1)
    if cos.shape[-1] == x.shape[-1]:
        return x * cos + quarter_turn(x, pairs) * sin
    left, right = pairs_of(x, pairs)
    return joined(left * cos - right * sin, right * cos + left * sin, pairs)


def pairs_of(x: Any, pairs: str) -> tuple[Any, Any]:
    """x: [..., k] -> the first and the second of each pair, [..., k/2]."""
    if pairs == "neighbours":
        return x[..., ::2], x[..., 1::2]
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]


def joined(left: Any, right: Any, pairs: str) -> Any:
    """The inverse of `pairs_of`."""
    if pairs == "neighbours":
        return jnp.stack([left, right], axis=-1).reshape(*left.shape[:-1], 2 * left.shape[-1])
    return jnp.concatenate([left, right], axis=-1)


def quarter_turn(x: Any, pairs: str) -> Any:
    """Each pair (a, b) as (-b, a)."""
    left, right = pairs_of(x, pairs)
    return joined(-right, left, pairs)


def _axes(op: Op) -> Signature:
    axes = numbered(op.args[0].type.rank)

    def angles(shape: tuple[int, ...]) -> Array:
        rows = zip(shape[:-1], axes[-len(shape) : -1])
        return (*(axis if size != 1 else () for size, axis in rows), ("angle",))

    rest = tuple(angles(arg.type.shape) for arg in op.args[1:])
    return Signature((axes, *rest), (axes,), frozenset((*axes[-1], "angle")))


word(rope, _axes, ("pairs", "turned"), traits=Traits(linear="first", batches=True))
