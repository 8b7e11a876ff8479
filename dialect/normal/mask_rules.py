"""Masks in one spelling: booleans stay booleans, and only their last reader broadcasts them.

Libraries turn masks into numbers and back, multiply them, combine them with masks of ones, and
broadcast them on the way. All of that is `and`, `or`, `not` and comparisons, at the smallest shape.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dialect.jaxprs.jaxpr import constant
from dialect.matching.values import (
    WITHOUT_ZERO,
    as_bool,
    in_dtype,
    in_shape,
    number,
    reshaped,
    through,
)
from dialect.normal.layout_rules import narrow
from dialect.ops import lax
from rewrite import runtime
from rewrite.ir import Graph, Op, Symbol, Type, Value
from rewrite.opdef import make, with_args
from rewrite.rules import Outcome, local


def splat(value: Any, type_: Type) -> Value:
    """An array of one number."""
    scalar = constant(value, Type(type_.dtype, ()))
    return make("broadcast_in_dim", scalar, shape=type_.shape, broadcast_dimensions=())


class _OfMask(NamedTuple):
    """A value that is one scalar where a mask is false, and another where it is true."""

    mask: Value
    no: Value
    yes: Value

    def after(self, op: Op, place: int) -> _OfMask:
        """The result of an op with this as operand number `place`, and numbers as the others."""
        scalars = [_scalar(arg) for arg in op.args]
        args = [(*scalars[:place], scalar, *scalars[place + 1 :]) for scalar in (self.no, self.yes)]
        return _OfMask(self.mask, *(make(op.name, *scalar, **dict(op.attrs)) for scalar in args))


def _of_mask(value: Value) -> _OfMask | None:
    """The value as a mask and two numbers; None if it is no such value."""
    mask, op = as_bool(value), value.op
    if mask is not None:
        numbers = (constant(choice, Type("bool", ())) for choice in (False, True))
        return _OfMask(mask, *(in_dtype(choice, value.type.dtype) for choice in numbers))
    if op.name == "select_n" and len(op.args) == 3 and op.args[0].type.dtype == "bool":
        numbers = [_scalar(arg) for arg in op.args[1:]]
        return None if None in map(number, numbers) else _OfMask(op.args[0], *numbers)
    if op.name == "convert_element_type":
        inner = _of_mask(op.args[0])
        return inner and inner.after(op, 0)
    if op.name == "sub" and number(op.args[0]) is not None:
        inner = _of_mask(op.args[1])
        return inner and inner.after(op, 1)
    return None


def _scalar(value: Value) -> Value:
    """The scalar that a value broadcasts."""
    return through(value, "broadcast_in_dim", "reshape")


def _evaluated(value: Value) -> np.ndarray:
    """The number that a scalar of constants computes, in its own dtype."""
    with jax.ensure_compile_time_eval():
        return np.asarray(runtime.framework().evaluate(Graph((), (value,)), [])[0])


@local(
    *("eq", "ne", "lt", "le", "gt", "ge"),
    example=lambda x: (x > 0).astype("float32") != 0,
    types=("f32[4]",),
)
def test_of_mask(op: Op) -> Outcome:
    """convert(m) != 0, convert(m) > 0, convert(m) == 1  ->  m,  1 - convert(m) > 0  ->  not m"""
    for i, arg in enumerate(op.args):
        source = _of_mask(arg) if number(op.args[1 - i]) is not None else None
        if source is None or source.mask.type.shape != op.types[0].shape:
            continue
        result = source.after(op, i)
        no, yes = (bool(_evaluated(scalar)) for scalar in (result.no, result.yes))
        if no == yes:
            return splat(yes, op.types[0])
        return result.mask if yes else make("not", result.mask)
    return None


@local(
    "convert_element_type",
    example=lambda x: (x > 0).astype("int32").astype("float32"),
    types=("f32[4]",),
)
def convert_of_mask(op: Op) -> Outcome:
    """convert(convert(m))  ->  convert(m)"""
    source = op.args[0]
    if source.op.name != "convert_element_type" or source.op.args[0].type.dtype != "bool":
        return None
    if source.type.dtype == WITHOUT_ZERO:
        return None
    return with_args(op, source.op.args).results[0]


@local("mul", "min", "max", example=lambda x, y: (x > 0) * 1 * (y > 0), types=("f32[4]",) * 2)
def product_of_masks(op: Op) -> Outcome:
    """convert(m) * convert(n)  ->  convert(m and n),  max(convert(m), convert(n))  ->  m or n"""
    masks = [as_bool(arg) for arg in op.args]
    if None in masks:
        return None
    mask = make("or" if op.name == "max" else "and", *masks)
    return make("convert_element_type", mask, **_to(op))


def _to(op: Op) -> dict[str, Any]:
    return {"new_dtype": Symbol(op.types[0].dtype), "weak_type": op.types[0].weak}


@local("mul", example=lambda x: (1 - (x > 0)) * -1e9, types=("f32[4]",))
def mask_times_number(op: Op) -> Outcome:
    """convert(m) * c  ->  select(m, c, 0),  (1 - convert(m)) * c  ->  select(m, 0, c)"""
    for i, arg in enumerate(op.args):
        source = _of_mask(arg) if number(op.args[1 - i]) is not None else None
        if source is None or source.mask.type.shape != op.types[0].shape:
            continue
        result = source.after(op, i)
        numbers = (splat(_evaluated(scalar), op.types[0]) for scalar in (result.no, result.yes))
        return make("select_n", result.mask, *numbers)
    return None


@local("and", "or", "xor", example=lambda x: (x > 0) & True, types=("f32[4]",))
def mask_with_splat(op: Op) -> Outcome:
    """m and true, m or false, m xor false  ->  m;  m xor true  ->  not m;  m and false  ->  no"""
    if op.types[0].dtype != "bool":
        return None
    for mask, constant_ in (op.args, op.args[::-1]):
        truth = number(constant_)
        if truth is None:
            continue
        if op.name == "xor" and truth:
            return in_shape(make("not", mask), op.types[0].shape)
        if op.name != "xor" and truth == (op.name == "or"):
            return splat(truth, op.types[0])
        return in_shape(mask, op.types[0].shape)
    return None


@local("and", "or", "xor", example=lambda x: (x > 0) & (x > 0), types=("f32[4]",))
def mask_with_itself(op: Op) -> Outcome:
    """m and m, m or m  ->  m,  m xor (m and n)  ->  m and not n"""
    left, right = op.args
    if op.types[0].dtype != "bool":
        return None
    if left == right:
        return splat(False, op.types[0]) if op.name == "xor" else left
    for mask, conjunction in (op.args, op.args[::-1]):
        if op.name == "xor" and conjunction.op.name == "and" and mask in conjunction.op.args:
            (difference,) = (arg for arg in conjunction.op.args if arg != mask)
            return make("and", mask, make("not", difference))
    return None


@local("not", example=lambda x: ~~(x > 0), types=("f32[4]",))
def not_of_not(op: Op) -> Outcome:
    """not not m  ->  m"""
    return op.args[0].op.args[0] if op.args[0].op.name == "not" else None


@local("not", example=lambda x: ~(x.astype("int32") >= 2), types=("f32[4]",))
def not_of_comparison(op: Op) -> Outcome:
    """not (i >= j)  ->  i < j, for integers"""
    inner = op.args[0].op
    opposite = {"lt": "ge", "ge": "lt", "gt": "le", "le": "gt", "eq": "ne", "ne": "eq"}
    integers = all(arg.type.dtype[0] in "iu" for arg in inner.args)
    if inner.name not in opposite or not integers:
        return None
    return make(opposite[inner.name], *inner.args, **dict(inner.attrs))


@local("not", example=lambda x: ~(x > 0)[None], types=("f32[4]",))
def not_of_reshape(op: Op) -> Outcome:
    """not reshape(m)  ->  reshape(not m)"""
    mask = through(op.args[0], "reshape")
    same = mask == op.args[0]
    return None if same else reshaped(make("not", mask), op.types[0].shape)


@local("select_n", example=lambda x, y: jnp.where(x > 0, y > 0, False), types=("f32[4]",) * 2)
def choice_of_masks(op: Op) -> Outcome:
    """select(c, m, false)  ->  c and m,  select(c, true, m)  ->  c or m, and so on"""
    if len(op.args) != 3 or {arg.type.dtype for arg in op.args} != {"bool"}:
        return None
    test, no, yes = op.args
    if number(no) is not None:
        return make("or", make("not", test), yes) if number(no) else make("and", test, yes)
    if number(yes) is not None:
        return make("or", test, no) if number(yes) else make("and", make("not", test), no)
    return None


@local("select_n", example=lambda x, y: jnp.where(x > 0, y, y), types=("f32[4]",) * 2)
def choice_of_same(op: Op) -> Outcome:
    """select(m, x, x)  ->  x"""
    choices = set(op.args[1:])
    return choices.pop() if len(choices) == 1 else None


# Broadcasts, outward.


@local(
    *(lax.MAPS - {"clamp"}),
    example=lambda x: jnp.exp(jnp.broadcast_to(x[:, None], (4, 3))),
    types=("f32[4]",),
)
def broadcast_outward(op: Op) -> Outcome:
    """f(broadcast(x), broadcast(y))  ->  broadcast(f(x, y))"""
    args = [narrow(arg) for arg in op.args]
    shape = np.broadcast_shapes(*(arg.type.shape for arg in args))
    if shape == op.types[0].shape:
        return None
    if op.name not in lax.BROADCASTING:
        args = [in_shape(arg, shape) for arg in args]
    return in_shape(make(op.name, *args, **dict(op.attrs)), op.types[0].shape)


@local(
    "broadcast_in_dim",
    example=lambda x: jnp.broadcast_to(jnp.broadcast_to(x[:, None], (4, 3)), (2, 4, 3)),
    types=("f32[4]",),
)
def broadcast_of_broadcast(op: Op) -> Outcome:
    """broadcast(broadcast(x))  ->  broadcast(x), and broadcast(x) to x's own shape  ->  x"""
    inner, places = op.args[0].op, op["broadcast_dimensions"]
    if op.args[0].type.shape == op.types[0].shape:
        return op.args[0]
    if inner.name != "broadcast_in_dim":
        return None
    moved = tuple(places[d] for d in inner["broadcast_dimensions"])
    return make("broadcast_in_dim", inner.args[0], shape=op["shape"], broadcast_dimensions=moved)


@local(
    "reshape",
    example=lambda x: jnp.broadcast_to(x[:, None], (4, 3)).reshape(1, 4, 1, 3),
    types=("f32[4]",),
)
def reshape_of_broadcast(op: Op) -> Outcome:
    """reshape(broadcast(x)) that moves axes of size one alone  ->  broadcast(x)"""
    inner, shape = op.args[0].op, op.types[0].shape
    if inner.name != "broadcast_in_dim":
        return None
    if not inner.args[0].type.shape:
        return in_shape(inner.args[0], shape)
    if 0 in shape:
        return None
    places = [d for d, size in enumerate(shape) if size > 1]
    old = [d for d, size in enumerate(op.args[0].type.shape) if size > 1]
    if [shape[d] for d in places] != [op.args[0].type.shape[d] for d in old]:
        return None
    sizes = zip(inner.args[0].type.shape, inner["broadcast_dimensions"])
    dims = [(size, d) for size, d in sizes if d in old]
    source = reshaped(inner.args[0], tuple(size for size, _ in dims))
    moved = tuple(places[old.index(d)] for _, d in dims)
    return make("broadcast_in_dim", source, shape=shape, broadcast_dimensions=moved)
