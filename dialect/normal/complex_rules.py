"""Complex numbers as pairs of real ones, wherever a program takes them apart again.

Rotary positions are often products with exp(i angle). As products of real numbers they are `rope`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dialect.arrays.dtypes import is_complex
from dialect.matching.values import in_shape
from rewrite.ir import Op, Type, Value
from rewrite.opdef import make, traits, with_args
from rewrite.rules import Outcome, local, pattern

_PART = {"real": 0, "imag": 1}


def _real(x: jax.Array, *others: jax.Array) -> jax.Array:
    """x in the dtype of the real part of a complex number that JAX makes of it and the others."""
    return x.astype(jnp.finfo(jnp.result_type(x, *others, jnp.complex64)).dtype)


def _are_real(*types: Type) -> str | None:
    return "a part is complex" if any(is_complex(type_.dtype) for type_ in types) else None


complex_of_sum = pattern(
    "complex_of_sum",
    "x + i y  ->  complex(x, y), where x and y are real",
    before=lambda x, y: x + 1j * y,
    after=lambda x, y: jax.lax.complex(_real(x, y), _real(y, x)),
    example=("f32[4]", "f32[4]"),
    guard=_are_real,
    needs=("finite activations",),  # 0 y is a term of the real part
)

real_of_rotation = pattern(
    "real_of_rotation",
    "real(exp(i x))  ->  cos(x), where x is real",
    before=lambda x: jnp.real(jnp.exp(1j * x)),
    after=lambda x: jnp.cos(_real(x)),
    example=("f32[4]",),
    guard=_are_real,
)

imag_of_rotation = pattern(
    "imag_of_rotation",
    "imag(exp(i x))  ->  sin(x), where x is real",
    before=lambda x: jnp.imag(jnp.exp(1j * x)),
    after=lambda x: jnp.sin(_real(x)),
    example=("f32[4]",),
    guard=_are_real,
)


@local(
    "real",
    "imag",
    example=lambda x, y: jnp.real(jax.lax.complex(x, y)),
    types=("f32[4]", "f32[4]"),
)
def part_of_complex(op: Op) -> Outcome:
    """real(complex(x, y))  ->  x,  imag(complex(x, y))  ->  y"""
    inner = op.args[0].op
    if not _is_pair(inner):
        return None
    return in_shape(inner.args[_PART[op.name]], op.types[0].shape)


@local("real", "imag", example=lambda z: jnp.real(z.reshape(2, 2)), types=("c64[4]",))
def part_of_layout(op: Op) -> Outcome:
    """real(reshape(z))  ->  reshape(real(z)), and so for every op that only moves elements"""
    inner = op.args[0].op
    if not _moves(inner):
        return None
    return with_args(inner, (make(op.name, *inner.args),)).results[0]


@local(
    "real",
    "imag",
    example=lambda x, y, z: jnp.real(jax.lax.complex(x, y) * z),
    types=("f32[4]", "f32[4]", "c64[4]"),
    keeps="reals",
)
def part_of_product(op: Op) -> Outcome:
    """real((a + ib) * (c + id))  ->  a * c - b * d,  imag(..)  ->  a * d + b * c"""
    inner = op.args[0].op
    if inner.name != "mul" or not any(_is_pair(_unmoved(arg)) for arg in inner.args):
        return None
    (a, b), (c, d) = ([make(part, arg) for part in _PART] for arg in inner.args)
    if op.name == "real":
        return make("sub", make("mul", a, c), make("mul", b, d))
    return make("add", make("mul", a, d), make("mul", b, c))


def _moves(op: Op) -> bool:
    return traits(op).moves and len(op.args) == len(op.types) == 1


def _unmoved(value: Value) -> Op:
    """What computes the elements of a value."""
    while _moves(value.op):
        (value,) = value.op.args
    return value.op


def _is_pair(op: Op) -> bool:
    """Whether an op makes complex numbers of real ones."""
    return op.name == "complex"
