"""The front door: `trace`, `auto_shard`, `per_row`, `sampled`, `accept`, `distill`,
`compile`.

step = auto_shard(decode_step, mesh)
packed, cache = step.prepare(params), step.adapt(cache)
logits, cache = step(packed, cache, tokens)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dialect.compiled.compilation_cache import use_by_default
from dialect.compiled.compiling import Compilable, compiled
from dialect.compiled.resolved import planned, resolve
from dialect.front.step import Step
from dialect.jaxprs import framework  # noqa: F401
from dialect.machine.mesh import quiet_libtpu
from dialect.measured.distilled import distill
from dialect.ops import control, lax, nn, quant, sharding, tensor  # noqa: F401
from dialect.printed import notebook  # noqa: F401
from dialect.tokens.accept import accept
from dialect.tokens.choice import Sampling
from dialect.tokens.sampled import sampled
from dialect.user.calls import Roles, Where, must_be_callable
from dialect.user.per_row import per_row
from dialect.user.tracing import trace
from rewrite.errors import PipelineError
from rewrite.pipeline import Pipeline
from rewrite.program import Program

quiet_libtpu()  # before the first use of JAX starts it

__all__ = ["Sampling", "accept", "auto_shard", "compile", "distill", "per_row", "sampled", "trace"]

DEFAULT_PIPELINE = (
    "retarget, normalize, recognize, roll, carry_cache, absorb, flash, "
    "pad{heads=off, d_ff=off, vocab=off}, plan, shard, stage, lower"
)


def auto_shard(
    function: Callable[..., Any] | None = None,
    mesh: Any = None,
    *,
    target: str | None = None,
    pipeline: Pipeline | str | Path | None = None,
    params: Where | None = None,
    state: Where | Sequence[Where] | None = None,
    static_argnums: int | Sequence[int] = (),
    static_argnames: str | Sequence[str] = (),
    donate_state: bool = True,
    axes: Mapping[str, str] | None = None,
    strict: bool = False,
    phase: str | None = None,
    buckets: Sequence[int] = (),
) -> Any:
    """A sharded `step(params, state, ...)`; usable as a decorator with or without arguments.

    It is called as the function is: by position or name, as a method too.

    - mesh: a jax Mesh, an AbstractMesh (with `target`), or a topology ("v5e:4x4", "v5e-16",
      "cpu:8"); left out, the pipeline's target, that of `jax.set_mesh`, or all devices there are.
    - pipeline: a Pipeline, its text, or a file; without one, the exact passes, planned and sharded.
    - buckets: lengths to which prompts, tokens [batch, length], are padded, exactly: (16, 64, 256).
    - phase: which of its phases, where it has several: "prefill", "decode".
    - params, state: argument numbers or names. Without params they are the first argument with
      arrays; without state, it is what comes back updated.
    - static_argnums, static_argnames: as for `jax.jit`; what is no array is static in any case.
    - axes: what cannot be inferred of the arrays, `{"params/.../wq": "d_model (heads d_head)"}`.
    - strict: what was asked for and not done, or compiled otherwise than planned, is an error.

    Raises TraceError, PipelineError, PlanError with the user's line.
    """
    if function is None:
        return functools.partial(
            auto_shard,
            mesh=mesh,
            target=target,
            pipeline=pipeline,
            params=params,
            state=state,
            static_argnums=static_argnums,
            static_argnames=static_argnames,
            donate_state=donate_state,
            axes=axes,
            strict=strict,
            phase=phase,
            buckets=buckets,
        )
    must_be_callable(function)
    use_by_default()
    if isinstance(pipeline, str) and not pipeline.strip():
        raise PipelineError("the pipeline names no pass", hint="without one the exact passes run")
    chosen = Pipeline.of(pipeline if pipeline is not None else DEFAULT_PIPELINE)
    jax_mesh, machine_target = planned(mesh, target, chosen)
    return Step(
        function,
        jax_mesh,
        machine_target,
        chosen,
        Roles(params, state, static_argnums, static_argnames),
        donate_state=donate_state,
        axes=axes,
        strict=strict,
        phase=phase,
        buckets=buckets,
    )


def compile(program: Program, mesh: Any = None, *, target: str | None = None) -> Any:
    """The `jax.stages.Compiled` of a program that the pipeline has staged and lowered."""
    jax_mesh, _ = resolve(mesh, target, Pipeline(()))
    return compiled(Compilable(program, jax_mesh))[0]
