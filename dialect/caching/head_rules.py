"""Rules that move `spread_heads` from a cache towards attention, `merge_heads` towards weights.

    cache_write(spread_heads(c), new)  ->  spread_heads(cache_write(c, merge_heads(new)))
    attend(q, spread_heads(k), ..)     ->  attend(q, k, ..), a head for a group of queries
    merge_heads(contract(x, w))        ->  contract(x, merge_heads(w))

The axis signatures tell which axis the heads are, so that one rule covers everything linear.
"""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp

from dialect.caching.commute import Form, rules
from dialect.caching.state_forms import Change
from dialect.matching.values import reshaped
from dialect.normal.cuts import cut
from dialect.ops import heads  # noqa: F401  (defines merge_heads, spread_heads, shared_heads)
from dialect.ops.follow import followed
from dialect.ops.nn import Traced
from rewrite import opdef
from rewrite.ir import Op, Symbol, Value
from rewrite.opdef import make
from rewrite.rules import FLOATS, Miss, Outcome, Rule, local
from rewrite.signature import Signature, letters

_FREE_LETTERS = "ijlmopruwxyz"


def merging(axis: int, count: int, by: str) -> Change:
    """A state stored with every `count` neighbouring heads merged into one.

    `by` is `mean`, `first`, or `same` where the heads are copies of each other.
    """
    options = {"axis": axis, "count": count, "by": by}
    return Change(partial(merged, **options), partial(make, "spread_heads", **options))


def merged(value: Value, **options: object) -> tuple[Value]:
    """The value with its heads merged; `options` are the attributes of `merge_heads`."""
    return (make("merge_heads", value, **options),)


def source_of(op: Op, axis: int) -> int | None:
    """The axis of a broadcast's argument that becomes this axis; None if the broadcast adds it."""
    places, source = op["broadcast_dimensions"], op.args[0].type
    if axis not in places:
        return None
    before = places.index(axis)
    return before if source.shape[before] == op.types[0].shape[axis] else None


# Rules: `spread_heads` moves towards attention.


def _example(x: object, axis: int = 1, count: int = 2) -> object:
    return Traced["spread_heads"](x, axis=axis, count=count, by="mean")


SPREAD = Form(
    "spread_heads",
    undo="merge_heads",
    parts=("c",),
    change=merging,
    example=_example,
    types=lambda places: (f"f32[2,3,{places},4]",),
    keeps="approx",
)


@local(
    "attend",
    keeps="reals",
    example=lambda q, k: Traced["attend"](
        q, _example(k), _example(k), axes="t h k, s h k, s h v -> t h v"
    ),
    types=("f32[3,4,5]", "f32[7,2,5]"),
)
def attend_in_groups(op: Op) -> Outcome:
    """attend(q, spread_heads(k), spread_heads(v))  ->  attend(q, k, v), query heads in groups"""
    signature, spreads = Signature.parse(op["axes"]), [arg.op for arg in op.args[1:3]]
    count = spreads[0].get("count")
    if any(x.name != "spread_heads" or x["count"] != count for x in spreads):
        return None
    head_axes = {axes[x["axis"]] for x, axes in zip(spreads, signature.inputs[1:])}
    if len(head_axes) > 1:
        return Miss("keys and values are merged along different axes", 2)
    (axis,) = head_axes
    if axis not in signature.outputs[0]:
        return Miss("the merged axis is not an axis of the queries", 2)
    kv_heads = spreads[0].args[0].type.shape[spreads[0]["axis"]]
    parts = {axis: (kv_heads, count)} if kv_heads > 1 else {}
    fresh = (letter for letter in _FREE_LETTERS if letter not in signature.letters)
    grouped = cut(op, parts, fresh)
    grouped_axes = opdef.signature(grouped)
    # One KV head for all queries is an axis of size one: it has no letter.
    kv_axes = [
        tuple(() if kv_heads == 1 and letters == axis else letters for letters in array)
        for array in signature.inputs[1:3]
    ]
    now = Signature(
        (grouped_axes.inputs[0], *kv_axes, *grouped_axes.inputs[3:]), grouped_axes.outputs
    )
    args = (grouped.args[0], *(x.args[0] for x in spreads), *grouped.args[3:])
    attention = make("attend", *args, **followed(grouped, grouped_axes, now))
    return reshaped(attention, op.types[0].shape)


# Rules: `merge_heads` moves towards the weights.


def _is_exact(op: Op) -> bool:
    """Whether merged copies are equal to each of them: the mean of integers may be rounded."""
    return op["by"] != "mean" or op.types[0].dtype in FLOATS


@local(
    "merge_heads",
    keeps="reals",
    example=lambda x: Traced["merge_heads"](_example(x), axis=1, count=2, by="mean"),
    types=("f32[3,2,8]",),
)
def merge_of_spread(op: Op) -> Outcome:
    """merge_heads(spread_heads(x))  ->  x"""
    inner = op.args[0].op
    same = inner.name == "spread_heads" and all(inner[x] == op[x] for x in ("axis", "count"))
    return inner.args[0] if same and _is_exact(op) else None


