"""The tensor dialect: `contract`, the one product of two arrays.

Every matrix product, in whatever order its library wrote it, becomes one op whose einsum
subscript is its signature. Weights meet activations nowhere else, but where `shard` says how the
sums of a product are split over chips: `partial_contract`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dialect.arrays.attributes import decode
from dialect.ops.vocabulary import word
from rewrite.ir import Op
from rewrite.opdef import Traits
from rewrite.signature import Array, Signature, letters

PRODUCTS = ("contract", "partial_contract")


def contract(x: Any, y: Any, *, spec: str, dtype: Any = None, precision: Any = None) -> Any:
    """Einstein's sum of two arrays: `"b t d, d h k -> b t h k"`.

    A letter on both sides is a batch axis, one in both inputs and not in the output is summed.
    `dtype` is the type of the result, in which the products are accumulated.
    """
    signature = Signature.parse(spec)
    inputs = [letters(array) for array in signature.inputs]
    if [x.ndim, y.ndim] != [len(axes) for axes in inputs]:
        raise ValueError(f"{spec!r} does not name the axes of {x.shape} and {y.shape}")
    out = letters(signature.outputs[0])
    both = [letter for letter in inputs[0] if letter in inputs[1]]
    batch = [letter for letter in both if letter in out]
    numbers = tuple(
        tuple(tuple(axes.index(letter) for letter in group) for axes in inputs)
        for group in (signature.summed, batch)
    )
    product = jax.lax.dot_general(
        x, y, numbers, precision=decode(precision), preferred_element_type=decode(dtype)
    )
    order = [*batch, *(letter for axes in inputs for letter in axes if letter not in both)]
    if tuple(order) == out:
        return product
    return jnp.transpose(product, [order.index(letter) for letter in out])


def partial_contract(x: Any, y: Any, *, spec: str, parts: int, **more: Any) -> Any:
    """`contract` with what it sums cut into parts, every one summed apart.

    `"b t f, f d -> p b t d"`: the first letter that is summed is cut, its parts are the first axis
    of the result. Added up over it they are the whole product. What else: as in `contract`.
    """
    signature = Signature.parse(spec)
    (cut, *_), (part, *_) = signature.summed, letters(signature.outputs[0])
    pairs = zip((x, y), signature.inputs)
    arrays, named = zip(*(_cut(array, axes, cut, parts, part) for array, axes in pairs))
    return contract(*arrays, spec=str(Signature(named, signature.outputs)), **more)


def _cut(value: Any, axes: Array, letter: str, parts: int, part: str) -> tuple[Any, Array]:
    """`value` with one axis split in two, the parts in front, and the axes that it then has."""
    at = axes.index((letter,))
    shape = (*value.shape[:at], parts, value.shape[at] // parts, *value.shape[at + 1 :])
    return value.reshape(shape), (*axes[:at], (part,), *axes[at:])


def _signature(op: Op) -> Signature:
    return Signature.parse(op["spec"])


word(
    contract,
    _signature,
    ("spec", "dtype", "precision"),
    lead="spec",
    traits=Traits(linear="each", sums=True, skips_zeros=True, spelled="spec", batches=True),
)
word(
    partial_contract,
    _signature,
    ("spec", "parts", "dtype", "precision"),
    lead="spec",
    traits=Traits(linear="each", sums=True),
)
