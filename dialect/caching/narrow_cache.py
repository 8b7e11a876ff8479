"""Caches stored without their axes of size one: a single KV head, or a batch of one.

cache  ->  axis_of_one(without_axis(cache)), for the inputs and outputs of the step

An axis of size one has no place in memory, so caches that differ in it alone have one form.
`axis_of_one` moves from the cache to attention, whose subscript takes it.
"""

from __future__ import annotations

import jax

from dialect.caching.commute import Form, rules
from dialect.caching.state_forms import Change
from dialect.matching.values import shaped, through
from dialect.ops.nn import Traced
from dialect.ops.scores import SUMMED
from dialect.staging.stored_states import undoes
from rewrite.ir import Op, Value
from rewrite.opdef import make
from rewrite.rules import Miss, Outcome, Rule, local
from rewrite.signature import Signature, letters


def without(axis: int) -> Change:
    """A state stored without this axis, of size one."""
    return Change(
        lambda value: (make("without_axis", value, axis=axis),),
        lambda value: make("axis_of_one", value, axis=axis),
    )


def _wide(cache: jax.Array) -> jax.Array:
    return Traced["axis_of_one"](cache, axis=1)


NARROW = Form(
    "axis_of_one",
    undo="without_axis",
    parts=("c",),
    change=lambda axis: without(axis),
    example=_wide,
    types=lambda places: (f"f32[2,{places},4]",),
)


@local(
    "without_axis",
    example=lambda c: Traced["without_axis"](_wide(c), axis=1),
    types=("f32[2,5,4]",),
)
def axis_gone(op: Op) -> Outcome:
    """without_axis(axis_of_one(x))  ->  x"""
    inner = op.args[0].op
    return inner.args[0] if undoes(inner, op) else None


@local(
    "attend",
    keeps="reals",  # a product may sum in another order where its operands have another layout
    example=lambda q, k: Traced["attend"](
        q, _wide(k), _wide(k), axes="b g t k, b g s k, b g s v -> b g t v"
    ),
    types=("f32[2,1,3,4]", "f32[2,5,4]"),
)
def attend_without_axis(op: Op) -> Outcome:
    """attend(q, axis_of_one(k), reshape(s), ..)  ->  attend(q, k, s, ..), its subscript shorter"""
    named, args = Signature.parse(op["axes"]), list(op.args)
    inputs = list(named.inputs)
    for number, arg in enumerate(op.args[1:], 1):
        narrow, added = _without_ones(arg)
        gone = {letter for axis in added for letter in inputs[number][axis]}
        if not gone.issubset({*letters(inputs[0])}.difference(SUMMED)):
            return Miss("its query has no such axis, or sums it", 2)
        args[number] = narrow
        inputs[number] = tuple(x for axis, x in enumerate(inputs[number]) if axis not in added)
    if tuple(args) == op.args:
        return None
    axes = str(Signature(tuple(inputs), named.outputs))
    return make("attend", *args, **{**dict(op.attrs), "axes": axes})


def _without_ones(value: Value) -> tuple[Value, list[int]]:
    """A value without the axes of size one that changes of shape gave it, and which these are."""
    source, added = through(value, NARROW.op, "reshape"), list[int]()
    sizes = list(source.type.shape)
    for axis, size in enumerate(value.type.shape):
        while sizes[:1] == [1] and size > 1:
            sizes.pop(0)
        if sizes[:1] == [size]:
            sizes.pop(0)
        else:
            added.append(axis)
    shape = value.type.shape
    kept = tuple(size for axis, size in enumerate(shape) if axis not in added)
    left = (*sizes, *(shape[axis] for axis in added))
    if any(size > 1 for size in left) or not added and kept != source.type.shape:
        return value, []
    return shaped(source, kept), added


RULES: tuple[Rule, ...] = (
    axis_gone,
    *rules(NARROW),
    attend_without_axis,
)
