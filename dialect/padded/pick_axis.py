"""A program with an axis of its weights made shorter: `picked` places of it, the same in all of
the weights that have it.

What is between weights that are cut alike becomes smaller by itself, as it becomes larger by
padding (`dialect.padded.pad_axis`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce

import numpy as np

from dialect.jaxprs.jaxpr import constant
from dialect.matching.operands import transposed
from dialect.matching.values import in_dtype, shaped
from dialect.naming.axis import Axes, Axis, leaves_of
from dialect.padded.pad_axis import NotPadded, Padding, padded_program
from rewrite.ir import Value
from rewrite.opdef import make
from rewrite.program import Program

_INDEPENDENT = frozenset({"layers", "experts"})
Places = tuple[Value, tuple[Axis, ...]]  # i32[.., n], and the axes along which they differ


@dataclass(frozen=True)
class Picking(Padding):
    """Axes of a program, the sizes that they are cut to, and the places that they keep."""

    places: Mapping[Axis, Places]

    def padded(self, value: Value) -> Value:
        """`value`, a weight, at the places that these axes keep."""
        whole = leaves_of(self.axes.at(value))
        result = shaped(value, [leaf.size for leaf in whole])
        for at, leaf in enumerate(whole):
            if leaf not in self.sizes:
                continue
            if leaf not in self.places or value.op.name in ("const", "iota"):
                raise NotPadded("an array that is no weight has it")
            places, along = self.places[leaf]
            if not set(along) <= set(whole):
                raise NotPadded("a weight that has it is shared by layers")
            result = make("picked", result, _aligned(places, (*along, leaf), whole), axis=at)
        return shaped(result, self.shape(value))

    def unpadded(self, original: Value, value: Value) -> Value:
        """Raises NotPadded: a result or a state that has the axis keeps it whole."""
        raise NotPadded("a result or the state has it")

    def cleared(self, original: Value, value: Value) -> Value:
        """The value: there is nothing beside the places that are kept."""
        return value

    def renumbers(self, value: Value, dimension: int) -> bool:
        """Whether elements of a dimension get other numbers: wherever one is cut."""
        return self.grown(value)[dimension]


def leaves_along(
    params: list[Value], axes: Axes, name: str
) -> Iterator[tuple[Axis, tuple[Axis, ...]]]:
    """Every axis of that name, in the order of the parameters, and the axes along which its places
    are chosen apart: layers, experts, groups of queries."""
    apart = _INDEPENDENT | ({"kv_heads"} if name == "q_per_kv" else set())
    seen: set[Axis] = set()
    for value in params:
        whole = leaves_of(axes.at(value))
        for leaf in whole:
            if leaf.name == name and leaf not in seen:
                seen.add(leaf)
                yield leaf, tuple(axis for axis in whole if axis.name in apart and axis is not leaf)


def picked_program(
    program: Program, axes: Axes, name: str, size: int, scores: Sequence[np.ndarray] | None = None
) -> Program:
    """The program with every axis of that name cut to a size: to the places with the largest
    scores, one array for every axis; where none are given, with the largest weights (the sum of
    squares over all weights that have it). Raises NotPadded."""
    params, places = program.values("param"), {}
    known = list(leaves_along(params, axes, name))
    if scores is not None and len(scores) != len(known):
        raise NotPadded(f"{len(known)} sets of weights have it, and scores are of {len(scores)}")
    for number, (leaf, along) in enumerate(known):
        if leaf.size > size:
            given = (
                _weights(params, axes, (*along, leaf))
                if scores is None
                else _given(scores[number], (*along, leaf))
            )
            places[leaf] = (make("largest", given, count=size), along)
    if not places:
        raise NotPadded(f"no weight has more than {size} of it")
    return padded_program(program, Picking(axes, dict.fromkeys(places, size), places))


def _given(scores: np.ndarray, wanted: tuple[Axis, ...]) -> Value:
    """Scores along these axes."""
    shape = tuple(axis.size for axis in wanted)
    if scores.shape != shape:
        raise NotPadded(f"scores are {list(scores.shape)}, and the decoder has {list(shape)}")
    return constant(scores.astype(np.float32))


def _weights(params: list[Value], axes: Axes, kept: tuple[Axis, ...]) -> Value:
    """f32[kept]: the sum of squares over all weights that have the last of these axes."""
    having = [value for value in params if kept[-1] in leaves_of(axes.at(value))]
    return reduce(partial(make, "add"), _scores(having, axes, kept))


def _scores(having: list[Value], axes: Axes, kept: tuple[Axis, ...]) -> Iterator[Value]:
    """The sum of squares of every weight along the other axes."""
    for value in having:
        whole = leaves_of(axes.at(value))
        if not set(kept) <= set(whole) or value.type.dtype not in ("f32", "bf16", "f16", "f64"):
            raise NotPadded("weights that have it are shared by layers, or no floats")
        wide = in_dtype(shaped(value, [axis.size for axis in whole]), "f32")
        others = tuple(i for i, axis in enumerate(whole) if axis not in kept)
        summed = make("reduce_sum", make("mul", wide, wide), axes=others)
        held = [axis for axis in whole if axis in kept]
        yield transposed(summed, list(map(held.index, kept)))


def _aligned(places: Value, order: tuple[Axis, ...], whole: list[Axis]) -> Value:
    """Places, whose axes come in this order, laid out as an array of these axes."""
    by_place = sorted(range(len(order)), key=lambda i: whole.index(order[i]))
    sizes = dict(zip(order, places.type.shape))
    return shaped(transposed(places, by_place), [sizes.get(axis, 1) for axis in whole])
