"""Experts of a loop over layers: their products read them where those of all layers are stacked.

scan(layer: expert_product(x, w[l], counts))  ->  scan(expert_product_of_layer(x, w, counts, l))

Where ragged products are kernels (`dialect.compiled.compilers.has_ragged_kernel`): a kernel takes
arrays that lie in memory, so a layer cut out of its stack would be copied in every step.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax

from dialect.ops.control import remade_scan, scan_parts
from dialect.ops.experts import EXPERT_PRODUCT
from dialect.ops.vocabulary import Traced
from rewrite import opdef
from rewrite.dataflow import rebuilt
from rewrite.ir import Graph, Op, Symbol, Type, Value, new_input
from rewrite.opdef import make, with_args
from rewrite.rules import Outcome, local


def _layers(stack: jax.Array, same: jax.Array, x: jax.Array, counts: jax.Array) -> jax.Array:
    def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
        for weights in (w, same):
            x = Traced["expert_product"](x, weights, counts, dtype=None, precision=None)
        return x, None

    return jax.lax.scan(layer, x, stack)[0]


@local(
    "scan",
    keeps="reals",
    needs=("finite parameters",),
    example=_layers,
    types=("f32[3,2,4,4]", "f32[2,4,4]", "f32[6,4]", "i32[2]"),
)
def experts_in_stack(loop: Op) -> Outcome:
    """scan(expert_product(x, w[l], counts))  ->  scan(expert_product_of_layer(x, w, counts, l))"""
    body = loop.regions[0]
    consts, carry, xs = (loop.args[part] for part in scan_parts(loop))
    fixed, carried = len(consts), len(carry)
    scanned = dict(zip(body.inputs[fixed + carried :], xs))
    read = {op.args[1] for op in body.ops if _is_product(op)}
    stacks = {layer: new_input(scanned[layer].type) for layer in scanned if layer in read}
    if not stacks:
        return None
    number = new_input(Type("i32", ()))

    def visit(op: Op, args: tuple[Value, ...]) -> Sequence[Value]:
        if not (_is_product(op) and op.args[1] in stacks):
            return with_args(op, args).results
        rows, weights, counts = args
        of_layer = (rows, stacks[weights], counts, number)
        options = {**dict(op.attrs), "origin": op.origin}
        return (make("expert_product_of_layer", *of_layer, **options),)

    inputs = (*body.inputs[:fixed], *stacks.values(), *body.inputs[fixed:], number)
    numbers = make("iota", dtype=Symbol("i32"), shape=(loop["length"],), dimension=0)
    consts = (*consts, *map(scanned.get, stacks))
    body = Graph(inputs, rebuilt(body, visit).outputs)
    return remade_scan(loop, body, consts, carry, (*xs, numbers)).results


def _is_product(op: Op) -> bool:
    return opdef.signature(op) == EXPERT_PRODUCT
