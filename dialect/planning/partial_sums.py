"""Products with explicit partial sums: a leading axis with one partial sum per shard, then reduced.

With explicit partial sums XLA uses a collective matmul for these products too, and reduces the
partial sums of several products once. Otherwise it gathers such weights before the product, or
passes the partial sums around in windows, or both.
"""

from __future__ import annotations

from collections import Counter

from dialect.naming.axes import Axes
from dialect.planning.layouts import activation_group
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import make
from rewrite.program import Layout
from rewrite.signature import Signature


def partial_sum_axes(op: Op, operand: int, sharding: Layout) -> tuple[str, ...]:
    """Mesh axes over which a contraction leaves partial sums: those of its first contracted axis.

    Empty if a second contracted axis is sharded as well, or if the contracted axis is only a part
    of an array dimension. operand: index of the activation; sharding: mesh axes per dimension of
    that operand.
    """
    spec = Signature.parse(op["spec"])
    sharded = {
        dimension: mesh_axes
        for dimension, mesh_axes in zip(spec.inputs[operand], sharding)
        if mesh_axes and set(dimension) & set(spec.summed)
    }
    return sharded.get(spec.summed[:1], ()) if len(sharded) == 1 else ()


def partial_product(op: Op, args: tuple[Value, ...], parts: int) -> Value:
    """The product `op` of `args` with a leading axis of `parts` partial sums."""
    spec = Signature.parse(op["spec"])
    result = ((next(spec.free_letters()),), *spec.outputs[0])
    attrs = {**dict(op.attrs), "spec": str(Signature(spec.inputs, (result,))), "parts": parts}
    return make("partial_contract", *args, origin=op.origin, **attrs)


def reduce_partial_sums(value: Value, rank: int) -> Value:
    """`value` reduced over its axis of partial sums, if it has one more axis than `rank`."""
    if value.type.rank == rank:
        return value
    return make("reduce_sum", value, axes=(0,), out_sharding=None, origin=value.op.origin)


def added(first: Value, second: Value, like: Op) -> Value:
    """The sum of two products in place of the op `like`; partial sums stay partial if both have
    them."""
    rank = like.types[0].rank
    if first.type != second.type:
        first, second = reduce_partial_sums(first, rank), reduce_partial_sums(second, rank)
    return make("add", first, second, origin=like.origin)


def summed_together(graph: Graph, axes: Axes) -> dict[Value, tuple[Value, Value, Value]]:
    """(x + a) + b with products a and b, as in parallel blocks: result -> (x, a, b).

    If a and b are added first, their partial sums are reduced once.
    """
    users = Counter(arg for op in graph.ops for arg in op.args)
    users.update(graph.outputs)
    sums = {}
    for op in graph.ops:
        if not is_residual_add(op, axes):
            continue
        for sum_, other in (op.args, op.args[::-1]):
            inner = sum_.op
            if users[sum_] > 1 or other.op.name != "contract" or not is_residual_add(inner, axes):
                continue
            if sum_ in sums:
                continue  # its two products are taken already
            for residual, first in (inner.args, inner.args[::-1]):
                used_once = users[first] == users[other] == 1
                if used_once and first.op.name == "contract" and residual.op.name != "contract":
                    sums[op.results[0]] = (residual, first, other)
    return sums


def is_residual_add(op: Op, axes: Axes) -> bool:
    """Whether an op is x + f(x) over d_model, without broadcasting."""
    if op.name != "add" or any(arg.type.shape != op.types[0].shape for arg in op.args):
        return False
    return activation_group(axes.of(op.results[0])) == "residual"
