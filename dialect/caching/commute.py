"""A change of form moves through an op: one rule for all ops, of their axes alone.

    op(F(x), new)  ->  F'(op(x, new'))

F makes an array of what it is kept as: `transpose`, `spread_heads`, `dequantize_tokens`. An axis
that F touches, which is not whole in all that it is made of, must go through the op unread; any
other is the op's own affair. F' is F where the axes then lie, and `new`, what the op writes, is
undone to what F would make it of. The attributes of both follow their axes (`dialect.ops.follow`).
The op has the trait `moves`: one that computes may do so otherwise, unless F is a mere order.
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
from dialect.ops.nn import Traced
from rewrite import opdef
from rewrite.ir import Op, Symbol, Value
from rewrite.opdef import build, traits
from rewrite.rules import Miss, Outcome, Rule
from rewrite.signature import Array, Signature

_CLIP = Symbol("GatherScatterMode.CLIP")
Example = tuple[Callable[..., Any], tuple[str, ...]]


@dataclass(frozen=True)
class Form:
    """A form that arrays are kept in.

    - `op` makes an array of `parts`, and `undo` makes these of the array;
    - `change(**attrs)` is both, `op` having these attributes;
    - `keeps` is what is left of an array that is undone and made again;
    - `fits(op)`: what `undo` makes is of the types that `op` reads;
    - `example(*arrays)` makes an array [2, heads, places, 4] of arrays of `types(places)`.
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
    """The rules by which a form moves through loops, stacks, caches and `more` ops."""
    names = ("stack", "unstack", "cache_write", "cache_put", "cache_read", *more)
    return (*(rule(form, name) for name in names), loop_rule(form))


def rule(form: Form, name: str) -> Rule:
    """The rule by which a form moves through ops of this name."""
    made = f"{form.op}({', '.join(form.parts)})"
    if opdef.lookup(name).traits.writes:
        new = ", ".join(f"{part}'" for part in form.parts)
        each = ", ".join(f"{name}({part}, {part}')" for part in form.parts)
        doc = f"{name}({made}, new)  ->  {form.op}({each}), {new} = {form.undo}(new)"
        return _rule(form, name, doc, _moved, form.keeps)
    each = ", ".join(f"{name}({part})" for part in form.parts)
    return _rule(form, name, f"{name}({made})  ->  {form.op}({each})", _moved, "bits")


def loop_rule(form: Form) -> Rule:
    """The rule by which a form moves through loops."""
    made, loop = (f"{name}({', '.join(form.parts)})" for name in (form.op, "scan"))
    doc = f"scan({made})  ->  {form.op}({loop}), its body seeing {made}"
    return _rule(form, "scan", doc, _looped, form.keeps)


def _rule(form: Form, name: str, doc: str, apply: Callable[..., Outcome], keeps: str) -> Rule:
    short = f"{name.removeprefix('cache_').partition('_')[0]}_of_{form.op.partition('_')[0]}"
    example, types = _example(form, name)
    return Rule(short, doc, frozenset({name}), partial(apply, form), keeps, example, types)


def _example(form: Form, name: str) -> Example:
    """A function of arrays in the form that has an op of this name."""

    def of(function: Callable[..., Any], *places: int) -> Example:
        def example(*arrays: Any) -> Any:
            given = iter(arrays)
            return function(*(form.example(*(next(given) for _ in form.parts)) for _ in places))

        return example, tuple(text for each in places for text in form.types(each))

    return {
        "cache_put": of(
            lambda x, new: Traced[name](x, new, jnp.full((2, 1), 2), axis=2, mode=_CLIP), 8, 1
        ),
        "cache_read": of(lambda x: Traced[name](x, 1), 8),
        "cache_write": of(lambda x, new: Traced[name](x, new, 3, axes=(2,)), 8, 1),
        "quantize_tokens": of(lambda x: Traced[name](x, axis=3, form="int8")[0], 8),
        "reshape": of(lambda x: x.reshape(-1, *x.shape[2:]), 8),
        "scan": of(lambda x: jax.lax.fori_loop(0, 3, lambda i, x: x * 2, x), 8),
        "slice": of(lambda x: x[:, 1:], 8),
        "stack": of(lambda x, y: jnp.stack([x, y]), 8, 8),
        "transpose": of(lambda x: jnp.transpose(x, (1, 2, 0, 3)), 8),
        "unstack": of(lambda x: jnp.unstack(x)[1], 8),
    }[name]


