"""Caches stored with their axes in another order.

cache  ->  transpose(transpose'(cache)), for the inputs and outputs of the step

`transpose` moves from the cache to attention, whose subscript takes it.
"""

from __future__ import annotations

import jax.numpy as jnp

from dialect.caching.commute import Form, rules
from dialect.caching.state_forms import Change
from dialect.normal.contract_rules import without_transposes
from dialect.ops.nn import Traced
from rewrite.ir import Op, Value
from rewrite.opdef import make
from rewrite.rules import Outcome, Rule, local

Order = tuple[int, ...]


def inverse(order: Order) -> Order:
    """The permutation that undoes `order`."""
    return tuple(order.index(i) for i in range(len(order)))


def transposed(value: Value, order: Order) -> Value:
    """`value` with its axes in another order."""
    return make("transpose", value, permutation=tuple(order))


def in_order(order: Order) -> Change:
    """A state stored with its axes in this order."""
    return Change(
        lambda value: (transposed(value, order),), lambda value: transposed(value, inverse(order))
    )


TRANSPOSED = Form(
    "transpose",
    undo="transpose'",
    parts=("c",),
    change=lambda permutation: in_order(inverse(permutation)),
    example=lambda c: jnp.transpose(c, (0, 2, 3, 1)),
    types=lambda places: (f"f32[2,4,3,{places}]",),
)


@local(
    "attend",
    keeps="reals",  # a product may sum in another order where its operands have another layout
    example=lambda q, k: Traced["attend"](
        q,
        jnp.transpose(k, (1, 0)),
        jnp.transpose(k, (1, 0)),
        axes="t k, s k, s v -> t v",
    ),
    types=("f32[3,4]", "f32[4,5]"),
)
def attend_transposed(op: Op) -> Outcome:
    """attend(q, transpose(k), ..)  ->  attend(q, k, ..), its subscript reordered"""
    return without_transposes(op, first=1)


RULES: tuple[Rule, ...] = (*rules(TRANSPOSED), attend_transposed)
