"""An axis of size one more, or less.

Reshapes do the same. An op of its own says which axis it is.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from dialect.ops.vocabulary import along, word
from rewrite.ir import Op
from rewrite.opdef import Traits
from rewrite.signature import Signature, numbered


def axis_of_one(x: Any, *, axis: int) -> Any:
    """`x` with an axis of size one more, at this place of the result."""
    return jnp.expand_dims(x, axis)


def without_axis(x: Any, *, axis: int) -> Any:
    """`x` without this axis, which has size one."""
    return jnp.squeeze(x, axis)


def _more(op: Op) -> Signature:
    axes = numbered(op.args[0].type.rank + 1)
    return Signature(((*axes[: op["axis"]], *axes[op["axis"] + 1 :]),), (axes,))


def _less(op: Op) -> Signature:
    axes = numbered(op.args[0].type.rank)
    return Signature((axes,), ((*axes[: op["axis"]], *axes[op["axis"] + 1 :]),))


word(
    axis_of_one,
    _more,
    ("axis",),
    inverse=along("without_axis"),
    traits=Traits(moves=True, view=True, new_axis="axis"),
)
word(
    without_axis,
    _less,
    ("axis",),
    inverse=along("axis_of_one"),
    traits=Traits(moves=True, view=True, axes="axis"),
)
