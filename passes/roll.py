"""roll: unrolled layers that are the same program become one loop.

body(... body(body(x, w0), w1) ..., wn)  ->  scan(body, x, stack(w0, w1, ..., wn))
scan{unroll=n}(body, x, w)               ->  scan{unroll=1}(body, x, w)

Layers are found by structure (`dialect.layered.layers`): alternating kinds become one loop over
groups, layers that do not repeat stay outside. A loop that its library has the compiler write out
stays a loop: written out, it compiles many times slower, and weights are laid out anew in every
step. `stage` moves the stacking of parameters to `prepare` and that of caches to `adapt`;
`carry_cache` after this pass avoids copies of the caches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jax import lax

from dialect.layered.layers import Layers, Run, find_layers
from dialect.layered.loops import rolled
from dialect.layered.rows import rows_apart
from dialect.matching.pools import pools_of
from dialect.normal.normal_form import reshaped
from rewrite.driver import Report, rewrite
from rewrite.ir import Op, Value, replace_values
from rewrite.opdef import build, make, traits
from rewrite.passbase import Pass
from rewrite.program import Program
from rewrite.rules import Miss, Outcome, Rule, local
from rewrite.target import Target


@local(
    "stack",
    example=lambda x: jnp.stack([x[0].reshape(4), x[2].reshape(4)]),
    types=("f32[3,2,2]",),
)
def stack_of_rows(op: Op) -> Outcome:
    """stack(x[0], x[1], ..., x[n])  ->  x"""
    rows = [_row(arg) for arg in op.args] if op["axis"] == 0 else [None]
    if None in rows or any(source != rows[0][0] for source, _ in rows):
        return None
    source, numbers = rows[0][0], [number for _, number in rows]
    step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
    if step < 1 or numbers != [*range(numbers[0], numbers[-1] + 1, step)]:
        return None
    if len(numbers) < source.type.shape[0]:
        row_shape = source.type.shape[1:]
        source = make(
            "slice",
            source,
            start_indices=(numbers[0], *(0 for _ in row_shape)),
            limit_indices=(numbers[-1] + 1, *row_shape),
            strides=(step, *(1 for _ in row_shape)) if step > 1 else None,
        )
    shape = op.types[0].shape
    return source if source.type.shape == shape else reshaped(source, shape)


def _row(value: Value) -> tuple[Value, int] | None:
    """(x, i) if `value` is x[i] in any shape."""
    row = value.op.args[0] if value.op.name == "reshape" else value
    op = row.op
    if op.name == "unstack" and op["axis"] == 0:
        return op.args[0], row.index
    if op.name != "slice" or op.get("strides") or not row.type.rank:
        return None
    source, (first, *starts) = op.args[0], op["start_indices"]
    if any(starts) or op["limit_indices"] != (first + 1, *source.type.shape[1:]):
        return None
    return source, first


@local("unstack", example=lambda x: jnp.unstack(jnp.stack([x, x + 1])), types=("f32[4]",))
def unstack_of_stack(op: Op) -> Outcome:
    """unstack(stack(x, y))  ->  x, y"""
    stack = op.args[0].op
    return stack.args if stack.name == "stack" and stack["axis"] == op["axis"] else None


@local(
    "scan",
    example=lambda x, w: lax.scan(lambda y, v: (y @ v, None), x, w, unroll=True)[0],
    types=("f32[2,4]", "f32[3,4,4]"),
)
def loop_kept(op: Op) -> Outcome:
    """scan{unroll=n}(f, x, w)  ->  scan{unroll=1}(f, x, w), of n iterations that multiply"""
    if op["length"] < 2 or op["unroll"] < op["length"]:
        return None
    known = [traits(inner) for inner, _ in op.regions[0].walk()]
    if not any(of.sums and of.linear == "each" for of in known):
        return Miss("nothing is multiplied in its body", 1)
    return build("scan", *op.args, regions=op.regions, **{**dict(op.attrs), "unroll": 1}).results


RULES: tuple[Rule, ...] = (stack_of_rows, unstack_of_stack)


@dataclass(frozen=True)
class Roll(Pass):
    """Makes loops of layers that repeat at least `least` times."""

    least: int = 2

    keeps: ClassVar[str] = "bits"

    def run(self, program: Program, target: Target) -> Program:
        graph = rows_apart(rewrite(program.graph, ()), program.values("state"))
        layers = find_layers(program.with_graph(graph))
        pools = pools_of(graph)
        runs = [run for run in layers.runs if run.repeats >= self.least]
        runs = [run for run in runs if pools.isdisjoint(_leaves(layers, run))]
        for run in reversed(runs):  # a loop reads values computed before it, which are unchanged
            graph = replace_values(graph, rolled(layers.groups(run)))
        notes = [_rolled(layers, run, self.least, run in runs) for run in layers.runs]
        found = Report()
        graph = rewrite(rewrite(graph, RULES) if runs else program.graph, [loop_kept], found)
        kept = found.fired.get(loop_kept.name, 0)
        notes += [f"loops that were to be written out, and are not: {kept}"] if kept else []
        return self.recorded(program.with_graph(graph), *notes, *_outside(layers))


def _leaves(layers: Layers, run: Run) -> set[Value]:
    """What a loop over these layers would stack, or read in common."""
    groups = layers.groups(run)
    return {leaf for group in groups for segment in group for leaf in segment.leaves}


def _rolled(layers: Layers, run: Run, least: int, is_loop: bool) -> str:
    """The note on a run."""
    inside = {layers.layer_of_segment.get(n) for n in range(run.first, run.stop)} - {None}
    subject = f"layers {min(inside)} to {max(inside)}" if inside else f"{run.repeats} groups"
    if run.repeats < least:
        return f"{subject} stay outside: {run.repeats} times the same, and least={least}"
    if not is_loop:
        return f"{subject} stay apart: a loop would copy the pools of pages that they have"
    ops = sum(len(segment.ops) for segment in layers.groups(run)[0])
    length = len(inside) // run.repeats
    over = f"groups of {length}" if length > 1 else "one layer"
    return f"{subject}: a loop of {run.repeats} over {over}, {run.repeats * ops} ops in {ops}"


def _outside(layers: Layers) -> Iterator[str]:
    """A note on each layer in no run, with the first difference from a neighbour."""
    if len(layers.pieces) < 2:
        yield "no layers are written out that only one value connects, each with the next"
        return
    inside = {number for run in layers.runs for number in range(run.first, run.stop)}
    for layer, segments in enumerate(layers.pieces):
        if inside.isdisjoint(segments):
            neighbours = [n for n in (layer + 1, layer - 1) if 0 <= n < len(layers.pieces)]
            differences = [(*layers.difference(layer, near), near) for near in neighbours]
            _, reason, near = max(differences, key=lambda difference: difference[0])
            reason = f"unlike layer {near}, {reason}" if reason else "its group is not complete"
            yield f"layer {layer} stays outside: {reason}"
