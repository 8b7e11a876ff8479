"""Attention to the last places of a context and the first: `attend` with a `window`.

    position s is kept where  last - window < s <= last,  or  s < sinks and s <= last

(StreamingLLM, Xiao et al. 2024, arXiv:2309.17453, section 3.2; without sinks the window of
Longformer, Beltagy et al. 2020, arXiv:2004.05150, section 3.1). Where all queries have one window,
as in a decode step, no other place is read, so that the bytes of a step do not grow with the
context.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dialect.ops.attend_parts import merged
from dialect.ops.caches import in_int32
from dialect.ops.scores import (
    CONTEXT,
    SINKS_END,
    WINDOW_START,
    Arrays,
    Form,
    Named,
    at_context,
    sizes_of,
    squeezed,
)
from dialect.ops.stacked import LayerArray
from rewrite.signature import Dimension

_LAYERS = ("layers",)


def with_window(form: Form, arrays: Arrays) -> Arrays:
    """The arrays with the position at which the window of a query begins, and that at which the
    sinks end. Raises ValueError without the `last` position, which ends a window."""
    if "last" not in arrays:
        raise ValueError("a window ends at the last position of a query, and none is given")
    last, axes = arrays["last"]
    start = last - ((form.window or 0) - 1)
    return {**arrays, WINDOW_START: (start, axes), SINKS_END: (jnp.int32(form.sinks), ())}


def reads_window(form: Form, arrays: Arrays) -> bool:
    """Whether all queries have one window, shorter with the sinks than the context.

    Weights that are rounded are rounded over all of the context at once.
    """
    is_shared = set(arrays["last"][1]) <= {*arrays["key"][1]} & {*arrays["value"][1]}
    count = (form.window or 0) + form.sinks
    return is_shared and form.rounds is None and count < sizes_of(arrays)[CONTEXT]


def in_window(form: Form, arrays: Arrays) -> Any:
    """The result of an attention that reads the sinks and the window alone."""
    count = form.window or 0
    (start, axes), end = arrays[WINDOW_START], arrays[SINKS_END][0]
    start = jnp.clip(start, 0, sizes_of(arrays)[CONTEXT] - count)
    # A window may begin among the sinks, which are read apart.
    apart = dict(arrays) | {WINDOW_START: (jnp.maximum(arrays[WINDOW_START][0], end), axes)}
    del apart[SINKS_END]
    parts = [_read(apart, (start, axes), count)]
    if form.sinks:
        parts.insert(0, _read(arrays, (jnp.int32(0), ()), form.sinks))
    return merged(form, parts)


def _read(arrays: Arrays, start: Named, count: int) -> Arrays:
    """So many places of the arrays over the context, from `start` on, which may have axes."""
    cut = {name: _cut(array, start, count) for name, array in arrays.items()}
    return at_context(cut, start)


def _cut(array: Named, start: Named, count: int) -> Named:
    """So many places of one array: of rows with a start of their own the rows come first."""
    (whole, axes), (first, rows) = array, start
    if CONTEXT not in axes:
        return array
    layers: dict[Dimension, Any] = {}
    if isinstance(whole, LayerArray):
        layers, axes, whole = {_LAYERS: whole.layer}, (_LAYERS, *axes), whole.stack
    rest = tuple(axis for axis in axes if axis not in rows)

    def cut(part: Any, place: Any) -> Any:
        firsts = [in_int32((layers | {CONTEXT: place}).get(axis, 0)) for axis in rest]
        known: dict[Dimension, int] = {CONTEXT: count, _LAYERS: 1}
        sizes = [known.get(axis, size) for axis, size in zip(rest, part.shape)]
        return lax.dynamic_slice(part, firsts, sizes)

    for number in reversed(range(len(rows))):
        left = [axis for axis in axes if axis not in rows[:number]]
        at = left.index(rows[number]) if rows[number] in left else None
        cut = jax.vmap(cut, in_axes=(at, 0))
    over = (*rows, *(() if axis == _LAYERS else axis for axis in rest))
    return squeezed(cut(whole, first), over)
