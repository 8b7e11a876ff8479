"""Attention as one word: `attend` (Vaswani et al. 2017, section 3.2), in all its variants.

Grouped and single heads of keys (Ainslie et al. 2023, Shazeer 2019) need no op of their own: they
are axes that the keys lack. What a variant adds (a mask, a bias, a cap, a sink) is an operand or an
attribute that is absent where it is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp

from dialect.arrays.attributes import decode
from dialect.ops.attend_blocks import in_blocks
from dialect.ops.attend_parts import in_parts
from dialect.ops.attend_sparq import Choice, by_choice
from dialect.ops.attend_together import together as in_groups
from dialect.ops.attend_window import in_window, reads_window, with_window
from dialect.ops.quant import rounded
from dialect.ops.scores import ORIGIN, PAIRS, Arrays, Form, pairs, softmax, squeezed
from dialect.ops.vocabulary import word
from rewrite.ir import Op
from rewrite.opdef import Traits
from rewrite.signature import Array, Signature


def attend(
    query: Any,
    key: Any,
    value: Any,
    *operands: Any,
    axes: str,
    given: str = "",
    scale: float = 1.0,
    cap: float | None = None,
    fill: Any = None,
    added: bool = False,
    dropped: bool = False,
    logits: Any = None,
    inner: Any = None,
    weights: Any = None,
    dtype: Any = None,
    key_precision: Any = None,
    value_precision: Any = None,
    rounds: tuple[float, float] | None = None,
    base: float | None = None,
    blocks: tuple[int, int] | None = None,
    visits: int | None = None,
    window: int | None = None,
    sinks: int = 0,
    sparq: tuple[int, int, int, bool] | None = None,
    cell: int | None = None,
    together: tuple[tuple[int, int], ...] | None = None,
) -> Any:
    """Attention: softmax(cap(scale * query . key) + bias, where mask) . value.

    `axes` names the axes of all arrays and of the result: `k` is summed between query and key, `s`
    is the context, `v` the value's alone. An axis that query and key share is batch or KV heads,
    one that only the query has is time or query heads; `1` is an axis of size one. `given` names
    the further operands, in this order:

    - `query_2` and `key_2`, `query_3` and `key_3`, .. are further pairs, whose products are added
      to that of query and key: a part of every key that has other axes than the rest of it, such
      as a rotary key that all heads share (DeepSeek-AI 2024, section 2.1.3). They are summed over
      `p`, `q` and `r`.
    - `key_scale` and `value_scale` are those of integer keys and values, one per head of d_head
      numbers. They multiply the logits and the weights, so that both products read integers alone
      (a product of integers is computed in f32). `key_scale_2` is that of `key_2`.
    - `mask` is boolean and keeps where true. Elsewhere the logits are `fill` (by default
      -infinity); where `added`, it is added to them. A row that keeps no key is what the library
      makes of it: NaN for -infinity, the mean of the values for another `fill`, their mean weighted
      by the logits where it is added, zero where `dropped`: the weights are 0 where the mask is
      false. A `fill` that is no constant is an operand, a scalar.
    - `first` and `last` are integers, without a context: positions before the one and behind the
      other are masked as well.
    - `bias` is added to the logits, as ALiBi is (Press et al. 2022).
    - `sink` are logits that take their share of the softmax and lead to no value (Xiao et al.
      2024): one for every place on its axes, or `n`.

    The logits are capped by cap * tanh(logits / cap) (Gemma 2) where `cap` is given. Their dtype is
    `logits` (by default the query's) and, up to the softmax, `inner` (by default `logits`); the
    weights meet the values in `weights` (the value's), and the result is in `dtype` (the query's).
    The precisions are those of the two products. With `rounds` the weights are `rounded` over the
    context, in steps of int8 of that `largest` and `least`. With `base` 2 the logits carry log2(e)
    already, `fill` too, and the softmax is that of 2 ** logits.

    Where the context lies in several arrays, each array over it is a tuple of theirs
    (`dialect.ops.attend_parts`).

    `blocks` are as many queries and keys as are computed at a time (`dialect.ops.attend_blocks`),
    without them all are. Of these blocks `visits` hold a position between `first` and `last` when
    the context is full: an estimate, for whoever counts time.

    With a `window`, of the positions up to `last` that many last ones are kept, and the first
    `sinks` (`dialect.ops.attend_window`).

    With `sparq` (r, k, local, mean) a query reads the columns of the keys at the r largest of its
    own numbers, and the k positions that these promise most of (`dialect.ops.attend_sparq`);
    `columns` may be given then, the keys in another order, and `total`, the sum of the values.

    A `map`, bool[row, column] over axes of its own, keeps of the context what it has in the row of
    a query's `last` position: a row or a column is as many positions as a `cell`.

    With `together` ((groups, size), ..) the rows, the first axis of the keys, come in so many
    groups of each size, which read the keys of their first row (`dialect.ops.attend_together`).
    """
    named = Signature.parse(axes)
    form = Form(
        *(
            named,
            scale,
            cap,
            fill,
            added,
            dropped,
            logits,
            inner,
            weights,
            decode(dtype) or query.dtype,
        ),
        *(key_precision, value_precision, rounds, base, visits, window, sinks, sparq, cell),
    )
    names = ("query", "key", "value", *given.split())
    given_arrays = [*zip(names, (query, key, value, *operands), named.inputs, strict=True)]
    parts = [_part(given_arrays, i) for i in range(len(key) if isinstance(key, tuple) else 1)]
    if window is not None:
        parts = [with_window(form, part) for part in parts]
    if cell is not None:
        parts = [with_map(part) for part in parts]
    if together is not None:
        result = in_groups(form, parts[0], together, partial(_of_one, blocks=blocks))
    else:
        result = in_parts(form, parts) if parts[1:] else _of_one(form, parts[0], blocks)
    sizes = dict(zip(form.out, result.shape))
    return result.reshape([sizes.get(axis, 1) for axis in named.outputs[0]])


def _part(given: Sequence[tuple[str, Any, Array]], number: int) -> Arrays:
    """The arrays of a part of the context, by name."""
    return {
        name: squeezed(array[number] if isinstance(array, tuple) else array, axes)
        for name, array, axes in given
    }


def with_map(arrays: Arrays) -> Arrays:
    """The arrays with the position at which the context begins. Raises ValueError without a `map`
    or without the `last` position, which chooses a row of it."""
    if not {"map", "last"} <= {*arrays}:
        raise ValueError("cells are those of a map, in the row of the last position of a query")
    return {**arrays, ORIGIN: (jnp.int32(0), ())}


def _of_one(form: Form, arrays: Arrays, blocks: tuple[int, int] | None) -> Any:
    """The result of an attention whose context lies in one array."""
    if blocks is not None:
        return in_blocks(form, arrays, *blocks)
    if form.sparq is not None:
        return by_choice(form, arrays, Choice(*form.sparq))
    if form.window is not None and reads_window(form, arrays):
        return in_window(form, arrays)
    return _at_once(form, arrays)


def _at_once(form: Form, arrays: Arrays) -> Any:
    mask = form.mask_of(arrays)
    scores = form.logits_of(arrays, mask)
    shares = softmax(scores, form.sink_of(arrays, scores.dtype), form.exp)
    weights = form.weights_of(shares, arrays, mask)
    if form.rounds is not None:
        most, least = form.rounds
        how = {"form": "int8", "largest": most, "least": least}
        weights = rounded(weights, axes=(weights.ndim - 1,), **how)
    return form.mixed(weights, arrays, form.out, form.dtype)


def _attend_axes(op: Op) -> Signature:
    axes = Signature.parse(op["axes"])
    need = {PAIRS[pair] for pair in pairs_of(op)} | needed_rows(op)
    for name, array in zip(names_of(op), axes.inputs):
        need |= {letter for axis in array for letter in axis} if name == "map" else set()
    return Signature(axes.inputs, axes.outputs, frozenset(need))


def needed_rows(op: Op) -> frozenset[str]:
    """The axis of the rows of an `attend`, where some read the keys of others."""
    return frozenset(Signature.parse(op["axes"]).inputs[1][0] if op.get("together") else ())


def pairs_of(op: Op) -> list[str]:
    """The pairs of query and key of an `attend`: what follows `query` and `key` in their names."""
    return pairs(names_of(op))


def names_of(op: Op) -> list[str]:
    """What the operands of an `attend` are called, in their order."""
    return ["query", "key", "value", *op.get("given", "").split()]


ATTRIBUTES = (
    *("axes", "given", "scale", "cap", "fill", "added", "dropped", "logits", "inner", "weights"),
    *("dtype", "key_precision", "value_precision", "rounds", "base", "blocks", "visits"),
    *("window", "sinks", "sparq", "cell", "together"),
)
word(attend, _attend_axes, ATTRIBUTES, "axes", traits=Traits(spelled="axes"))
