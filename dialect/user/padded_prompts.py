"""A function of a prompt as one of a padded prompt and its length.

    prefill(params, cache, tokens[b, n])  ->  padded(params, cache, tokens[b, bucket], length=n)

The function is traced at several lengths, the least and the most that a bucket takes among them,
and recognised. Where sizes differ is an axis of tokens; a constant that differs as the length does
is the length. What computes every token by itself runs as it is, on more rows. A write to a cache
leaves what it would write of padded tokens, and a slice at the end is taken at the end of the
prompt. Anything else that meets an axis of tokens is refused, with its line: then another result
than that of the prompt alone could come out. Keeps reals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dialect.arrays.dtypes import dtype_of
from dialect.arrays.evaluate import applied
from dialect.ops.caches import in_int32
from rewrite.errors import TraceError
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import signature, traits

Pair = tuple[Value, Value]  # at two lengths


class Padded:
    """The graph of a function at `bucket` tokens, beside those at fewer, {tokens: graph}.

    The fewest are those of the shortest prompt that is padded to this bucket.
    """

    def __init__(self, graph: Graph, bucket: int, shorter: Mapping[int, Graph]) -> None:
        self.whole, self.bucket, self.shorter = graph, bucket, shorter

    def __call__(self, arrays: Sequence[Any], length: Any) -> list[Any]:
        """The outputs. Axes of tokens are as long as the bucket. Raises TraceError."""
        results = []
        for fewer, graph in self.shorter.items():
            run = _Run(self.bucket, self.bucket - fewer, length)
            results = run.graph(self.whole, graph, arrays)
        return results

    def token_axes(self) -> list[tuple[int, ...]]:
        """For every output its axes of tokens."""
        graph = next(iter(self.shorter.values()))
        return [_token_axes(*pair) for pair in zip(self.whole.outputs, graph.outputs)]


class _Run:
    """One walk through a graph beside that of `fewer` tokens less."""

    def __init__(self, bucket: int, fewer: int, length: Any) -> None:
        self.bucket, self.fewer, self.length = bucket, fewer, length

    def graph(self, graph: Graph, shorter: Graph, arrays: Sequence[Any]) -> list[Any]:
        """The outputs of two graphs that are walked side by side, from these arrays.

        A constant of one may be two of the other: what is known is known of a pair.
        """
        known: dict[Pair, Any] = dict(zip(zip(graph.inputs, shorter.inputs), arrays))
        outputs = list(zip(graph.outputs, shorter.outputs))
        waiting = outputs[::-1]
        while waiting:
            pair = value, other = waiting[-1]
            if pair in known:
                waiting.pop()
                continue
            _must_be_alike(value, other)
            args = _paired(value.op, other.op)
            missing = [arg for arg in args if arg not in known]
            waiting += missing
            if not missing:
                two = replace(other.op, args=tuple(arg for _, arg in args))
                results = self.op(value.op, two, [known[arg] for arg in args])
                known.update(zip(zip(value.op.results, other.op.results), results))
        return [jnp.asarray(known[pair]) for pair in outputs]

    def op(self, op: Op, other: Op, args: list[Any]) -> Sequence[Any]:
        given = [_token_axes(*pair) for pair in zip(op.args, other.args)]
        results_axes = [_token_axes(*pair) for pair in zip(op.results, other.results)]
        if not op.args and op.get("value") is not None:
            return [self.constant(op, other, results_axes[0])]
        if op.get("length") is not None and op.get("consts") is not None:
            return self.loop(op, other, args)
        if not any(given) and not any(results_axes):
            if op.attrs != other.attrs or op.regions != other.regions:
                raise _refusal(op, "depends on the length of the prompt")
            return applied(op, args)
        special = self.special(op, other, args, given, results_axes)
        if special is not None:
            return [special]
        changed = {key for key, value in op.attrs if value != other.get(key)}
        if op.regions or changed - {traits(op).shape}:
            raise _refusal(op, "depends on the length of the prompt")
        if not _keeps_tokens_apart(op, given, results_axes):
            raise _refusal(op, "brings tokens of the prompt together")
        return applied(op, args)

    def special(self, op: Op, other: Op, args: list[Any], given: Any, results_axes: Any) -> Any:
        """The result of an op that would meet padded tokens, with none of them; else None."""
        about = traits(op)
        if about.of_cache and about.writes == 1 and about.axes == "axes" and given[1]:
            return self.write(op, args, given[1])
        if about.by_axis[:1] == ("start_indices",) and given[0] and not results_axes[0]:
            return self.last(op, other, args[0], given[0])
        if about.shape == "slice_sizes" and results_axes[0] and not any(given):
            return self.rows(op, args, results_axes[0])
        return None

    def constant(self, op: Op, other: Op, axes: tuple[int, ...]) -> Any:
        (value,), (shorter,) = applied(op, []), applied(other, [])
        if op.attrs == other.attrs:
            return value
        one, less = np.asarray(value), np.asarray(shorter)
        if axes and np.array_equal(one[tuple(map(slice, less.shape))], less):
            return value
        slope = (
            (int(one) - int(less)) / self.fewer if not one.ndim and one.dtype.kind in "iu" else 0
        )
        if slope in (1, -1):
            length = int(one) + int(slope) * (self.length - self.bucket)
            return jnp.asarray(length, dtype_of(op.types[0].dtype))
        raise _refusal(op, f"{op.types[0]} depends on the length of the prompt in another way")

    def loop(self, op: Op, other: Op, args: list[Any]) -> list[Any]:
        if op["length"] != other["length"]:
            raise _refusal(op, "goes through the tokens one by one")
        consts, carry = op["consts"], op["consts"] + op["carry"]
        fixed, xs = args[:consts], tuple(args[carry:])
        types = (value.type for value in op.regions[0].outputs[: op["carry"]])
        init = tuple(
            jnp.asarray(value, dtype_of(type_.dtype))
            for value, type_ in zip(args[consts:carry], types)
        )

        def step(state: Any, x: Any) -> Any:
            out = self.graph(op.regions[0], other.regions[0], (*fixed, *state, *x))
            return tuple(out[: op["carry"]]), tuple(out[op["carry"] :])

        last, ys = jax.lax.scan(
            step, init, xs, length=op["length"], reverse=op["reverse"], unroll=op["unroll"]
        )
        return [*last, *ys]

    def write(self, op: Op, args: list[Any], axes: tuple[int, ...]) -> Any:
        """A write of rows, with the rows that are there already in the place of padded ones."""
        cache, new, *positions = args
        (axis,) = axes
        if axis not in op["axes"]:
            raise _refusal(op, "writes tokens along another axis of the cache")
        start = [jnp.zeros((), jnp.int32)] * cache.ndim
        for along, position in zip(op["axes"], positions):
            start[along] = in_int32(position)
        context, rows = cache.shape[axis], new.shape[axis]
        if rows > context:
            raise _refusal(op, f"has room for {context} tokens, and the bucket is {rows}")
        first = jnp.clip(start[axis], 0, context - self.length)
        start[axis] = jnp.clip(first, 0, context - rows)
        token = start[axis] + jnp.arange(rows) - first
        there = (token >= 0) & (token < self.length)
        new = jnp.take(new, jnp.clip(token, 0, rows - 1), axis=axis)
        old = jax.lax.dynamic_slice(cache, start, new.shape, allow_negative_indices=False)
        there = there.reshape([rows if d == axis else 1 for d in range(new.ndim)])
        new = jnp.where(there, new, old)
        return jax.lax.dynamic_update_slice(cache, new, start, allow_negative_indices=False)

    def last(self, op: Op, other: Op, x: Any, axes: tuple[int, ...]) -> Any:
        """A slice that begins so many tokens before the end."""
        (axis,) = axes
        first, stop = op["start_indices"], op["limit_indices"]
        moves = first[axis] - other["start_indices"][axis] == self.fewer
        if not moves or set(op.get("strides") or (1,)) != {1}:
            raise _refusal(op, "reads tokens at fixed places")
        size = stop[axis] - first[axis]
        x = jax.lax.dynamic_slice_in_dim(x, self.length + (first[axis] - self.bucket), size, axis)
        return x[
            tuple(
                slice(None) if d == axis else slice(a, b)
                for d, (a, b) in enumerate(zip(first, stop))
            )
        ]

    def rows(self, op: Op, args: list[Any], axes: tuple[int, ...]) -> Any:
        """As many rows of a table as there are tokens, from a place on."""
        table, *starts = args
        (axis,) = axes
        sizes = op["slice_sizes"]
        if any(
            size != whole for d, (size, whole) in enumerate(zip(sizes, table.shape)) if d != axis
        ):
            raise _refusal(op, "reads a part of a table along two axes")
        start = jnp.clip(in_int32(starts[axis]), 0, table.shape[axis] - self.length)
        places = jnp.clip(start + jnp.arange(sizes[axis]), 0, table.shape[axis] - 1)
        return jnp.take(table, places, axis=axis)


def _token_axes(one: Value, other: Value) -> tuple[int, ...]:
    """Axes whose size is another for another length."""
    sizes = zip(one.type.shape, other.type.shape, strict=True)
    return tuple(axis for axis, (size, less) in enumerate(sizes) if size != less)


def _paired(op: Op, other: Op) -> list[Pair]:
    """The arguments of two ops side by side; those that may change places as they are alike."""
    pairs = list(zip(op.args, other.args))
    crossed = list(zip(op.args, other.args[::-1]))
    if traits(op).commutes and _likeness(crossed) > _likeness(pairs):
        return crossed
    return pairs


def _likeness(pairs: Sequence[Pair]) -> int:
    """How many pairs look alike: values of one op, and equal where they are constants."""
    return sum(
        one.op.name == other.op.name and (bool(one.op.args) or one.op.attrs == other.op.attrs)
        for one, other in pairs
    )


def _must_be_alike(value: Value, other: Value) -> None:
    """Raises TraceError unless two values are results of one op at two lengths."""
    one, two = value.op, other.op
    alike = one.name == two.name and value.index == other.index
    if not alike or len(one.args) != len(two.args) or one.name == "input":
        raise _refusal(one, "is another for another length")


def _keeps_tokens_apart(op: Op, given: Any, results_axes: Any) -> bool:
    """Whether every row of tokens is computed of the same row of the arguments."""
    if traits(op).shape == "new_sizes":
        before = [math.prod(op.args[0].type.shape[:axis]) for axis in given[0]]
        after = [math.prod(op.results[0].type.shape[:axis]) for axis in results_axes[0]]
        sizes = {op.args[0].type.shape[axis] for axis in given[0]}
        return before == after and sizes == {
            op.results[0].type.shape[axis] for axis in results_axes[0]
        }
    axes = signature(op)
    rows = {axes.inputs[i][axis] for i, those in enumerate(given) for axis in those}
    out = {axes.outputs[i][axis] for i, those in enumerate(results_axes) for axis in those}
    named = {name for dimension in rows for name in dimension}
    if any(len(dimension) != 1 for dimension in (*rows, *out)) or named & axes.need:
        return False
    created = not rows and bool(traits(op).shape)
    return created or rows == out


def _refusal(op: Op, why: str) -> TraceError:
    return TraceError(
        f"prompts cannot be padded: {op.told} {why}",
        where=op.origin.source,
        hint="leave buckets= out: every length is then traced and compiled; or serve with Engine, "
        "which takes prompts of any length",
    )
