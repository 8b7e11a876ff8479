"""Attention over one layer of stacked caches, of which parts are read: `attend_layer`.

attend(q, cache_read(k, layer), cache_read(v, layer), ..)  ->  attend_layer(q, k, v, layer, ..)
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from dialect.ops.attend import ATTRIBUTES, attend
from dialect.ops.caches import in_int32
from dialect.ops.scores import CONTEXT
from dialect.ops.stacked import LayerArray
from dialect.ops.vocabulary import word
from rewrite.ir import Op
from rewrite.signature import Signature


def attend_layer(
    query: Any,
    key_stack: Any,
    value_stack: Any,
    layer: Any,
    *operands: Any,
    axes: str,
    given: str = "",
    stacked: str = "",
    **more: Any,
) -> Any:
    """`attend` that reads parts of its keys and values, which are one layer of a stack.

    Stacks: [layers, ..], as `cache_read` reads them; layer: a scalar. `axes` names the axes of what
    it reads. The operand that is named `stacked` is a stack too. What else: as in `attend`.
    """
    layer = jnp.clip(in_int32(layer), 0, key_stack.shape[0] - 1)
    _, *named = Signature.parse(axes).inputs
    names = ("key", "value", *given.split())
    arrays = (
        LayerArray.of(array, layer, axes_of_array.index(CONTEXT))
        if name in ("key", "value", stacked)
        else array
        for name, array, axes_of_array in zip(
            names, (key_stack, value_stack, *operands), named, strict=True
        )
    )
    return attend(query, *arrays, axes=axes, given=given, **more)


def _axes(op: Op) -> Signature:
    query, key, value, *operands = (named := Signature.parse(op["axes"])).inputs
    layers = ("layers",)
    more = (
        (layers, *array) if name == op.get("stacked") else array
        for name, array in zip(op.get("given", "").split(), operands)
    )
    arrays = (query, (layers, *key), (layers, *value), (), *more)
    return Signature(arrays, named.outputs, frozenset({"k", "layers"}))


word(attend_layer, _axes, (*ATTRIBUTES, "stacked"), "axes")
