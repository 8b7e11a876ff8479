"""A loss by which a rewritten decoder learns to predict what it predicted before.

    loss = distill(step, "normalize, recognize, prune{d_ff=192}")
    loss(params, originals, cache, tokens)    KL(original || rewritten), nats a prediction

Parameters stay those of the decoder as it was written, in its tree: what is trained is rewritten,
packed and served as before (Hinton et al. 2015, arXiv:1503.02531).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dialect.matching.values import rounding
from dialect.user.tracing import trace
from rewrite import manager
from rewrite.dataflow import rebuilt
from rewrite.errors import PipelineError
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import make, with_args
from rewrite.pipeline import Pipeline
from rewrite.program import NOTHING_DONE, Program
from rewrite.rules import FLOATS
from rewrite.target import Target

_HERE = Target("cpu:1", (("x", 1),))


def distill(function: Callable[..., Any], pipeline: Pipeline | str) -> Callable[..., jax.Array]:
    """`loss(params, originals, *rest)`: how far a function rewritten by some passes is from itself.

    - function(params, *rest) returns logits, and a state as it was passed
    - pipeline: the passes in front of `plan` and `stage`, which change nothing that is learned
    - loss: the KL divergence of the rewritten function's logits, with `params`, from the original's
      with `originals`, in nats, f32[], the mean over all predictions. It is differentiated by
      `params`, compiled and sharded as any function; what is rounded passes its gradient on.

    The loss raises TraceError, and PipelineError for passes that do nothing or give no logits.
    """
    passes = Pipeline.of(pipeline).passes()

    def loss(params: Any, originals: Any, *rest: Any) -> jax.Array:
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (originals, *rest))
        program = trace(function, *shapes)
        student, number = _student(manager.run(program, passes, _HERE)[0]), _logits(program)
        log_p, log_q = (
            jax.nn.log_softmax(jax.tree.leaves(predicts(*given))[number].astype(jnp.float32))
            for predicts, given in ((program, (originals, *rest)), (student, (params, *rest)))
        )
        return _kl(jax.lax.stop_gradient(log_p), log_q)

    return jax.jit(loss)


def _kl(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """The mean of KL(p || q) over all but the last axis."""
    possible = log_p > -jnp.inf  # what the original masks out is nothing to be learned
    difference = jnp.where(possible, log_p - jnp.where(possible, log_q, 0), 0)
    return jnp.sum(jnp.exp(log_p) * difference, axis=-1).mean()


def _student(rewritten: Program) -> Program:
    """The program in which what is rounded passes its gradient on. Raises PipelineError where it
    cannot be learned."""
    if idle := rewritten.remarks_of(NOTHING_DONE):
        raise PipelineError("\n  ".join(idle), hint="leave the pass out")
    if rewritten.stages is not None:
        hint = "leave out stage and what stands behind it"
        raise PipelineError("packed parameters are not those that are learned", hint=hint)
    return rewritten.with_graph(_differentiable(rewritten.graph))


def _logits(program: Program) -> int:
    """The number of the result that is no state. Raises PipelineError where there are several."""
    numbers = [number for number, out in enumerate(program.outputs) if out.updates is None]
    if len(numbers) != 1 or program.graph.outputs[numbers[0]].type.dtype not in FLOATS:
        told = ", ".join(program.outputs[number].name for number in numbers)
        raise PipelineError(
            f"{program.name} is to return logits, and returns {told or 'a state alone'}",
            hint="a state comes back as it was passed: (logits, cache)",
        )
    return numbers[0]


def _differentiable(graph: Graph) -> Graph:
    """`graph` in which what is rounded is a function of what it was."""

    def visit(op: Op, args: tuple[Value, ...]) -> Sequence[Value]:
        moved = with_args(op, args, tuple(map(_differentiable, op.regions)))
        rounded = rounding(moved.results[0]) if len(moved.types) == 1 else None
        if rounded is None:
            return moved.results
        return (make("straight_through", rounded.args[0], moved.results[0]),)

    return rebuilt(graph, visit)
