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
    **more: Any,
) -> Any:
    """`attend` in blocks or with a window, whose keys and values are one layer of a stack.

    Stacks: [layers, ..], as `cache_read` reads them; layer: a scalar. `axes` names the axes of what
    it reads. What else: as in `attend`.
    """
    layer = jnp.clip(in_int32(layer), 0, key_stack.shape[0] - 1)
    _, key_axes, value_axes, *_ = Signature.parse(axes).inputs
    key = LayerArray.of(key_stack, layer, key_axes.index(CONTEXT))
    value = LayerArray.of(value_stack, layer, value_axes.index(CONTEXT))
    return attend(query, key, value, *operands, axes=axes, **more)


def _axes(op: Op) -> Signature:
    query, key, value, *operands = (named := Signature.parse(op["axes"])).inputs
    stacks = ((("layers",), *array) for array in (key, value))
    arrays = (query, *stacks, (), *operands)
    return Signature(arrays, named.outputs, frozenset({"k", "layers"}))


word(attend_layer, _axes, ATTRIBUTES, "axes")
