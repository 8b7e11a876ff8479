"""An axis padded with zeros, and cut back again: `padded` and `unpadded`; `cleared` between.

Padding is exact where no result depends on it unless it is zero; `dialect.padded.pad_axis` sees to
that, and clears it where it may be something else. A padded axis is the same axis, only longer
(`dialect.naming.axes`).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dialect.ops.vocabulary import elementwise, word
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import Traits, make
from rewrite.signature import Signature, numbered


def padded(x: Any, *, axis: int, size: int) -> Any:
    """x with zeros behind it along `axis`, which is `size` long then."""
    behind = [(0, size - x.shape[axis] if d == axis else 0) for d in range(x.ndim)]
    return jnp.pad(x, behind)


def unpadded(x: Any, *, axis: int, size: int) -> Any:
    """The first `size` places of x along `axis`.

    Where it gives a state, what it cuts off is zero: padding the result again gives x, so that
    the state may be kept padded from step to step.
    """
    return jax.lax.slice_in_dim(x, 0, size, axis=axis)


def cleared(x: Any, *, axis: int, size: int) -> Any:
    """x with zeros from place `size` on along `axis`, whatever stood there."""
    place = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
    return jnp.where(place < size, x, jnp.zeros((), x.dtype))


def _axes(op: Op) -> Signature:
    before, after = (numbered(op.types[0].rank, prefix) for prefix in "xy")
    at = op["axis"]
    result = (*before[:at], after[at], *before[at + 1 :])
    return Signature((before,), (result,), frozenset((before[at][0], after[at][0])))


def _unpadded(op: Op) -> tuple[str, dict[str, Any]]:
    return "unpadded", {"axis": op["axis"], "size": op.args[0].type.shape[op["axis"]]}


_MOVES = Traits(moves=True, linear="all")
word(padded, _axes, ("axis", "size"), inverse=_unpadded, traits=_MOVES)
word(unpadded, _axes, ("axis", "size"), traits=_MOVES)
word(cleared, elementwise, ("axis", "size"))


def resized(word: str, value: Value, axis: int, size: int) -> Value:
    """`value`, `padded`, `unpadded` or `cleared` to this size along an axis."""
    return make(word, value, axis=axis, size=size)


def as_padded(graph: Graph, value: Value) -> Value:
    """What is read of an input: its padded form, or the input itself where it has none."""
    whole = at = value
    while len(readers := graph.users.get(at, ())) == 1:
        op = readers[0][0]
        if op.name not in ("reshape", "padded"):
            break
        at = op.results[0]
        whole = at if op.name == "padded" else whole
    return whole
