"""A change of form moves through an op: one rule for all ops, derived from their axes.

    op(F(x), new)  ->  F'(op(x, new'))

F turns the stored form of an array into the array: `transpose`, `spread_heads`, `dequantize`. Axes
that F changes (those that a part of the stored form lacks) must be `map` axes of the op; other axes
may be used in any way. F' is F with its axes where the op puts them, and new' is `new`, which the
op writes, in the stored form. The attributes of both ops follow their axes (`dialect.ops.follow`).
The op has the trait `moves`: an op that computes might give another result, unless F only reorders
axes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from dialect.caching.state_forms import Change, carried_in_form, carries
from dialect.ops.follow import followed
from dialect.ops.lookups import CLIP
from dialect.ops.nn import Traced
from rewrite import opdef
from rewrite.ir import Op, Value
from rewrite.opdef import build, traits
from rewrite.rules import Miss, Outcome, Rule
from rewrite.signature import Array, Signature

Example = tuple[Callable[..., Any], tuple[str, ...]]


@dataclass(frozen=True)
class Form:
    """A form in which arrays are stored.

    - `op` computes an array from its stored `parts`, and `undo` the parts from the array;
    - `change(**attrs)` is both, for an `op` with these attributes;
    - `keeps` tells how exact `op(undo(array))` is;
    - `fits(op)` tells whether `undo` gives parts of the types that `op` reads;
    - `example(*arrays)` is an array [2, heads, places, 4] from stored arrays of `types(places)`.
    """

    op: str
    undo: str
    parts: tuple[str, ...]
    change: Callable[..., Change]
    example: Callable[..., Any]
    types: Callable[[int], tuple[str, ...]]
    keeps: str = "bits"
    fits: Callable[[Op], bool] = lambda op: True


# The rules of a form.


def rules(form: Form, *more: str) -> tuple[Rule, ...]:
    """The rules that move a form through loops, stacks, caches and `more` ops."""
    names = ("stack", "unstack", "cache_write", "cache_put", "cache_read", *more)
    return (*(rule(form, name) for name in names), loop_rule(form))


def rule(form: Form, name: str) -> Rule:
    """The rule that moves a form through ops of this name."""
    array = f"{form.op}({', '.join(form.parts)})"
    if opdef.lookup(name).traits.writes:
        new = ", ".join(f"{part}'" for part in form.parts)
        parts = ", ".join(f"{name}({part}, {part}')" for part in form.parts)
        doc = f"{name}({array}, new)  ->  {form.op}({parts}), {new} = {form.undo}(new)"
        return _rule(form, name, doc, _moved, form.keeps)
    parts = ", ".join(f"{name}({part})" for part in form.parts)
    return _rule(form, name, f"{name}({array})  ->  {form.op}({parts})", _moved, "bits")


def loop_rule(form: Form) -> Rule:
    """The rule that moves a form through loops."""
    array, loop = (f"{name}({', '.join(form.parts)})" for name in (form.op, "scan"))
    doc = f"scan({array})  ->  {form.op}({loop}), its body reading {array}"
    return _rule(form, "scan", doc, _looped, form.keeps)


def _rule(form: Form, name: str, doc: str, apply: Callable[..., Outcome], keeps: str) -> Rule:
    moved = form.op.removeprefix("with_").partition("_")[0]
    short = f"{name.removeprefix('cache_').partition('_')[0]}_of_{moved}"
    example, types = _example(form, name)
    return Rule(short, doc, frozenset({name}), partial(apply, form), keeps, example, types)


def _example(form: Form, name: str) -> Example:
    """A function that applies an op of this name to arrays in the form, and its types."""

    def of(function: Callable[..., Any], *places: int) -> Example:
        def example(*arrays: Any) -> Any:
            stored = iter(arrays)
            return function(*(form.example(*(next(stored) for _ in form.parts)) for _ in places))

        return example, tuple(text for count in places for text in form.types(count))

    return {
        "cache_put": of(
            lambda x, new: Traced[name](x, new, jnp.full((2, 1), 2), axis=2, mode=CLIP), 8, 1
        ),
        "cache_read": of(lambda x: Traced[name](x, 1), 8),
        "cache_write": of(lambda x, new: Traced[name](x, new, 3, axes=(2,)), 8, 1),
        "quantize": of(lambda x: Traced[name](x, axes=(3,), form="int8")[0], 8),
        "reshape": of(lambda x: x.reshape(-1, *x.shape[2:]), 8),
        "scan": of(lambda x: jax.lax.fori_loop(0, 3, lambda i, x: x * 2, x), 8),
        "slice": of(lambda x: x[:, 1:], 8),
        "stack": of(lambda x, y: jnp.stack([x, y]), 8, 8),
        "transpose": of(lambda x: jnp.transpose(x, (1, 2, 0, 3)), 8),
        "without_axis": of(lambda x: Traced[name](x[:, :1], axis=1), 8),
        "unstack": of(lambda x: jnp.unstack(x)[1], 8),
    }[name]


# How they apply.


def _looped(form: Form, op: Op) -> Outcome:
    """scan(F(x))  ->  F(scan(x)), its body reading F(x)"""
    for position in carries(op, form.op):
        inner = op.args[position].op
        if not form.fits(inner):
            continue
        return carried_in_form(op, position, form.change(**dict(inner.attrs)))
    return None


def _moved(form: Form, op: Op) -> Outcome:
    """op(F(x), new)  ->  F'(op(x, new'))"""
    inner, writes = op.args[0].op, traits(op).writes
    if inner.name != form.op or (writes and not form.fits(inner)):
        return None
    move = _Move(form, op)
    if not move.all_in_form():
        return None
    if not move.passes_axes():
        return Miss(f"{op.name} does not pass the axis of {form.op} through unchanged", 2)
    try:
        return move.results()
    except (TypeError, ValueError) as error:  # an op that needs its axes in their order
        return Miss(f"{op.name} cannot have its axes in that order: {error}", 2)


class _Move:
    """An op whose first argument is in a form. The axes of both are named as those of the op."""

    def __init__(self, form: Form, op: Op) -> None:
        self.form, self.op, self.inner = form, op, op.args[0].op
        self.signature, self.inner_signature = opdef.signature(op), opdef.signature(self.inner)
        self.axes, inner_axes = self.signature.along(), self.inner_signature.along()
        array = self.axes.inputs[0]
        names = dict(zip(inner_axes.outputs[0], array))
        self.parts = [tuple(names[axis] for axis in part) for part in inner_axes.inputs]
        self.inner_axes = Signature(tuple(self.parts), (array,))
        self.writes = traits(op).writes
        first = self.signature.inputs[0]
        self.formed = [i for i, axes in enumerate(self.signature.inputs) if axes == first]

    def all_in_form(self) -> bool:
        """Whether all arguments with the axes of the first are in the form, as the first is."""
        ops = {self.op.args[i].op for i in self.formed}
        return len({(op.name, op.attrs, *(arg.type for arg in op.args)) for op in ops}) == 1

    def passes_axes(self) -> bool:
        """Whether all axes that the form changes are `map` axes of the op."""
        return all(
            self.signature.row_wise.issuperset(axis)
            for axis, letters in zip(self.signature.inputs[0], self.inner_signature.outputs[0])
            if any(letters not in part for part in self.inner_signature.inputs)
        )

    def results(self) -> list[Value]:
        """The results of the op, in the form. Raises ValueError if the op cannot have its axes in
        the order of the parts."""
        stored = self.arguments()
        ops, axes = zip(*(self.of_part(number, stored) for number in range(len(self.parts))))
        lacked = [set(self.parts[0]) - set(part) for part in self.parts]
        return [
            self.change(
                # An axis that the op changes has another name in the results of every part.
                [tuple(axis for axis in first if axis not in gone) for gone in lacked],
                array,
            ).outward(*(op.results[i] for op in ops))
            for i, (first, array) in enumerate(zip(axes[0], self.axes.outputs))
        ]

    def arguments(self) -> dict[int, Sequence[Value]]:
        """The parts of every argument that is in the form or written into one, by its number."""
        parts = {i: self.op.args[i].op.args for i in self.formed}
        if self.writes:
            new = self.axes.inputs[self.writes]
            change = self.change([_among(part, new) for part in self.parts], new)
            parts[self.writes] = change.inward(self.op.args[self.writes])
        return parts

    def of_part(
        self, number: int, stored: Mapping[int, Sequence[Value]]
    ) -> tuple[Op, tuple[Array, ...]]:
        """The op on the parts of this number, and the axes of its results."""
        part, array = self.parts[number], self.axes.inputs[0]
        args, axes = list(self.op.args), list(self.axes.inputs)
        for i, parts in stored.items():
            args[i], axes[i] = parts[number], _among(part, axes[i])
        gone = {axis for axis in array if axis not in part}
        results = (tuple(axis for axis in its if axis not in gone) for its in self.axes.outputs)
        now = Signature(tuple(axes), tuple(results))
        op = build(self.op.name, *args, **followed(self.op, self.axes, now))
        return op, opdef.signature(op).along().results(axes)

    def change(self, parts: Sequence[Array], array: Array) -> Change:
        """The change of form of an array with these axes, whose parts have those."""
        now = Signature(tuple(parts), (array,))
        return self.form.change(**followed(self.inner, self.inner_axes, now))


def _among(part: Array, axes: Array) -> Array:
    """The axes of a part, in its order, that are among these."""
    return tuple(axis for axis in part if axis in axes)
