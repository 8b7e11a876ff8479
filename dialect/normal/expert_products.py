"""Ragged products with the experts of a mixture as the op that stays one product of all rows."""

from __future__ import annotations

import jax

from dialect.ops.experts import summed_axis
from rewrite.ir import Op
from rewrite.opdef import make
from rewrite.rules import Miss, Outcome, local


@local(
    "ragged_dot_general",
    example=lambda x, w, counts: jax.lax.ragged_dot(x, w, counts),
    types=("f32[6,3]", "f32[2,3,4]", "i32[2]"),
)
def experts_of_all_rows(op: Op) -> Outcome:
    """ragged_dot(x, w, counts)  ->  expert_product(x, w, counts), one product of all rows"""
    if summed_axis(op) != 1:
        return Miss("its weights are not [experts, summed, not summed]", 4)
    attrs = {"dtype": op["preferred_element_type"], "precision": op["precision"]}
    return make("expert_product", *op.args, **attrs)
