"""What many tests do: trace, run passes, run what comes out, and compare.

One name, one meaning: what only one file does stands in that file. What a word means here:

    a model    a module of examples/, with `init_params`, `init_cache`, `prefill`, `decode_step`
    a case     one of those models at sizes that collide on purpose (tests/tiny.py)
    a decoder  layers written out one by one, as libraries do it (tests/decoders.py)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialect.arrays import primitives
from dialect.front.cli import main
from dialect.jaxprs.jaxpr import trace_graph
from dialect.normal.normal_form import RULES as NORMAL
from passes.recognize import FIRST
from passes.recognize import RULES as RECOGNIZE
from rewrite import Pipeline, Program, Target, opdef, runtime, trace
from rewrite.driver import rewrite
from rewrite.ir import Graph
from rewrite.verify import verify
from tests.fuzz.interpreted import interpreted, interpreted_function, interpreted_program

# The models of examples/.


def arrays_of(
    model: Any,
    config: Any,
    batch: int,
    context: int,
    *,
    prompt: int | None = None,
    unrolled: bool = False,
) -> tuple[Any, Any, jax.Array]:
    """(parameters, an empty cache, tokens): `prompt` of them for each sequence, or the next one."""
    layers = {"unrolled": True} if unrolled else {}
    params = model.init_params(config, jax.random.key(0), **layers)
    shape = (batch, prompt) if prompt else (batch,)
    tokens = jnp.arange(np.prod(shape), dtype=jnp.int32).reshape(shape) % config.vocab
    return params, model.init_cache(config, batch, context, **layers), tokens


def shapes_of(model: Any, config: Any, batch: int, context: int, **how: Any) -> tuple[Any, ...]:
    """The shapes of `arrays_of`, which may be those of any machine."""
    return jax.eval_shape(partial(arrays_of, model, config, batch, context, **how))


def step_of(model: Any, config: Any, prompt: int | None = None) -> Callable[..., Any]:
    """What is called with `arrays_of`."""
    return partial(model.prefill if prompt else model.decode_step, config)


def traced_step(model: Any, config: Any, batch: int, context: int, **how: Any) -> Program:
    step = step_of(model, config, how.get("prompt"))
    return trace(step, *shapes_of(model, config, batch, context, **how))


# Graphs.


def flat(function: Callable[..., Any]) -> Callable[..., list[Any]]:
    return lambda *args: jax.tree.leaves(function(*args))


def graph_of(function: Callable[..., Any], *args: Any) -> Graph:
    return trace_graph(flat(function), *args)


def recognized_graph(graph: Graph) -> Graph:
    """In normal form, and then with what recognition finds; it is as well-formed as before."""
    made = rewrite(rewrite(rewrite(graph, NORMAL), FIRST), (*NORMAL, *RECOGNIZE))
    verify(made)
    return made


def op_of(name: str) -> Callable[..., Any]:
    """A function that traces to one op of ours."""
    return primitives.call(name, opdef.lookup(name).reference)


def op_names(made: Program | Graph) -> list[str]:
    """Those of the step, bodies of loops included."""
    graph = made.graph if isinstance(made, Program) else made
    return [op.name for op, _ in graph.walk()]


# Passes.


def after(program: Program, passes: str, target: Target | None = None) -> Program:
    return Pipeline.parse(passes).run(program, target)


def traced_after(passes: str, function: Callable[..., Any], *args: Any) -> Program:
    return after(trace(function, *args), passes)


def notes_of(program: Program, name: str = "") -> tuple[str, ...]:
    """What the last pass of this name, or the last pass, had to say."""
    return [step for step in program.history if step.text.startswith(name)][-1].notes


# Numbers.


def normal(random: np.random.Generator, *shape: int, dtype: Any = "float32") -> jax.Array:
    return jnp.asarray(random.standard_normal(shape), dtype)


def at_once(function: Any, *args: Any) -> Any:
    """A function or a program on arrays, compiled whole: op by op, XLA would compile every op."""
    return jax.jit(lambda *given: function(*given))(*args)


def run(function: Any, *args: Any) -> Any:
    """A function, a program or a graph on arrays, in NumPy: no code of XLA's runs.

    The tests' programs are many, and each runs once: any compilation costs more than the numbers.
    """
    if isinstance(function, Graph):
        return interpreted(function, args)
    if isinstance(function, Program):
        framework, (given, made) = runtime.framework(), function.tree
        leaves = interpreted_program(function, framework.flatten(given, args))
        return framework.unflatten(made, leaves)
    shape = jax.eval_shape(function, *args)
    return jax.tree.unflatten(jax.tree.structure(shape), interpreted_function(function, *args))


def assert_close(found: Any, wanted: Any, rtol: float = 2e-5, atol: float | None = None) -> None:
    """Equal pytrees: structure, dtypes, shapes, and numbers to a tolerance (`atol` is `rtol`)."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        wide = np.float64 if one.dtype.kind == "V" else one.dtype  # bfloat16 is no float to NumPy
        one, other = (np.asarray(each).astype(wide) for each in (one, other))
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol if atol is None else atol)


def assert_gives_the_same(program: Program, function: Any, *args: Any) -> None:
    assert_close(run(program, *args), run(function, *args))


def assert_same_bits(found: Any, wanted: Any) -> None:
    """Equal pytrees: structure, dtypes, shapes, and every bit."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
        one, other = np.asarray(one), np.asarray(other)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == other.tobytes(), (one, other)


def assert_same_shards(found: Any, wanted: Any, atol: float = 0.0) -> None:
    """Equal sequences of arrays: dtypes, shapes, where the parts lie, and every bit or `atol`."""
    for one, other in zip(found, wanted, strict=True):
        assert one.sharding == other.sharding
        if atol:
            assert_close(one, other, 0, atol)
        else:
            assert_same_bits(one, other)


# The command line.

Captured = pytest.CaptureFixture[str]


def printed(capsys: Captured, *argv: str) -> str:
    """What a command line that succeeds prints."""
    assert main(argv) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def complaint(capsys: Captured, *argv: str) -> str:
    """What a command line that fails says; nothing else is printed, and no traceback."""
    assert main(argv) == 1
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("error: ") and "Traceback" not in error
    return error
