"""A program with an axis padded: `padded` at inputs, `unpadded` at outputs, larger ops between.

The axis is found by inference, at any dimension and merged with others. Where an op sums the axis,
or writes into a state that stays padded, the padding is cleared first, unless it is known to be
zero (`dialect.padded.pad_analysis`). Refused where an op needs the axis whole and zeros would
change its result.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from dialect.arrays.dtypes import dtype_of, is_dtype
from dialect.jaxprs.jaxpr import constant
from dialect.matching.values import shaped
from dialect.naming.axis import Axes, Axis, leaves
from dialect.ops.control import CONTROL_FLOW, given_inside
from dialect.ops.lookups import CLIP, PROMISED
from dialect.ops.padding import resized
from dialect.padded.pad_analysis import stays_zero
from rewrite import opdef
from rewrite.ir import Graph, Op, Type, Value, new_input
from rewrite.opdef import build, make, with_args
from rewrite.program import Program
from rewrite.signature import letters

_CLIPS = (CLIP, PROMISED)


Zero = dict[Value, bool | None]  # whether the padding of a value is zero; None where it has none


class NotPadded(Exception):
    """An axis that cannot be padded; the message says why, and at which line."""


@dataclass(frozen=True)
class Padding:
    """Axes of a program, and the sizes that they are padded to."""

    axes: Axes
    sizes: dict[Axis, int]

    @staticmethod
    def named(axes: Axes, name: str, old: int, new: int) -> Padding:
        """Every axis of that name and size. Raises NotPadded where there is none."""
        chosen: dict[Axis, int] = {}
        for value, dimensions in axes.dimensions.items():
            parts = [leaf for axis in dimensions for leaf in leaves(axis)]
            sizes = {leaf: new for leaf in parts if leaf.name == name and leaf.size == old}
            if sizes and any(math.prod(_sizes(axis)) != axis.size for axis in dimensions):
                raise NotPadded("an array that has it is padded already")
            if sizes and not is_dtype(value.type.dtype):
                raise NotPadded("an array of random keys has it")
            chosen |= sizes
        if not chosen:
            raise NotPadded("something cuts it into parts")
        return Padding(axes, chosen)

    def parts(self, value: Value) -> list[tuple[tuple[int, int], ...]]:
        """Per dimension the axes in it, each as (size, new size)."""
        return [
            tuple((leaf.size, self.sizes.get(leaf, leaf.size)) for leaf in leaves(axis))
            for axis in self.axes.at(value)
        ]

    def grows(self, value: Value) -> bool:
        """Whether any dimension of a value becomes longer."""
        return any(leaf in self.sizes for axis in self.axes.at(value) for leaf in leaves(axis))

    def grown(self, value: Value) -> list[bool]:
        """Per dimension, whether it becomes longer."""
        return [any(old != new for old, new in parts) for parts in self.parts(value)]

    def renumbers(self, value: Value, dimension: int) -> bool:
        """Whether elements of a dimension get other numbers: an axis but its first grows."""
        return any(old != new for old, new in self.parts(value)[dimension][1:])

    def shape(self, value: Value) -> tuple[int, ...]:
        """The new shape of a value."""
        return self._shape(value, 1)

    def _shape(self, value: Value, index: int) -> tuple[int, ...]:
        return tuple(math.prod(part[index] for part in parts) for parts in self.parts(value))

    def type(self, value: Value) -> Type:
        """The type of a value once it is padded."""
        return Type(value.type.dtype, self.shape(value), value.type.weak)

    def padded(self, value: Value) -> Value:
        """`value` with zeros along these axes."""
        return self._along(value, value, "padded", 0)

    def unpadded(self, original: Value, value: Value) -> Value:
        """`value`, the padded form of `original`, cut to its size."""
        return self._along(original, value, "unpadded", 1)

    def cleared(self, original: Value, value: Value) -> Value:
        """`value`, the padded form of `original`, with its padding set to zero."""
        return self._along(original, value, "cleared", 1)

    def _along(self, original: Value, value: Value, word: str, before: int) -> Value:
        parts = [part for dimension in self.parts(original) for part in dimension]
        result = shaped(value, [part[before] for part in parts])
        for axis, part in enumerate(parts):
            if part[0] != part[1]:
                result = resized(word, result, axis, part[1 - before])
        return shaped(result, original.type.shape if word == "unpadded" else self.shape(original))

    def extra_bytes(self, values: Iterable[Value]) -> int:
        """The bytes that these arrays gain."""
        grown = [value for value in values if self.grows(value)]
        before = (Type(padded.type.dtype, self._shape(padded, 0)).bytes for padded in grown)
        return sum(self.type(padded).bytes for padded in grown) - sum(before)


def padded_program(program: Program, padding: Padding) -> Program:
    """The same function with its axes padded inside. Raises NotPadded where it could change."""
    work = _Rewrite(padding, {})
    graph = program.graph
    for value in graph.inputs:
        work.enter(value)
    work.run(graph)
    outputs = []
    for value, out in zip(graph.outputs, program.step_outputs, strict=True):
        output = work.values[value]
        if padding.grows(value):
            if out.updates is not None and not work.zero[value]:
                raise NotPadded(f"what {out.name} keeps in its padding is not zero")
            output = padding.unpadded(value, output)
        outputs.append(output)
    return program.with_graph(Graph(graph.inputs, tuple(outputs)))


class _Rewrite:
    """The new value of each value so far, and whether its padding is known to be zero."""

    def __init__(self, padding: Padding, zero: Zero) -> None:
        self.padding, self.zero = padding, zero
        self.values: dict[Value, Value] = {}

    def enter(self, value: Value) -> None:
        """Pads a value from outside."""
        grows = self.padding.grows(value)
        self.values[value] = self.padding.padded(value) if grows else value
        if grows:
            self.zero[value] = True

    def run(self, graph: Graph) -> None:
        for op in graph.ops:
            touched = any(map(self.padding.grows, (*op.args, *op.results)))
            if op.name == "const" or self.counts(op):
                self.enter(op.results[0])
            elif op.name in CONTROL_FLOW:
                self.inside(op)
            elif touched:
                self.larger(op)
            else:
                moved = with_args(op, tuple(self.values[arg] for arg in op.args))
                self.values.update(zip(op.results, moved.results))

    def counts(self, op: Op) -> bool:
        """Whether `op` counts along a dimension whose elements would get other numbers."""
        return op.name == "iota" and self.padding.renumbers(op.results[0], op["dimension"])

    def larger(self, op: Op) -> None:
        """An op on larger arrays, or with larger results."""
        if op.regions:
            raise NotPadded(f"it passes through {op.told}")
        zero = [self.zero.get(arg) for arg in op.args]
        args = [self.values[arg] for arg in op.args]
        if op.name == "take" and self.padding.grown(op.args[0])[0]:
            args[1] = self.rows_inside(op, args[1])
        elif self.sums(op) or (opdef.traits(op).writes and zero[0]):
            for i, arg in enumerate(op.args):
                if zero[i] is False:
                    args[i], zero[i] = self.padding.cleared(arg, args[i]), True
        results = self.rebuilt(op, args)
        self.values.update(zip(op.results, results))
        for value in filter(self.padding.grows, op.results):
            self.zero[value] = stays_zero(op, zero, value.index)

    def sums(self, op: Op) -> bool:
        """Whether `op` sums a padded axis. Raises NotPadded where it needs it whole otherwise, or
        tears it."""
        signature, grown = opdef.signature(op), self.padding.grown
        inputs = list(zip(op.args, signature.inputs))
        arrays = (*inputs, *zip(op.results, signature.outputs))
        single = {
            (dimension[0], grows)
            for value, array in arrays
            for dimension, grows, size in zip(array, grown(value), value.type.shape)
            if len(dimension) == 1 and size > 1
        }
        if len(single) > len({letter for letter, _ in single}):
            raise NotPadded(f"{op.told} tears it")
        outputs = {letter for array in signature.outputs for letter in letters(array)}
        read_whole = any(
            letter in signature.need or letter not in outputs for letter, grows in single if grows
        )
        if read_whole and not opdef.traits(op).skips_zeros:
            raise NotPadded(f"{op.told} reads the whole axis")
        return read_whole

    def rebuilt(self, op: Op, args: Sequence[Value]) -> tuple[Value, ...]:
        attrs = dict(op.attrs)
        if shape := opdef.traits(op).shape:
            attrs[shape] = self.padding.shape(op.results[0])
        if op.name == "slice":
            attrs |= self.slice_places(op)
        return self.built(op, args, attrs)

    def built(
        self, op: Op, args: Sequence[Value], attrs: dict[str, Any], regions: tuple[Graph, ...] = ()
    ) -> tuple[Value, ...]:
        """The results of `op` on larger arrays. Raises NotPadded where they are not as wanted."""
        wanted = [self.padding.type(value).shape for value in op.results]
        try:
            larger = build(op.name, *args, regions=regions, origin=op.origin, **attrs)
        except (TypeError, ValueError) as error:
            raise NotPadded(f"{op.told} does not take more of it: {error}") from error
        if [type_.shape for type_ in larger.types] != wanted:
            raise NotPadded(f"{op.told} does not give more of it")
        return larger.results

    def slice_places(self, op: Op) -> dict[str, tuple[int, ...]]:
        """The bounds of a slice that is one of several equal parts of an axis, of padded parts."""
        source, part = op.args[0], op.results[0]
        starts, limits = list(op["start_indices"]), list(op["limit_indices"])
        sizes = zip(source.type.shape, part.type.shape, self.padding.shape(source))
        for d, (size, step, larger) in enumerate(sizes):
            length = self.padding.shape(part)[d]
            if (size, step) == (larger, length):
                continue
            if starts[d] % step or size % step or larger * step != size * length:
                raise NotPadded(f"{op.told} cuts it")
            starts[d] = starts[d] // step * length
            limits[d] = starts[d] + length
        return {"start_indices": tuple(starts), "limit_indices": tuple(limits)}

    def rows_inside(self, op: Op, ids: Value) -> Value:
        """Row numbers of a padded table: those out of bounds before still are."""
        if self.padding.renumbers(op.args[0], 0):
            raise NotPadded(f"{op.told} reads rows by their number")
        rows, larger = op.args[0].type.shape[0], self.padding.shape(op.args[0])[0]
        largest = jnp.iinfo(dtype_of(ids.type.dtype)).max
        if rows > largest:
            return ids
        if op["mode"] in _CLIPS:
            return make("min", ids, _filled(rows - 1, ids))
        if larger > largest:
            raise NotPadded(f"{op.told} counts {larger} rows in {ids.type.dtype}")
        outside = make("ge", ids, _filled(rows, ids))
        return make("select_n", outside, ids, _filled(larger, ids))

    def inside(self, op: Op) -> None:
        """A loop or a choice: its regions on larger arrays. The padding of what a loop carries is
        zero if it is so at first and after every trip."""
        given = given_inside(op)
        entering = [{x: self.zero.get(arg) for x, (arg, _) in region.items()} for region in given]
        carried = [[x for x, (_, carried) in region.items() if carried] for region in given]
        while True:
            regions = [self.region(*each) for each in zip(op.regions, entering)]
            before = [entering[-1][x] for x in carried[-1]]
            after = [one and other for one, other in zip(before, regions[-1][1])]
            if after == before:
                break
            for known, inputs in zip(entering, carried):
                known.update(zip(inputs, after))
        args = [self.values[arg] for arg in op.args]
        results = self.built(op, args, dict(op.attrs), tuple(region for region, _ in regions))
        self.values.update(zip(op.results, results))
        leaving = [zero for _, zero in regions]
        if after:  # a loop without trips gives what it carries as it came
            leaving = [[*after, *leaving[-1][len(after) :]]]
        for value, zero in zip(op.results, zip(*leaving)):
            if self.padding.grows(value):
                self.zero[value] = all(zero)

    def region(self, region: Graph, entering: Zero) -> tuple[Graph, list[bool | None]]:
        """A region on larger arrays, and whether the padding of its results is zero, given that of
        its inputs."""
        work = _Rewrite(self.padding, dict(entering))
        for value in region.inputs:
            grows = self.padding.grows(value)
            work.values[value] = new_input(self.padding.type(value)) if grows else value
        work.run(region)
        inputs, outputs = (
            tuple(work.values[x] for x in values) for values in (region.inputs, region.outputs)
        )
        return Graph(inputs, outputs), [work.zero.get(value) for value in region.outputs]


def _sizes(axis: Axis) -> list[int]:
    return [leaf.size for leaf in leaves(axis)]


def _filled(number: int, like: Value) -> Value:
    """A number in the shape and dtype of another value."""
    scalar = constant(np.asarray(number, dtype_of(like.type.dtype)), Type(like.type.dtype, ()))
    return make("broadcast_in_dim", scalar, shape=like.type.shape, broadcast_dimensions=())