@local(
    "merge_heads",
    keeps="reals",
    example=lambda x, w: Traced["merge_heads"](
        jnp.exp(Traced["contract"](x, w, spec="b d, d h k -> b h k", dtype=Symbol("f32"))),
        axis=1,
        count=2,
        by="first",
    ),
    types=("f32[3,5]", "f32[5,4,2]"),
)
def first_of_each(op: Op) -> Outcome:
    """merge_heads{first}(f(x, w))  ->  f(x, merge_heads(w)), if f computes every head alone"""
    return None if op["by"] == "mean" or not _holders_of_heads(op) else _with_merged(op)


@local(
    "merge_heads",
    keeps="approx",
    example=lambda x, w: Traced["merge_heads"](
        Traced["contract"](x, w, spec="b d, d h k -> b h k", dtype=Symbol("f32")) + 1.0,
        axis=1,
        count=2,
        by="mean",
    ),
    types=("f32[3,5]", "f32[5,4,2]"),
)
def merge_of_linear(op: Op) -> Outcome:
    """merge_heads{mean}(f(x, w))  ->  f(x, merge_heads(w)), if f is linear in w, which has heads"""
    inner, holders = op.args[0].op, _holders_of_heads(op)
    if op["by"] != "mean" or not holders:
        return None
    is_linear = {"first": holders == [0], "each": len(holders) == 1, "all": True}
    linear = is_linear.get(opdef.traits(inner).linear, False)
    if not linear or any(inner.args[i].type.dtype not in FLOATS for i in holders):
        return Miss(f"{inner.name} is not linear in its heads", 2)
    return _with_merged(op)


def _holders_of_heads(op: Op) -> list[int]:
    """The arguments, by number, that hold the merged heads of an op that computes each alone.

    `op` is the merge; the list is empty for an op that mixes heads.
    """
    inner = op.args[0].op
    if not opdef.traits(inner).batches and inner.name != "broadcast_in_dim":
        return []
    signature = opdef.signature(inner)
    axis = signature.outputs[0][op["axis"]]
    if len(axis) != 1 or signature.kind(axis[0]) != "map":
        return []
    return [i for i, array in enumerate(signature.inputs) if axis in array]


def _with_merged(op: Op) -> Value:
    """The argument of a merge, computed from arguments whose heads are merged."""
    inner, axis = op.args[0].op, op["axis"]
    parts = {opdef.signature(inner).outputs[0][axis]: op.types[0].shape[axis : axis + 1]}
    return cut(
        inner, parts, change=lambda arg, d: merged(arg, **{**dict(op.attrs), "axis": d})[0]
    ).results[0]


@local(
    "merge_heads",
    example=lambda x: Traced["merge_heads"](jnp.repeat(x, 3, axis=1), axis=1, count=6, by="mean"),
    types=("f32[3,4,2]",),
    keeps="reals",
)
def merge_of_repeat(op: Op) -> Outcome:
    """merge_heads(repeat(x, m)) of n heads  ->  merge_heads(x) of n / m heads"""
    outer, axis = op.args[0].op, op["axis"]
    repeated = outer.args[0] if outer.name == "reshape" else op.args[0]
    if repeated.op.name != "broadcast_in_dim":
        return None
    place = axis
    if outer.name == "reshape":
        signature = opdef.signature(outer)
        last = signature.outputs[0][axis][-1:]
        if last not in signature.inputs[0]:
            return None
        place = signature.inputs[0].index(last)
    copies = repeated.type.shape[place]
    if copies < 2 or op["count"] % copies or source_of(repeated.op, place) is not None:
        return None
    if not _is_exact(op):
        return Miss("the mean of integers is rounded", 2)
    shape = tuple(1 if d == place else size for d, size in enumerate(repeated.type.shape))
    attrs = {**dict(repeated.op.attrs), "shape": shape}
    x = make("broadcast_in_dim", repeated.op.args[0], **attrs)
    sizes = op.args[0].type.shape
    x = reshaped(x, (*sizes[:axis], sizes[axis] // copies, *sizes[axis + 1 :]))
    count = op["count"] // copies
    return x if count == 1 else merged(x, **{**dict(op.attrs), "count": count})[0]


@local(
    "contract",
    keeps="approx",
    example=lambda x, w: Traced["contract"](
        x,
        Traced["merge_heads"](jnp.repeat(w, 2, axis=1), axis=1, count=2, by="mean"),
        spec="b d, d h k -> b h k",
        dtype=Symbol("f32"),
    ),
    types=("f32[3,5]", "f32[5,2,2]"),
)
def merged_in_common(op: Op) -> Outcome:
    """contract(x, merge_heads(w))  ->  contract(x, shared_heads(w))"""
    spec = Signature.parse(op["spec"])
    for i, arg in enumerate(op.args):
        if arg.op.name == "merge_heads" and arg.op["by"] == "mean":
            contracted = set(letters(spec.inputs[i])) - set(letters(spec.outputs[0]))
            summed = tuple(d for d, (x,) in enumerate(spec.inputs[i]) if x in contracted)
            if arg.op["axis"] in summed or not arg.type.size:
                return Miss("its heads are contracted, or there are none", 2)
            options = {"axis": arg.op["axis"], "count": arg.op["count"], "summed": summed}
            args = list(op.args)
            args[i] = make("shared_heads", arg.op.args[0], **options)
            return make("contract", *args, **dict(op.attrs))
    return None


RULES: tuple[Rule, ...] = (
    *rules(SPREAD, "transpose"),
    attend_in_groups,
    merge_of_spread,
    merge_of_repeat,
    first_of_each,
    merge_of_linear,
)
