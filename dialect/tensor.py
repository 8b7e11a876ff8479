"""The tensor dialect: `contract`, the one product of two arrays.

Every matrix product, in whatever order its library wrote it, becomes one op whose einsum
subscript is its signature. Weights meet activations nowhere else.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dialect.attributes import decode
from dialect.lax import infer_by_reference
from rewrite import opdef
from rewrite.ir import Op
from rewrite.opdef import OpDef
from rewrite.signature import Signature, letters


def contract(x: Any, y: Any, *, spec: str, dtype: Any = None, precision: Any = None) -> Any:
    """Einstein's sum of two arrays: `"b t d, d h k -> b t h k"`.

    A letter on both sides is a batch axis, one in both inputs and not in the output is summed.
    `dtype` is the type of the result, in which the products are accumulated.
    """
    signature = Signature.parse(spec)
    inputs = [letters(array) for array in signature.inputs]
    out = letters(signature.outputs[0])
    both = [letter for letter in inputs[0] if letter in inputs[1]]
    batch = [letter for letter in both if letter in out]
    summed = [letter for letter in both if letter not in out]
    numbers = tuple(
        tuple(tuple(axes.index(letter) for letter in group) for axes in inputs)
        for group in (summed, batch)
    )
    product = jax.lax.dot_general(
        x, y, numbers, precision=decode(precision), preferred_element_type=decode(dtype)
    )
    order = [*batch, *(letter for axes in inputs for letter in axes if letter not in both)]
    if tuple(order) == out:
        return product
    return jnp.transpose(product, [order.index(letter) for letter in out])


def _signature(op: Op) -> Signature:
    return Signature.parse(op["spec"])


CONTRACT = opdef.define(
    OpDef(
        name="contract",
        signature=_signature,
        infer=infer_by_reference("contract"),
        reference=contract,
        attrs=("spec", "dtype", "precision"),
        lead="spec",
        doc="The product of two arrays as an einsum over named axes.",
    )
)
