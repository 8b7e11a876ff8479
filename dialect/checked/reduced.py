"""A failing program made smaller while it still fails: fewer passes, outputs, ops, sizes of one.

Delta debugging (Zeller and Hildebrandt 2002): a change is kept where the same failure comes back,
and dropped where it does not. Each kind of change is one function that gives smaller programs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dialect.arrays.dtypes import dtype_of
from dialect.jaxprs.jaxpr import constant
from rewrite.errors import ShardwrightError
from rewrite.ir import Graph, Op, Type, Value, new_input
from rewrite.opdef import build, make, with_args
from rewrite.passbase import Pass
from rewrite.program import Input, Output, Program
from rewrite.verify import verify

Fails = Callable[[Program, tuple[Pass, ...]], bool]
Watch = Callable[[Program, tuple[Pass, ...]], None]


@dataclass
class Reduction:
    """The smallest failing program so far. `fails` tests whether a candidate fails the same way."""

    program: Program
    passes: tuple[Pass, ...]
    fails: Fails
    deadline: float
    watch: Watch = lambda program, passes: None

    def run(self) -> None:
        """Tries every kind of change until none helps, or the time is over."""
        while time.monotonic() < self.deadline:
            before = self.size
            for passes in _fewer(self.passes):
                if self.keeps_failing(self.program, passes):
                    break
            for smaller in (_one_output, _one_region, _cut_off, _without, _in_bodies, _small_sizes):
                self.shrink(smaller)
            if self.size == before:
                return

    @property
    def size(self) -> tuple[int, int, int]:
        """Passes, ops and elements of the inputs, to be reduced in this order."""
        elements = sum(value.type.size for value in self.program.graph.inputs)
        return len(self.passes), self.program.graph.op_count, elements

    def shrink(self, smaller: Callable[[Program], Iterator[Program]]) -> None:
        """Takes the first candidate that fails, and begins again from it."""
        shrinks = True
        while shrinks and time.monotonic() < self.deadline:
            candidates = _possible(smaller(self.program))
            shrinks = any(self.keeps_failing(candidate, self.passes) for candidate in candidates)

    def keeps_failing(self, program: Program, passes: tuple[Pass, ...]) -> bool:
        """Takes a smaller program and fewer passes, if they fail in the same way."""
        if time.monotonic() > self.deadline or not self.fails(program, passes):
            return False
        self.program, self.passes = program, passes
        self.watch(program, passes)
        return True


def _possible(candidates: Iterator[Program]) -> Iterator[Program]:
    """The candidates up to one that cannot be built, for whatever reason its ops have."""
    try:
        yield from candidates
    except (ShardwrightError, TypeError, ValueError, LookupError):
        return


def reduced(
    program: Program,
    passes: Sequence[Pass],
    fails: Fails,
    seconds: float = 60.0,
    watch: Watch = lambda program, passes: None,
) -> tuple[Program, tuple[Pass, ...]]:
    """The smallest program and the fewest passes found in `seconds` that fail in the same way.

    `watch` is called with every step on the way. A staged program is left as it is.
    """
    reduction = Reduction(program, tuple(passes), fails, time.monotonic() + seconds, watch)
    if program.stages is None:
        reduction.run()
    return reduction.program, reduction.passes


def program_of(graph: Graph, like: Program, kept: dict[Value, int]) -> Program:
    """A program of a graph, with the outputs of `like`.

    Inputs in `kept` are those of `like`, by number; others are arguments. What nothing reads is
    left out.
    """
    read = set(graph.users) | set(graph.outputs)
    inputs = tuple(value for value in graph.inputs if value in read)
    number = {kept[value]: place for place, value in enumerate(inputs) if value in kept}
    declared = [
        replace(like.inputs[kept[value]], type=value.type)
        if value in kept
        else Input(f"x{place}", value.type, "arg")
        for place, value in enumerate(inputs)
    ]
    outputs = []
    for place, value in enumerate(graph.outputs):
        updates = number.get(like.outputs[place].updates)
        fits = updates is not None and inputs[updates].type == value.type
        outputs.append(Output(like.outputs[place].name, updates if fits else None))
    states = {out.updates for out in outputs if out.updates is not None}
    declared = [
        replace(entry, role="arg") if entry.role == "state" and place not in states else entry
        for place, entry in enumerate(declared)
    ]
    tree = (tuple(range(len(inputs))), tuple(range(len(outputs))))
    return replace(
        like,
        graph=Graph(inputs, graph.outputs),
        inputs=tuple(declared),
        outputs=tuple(outputs),
        tree=tree,
        plan=None,
    )


# Each kind of change: the smaller programs, the smallest first.


def _fewer(passes: tuple[Pass, ...]) -> Iterator[tuple[Pass, ...]]:
    for count in range(1, len(passes)):
        yield passes[-count:]
    for number in range(len(passes)):
        yield (*passes[:number], *passes[number + 1 :])


def _one_output(program: Program) -> Iterator[Program]:
    if len(program.outputs) > 1:
        for value in program.graph.outputs:
            yield _rebuilt(program, Graph(program.graph.inputs, (value,)))


def _one_region(program: Program) -> Iterator[Program]:
    """The body of a loop, as a program by itself."""
    for op, _ in program.graph.walk():
        for region in op.regions:
            names = (Output(f"result{number}") for number in range(len(region.outputs)))
            yield program_of(region, replace(program, outputs=tuple(names)), {})


def _cut_off(program: Program) -> Iterator[Program]:
    """The ops up to one of them, and no further."""
    ops = program.graph.ops
    for op in ops[:-1]:
        outputs = op.results
        yield _rebuilt(program, Graph(program.graph.inputs, outputs[:1]))


def _without(program: Program) -> Iterator[Program]:
    """Runs of ops left out, their results given as arguments: halves, quarters, single ones."""
    ops = program.graph.ops
    length = len(ops) // 2
    while length:
        for start in range(0, len(ops), length):
            gone = ops[start : start + length]
            fresh = {value: new_input(value.type) for op in gone for value in op.results}
            yield _rebuilt(program, _replaced(program.graph, fresh), tuple(fresh.values()))
        length //= 2


def _in_bodies(program: Program) -> Iterator[Program]:
    """Single ops in the bodies of loops, replaced by zeros or by what they read."""
    graph = program.graph
    for op in graph.ops:
        for number, region in enumerate(op.regions):
            for body in _simpler_bodies(region):
                regions = (*op.regions[:number], body, *op.regions[number + 1 :])
                moved = with_args(op, op.args, regions)
                if moved.types == op.types:
                    swapped = dict(zip(op.results, moved.results))
                    yield _rebuilt(program, _replaced(graph, swapped))


def _simpler_bodies(region: Graph) -> Iterator[Graph]:
    for op in reversed(region.ops):
        if op.name in ("const", "broadcast_in_dim") or len(op.types) != 1:
            continue
        (value,) = op.results
        same = [arg for arg in op.args if arg.type == value.type]
        for instead in [*same, *_zeros(value.type)]:
            yield _replaced(region, {value: instead})


def _zeros(type_: Type) -> list[Value]:
    try:
        zero = constant(np.zeros((), dtype_of(type_.dtype)), Type(type_.dtype, ()))
        shape = {"shape": type_.shape, "broadcast_dimensions": ()}
        return [make("broadcast_in_dim", zero, **shape)] if type_.shape else [zero]
    except (TypeError, ValueError, KeyError):
        return []


def _small_sizes(program: Program) -> Iterator[Program]:
    """One size of the program made 1, 2, 3 or half of it, in all types and attributes."""
    sizes = {size for op, _ in program.graph.walk() for type_ in op.types for size in type_.shape}
    sizes |= {size for value in program.graph.inputs for size in value.type.shape}
    for size in sorted(sizes - {0, 1}, reverse=True):
        for smaller in dict.fromkeys((1, 2, 3, size // 2)):
            if smaller < size:
                resized = _resized(program.graph, {size: smaller})
                if resized is not None:
                    yield _rebuilt(program, resized)


# How programs are built again.


def _rebuilt(program: Program, graph: Graph, fresh: Sequence[Value] = ()) -> Program:
    """`program` with another graph, whose inputs are its own and `fresh` ones."""
    numbers = {value: number for number, value in enumerate(graph.inputs)}
    extended = Graph((*graph.inputs, *fresh), graph.outputs)
    if len(program.outputs) != len(graph.outputs):
        names = (Output(f"result{number}") for number in range(len(graph.outputs)))
        program = replace(program, outputs=tuple(names))
    return program_of(extended, program, numbers)


def _replaced(graph: Graph, instead: dict[Value, Value]) -> Graph:
    """`graph` with values replaced, and everything downstream built again."""
    memo: dict[Value, Value] = {value: value for value in graph.inputs}
    for op in graph.ops:
        if op.results[0] in instead:
            memo.update((value, instead[value]) for value in op.results)
            continue
        moved = with_args(op, tuple(memo[arg] for arg in op.args))
        memo.update(zip(op.results, moved.results))
    memo.update(instead)
    return Graph(graph.inputs, tuple(memo[value] for value in graph.outputs))


def _resized(graph: Graph, sizes: dict[int, int]) -> Graph | None:
    """`graph` with a size replaced wherever a type or an attribute holds it, if that fits."""
    inputs = tuple(new_input(_resized_type(value.type, sizes)) for value in graph.inputs)
    memo = dict(zip(graph.inputs, inputs))
    try:
        for op in graph.ops:
            moved = _resized_op(op, sizes, memo)
            memo.update(zip(op.results, moved.results))
        resized = Graph(inputs, tuple(memo[value] for value in graph.outputs))
        verify(resized)
    except Exception:  # whatever a definition raises for attributes that do not fit
        return None
    return resized


def _resized_op(op: Op, sizes: dict[int, int], memo: dict[Value, Value]) -> Op:
    if op.name == "const":
        if _resized_type(op.types[0], sizes) != op.types[0]:
            return _zeros(_resized_type(op.types[0], sizes))[0].op
        return op
    regions = []
    for region in op.regions:
        resized = _resized(region, sizes)
        if resized is None:
            raise ValueError("a body does not fit")
        regions.append(resized)
    attrs = {
        name: _resized_attribute(value, sizes) if _is_size(name, value) else value
        for name, value in op.attrs
    }
    args = (memo[arg] for arg in op.args)
    return build(op.name, *args, regions=tuple(regions), origin=op.origin, **attrs)


def _is_size(name: str, value: Any) -> bool:
    return isinstance(value, tuple) or name in ("length", "size", "num_classes")


def _resized_attribute(value: Any, sizes: dict[int, int]) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return sizes.get(value, value)
    if isinstance(value, tuple):
        return tuple(_resized_attribute(item, sizes) for item in value)
    return value


def _resized_type(type_: Type, sizes: dict[int, int]) -> Type:
    shape = tuple(sizes.get(size, size) for size in type_.shape)
    return Type(type_.dtype, shape, type_.weak)
