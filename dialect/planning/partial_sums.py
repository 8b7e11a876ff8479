"""Products that leave partial sums, each chip its own: an axis of their own, and added up over it.

Said so, a compiler that gathers weights in pieces beside their products does it for these products
too, and adds up what several of them leave only once. Left to itself it gathers such weights first,
or passes the partial sums around in pieces, or both.
"""

from __future__ import annotations

from collections import Counter

from dialect.naming.axes import Axes
from dialect.planning.layouts import activation_group
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import make
from rewrite.program import Layout
from rewrite.signature import Signature


def summed_axes(op: Op, number: int, layout: Layout) -> tuple[str, ...]:
    """The mesh axes of the first letter that a product sums, where argument `number` lies so; none
    where it sums another split axis too, or that letter shares its dimension."""
    spec = Signature.parse(op["spec"])
    split = {
        dimension: mesh_axes
        for dimension, mesh_axes in zip(spec.inputs[number], layout)
        if mesh_axes and set(dimension) & set(spec.summed)
    }
    return split.get(spec.summed[:1], ()) if len(split) == 1 else ()


def partial_product(op: Op, args: tuple[Value, ...], parts: int) -> Value:
    """The product `op` of `args`, its partial sums an axis in front."""
    spec = Signature.parse(op["spec"])
    made = ((next(spec.free_letters()),), *spec.outputs[0])
    attrs = {**dict(op.attrs), "spec": str(Signature(spec.inputs, (made,))), "parts": parts}
    return make("partial_contract", *args, origin=op.origin, **attrs)


def added_up(value: Value, rank: int) -> Value:
    """`value` of so many axes: over that of its partial sums, where it has one, added up."""
    if value.type.rank == rank:
        return value
    return make("reduce_sum", value, axes=(0,), out_sharding=None, origin=value.op.origin)


def added(one: Value, other: Value, like: Op) -> Value:
    """The sum of two products, still partial where both are."""
    rank = like.types[0].rank
    if one.type != other.type:
        one, other = added_up(one, rank), added_up(other, rank)
    return make("add", one, other, origin=like.origin)


def summed_together(graph: Graph, axes: Axes) -> dict[Value, tuple[Value, Value, Value]]:
    """(x + a) + b with products a and b, as in parallel blocks: result -> (x, a, b).

    Their partial sums are added up once, if they are added before they meet what is whole.
    """
    users = Counter(arg for op in graph.ops for arg in op.args)
    users.update(graph.outputs)
    found = {}
    for op in graph.ops:
        if not is_residual_add(op, axes):
            continue
        for sum_, other in (op.args, op.args[::-1]):
            inner = sum_.op
            if users[sum_] > 1 or other.op.name != "contract" or not is_residual_add(inner, axes):
                continue
            if sum_ in found:
                continue  # its products are added up there
            for before, one in (inner.args, inner.args[::-1]):
                alone = users[one] == users[other] == 1
                if alone and one.op.name == "contract" and before.op.name != "contract":
                    found[op.results[0]] = (before, one, other)
    return found


def is_residual_add(op: Op, axes: Axes) -> bool:
    """x + f(x) over d_model, both of full shape."""
    if op.name != "add" or any(arg.type.shape != op.types[0].shape for arg in op.args):
        return False
    return activation_group(axes.of(op.results[0])) == "residual"
