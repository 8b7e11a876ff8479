"""Loops and branches in the normal form: numbers are inside the bodies of loops, rows that no trip
changes outside; a branch that is always taken is no branch, and a loop of one trip no loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dialect.matching.values import is_splat, number, reshaped
from dialect.ops.control import remade_scan, scan_parts
from rewrite.ir import Graph, Op, Value, replace_values
from rewrite.opdef import build, substitute
from rewrite.rules import Outcome, local


@local(
    "cond",
    example=lambda x: jax.lax.cond(True, lambda a: a * a, jax.lax.neg, x),
    types=("f32[3]",),
)
def known_branch(op: Op) -> Outcome:
    """cond(constant, x, f, g, ..)  ->  the branch of that number, of x"""
    chosen = number(op.args[0])
    if chosen is None or not 0 <= chosen < len(op.regions):
        return None
    return substitute(op.regions[int(chosen)], op.args[1:])


@local(
    "scan",
    example=lambda x, w: jax.lax.scan(lambda c, row: (c * row, c + row), x, w),
    types=("f32[2]", "f32[1,2]"),
)
def single_trip(op: Op) -> Outcome:
    """scan{f, length=1}(x, w)  ->  f(x, w[0]), what it stacks being one row"""
    if op["length"] != 1:
        return None
    fixed, carry, xs = (op.args[part] for part in scan_parts(op))
    rows = [reshaped(stack, stack.type.shape[1:]) for stack in xs]
    results = substitute(op.regions[0], [*fixed, *carry, *rows])
    return [reshaped(value, type_.shape) for value, type_ in zip(results, op.types)]


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


@local(
    "scan",
    example=lambda x, w: jax.lax.scan(lambda c, row: (c * row, jax.lax.stop_gradient(row)), x, w),
    types=("f32[2]", "f32[3,2]"),
)
def unchanged_by_loop(op: Op) -> Outcome:
    """scan{row -> f(row), row} over xs  ->  scan{row -> f(row)} over xs, and xs themselves"""
    (body,), (_, carry, xs) = op.regions, scan_parts(op)
    rows = dict(zip(body.inputs[xs], op.args[xs]))
    kept: list[Value] = []
    results: list[Value | None] = [None] * len(op.types)
    for place, value in enumerate(body.outputs):
        scanned = rows.get(value)
        if scanned is not None and scanned.type == op.types[place]:  # not where it is carried
            results[place] = scanned
        else:
            kept.append(value)
    if len(kept) == len(body.outputs):
        return None
    graph, parts = Graph(body.inputs, tuple(kept)), (slice(0, carry.start), carry, xs)
    rest = iter(remade_scan(op, graph, *(op.args[part] for part in parts)).results)
    return [next(rest) if value is None else value for value in results]


@local(
    "reshape",
    example=lambda x: jax.lax.scan(lambda c, row: (c, row + c), x[0], x)[1][1],
    types=("f32[3,2]",),
)
def row_of_loop(op: Op) -> Outcome:
    """reshape(scan(..)[i:i+1])  ->  unstack(scan(..))[i], so that a state which is stacked before
    the loop is seen to be unstacked behind it"""
    cut = op.args[0].op
    if cut.get("limit_indices") is None or cut.args[0].op.get("length") is None:
        return None
    row = cut.args[0].type.shape[1:]
    if op.types[0].shape != row or cut.types[0].shape != (1, *row):
        return None
    return build("unstack", cut.args[0], axis=0).results[cut["start_indices"][0]]