# What they do.


def _looped(form: Form, op: Op) -> Outcome:
    """scan(F(x))  ->  F(scan(x)), its body seeing F(x)"""
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
    if not move.is_alike():
        return None
    if not move.passes_on():
        return Miss(f"{op.name} does not pass on whole the axis of {form.op}", 2)
    try:
        return move.results()
    except (TypeError, ValueError) as error:  # an op of axes in another order
        return Miss(f"{op.name} does not take its axes so: {error}", 2)


class _Move:
    """An op whose first argument is in a form; the axes of both, named as the op's."""

    def __init__(self, form: Form, op: Op) -> None:
        self.form, self.op, self.inner = form, op, op.args[0].op
        self.exact, self.made = opdef.signature(op), opdef.signature(self.inner)
        self.axes, own = self.exact.along(), self.made.along()
        whole = self.axes.inputs[0]
        names = dict(zip(own.outputs[0], whole))
        self.parts = [tuple(names[axis] for axis in array) for array in own.inputs]
        self.own = Signature(tuple(self.parts), (whole,))
        self.writes = traits(op).writes
        first = self.exact.inputs[0]
        self.read = [i for i, array in enumerate(self.exact.inputs) if array == first]

    def is_alike(self) -> bool:
        """Whether all that it reads with those axes is in the form."""
        made = {self.op.args[i].op for i in self.read}
        return len({(each.name, each.attrs, *(x.type for x in each.args)) for each in made}) == 1

    def passes_on(self) -> bool:
        """Whether it passes on, unread, each axis that the form touches."""
        return all(
            self.exact.row_wise.issuperset(axis)
            for axis, made in zip(self.exact.inputs[0], self.made.outputs[0])
            if any(made not in array for array in self.made.inputs)
        )

    def results(self) -> list[Value]:
        """Its results, in the form. Raises ValueError where it is not of axes that lie so."""
        formed = self.arguments()
        ops, lie = zip(*(self.of_part(number, formed) for number in range(len(self.parts))))
        return [
            self.change(first, whole).outward(*(each.results[i] for each in ops))
            for i, (first, whole) in enumerate(zip(lie[0], self.axes.outputs))
        ]

    def arguments(self) -> dict[int, Sequence[Value]]:
        """Those of its arguments that are in the form, by number, as the parts of each."""
        found = {i: self.op.args[i].op.args for i in self.read}
        if self.writes:
            new = self.axes.inputs[self.writes]
            change = self.change(_among(self.parts[0], new), new)
            found[self.writes] = change.inward(self.op.args[self.writes])
        return found

    def of_part(
        self, number: int, formed: Mapping[int, Sequence[Value]]
    ) -> tuple[Op, tuple[Array, ...]]:
        """The op on one of the parts, and where the axes of its results lie."""
        part, whole = self.parts[number], self.axes.inputs[0]
        args, lie = list(self.op.args), list(self.axes.inputs)
        for i, values in formed.items():
            args[i], lie[i] = values[number], _among(part, lie[i])
        result = tuple(axis for axis in self.axes.outputs[0] if axis in part or axis not in whole)
        now = Signature(tuple(lie), (result,))
        made = build(self.op.name, *args, **followed(self.op, self.axes, now))
        return made, opdef.signature(made).along().results(lie)

    def change(self, first: Array, whole: Array) -> Change:
        """The form of an array of the axes `whole`, the first of its parts being of `first`."""
        now = Signature((first,), (whole,))
        return self.form.change(**followed(self.inner, self.own, now))


def _among(part: Array, axes: Array) -> Array:
    """The axes of a part, in its order, that are among these."""
    return tuple(axis for axis in part if axis in axes)
