"""Attention over a context that lies in several arrays: one softmax over all, and none is copied.

Put one after another, the keys of all parts would be an array as long as the context, made anew in
each step. The logits of a part are small beside its keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import jax.numpy as jnp

from dialect.ops.scores import CONTEXT, Arrays, Form, at_context, shares_of_parts, sizes_of


def in_parts(form: Form, parts: Sequence[Arrays]) -> Any:
    """The result of an attention; `parts` are its arrays for each part of the context in turn."""
    starts = accumulate((sizes_of(part)[CONTEXT] for part in parts), initial=0)
    return merged(form, [at_context(part, (start, ())) for part, start in zip(parts, starts)])


def merged(form: Form, parts: Sequence[Arrays]) -> Any:
    """The same of parts whose positions count from where they begin."""
    masks = [form.mask_of(part) for part in parts]
    logits = [form.logits_of(part, mask) for part, mask in zip(parts, masks)]
    shares = shares_of_parts(logits, form.sink_of(parts[0], logits[0].dtype), form.exp)
    wide = jnp.promote_types(form.dtype, jnp.float32)
    results = [
        form.mixed(form.weights_of(share, part, mask), part, form.out, wide)
        for share, part, mask in zip(shares, parts, masks)
    ]
    return sum(results[1:], start=results[0]).astype(form.dtype)
