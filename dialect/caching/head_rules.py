"""How `spread_heads` moves from a cache towards attention, and `merge_heads` towards the weights.

    cache_write(spread_heads(c), new)  ->  spread_heads(cache_write(c, merge_heads(new)))
    attend(q, spread_heads(k), ..)     ->  attend(q, k, ..), each head for a group of queries
    merge_heads(contract(x, w))        ->  contract(x, merge_heads(w))

The axis signatures say where the heads are, so that one rule does for everything linear.
"""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp

from dialect.caching.commute import Form, rules
from dialect.caching.state_forms import Change
from dialect.matching.values import reshaped
from dialect.normal.cuts import cut
from dialect.ops import heads  # noqa: F401  (defines its words)
from dialect.ops.follow import followed
from dialect.ops.lax import MAPS
from dialect.ops.nn import Traced
from rewrite import opdef
from rewrite.ir import Op, Symbol, Value
from rewrite.opdef import make
from rewrite.rules import FLOATS, Miss, Outcome, Rule, local
from rewrite.signature import Signature, letters

# What gives each head by itself, linear or not.
_BY_HEAD = MAPS | set(
    "contract rope transpose reshape broadcast_in_dim rms_norm layer_norm".split()
)
_FREE_LETTERS = "ijlmopruwxyz"


def merging(axis: int, count: int, by: str) -> Change:
    """A state kept with every `count` neighbouring heads as one, found `by` their mean or so."""
    options = {"axis": axis, "count": count, "by": by}
    return Change(partial(merged, **options), partial(make, "spread_heads", **options))


def merged(value: Value, **options: object) -> tuple[Value]:
    """Its heads merged."""
    return (make("merge_heads", value, **options),)


def source_of(op: Op, axis: int) -> int | None:
    """The axis that a broadcast takes from its argument, None where it makes it."""
    places, source = op["broadcast_dimensions"], op.args[0].type
    own = places.index(axis) if axis in places else None
    return None if own is None or source.shape[own] != op.types[0].shape[axis] else own


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
    """attend(q, spread_heads(k), spread_heads(v))  ->  attend(q, k, v), its heads in groups"""
    named, inner = Signature.parse(op["axes"]), [arg.op for arg in op.args[1:3]]
    if any(each.name != "spread_heads" or each["count"] != inner[0]["count"] for each in inner):
        return None
    own = {array[each["axis"]] for each, array in zip(inner, named.inputs[1:])}
    if len(own) > 1:
        return Miss("keys and values are merged along different axes", 2)
    (axis,) = own
    if axis not in named.outputs[0]:
        return Miss("what is merged is no axis of the queries", 2)
    left = inner[0].args[0].type.shape[inner[0]["axis"]]
    parts = {axis: (left, inner[0]["count"])} if left > 1 else {}
    fresh = (letter for letter in _FREE_LETTERS if letter not in named.letters)
    grouped = cut(op, parts, fresh)
    axes = opdef.signature(grouped)
    # One head for all queries is an axis that the keys lack.
    kept = [tuple(() if left == 1 and x == axis else x for x in a) for a in named.inputs[1:3]]
    now = Signature((axes.inputs[0], *kept, *axes.inputs[3:]), axes.outputs)
    args = (grouped.args[0], *(each.args[0] for each in inner), *grouped.args[3:])
    made = make("attend", *args, **followed(grouped, axes, now))
    return reshaped(made, op.types[0].shape)


# Rules: `merge_heads` moves towards the weights.


def _is_exact(op: Op) -> bool:
    """Whether merging copies gives what they are copies of: the mean of integers is rounded."""
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
    """merge_heads{first}(f(x, w))  ->  f(x, merge_heads(w)), f giving each head by itself"""
    return None if op["by"] == "mean" or not _having_heads(op) else _with_merged(op)


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
    """merge_heads{mean}(f(x, w))  ->  f(x, merge_heads(w)), f being linear in what has the heads"""
    inner, having = op.args[0].op, _having_heads(op)
    if op["by"] != "mean" or not having:
        return None
    alone = {"first": having == [0], "each": len(having) == 1, "all": True}
    linear = alone.get(opdef.traits(inner).linear, False)
    if not linear or any(inner.args[i].type.dtype not in FLOATS for i in having):
        return Miss(f"{inner.name} is not linear in its heads", 2)
    return _with_merged(op)


def _having_heads(op: Op) -> list[int]:
    """Which arguments of what a merge reads have its heads, of an op that gives each by itself."""
    inner = op.args[0].op
    if inner.name not in _BY_HEAD:
        return []
    found = opdef.signature(inner)
    own = found.outputs[0][op["axis"]]
    if len(own) != 1 or found.kind(own[0]) != "map":
        return []
    return [i for i, array in enumerate(found.inputs) if own in array]


def _with_merged(op: Op) -> Value:
    """What a merge reads, of arguments whose heads are merged."""
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
    grown = outer.args[0] if outer.name == "reshape" else op.args[0]
    if grown.op.name != "broadcast_in_dim":
        return None
    place = axis
    if outer.name == "reshape":
        named = opdef.signature(outer)
        last = named.outputs[0][axis][-1:]
        if last not in named.inputs[0]:
            return None
        place = named.inputs[0].index(last)
    copies = grown.type.shape[place]
    if copies < 2 or op["count"] % copies or source_of(grown.op, place) is not None:
        return None
    if not _is_exact(op):
        return Miss("the mean of integers is rounded", 2)
    shape = tuple(1 if d == place else size for d, size in enumerate(grown.type.shape))
    less = make("broadcast_in_dim", grown.op.args[0], **{**dict(grown.op.attrs), "shape": shape})
    whole = op.args[0].type.shape
    less = reshaped(less, (*whole[:axis], whole[axis] // copies, *whole[axis + 1 :]))
    count = op["count"] // copies
    return less if count == 1 else merged(less, **{**dict(op.attrs), "count": count})[0]


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
            gone = set(letters(spec.inputs[i])) - set(letters(spec.outputs[0]))
            summed = tuple(d for d, (each,) in enumerate(spec.inputs[i]) if each in gone)
            if arg.op["axis"] in summed or not arg.type.size:
                return Miss("its heads are summed, or there are none", 2)
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
