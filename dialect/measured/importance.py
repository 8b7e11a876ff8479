"""Measures on a text how much every hidden unit, query head and layer of a decoder matters.

    a unit or a head    the squares of what meets its weights, times theirs, where it adds to the
                        residual stream (as Sun et al. 2023, arXiv:2306.11695, of single weights)
    a layer             how far it turns the residual stream: 1 - the cosine of what it takes and
                        what it gives (Men et al. 2024, arXiv:2403.03853)

The program itself runs over the text, as in serving, and gives these in place of its logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dialect.jaxprs.jaxpr import constant
from dialect.layered.layers import find_layers
from dialect.layered.left_out import places_of, stream_of
from dialect.matching.operands import transposed
from dialect.matching.values import in_dtype, in_shape, shaped
from dialect.measured.evaluation import interface, results_over
from dialect.measured.tasks import Source, tasks
from dialect.naming.axes import infer_axes
from dialect.naming.axis import Axes, Axis, leaves_of
from dialect.padded.importance import LAYERS, written
from dialect.padded.pick_axis import leaves_along
from dialect.user.usercode import Trained
from rewrite import manager, opdef
from rewrite.dataflow import rebuilt
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import build, make, with_args
from rewrite.pipeline import Pipeline
from rewrite.program import Output, Program
from rewrite.target import Target

NAMES = ("d_ff", "heads", "q_per_kv")
# Of what, which of these (of layers: how many there are in a trip), the loop, the value in it.
Sought = tuple[str, int, Op | None, Value]


def write_importance(program: Program, trained: Trained, path: Path) -> None:
    """Writes the file of a program as it was traced. Raises UsageError as `importance` does."""
    written(importance(program, trained), path)


def importance(program: Program, trained: Trained) -> dict[str, list[np.ndarray]]:
    """Of a program as it was traced, as `prune` reads it. Raises UsageError where its steps do not
    take tokens and give logits."""
    passes = Pipeline.parse("normalize, recognize").passes()
    program, _ = manager.run(program, passes, Target("cpu:1", (("x", 1),)))
    tokens_type, logits_type = interface(program)
    source, sizes = Source.of(trained, vocab=logits_type.shape[-1]), trained.sizes
    (text,) = tasks((), source, sizes.batch, sizes.context)
    tokens, _ = text.steps(tokens_type, logits_type)
    sought = list(_sought(program))
    results = results_over(_giving(program, sought), trained.params, trained.cache)(tokens)
    found: dict[str, dict[int, np.ndarray]] = {}
    layers: list[float] = []
    for (name, number, _, _), result in zip(sought, results, strict=True):
        total = np.asarray(result, np.float64).sum(0)
        if name == LAYERS:  # those that are left out together matter alike
            layers += np.repeat(np.ravel(total), number).tolist()
            continue
        of_name = found.setdefault(name, {})
        of_name[number] = of_name[number] + total if number in of_name else total
    joined = {LAYERS: [np.asarray(layers)]} if layers else {}
    return {name: list(arrays.values()) for name, arrays in found.items()} | joined


def _sought(program: Program) -> Iterator[Sought]:
    """What tells of every axis and every layer, in their order."""
    axes, params = infer_axes(program), program.values("param")
    graphs = [(None, program.graph)]
    graphs += [(op, op.regions[0]) for op in program.graph.ops if op.get("length")]
    for name in NAMES:
        for number, (leaf, along) in enumerate(leaves_along(params, axes, name)):
            for loop, graph in graphs:
                order = [axis for axis in along if loop is None or axis.name != LAYERS]
                for op in graph.ops:
                    if (value := _added(op, leaf, [*order, leaf], axes)) is not None:
                        yield name, number, loop, value
    layers = find_layers(program, through_loops=True)
    for place in places_of(program, layers):
        yield LAYERS, place.together, place.loop, _turned(*stream_of(place, layers))


def _added(op: Op, leaf: Axis, order: Sequence[Axis], axes: Axes) -> Value | None:
    """f32[order]: what a product adds along an axis that it sums, over all positions; None where
    it is none of activations and weights with these axes."""
    about = opdef.traits(op)
    if about.linear != "each" or not about.sums or len(op.args) < 2:
        return None
    sides = [leaves_of(axes.at(arg)) for arg in op.args[:2]]
    whole = [at for at in (0, 1) if {*order} <= {*sides[at]}]
    if leaf in leaves_of(axes.at(op.results[0])) or not whole or leaf not in sides[1 - whole[0]]:
        return None
    common = [axis for axis in sides[whole[0]] if axis in sides[1 - whole[0]]]
    squares = [_squares(arg, side, common) for arg, side in zip(op.args, sides)]
    return _summed(make("mul", *squares), common, order)


def _squares(value: Value, axes: Sequence[Axis], kept: Sequence[Axis]) -> Value:
    """f32[kept]: the sum of squares of a value along its other axes."""
    wide = in_dtype(shaped(value, [axis.size for axis in axes]), "f32")
    return _summed(make("mul", wide, wide), axes, kept)


def _summed(value: Value, axes: Sequence[Axis], kept: Sequence[Axis]) -> Value:
    others = tuple(at for at, axis in enumerate(axes) if axis not in kept)
    held = [axis for axis in axes if axis in kept]
    summed = make("reduce_sum", value, axes=others) if others else value
    return transposed(summed, [held.index(axis) for axis in kept])


def _turned(before: Value, after: Value) -> Value:
    """f32[]: the sum over all positions of 1 - the cosine of two streams."""
    along = (before.type.rank - 1,)

    def dot(one: Value, other: Value) -> Value:
        wide = (in_dtype(value, "f32") for value in (one, other))
        return make("reduce_sum", make("mul", *wide), axes=along)

    lengths = make("rsqrt", make("mul", dot(before, before), dot(after, after)))
    cosine = make("mul", dot(before, after), lengths)
    ones = in_shape(constant(np.float32(1)), cosine.type.shape)
    return make("reduce_sum", make("sub", ones, cosine), axes=tuple(range(cosine.type.rank)))


def _giving(program: Program, sought: Sequence[Sought]) -> Program:
    """The program with what is sought in place of its logits."""
    outside = [value for _, _, loop, value in sought if loop is None]
    whole = Graph(program.graph.inputs, (*program.graph.outputs, *outside))
    more: dict[Value, Value] = {}

    def visit(op: Op, args: tuple[Value, ...]) -> Sequence[Value]:
        inside = [value for _, _, loop, value in sought if loop is op]
        if not inside:
            return with_args(op, args).results
        longer = Graph(op.regions[0].inputs, (*op.regions[0].outputs, *inside))
        made = build("scan", *args, regions=(longer,), origin=op.origin, **dict(op.attrs)).results
        more.update(zip(inside, made[len(op.types) :]))
        return made[: len(op.types)]

    graph, count = rebuilt(whole, visit), len(program.outputs)
    more |= zip(outside, graph.outputs[count:])
    pairs = zip(graph.outputs, program.outputs)
    kept = [(value, out) for value, out in pairs if out.updates is not None]
    kept += [(more[value], Output(str(n))) for n, (*_, value) in enumerate(sought)]
    values, outputs = zip(*kept)
    return replace(program, graph=Graph(graph.inputs, values), outputs=outputs)
