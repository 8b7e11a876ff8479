"""Loops in the normal form: constants are inside their bodies."""

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
    numbers = {x: arg for x, arg in zip(body.inputs, op.args[fixed]) if is_splat(arg)}
    if not numbers:
        return None
    inputs = tuple(value for value in body.inputs if value not in numbers)
    consts = [arg for x, arg in zip(body.inputs, op.args[fixed]) if x not in numbers]
    graph = Graph(inputs, replace_values(body, numbers).outputs)
    return remade_scan(op, graph, consts, op.args[carry], op.args[xs]).results
