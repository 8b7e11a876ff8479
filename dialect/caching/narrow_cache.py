"""Caches stored without their axes of size one: a single KV head, or a batch of one.

cache  ->  axis_of_one(without_axis(cache)), for the inputs and outputs of the step

An axis of size one has no place in memory, so caches that differ in it alone have one form.
`axis_of_one` moves from the cache to attention, whose subscript takes it.
"""

from __future__ import annotations

import jax

from dialect.caching.commute import Form, rules
from dialect.caching.state_forms import Change, undoes
from dialect.ops.nn import Traced
from rewrite.ir import Op
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
    """attend(q, axis_of_one(k), ..)  ->  attend(q, k, ..), its subscript shorter"""
    named, args = Signature.parse(op["axes"]), list(op.args)
    inputs = list(named.inputs)
    for number in (1, 2):
        inner = op.args[number].op
        if inner.name != NARROW.op:
            continue
        gone, subscript = inner["axis"], inputs[number]
        if not set(subscript[gone]).issubset(letters(inputs[0])):
            return Miss("its query has no such axis", 2)
        args[number], inputs[number] = inner.args[0], (*subscript[:gone], *subscript[gone + 1 :])
    if tuple(args) == op.args:
        return None
    axes = str(Signature(tuple(inputs), named.outputs))
    return make("attend", *args, **{**dict(op.attrs), "axes": axes})


RULES: tuple[Rule, ...] = (axis_gone, *rules(NARROW), attend_without_axis)
