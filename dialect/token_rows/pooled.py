"""A staged program in pages as a server runs it: on pools of any size, and with one table for all.

    step(params, (pool, table) of every cache, args)  ->  step(params, pools, args, table)

All rows share the pages, so their number follows from memory and not from the rows of a step, and
programs of several numbers of rows run on the same pools.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import jax

from dialect.jaxprs.framework import describe, treedef
from dialect.matching.values import through
from dialect.ops.control import given_inside
from dialect.serving.policy import ServingError
from dialect.serving.shapes import Shape
from dialect.token_rows.beside import answering
from rewrite.dataflow import rebuilt
from rewrite.ir import Graph, Op, Type, Value, new_input
from rewrite.opdef import build, with_args
from rewrite.program import LEFT_ALONE, Input, Output, Program

_POOL, _TABLE = range(2)  # the results of `pages`


def pooled(staged: Program, pages: int, drafts: bool = False) -> Program:
    """The program on pools of so many pages of every layer; of two decoders, with the answer of the
    one that is served, or of the one that drafts.

    Raises ServingError where a part of the state does not lie in pages.
    """
    stored = _stored(staged)
    first = next(value for value, (kind, _) in stored.items() if kind == _TABLE)
    table = new_input(first.type)
    fresh = {
        value: table if stored.get(value, ())[:1] == (_TABLE,) else _sized(value, stored, pages)
        for value in staged.graph.inputs
    }
    declared = dict(zip(staged.graph.inputs, staged.step_inputs, strict=True))
    kept = {
        fresh[value]: replace(input_, type=fresh[value].type)
        for value, input_ in declared.items()
        if fresh[value] is not table
    }
    inputs = {**kept, table: Input("table", table.type, "arg", declared[first].layout)}
    graph = _on(staged.graph, fresh, inputs)
    outputs, names = [], list(inputs)
    for value, out in zip(graph.outputs, staged.step_outputs, strict=True):
        source = None if out.updates is None else fresh[staged.graph.inputs[out.updates]]
        if source is not table:
            number = None if source is None else names.index(source)
            outputs.append((value, Output(out.name, number)))
    outputs = answering(outputs, inputs, drafts)
    return _program(staged, Graph(graph.inputs, tuple(v for v, _ in outputs)), inputs, outputs)


def sharing(graph: Graph, groups: Shape) -> Graph:
    """A graph whose rows come in groups that have the same pages: attention reads these once for a
    group."""

    def visit(op: Op, args: tuple[Value, ...]) -> Sequence[Value]:
        bodies = tuple(sharing(region, groups) for region in op.regions)
        moved = with_args(op, args, bodies)
        if not (op.get("blocks") and args[1].op.get("page")):
            return moved.results
        attrs = dict(op.attrs) | {"together": groups}
        return build(op.name, *args, origin=op.origin, **attrs).results

    return rebuilt(graph, visit)


def _stored(staged: Program) -> dict[Value, tuple[int, int]]:
    """Of every state: whether it is a pool or a table, and its layers."""
    assert staged.stages is not None
    states = [declared for declared in staged.step_inputs if declared.role == "state"]
    stored = [through(value, "quantize") for value in staged.stages.adapt.outputs]
    for state, first in zip(states, stored, strict=True):
        if first.op.get("page") is None:
            reasons = staged.remarks_of(LEFT_ALONE)
            message = f"{state.name} does not lie in pages, and it does not merely count tokens"
            raise ServingError("\n  ".join([message, *reasons]))
    firsts = ((first.index, first.op["layers"] or 1) for first in stored)
    return dict(zip(staged.values("state"), firsts))


def _sized(value: Value, stored: dict[Value, tuple[int, int]], pages: int) -> Value:
    """A new input in place of one; a pool has so many pages for each of its layers."""
    if value not in stored:
        return new_input(value.type)
    _, layers = stored[value]
    return new_input(Type(value.type.dtype, (layers * pages, *value.type.shape[1:])))


def _on(graph: Graph, memo: dict[Value, Value], inputs: Iterable[Value]) -> Graph:
    """`graph` on other inputs, whose types may differ."""
    memo = dict(memo)
    for op in graph.ops:
        args = tuple(memo[arg] for arg in op.args)
        moved = with_args(op, args, _bodies(op, memo))
        memo.update(zip(op.results, moved.results, strict=True))
    return Graph(tuple(inputs), tuple(memo[value] for value in graph.outputs))


def _bodies(op: Op, memo: dict[Value, Value]) -> tuple[Graph, ...]:
    """The regions of an op, their inputs of the types that its arguments have become."""
    bodies = []
    for region, given in zip(op.regions, given_inside(op) if op.regions else ()):
        inside = {inner: inner for inner in region.inputs}
        for inner, (outer, _) in given.items():
            if inner.type == outer.type != memo[outer].type:
                inside[inner] = new_input(memo[outer].type)
        changed = list(inside) != list(inside.values())
        bodies.append(_on(region, inside, inside.values()) if changed else region)
    return tuple(bodies)


def _program(
    staged: Program,
    graph: Graph,
    inputs: dict[Value, Input],
    outputs: list[tuple[Value, Output]],
) -> Program:
    """A program whose user keeps the pools: nothing is adapted."""
    assert staged.stages is not None
    originals = [input_ for input_ in staged.inputs if input_.role == "param"]
    packed = [input_ for input_ in inputs.values() if input_.role == "param"]
    others = [input_ for input_ in inputs.values() if input_.role != "param"]
    shift = len(originals) - len(packed)
    step_outputs = tuple(out for _, out in outputs)
    pools = tuple(value for value, input_ in inputs.items() if input_.role == "state")
    params = treedef(staged.tree[0]).children()[0]
    arguments = (jax.tree.unflatten(params, originals), others)
    stages = replace(
        staged.stages,
        adapt=Graph(pools, pools),
        restore=Graph(pools, pools),
        inputs=tuple(inputs.values()),
        outputs=step_outputs,
    )
    return replace(
        staged,
        graph=graph,
        inputs=(*originals, *others),
        outputs=tuple(
            out if out.updates is None else replace(out, updates=out.updates + shift)
            for out in step_outputs
        ),
        stages=stages,
        tree=tuple(
            describe(jax.tree.structure(tree)) for tree in (arguments, list(range(len(outputs))))
        ),
    )
