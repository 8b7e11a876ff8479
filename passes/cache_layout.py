"""cache_layout: the cache's axes in the order that the machine wants to read them.

cache  ->  transpose(transpose'(cache)), at the boundary, in and out

The two transposes are pushed through reads, writes, attention and loops until they meet and
cancel; `stage` then keeps the cache in the new order, and `adapt` turns the user's around once.
What does not cancel stays in the program, where it can be seen.

Which chips own what of the cache is no layout but a plan: `plan{attention=batch}`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from dialect.axes import Axes, infer_axes
from dialect.control import remade_scan, scan_parts
from dialect.nn import Traced
from dialect.normal_form import RULES as NORMAL_FORM
from rewrite.driver import rewrite
from rewrite.ir import Graph, Op, Symbol, Value, new_input, replace_values
from rewrite.opdef import make
from rewrite.passbase import Pass
from rewrite.program import Program
from rewrite.rules import Outcome, Rule, local
from rewrite.signature import Signature
from rewrite.target import Target

Order = tuple[int, ...]
_CLIP = Symbol("GatherScatterMode.CLIP")


def inverse(order: Order) -> Order:
    """The permutation that undoes `order`."""
    return tuple(order.index(i) for i in range(len(order)))


def transposed(value: Value, order: Order) -> Value:
    """`value` with its axes in another order."""
    return make("transpose", value, permutation=tuple(order))


@local(
    "cache_write",
    example=lambda c, new: Traced["cache_write"](jnp.transpose(c, (1, 0, 2)), new, 3, axes=(1,)),
    types=("f32[8,2,4]", "f32[2,1,4]"),
)
def write_transposed(op: Op) -> Outcome:
    """cache_write(transpose(c), new)  ->  transpose(cache_write(c, transpose'(new)))"""
    if op.args[0].op.name != "transpose":
        return None
    order = op.args[0].op["permutation"]
    new = transposed(op.args[1], inverse(order))
    written = sorted(zip((order[axis] for axis in op["axes"]), op.args[2:]))
    stored = make(
        "cache_write",
        op.args[0].op.args[0],
        new,
        *(position for _, position in written),
        axes=tuple(axis for axis, _ in written),
    )
    return transposed(stored, order)


@local(
    "cache_put",
    example=lambda c, new: Traced["cache_put"](
        jnp.transpose(c, (0, 2, 1)), new, jnp.full((3, 1), 2), axis=1, mode=_CLIP
    ),
    types=("f32[3,2,8]", "f32[3,1,2]"),
)
def put_transposed(op: Op) -> Outcome:
    """cache_put(transpose(c), new)  ->  transpose(cache_put(c, transpose'(new)))"""
    whole, new, positions, *layer = op.args
    order, first = whole.op.get("permutation"), len(layer)
    if order is None or order[: first + 1] != tuple(range(first + 1)):
        return None  # layers and sequences stay in front
    own = tuple(place - first for place in order[first:])
    row = transposed(new, inverse(own))
    axis = order[op["axis"]]
    attrs = {**dict(op.attrs), "axis": axis}
    return transposed(make("cache_put", whole.op.args[0], row, positions, *layer, **attrs), order)


@local(
    "cache_read",
    example=lambda c: Traced["cache_read"](jnp.transpose(c, (0, 2, 1)), 1),
    types=("f32[3,8,2]",),
)
def read_transposed(op: Op) -> Outcome:
    """cache_read(transpose(c), layer)  ->  transpose(cache_read(c, layer)), layers staying first"""
    if op.args[0].op.name != "transpose" or op.args[0].op["permutation"][0] != 0:
        return None
    rest = tuple(axis - 1 for axis in op.args[0].op["permutation"][1:])
    return transposed(make("cache_read", op.args[0].op.args[0], op.args[1]), rest)


@local(
    "attend",
    example=lambda q, k: Traced["attend"](
        q,
        jnp.transpose(k, (1, 0)),
        jnp.transpose(k, (1, 0)),
        axes="t k, s k, s v -> t v",
    ),
    types=("f32[3,4]", "f32[4,5]"),
)
def attend_transposed(op: Op) -> Outcome:
    """attend(q, transpose(k), transpose(v))  ->  attend(q, k, v), its subscript reordered"""
    named = Signature.parse(op["axes"])
    args, inputs = list(op.args), list(named.inputs)
    for i in (1, 2):
        if args[i].op.name == "transpose":
            order = inverse(args[i].op["permutation"])
            args[i] = args[i].op.args[0]
            inputs[i] = tuple(inputs[i][place] for place in order)
    if tuple(args) == op.args:
        return None
    axes = str(Signature(tuple(inputs), named.outputs))
    return make("attend", *args, **{**dict(op.attrs), "axes": axes})


@local(
    "scan",
    example=lambda c: jax.lax.fori_loop(0, 3, lambda i, x: x * 2, jnp.transpose(c)),
    types=("f32[2,4]",),
)
def loop_over_transposed(op: Op) -> Outcome:
    """scan(transpose(c))  ->  transpose(scan(c)), its body seeing transpose(c)"""
    _, carry, _ = scan_parts(op)
    for position in range(carry.start, carry.stop):
        if op.args[position].op.name == "transpose":
            return _carried_in_order(op, position)
    return None


def _carried_in_order(op: Op, position: int) -> tuple[Value, ...]:
    """The loop with one carry kept in the order that its argument had before a transpose."""
    outer = op.args[position].op
    order = outer["permutation"]
    body, index = op.regions[0], position - op["consts"]
    inside = new_input(outer.args[0].type)
    outputs = list(replace_values(body, {body.inputs[position]: transposed(inside, order)}).outputs)
    outputs[index] = transposed(outputs[index], inverse(order))
    inputs = (*body.inputs[:position], inside, *body.inputs[position + 1 :])
    args = [*op.args[:position], outer.args[0], *op.args[position + 1 :]]
    consts, carry, xs = scan_parts(op)
    loop = remade_scan(op, Graph(inputs, tuple(outputs)), args[consts], args[carry], args[xs])
    results = list(loop.results)
    results[index] = transposed(results[index], order)
    return tuple(results)


RULES: tuple[Rule, ...] = (
    write_transposed,
    read_transposed,
    attend_transposed,
    loop_over_transposed,
)


@dataclass(frozen=True)
class CacheLayout(Pass):
    """Keeps every cache with its axes in `order`; axes that a cache lacks are passed over."""

    order: str = "layers batch kv_heads heads context d_head"

    keeps: ClassVar[str] = "bits"

    def run(self, program: Program, target: Target) -> Program:
        axes = infer_axes(program)
        graph, notes = program.graph, []
        outputs, orders, packed = list(graph.outputs), {}, {}
        for i, out in enumerate(program.outputs):
            value = graph.inputs[out.updates] if out.updates is not None else None
            order = self.wanted(axes, value) if value is not None else None
            if order is None:
                continue
            orders[i] = order
            packed[value] = new_input(transposed(value, order).type)
            outputs[i] = transposed(outputs[i], order)
            shown = " ".join(axes.show(value).split()[place] for place in order)
            notes.append(f"{program.inputs[out.updates].name} kept as {shown}")
        users = {
            value: transposed(each, inverse(orders[i]))
            for i, (value, each) in zip(orders, packed.items())
        }
        inside = replace_values(Graph(graph.inputs, tuple(outputs)), users)
        inside = Graph(tuple(packed.get(value, value) for value in graph.inputs), inside.outputs)
        inside = rewrite(inside, [*NORMAL_FORM, *RULES])
        # Only now the user's own order around it: put there before, the pairs would cancel at once.
        entering = {
            each: transposed(value, orders[i]) for i, (value, each) in zip(orders, packed.items())
        }
        outside = replace_values(inside, entering).outputs
        restored = tuple(
            transposed(value, inverse(orders[i])) if i in orders else value
            for i, value in enumerate(outside)
        )
        return self.said(program.with_graph(Graph(graph.inputs, restored)), *notes)

    def wanted(self, axes: Axes, value: Value) -> Order | None:
        """The permutation of a cache's dimensions, or None where it is no cache or in order."""
        names = [name[0] if len(name) == 1 else "" for name in axes.of(value)]
        if "context" not in names or any(name not in self.order.split() for name in names):
            return None
        place = self.order.split()
        order = tuple(sorted(range(len(names)), key=lambda i: place.index(names[i])))
        return order if order != tuple(range(len(names))) else None
