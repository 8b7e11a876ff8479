"""Loops in the normal form: what every iteration knows stands where it is used."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dialect.matching.values import is_splat
from dialect.ops.control import remade_scan, scan_parts
from rewrite.ir import Graph, Op, replace_values
from rewrite.rules import Outcome, local


@local(
    "scan",
    example=lambda x: (
        two := jax.lax.add(jnp.float32(1), jnp.float32(1)),
        jax.lax.scan(lambda c, _: (c * two, None), x, length=3)[0],
    ),
    types=("f32[3]",),
)
def number_into_loop(op: Op) -> Outcome:
    """scan{consts: a number, ...}  ->  scan{consts: ...} with the number in its body"""
    (body,), (fixed, carry, xs) = op.regions, scan_parts(op)
    known = {inside: given for inside, given in zip(body.inputs, op.args[fixed]) if is_splat(given)}
    if not known:
        return None
    told = replace_values(body, known)
    kept = [value not in known for value in body.inputs[fixed]]
    inputs = tuple(value for value in body.inputs if value not in known)
    consts = [arg for arg, keep in zip(op.args[fixed], kept) if keep]
    return remade_scan(op, Graph(inputs, told.outputs), consts, op.args[carry], op.args[xs]).results
