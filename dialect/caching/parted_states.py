"""A state that a step reads and writes in parts is kept as these parts.

state  ->  joined(apart(state)), for the inputs and outputs of the step

The last inputs of a convolution over x, B and C (Mamba 2) are one array with the channels of all
three. No chip has a share of each, as it has of their weights, where that array is cut in equal
shares. So each part is an array of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import accumulate

import jax
import jax.numpy as jnp

from dialect.caching.state_forms import Change, carried_in_form, carries, keep_in, stacked_forms
from dialect.normal.parts import Parts, joint, read_by_part
from dialect.ops import apart  # noqa: F401  (defines them)
from dialect.ops.nn import Traced
from rewrite.ir import Op, Value
from rewrite.opdef import build, make, traits
from rewrite.program import Program
from rewrite.rules import Outcome, Rule, local


def in_parts(axis: int, sizes: tuple[int, ...]) -> Change:
    """A state kept as its parts along an axis."""
    return Change(
        lambda state: build("apart", state, axis=axis, sizes=sizes).results,
        lambda *parts: make("joined", *parts, axis=axis),
    )


def with_parted_states(program: Program, is_split: Callable[[Value, int], bool]) -> Program:
    """`program` with each state in parts of which it is made where `is_split` says of any of them,
    and the dimension along which they are joined, that chips have shares of it."""
    forms, changes = stacked_forms(program), {}
    for number, (_, leaving) in forms.items():
        for axis in range(leaving.type.rank):
            parts, at = _made_of(leaving, axis)
            if any(is_split(part, at) for part in parts):
                changes[number] = in_parts(axis, tuple(part.type.shape[at] for part in parts))
    return keep_in(program, changes, RULES, "joined", forms=forms)[0] if changes else program


def _made_of(state: Value, axis: int) -> tuple[tuple[Value, ...], int]:
    """The values that what a step writes into a state is, one after another along an axis of the
    state, and that axis of theirs."""
    op, parts = state.op, joint(state, axis)
    read = read_by_part(state, axis)
    if not parts and op.get("carry", 0) > state.index:
        return _made_of(op.regions[0].outputs[state.index], axis)
    written = traits(op).writes
    if parts or written not in read or len(read) > 1 + bool(written):
        return parts, axis
    return _made_of(op.args[written], read[written])


@local(
    "slice",
    example=lambda x, y: Traced["joined"](x, y, axis=1).T[2:],
    types=("f32[3,2]", "f32[3,4]"),
)
def part_of_joined(op: Op) -> Outcome:
    """slice(f(joined(x, y))) that is the part y  ->  f(y)"""
    whole, shape = op.args[0].type.shape, op.types[0].shape
    axes = [axis for axis, size in enumerate(shape) if size != whole[axis]]
    if len(axes) != 1 or op.get("strides"):
        return None
    return _uncut(op.args[0], axes[0], [(op["start_indices"][axes[0]], shape[axes[0]])])


@local(
    "apart",
    example=lambda x, y: Traced["apart"](jnp.concatenate([x, y], 1).T, axis=0, sizes=(2, 4)),
    types=("f32[3,2]", "f32[3,4]"),
)
def apart_inward(op: Op) -> Outcome:
    """apart(f(x))  ->  f(x part by part), and apart(joined(x, y))  ->  x, y"""
    starts = accumulate((0, *op["sizes"]))
    return _uncut(op.args[0], op["axis"], zip(starts, op["sizes"]))


def _uncut(whole: Value, axis: int, bounds: Iterable[tuple[int, int]]) -> list[Value] | None:
    """The parts of a value with these (start, size), if nothing has to be cut for them."""
    parts = Parts()
    made = [parts.of(whole, axis, start, start + size) for start, size in bounds]
    return None if parts.cut else made


@local(
    "scan",
    example=lambda x, y: jax.lax.fori_loop(
        0, 3, lambda i, s: s * 2, Traced["joined"](x, y, axis=0)
    ),
    types=("f32[3]", "f32[2]"),
)
def loop_of_joined(op: Op) -> Outcome:
    """scan(joined(x, y))  ->  joined(scan(x, y)), its body reading joined(x, y)"""
    for position in carries(op, "joined"):
        inner = op.args[position].op
        sizes = tuple(part.type.shape[inner["axis"]] for part in inner.args)
        return carried_in_form(op, position, in_parts(inner["axis"], sizes))
    return None


RULES: tuple[Rule, ...] = (part_of_joined, apart_inward, loop_of_joined)
