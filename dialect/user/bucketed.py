"""Calls with prompts of any length, padded to the lengths of a few buckets.

prefill(params, cache, tokens[b, 37])  ->  padded(params, cache, tokens[b, 64], length=37)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dialect.jaxprs.framework import treedef
from dialect.user.calls import Call, Callee, Roles, first_line, frozen, name_of
from dialect.user.padded_prompts import Padded
from dialect.user.tracing import shape_of, trace_call
from rewrite.errors import TraceError
from rewrite.pipeline import Pipeline

_LENGTH = "length_of_the_prompt"
_FOUND = "normalize, recognize"


class BucketedCallee(Callee):
    """A function of a prompt, called with prompts of any length up to the largest bucket.

    Its calls are those of the padded function, whose last argument is the length.
    """

    def __init__(self, function: Callable[..., Any], roles: Roles, buckets: Sequence[int]) -> None:
        super().__init__(function, roles)
        self.buckets = tuple(sorted(buckets))
        if not self.buckets or self.buckets[0] < 2:
            raise TraceError(f"buckets={tuple(buckets)!r} are no lengths of prompts, from 2 on")
        self.token_axes: dict[Any, list[tuple[int, ...]]] = {}

    def _with_roles(self, names: tuple[str, ...], values: tuple[Any, ...], positional: int) -> Call:
        call = super()._with_roles(names, values, positional)
        number = self._prompt(call)
        length = call.values[number].shape[-1]
        bucket = next((size for size in self.buckets if size >= length), None)
        if bucket is None:
            raise TraceError(
                f"the prompt has {length} tokens, and the largest bucket {self.buckets[-1]}",
                where=first_line(self.function),
                hint="a larger bucket, or the prompt in parts, where the function takes it so",
            )
        padded = list(call.values)
        padded[number] = _padded_to(padded[number], bucket)
        return replace(
            call,
            function=_OfLength(self, call, number, bucket),
            names=(*call.names, _LENGTH),
            values=(*padded, np.int32(length)),
        )

    def _prompt(self, call: Call) -> int:
        """The number of the one argument that is an array of integers, [batch, length]."""
        numbers = [
            number
            for number, value in enumerate(call.values)
            if number not in call.static and number != call.params
            if len(getattr(value, "shape", ())) == 2 and np.issubdtype(value.dtype, np.integer)
        ]
        if len(numbers) != 1:
            named = ", ".join(call.names[number] for number in numbers) or "none"
            raise TraceError(
                f"buckets= pads the one argument of tokens [batch, length], and there are: {named}",
                where=first_line(self.function),
            )
        return numbers[0]

    def trimmed(self, call: Call, results: Any) -> Any:
        """The results without the rows of padded tokens."""
        of_length: Any = call.function
        leaves, tree = jax.tree.flatten(results, is_leaf=lambda leaf: hasattr(leaf, "parts"))
        length = int(call.values[-1])
        for number, axes in enumerate(of_length.token_axes()):
            for axis in axes:
                leaves[number] = jax.lax.slice_in_dim(leaves[number], 0, length, axis=axis)
        return jax.tree.unflatten(tree, leaves)


class _OfLength:
    """The padded function of one bucket: `function(*arguments, length_of_the_prompt=n)`."""

    def __init__(self, callee: BucketedCallee, call: Call, number: int, bucket: int) -> None:
        self.callee, self.call, self.number, self.bucket = callee, call, number, bucket
        self.__name__, self.__wrapped__ = name_of(callee.function), callee.function
        statics = tuple(frozen(call.values[n]) for n in sorted(call.static))
        self.key = (bucket, call.names, statics)

    def __call__(self, *args: Any, **named: Any) -> Any:
        length = named.pop(_LENGTH)
        call = self.call.with_values((*args, *named.values()))
        longer = self._program(call, self.bucket)
        least = max(2, *(size + 1 for size in (1, *self.callee.buckets) if size < self.bucket))
        shorter = {
            size: self._program(call, size).graph
            for size in sorted({least, self.bucket - 1})
            if size < self.bucket
        }
        padded = Padded(longer.graph, self.bucket, shorter)
        self.callee.token_axes[self.key] = padded.token_axes()
        given = [value for n, value in enumerate(call.values) if n not in call.static]
        return jax.tree.unflatten(treedef(longer.tree[1]), padded(jax.tree.leaves(given), length))

    def _program(self, call: Call, length: int) -> Any:
        values = [
            value if n in call.static else jax.tree.map(shape_of, value)
            for n, value in enumerate(call.values)
        ]
        tokens = values[self.number]
        values[self.number] = jax.ShapeDtypeStruct((*tokens.shape[:-1], length), tokens.dtype)
        traced = trace_call(call.with_values(values), self.callee.roles)
        return Pipeline.parse(_FOUND).run(traced)

    def token_axes(self) -> list[tuple[int, ...]]:
        """For every output its axes of tokens, once the function has been traced."""
        return self.callee.token_axes[self.key]


def _padded_to(tokens: Any, bucket: int) -> Any:
    """Zeros behind tokens; for a shape another shape."""
    if isinstance(tokens, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((*tokens.shape[:-1], bucket), tokens.dtype)
    module = np if isinstance(tokens, np.ndarray) else jnp
    return module.pad(tokens, [(0, 0)] * (tokens.ndim - 1) + [(0, bucket - tokens.shape[-1])])
