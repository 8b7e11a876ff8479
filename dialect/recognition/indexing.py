"""Index arithmetic and its users: rows taken from tables, positions in a cache.

NumPy counts negative indices from the end, so `jax.numpy` computes `select(i < 0, i + n, i)` before
every lookup: that is `wrap`. The position in a ring buffer is `modulo`.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from dialect.matching.proofs import is_finite
from dialect.matching.values import REALS, as_bool, columns, number, one_hot_of, reshaped
from dialect.ops.lookups import DROP  # and defines take, wrap and modulo
from rewrite.ir import Op, Symbol, Value, bits
from rewrite.opdef import make
from rewrite.rules import Miss, Outcome, local
from rewrite.signature import Signature


@local("select_n", example=lambda i: jnp.where(i < 0, i + 8, i), types=("i32[3]",))
def wrapped(op: Op) -> Outcome:
    """select(i < 0, i + n, i)  ->  wrap{size=n}(i)"""
    if len(op.args) != 3:
        return None
    test, index, moved = op.args
    size = number(moved.op.args[1]) if moved.op.name == "add" else None
    if not isinstance(size, int) or moved.op.args[0] != index or index.type.dtype[0] != "i":
        return None
    negative = test.op.name == "lt" and test.op.args[0] == index and number(test.op.args[1]) == 0
    return make("wrap", index, size=size) if negative else None


@local("select_n", example=lambda i: jnp.remainder(i, 8), types=("i32[3]",))
def remainder(op: Op) -> Outcome:
    """r = rem(i, n): select(r < 0 and r != 0, r + n, r)  ->  modulo{size=n}(i)"""
    if len(op.args) != 3 or op.args[1].op.name != "rem" or op.args[2].op.name != "add":
        return None
    test, rem, moved = op.args
    index, size = rem.op.args[0], number(rem.op.args[1])
    if not isinstance(size, int) or size < 1 or index.type != rem.type or moved.op.args[0] != rem:
        return None
    conjuncts = test.op.args if test.op.name == "and" else (test,)
    comparisons = {_compared_with_zero(conjunct, rem) for conjunct in conjuncts}
    if "lt" not in comparisons or not comparisons <= {"lt", "ne"}:
        return None
    if number(moved.op.args[1]) != size:
        return None
    return make("modulo", index, size=size)


def _compared_with_zero(test: Value, value: Value) -> str:
    """The comparison that a test makes of the value and 0, or "". (`x != false` is x.)"""
    left, right = test.op.args if len(test.op.args) == 2 else (test, test)
    if test.op.name == "ne" and number(right) is False:
        return _compared_with_zero(left, value)
    return test.op.name if left == value and number(right) == 0 else ""


@local("wrap", example=lambda i: jnp.where((j := jnp.mod(i, 8)) < 0, j + 8, j), types=("i32[3]",))
def wrap_of_modulo(op: Op) -> Outcome:
    """wrap(modulo(i))  ->  modulo(i)"""
    inner = op.args[0].op
    return op.args[0] if inner.name == "modulo" and inner["size"] > 0 else None


@local(
    "gather", example=lambda table, ids: table[ids.astype("int32")], types=("f32[5,4]", "f32[3]")
)
def take_of_gather(op: Op) -> Outcome:
    """gather(table, ids) of whole rows  ->  take(table, ids)"""
    numbers = dict(op["dimension_numbers"].fields)
    table, indices = op.args
    if numbers["operand_batching_dims"] or len(numbers["start_index_map"]) != 1:
        return None
    (axis,) = numbers["start_index_map"]
    others = [i for i in range(table.type.rank) if i != axis]
    whole_rows = all(op["slice_sizes"][i] == table.type.shape[i] for i in others)
    if numbers["collapsed_slice_dims"] != (axis,) or not whole_rows:
        return Miss("it gathers parts of rows", 2)
    if fills_otherwise(op):
        return Miss("it has another fill value than NaN", 2)
    ids = reshaped(indices, indices.type.shape[:-1])
    taken = make("take", _first(table, axis), ids, mode=op["mode"])
    return _laid_out(taken, numbers["offset_dims"])


@local(
    "gather",
    example=lambda table, ids: jax.vmap(
        lambda i: jax.lax.dynamic_slice(table, (i, jnp.int32(0)), (1, 4))
    )(ids.astype("int32")),
    types=("f32[5,4]", "f32[3]"),
)
def take_of_mapped_slice(op: Op) -> Outcome:
    """vmap(i -> dynamic_slice(table, (i, 0), (1, d)))(ids)  ->  take(table, ids)"""
    numbers = dict(op["dimension_numbers"].fields)
    table, starts = op.args[0], columns(op.args[1])
    sliced = [d for d, size in enumerate(table.type.shape) if op["slice_sizes"][d] != size]
    if starts is None or numbers["collapsed_slice_dims"] or numbers["operand_batching_dims"]:
        return None
    start_of = dict(zip(numbers["start_index_map"], starts))
    if len(sliced) != 1 or op["slice_sizes"][sliced[0]] != 1 or sliced[0] not in start_of:
        return None
    (axis,) = sliced
    if fills_otherwise(op):
        return Miss("it has another fill value than NaN", 2)
    if any(number(start) != 0 for d, start in start_of.items() if d != axis):
        return Miss("it gathers at an offset along an axis that it takes whole", 2)
    ids = reshaped(start_of[axis], start_of[axis].type.shape[:-1])
    taken = make("take", _first(table, axis), ids, mode=op["mode"])
    return _laid_out(reshaped(taken, (*ids.type.shape, *op["slice_sizes"])), numbers["offset_dims"])


def fills_otherwise(op: Op) -> bool:
    """Whether a gather has a fill value for rows out of bounds that `take` does not have."""
    fill = op.get("fill_value")
    nan = fill == Symbol("nan") and op.types[0].dtype in REALS
    return fill is not None and not nan


def _first(value: Value, axis: int) -> Value:
    """The value with this axis moved to the front."""
    others = (d for d in range(value.type.rank) if d != axis)
    return make("transpose", value, permutation=(axis, *others)) if axis else value


def _laid_out(taken: Value, offset_dims: Sequence[int]) -> Value:
    """[ids ..., row ...] with the axes of rows at `offset_dims`, as a gather has them."""
    rank = taken.type.rank
    ids_dims = [d for d in range(rank) if d not in offset_dims]
    source = {d: i for i, d in enumerate((*ids_dims, *offset_dims))}
    order = tuple(source[d] for d in range(rank))
    return taken if order == tuple(range(rank)) else make("transpose", taken, permutation=order)


@local(
    "contract",
    example=lambda ids, table: jax.nn.one_hot(ids, 5) @ (table > 0).astype("float32"),
    types=("i32[3]", "f32[5,4]"),
    keeps="reals",
    needs=("finite",),
)
def take_of_one_hot(op: Op) -> Outcome:
    """one_hot(ids) . table, contracted over its rows  ->  take(table, ids), zero out of bounds"""
    spec = Signature.parse(op["spec"])
    for i, arg in enumerate(op.args):
        mask = as_bool(arg)
        one_hot = mask and one_hot_of(mask)
        if one_hot is None:
            continue
        ids, axis, _ = one_hot
        table, table_axes = op.args[1 - i], spec.inputs[1 - i]
        contracted = spec.inputs[i][axis]
        ids_axes = [axes for d, axes in enumerate(spec.inputs[i]) if d != axis]
        row_axes = [axes for axes in table_axes if axes != contracted]
        if sorted(spec.outputs[0]) != sorted((*ids_axes, *row_axes)):
            return Miss("the product contracts another axis than the rows of the table", 4)
        # The product multiplies the rows that are not taken with zero.
        if not is_finite(table, finite_parameters=True):
            return Miss("a row that is not taken may be infinite or NaN", 4)
        if bits(ids.type.dtype) == 64:  # JAX gathers by indices of 32 bits
            return Miss("its ids may exceed the 32 bits of a gather's indices", 4)
        rows = _first(table, table_axes.index(contracted))
        taken = make("take", rows, ids, mode=DROP, fill=0)
        order = tuple((*ids_axes, *row_axes).index(axes) for axes in spec.outputs[0])
        if order != tuple(sorted(order)):
            taken = make("transpose", taken, permutation=order)
        return taken if taken.type.dtype == op.types[0].dtype else None
    return None
