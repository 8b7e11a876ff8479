"""Index arithmetic and the ops that use it: rows taken from tables, places in a cache.

NumPy counts negative indices from the end, so libraries write `select(i < 0, i + n, i)` in front
of every index: that is `wrap`. A ring buffer's place is `modulo`.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from dialect import nn  # noqa: F401  (defines take, wrap and modulo)
from dialect.values import columns, number, one_hot_of, reshaped, through
from rewrite.ir import Op, Symbol, Value
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
    size = number(rest.op.args[1])
    tests = test.op.args if test.op.name == "and" else (test,)
    negative = any(
        each.op.name == "lt" and each.op.args[0] == rest and number(each.op.args[1]) == 0
        for each in (through(one, "ne") for one in tests)
    )
    if not isinstance(size, int) or not negative:
        return None
    if moved.op.args[0] != rest or number(moved.op.args[1]) != size:
        return None
    return make("modulo", rest.op.args[0], size=size)


@local("wrap", example=lambda i: jnp.where((j := jnp.mod(i, 8)) < 0, j + 8, j), types=("i32[3]",))
def wrap_of_modulo(op: Op) -> Outcome:
    """wrap(modulo(i))  ->  modulo(i)"""
    return op.args[0] if op.args[0].op.name == "modulo" else None


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
    if indices.type.shape[-1:] != (1,):
        return Miss("its indices are no scalars", 2)
    if op.get("fill_value") not in (None, Symbol("nan")):
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
    if any(number(each) != 0 for d, each in places.items() if d != axis):
        return Miss("it gathers at an offset along an axis that it takes whole", 2)
    ids = reshaped(places[axis], places[axis].type.shape[:-1])
    rows = _first(table, axis)
    taken = make("take", rows, ids, mode=op["mode"])
    return _laid_out(reshaped(taken, (*ids.type.shape, *op["slice_sizes"])), numbers["offset_dims"])


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
    example=lambda ids, table: jax.nn.one_hot(ids.astype("int32"), 5) @ table,
    types=("f32[3]", "f32[5,4]"),
    keeps="reals",
)
def take_of_one_hot(op: Op) -> Outcome:
    """one_hot(ids) . table, summed over the rows  ->  take(table, ids), zero out of bounds"""
    spec = Signature.parse(op["spec"])
    for i, arg in enumerate(op.args):
        found = one_hot_of(through(arg, "convert_element_type"))
        if found is None:
            continue
        ids, axis, _ = found
        table, rows = op.args[1 - i], spec.inputs[1 - i]
        summed = spec.inputs[i][axis]
        own = [axes for d, axes in enumerate(spec.inputs[i]) if d != axis]
        if (
            rows.count(summed) != 1
            or any(axes in rows for axes in own)
            or summed in spec.outputs[0]
        ):
            return Miss("the one-hot axis is not the table's rows alone", 4)
        at = rows.index(summed)
        rest = [d for d in range(len(rows)) if d != at]
        ordered = make("transpose", table, permutation=(at, *rest)) if at else table
        taken = make("take", ordered, ids, mode=Symbol("GatherScatterMode.FILL_OR_DROP"), fill=0)
        made = [*own, *(rows[d] for d in rest)]
        order = tuple(made.index(axes) for axes in spec.outputs[0])
        taken = (
            taken if order == tuple(sorted(order)) else make("transpose", taken, permutation=order)
        )
        dtype = op.types[0].dtype
        return taken if taken.type.dtype == dtype else None
    return None
