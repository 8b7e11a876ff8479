"""Index arithmetic and the ops that use it: rows taken from tables, places in a cache.

NumPy counts negative indices from the end, so libraries write `select(i < 0, i + n, i)` in front
of every index: that is `wrap`. A ring buffer's place is `modulo`.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from dialect.matching.proofs import is_finite
from dialect.matching.values import REALS, as_bool, columns, number, one_hot_of, reshaped
from dialect.ops import nn  # noqa: F401  (defines take, wrap and modulo)
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
    test, rest, moved = op.args
    index, size = rest.op.args[0], number(rest.op.args[1])
    if not isinstance(size, int) or size < 1 or index.type != rest.type or moved.op.args[0] != rest:
        return None
    tests = test.op.args if test.op.name == "and" else (test,)
    told = {_compared_with_zero(each, rest) for each in tests}
    if "lt" not in told or not told <= {"lt", "ne"} or number(moved.op.args[1]) != size:
        return None
    return make("modulo", index, size=size)


def _compared_with_zero(test: Value, value: Value) -> str:
    """The comparison, where the test compares a value with 0; `x != false` is x itself."""
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
    rest = [i for i in range(table.type.rank) if i != axis]
    whole = all(op["slice_sizes"][i] == table.type.shape[i] for i in rest)
    if numbers["collapsed_slice_dims"] != (axis,) or not whole:
        return Miss("it gathers parts of rows", 2)
    if _fills(op):
        return Miss("it fills with a value of its own", 2)
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
    cut = [d for d, size in enumerate(table.type.shape) if op["slice_sizes"][d] != size]
    if starts is None or numbers["collapsed_slice_dims"] or numbers["operand_batching_dims"]:
        return None
    places = dict(zip(numbers["start_index_map"], starts))
    if len(cut) != 1 or op["slice_sizes"][cut[0]] != 1 or cut[0] not in places:
        return None
    (axis,) = cut
    if _fills(op):
        return Miss("it fills with a value of its own", 2)
    if any(number(each) != 0 for d, each in places.items() if d != axis):
        return Miss("it gathers at an offset along an axis that it takes whole", 2)
    ids = reshaped(places[axis], places[axis].type.shape[:-1])
    rows = _first(table, axis)
    taken = make("take", rows, ids, mode=op["mode"])
    return _laid_out(reshaped(taken, (*ids.type.shape, *op["slice_sizes"])), numbers["offset_dims"])


def _fills(op: Op) -> bool:
    """Whether a gather fills what is out of bounds otherwise than `take` does."""
    fill = op.get("fill_value")
    nan = fill == Symbol("nan") and op.types[0].dtype in REALS
    return fill is not None and not nan


def _first(value: Value, axis: int) -> Value:
    """The value with one of its axes in front."""
    rest = (d for d in range(value.type.rank) if d != axis)
    return make("transpose", value, permutation=(axis, *rest)) if axis else value


def _laid_out(taken: Value, places: Sequence[int]) -> Value:
    """[ids ..., row ...] as a gather gives it, where the axes of a row come to lie at `places`."""
    rank = taken.type.rank
    order = [d for d in range(rank) if d not in places]
    source = {d: i for i, d in enumerate((*order, *places))}
    moved = tuple(source[d] for d in range(rank))
    return taken if moved == tuple(range(rank)) else make("transpose", taken, permutation=moved)


@local(
    "contract",
    example=lambda ids, table: jax.nn.one_hot(ids, 5) @ (table > 0).astype("float32"),
    types=("i32[3]", "f32[5,4]"),
    keeps="reals",
    needs=("finite",),
)
def take_of_one_hot(op: Op) -> Outcome:
    """one_hot(ids) . table, summed over the rows  ->  take(table, ids), zero out of bounds"""
    spec = Signature.parse(op["spec"])
    for i, arg in enumerate(op.args):
        mask = as_bool(arg)
        found = mask and one_hot_of(mask)
        if found is None:
            continue
        ids, axis, _ = found
        table, rows = op.args[1 - i], spec.inputs[1 - i]
        summed = spec.inputs[i][axis]
        own = [axes for d, axes in enumerate(spec.inputs[i]) if d != axis]
        rest = [axes for axes in rows if axes != summed]
        if sorted(spec.outputs[0]) != sorted((*own, *rest)):
            return Miss("the one-hot axis is not the table's rows alone", 4)
        if not is_finite(
            table, finite_parameters=True
        ):  # what is not taken is multiplied with zero
            return Miss("a row that is not taken may be infinite or NaN", 4)
        if bits(ids.type.dtype) == 64:  # JAX takes rows by numbers of 32 bits
            return Miss("its ids may count further than a gather does", 4)
        at = rows.index(summed)
        taken = make("take", _first(table, at), ids, mode=_FILL, fill=0)
        order = tuple((*own, *rest).index(axes) for axes in spec.outputs[0])
        if order != tuple(sorted(order)):
            taken = make("transpose", taken, permutation=order)
        return taken if taken.type.dtype == op.types[0].dtype else None
    return None


_FILL = Symbol("GatherScatterMode.FILL_OR_DROP")
