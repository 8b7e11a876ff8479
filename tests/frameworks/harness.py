"""The questions asked of every library's decoders; each case is built and traced once."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from axes_tables import axes_of
from case import Case, empty_cache, random_params, random_tokens

import rewrite
from dialect.arrays.dtypes import dtype_of
from dialect.front.api import DEFAULT_PIPELINE
from dialect.naming.axes import infer_axes
from rewrite import Pipeline, auto_shard
from rewrite.ir import Op
from rewrite.program import Input, Program

PHASES = ("decode", "prefill")
SERVED = 8  # sequences at once, so that eight devices may split them
STEPS = 16
EXACT = DEFAULT_PIPELINE
ONCE = EXACT.replace(
    "plan",
    "fold_scales, merge_dots, cache_layout, first_layer{budget=10.0}, flash{query=8, key=16}, plan",
)
QUANTIZED = EXACT.replace(
    "plan",
    "fold_scales, merge_dots, quantize{weights=int8, activations=int8, cache=int8, vocab=true}, "
    "cache_layout, first_layer{budget=10.0}, flash{query=8, key=16}, plan",
)
LAYER = re.compile(r"(?<=/)\d+(?=/)|(?<=layer_)\d+")  # a layer's number in a path
RECOGNIZE = Pipeline.parse("normalize, recognize")


@cache
def built(library: str, model: str, phase: str, **options: Any) -> Case:
    """A case of the module `library`; `options` are those of its `build`. Skips the test where the
    library is not installed."""
    module = pytest.importorskip(library, exc_type=ImportError)
    return module.build(model, phase=phase, **options)


@cache
def recognized(library: str, model: str, phase: str, **options: Any) -> Program:
    case = built(library, model, phase, **options)
    state = None if case.cache is None else 1
    return RECOGNIZE.run(rewrite.trace(case.function, *case.args, params=0, state=state))


# Axes.


def wrong_axes(program: Program, table: str) -> list[str]:
    """The parameters and caches whose axes are not those of the table."""
    axes, wanted = infer_axes(program), axes_of(table)
    found: dict[str, set[str]] = defaultdict(set)
    for value, declared in zip(program.graph.inputs, program.inputs):
        if declared.role != "arg":
            found[LAYER.sub("*", declared.name)].add(axes.show(value))
    roots = {name.partition("/")[0] for name in found}
    assert set(found) == {name for name in wanted if name.partition("/")[0] in roots}
    return [
        f"{name}: {' | '.join(sorted(texts))}, not {wanted[name]}"
        for name, texts in found.items()
        if texts != {wanted[name]}
    ]


def other_axes(program: Program) -> dict[str, str]:
    """The axes of the tokens and positions, and of what is no cache among the outputs."""
    axes, graph = infer_axes(program), program.graph
    given = zip(graph.inputs, program.inputs)
    made = zip(graph.outputs, program.outputs)
    found = {each.name: axes.show(value) for value, each in given if each.role == "arg"}
    for value, each in made:
        if each.updates is None:
            found["out"] = axes.show(value)
    return found


# Recognition.


def recognition(program: Program) -> dict[str, int]:
    """How often a step runs what a decoder is made of."""
    axes = infer_axes(program)
    found: Counter[str] = Counter()

    def kind(op: Op) -> str | None:
        if op.name == "take" and axes.of(op.args[0])[0] == ("vocab",):
            return "embedding"
        if op.name == "contract" and ("vocab",) in axes.of(op.results[0]):
            return "head"
        names = {"rms_norm": "norm", "layer_norm": "norm", "gate": "ffn", "activate": "ffn"}
        return names.get(op.name, op.name if op.name in ("attend", "rope") else None)

    for op, parents in program.graph.walk():
        trips = 1
        for parent in parents:
            trips *= parent.get("length", 1)
        found[kind(op) or "other"] += trips
    return {name: count for name, count in found.items() if name != "other"}


# Numbers.


class Served(NamedTuple):
    """tokens [batch, STEPS], logits [1 + STEPS, batch, vocab], and the last cache."""

    tokens: np.ndarray
    logits: np.ndarray
    cache: Any


def served(
    prefill: Callable[..., Any],
    decode: Callable[..., Any],
    library: str,
    model: str,
    restore: Callable[[Any], Any] = lambda cache: cache,
    tokens: np.ndarray | None = None,
) -> Served:
    """A prefill, and steps behind it: greedy ones, or with the `tokens` that are given.

    `restore` makes the prefill's cache the library's own again.
    """
    case = built(library, model, "prefill", batch=SERVED)
    length = case.tokens.shape[1]
    params, *rest = prompted(library, model)
    out, cache = prefill(params, *rest)
    logits, taken, cache = [out[:, -1]], [], restore(cache)
    for step in range(STEPS):
        greedy = jnp.argmax(logits[-1], axis=-1).astype(jnp.int32)
        taken.append(greedy if tokens is None else tokens[:, step])
        at = jnp.full((SERVED, 1), length + step, jnp.int32)
        out, cache = decode(params, cache, taken[-1][:, None], *positions(case, at))
        logits.append(out[:, -1])
    return Served(np.stack(taken, axis=1), np.stack(logits), cache)


def prompted(library: str, model: str) -> tuple[Any, ...]:
    """A prefill's arguments: weights, an empty cache, a prompt and its positions."""
    case = built(library, model, "prefill", batch=SERVED)
    prompt = random_tokens(case)
    rows = jnp.broadcast_to(jnp.arange(prompt.shape[1], dtype=jnp.int32), prompt.shape)
    return weights(library, model), empty_cache(case), prompt, *positions(case, rows)


def positions(case: Case, rows: jax.Array) -> tuple[jax.Array, ...]:
    """`rows` where the library wants to be given positions."""
    return () if case.positions is None else (rows,)


def drawn(program: Program) -> list[jax.Array]:
    """Weights and caches at random; tokens and positions are three."""
    random = np.random.default_rng(0)

    def draw(declared: Input) -> jax.Array:
        kind, sizes = declared.type.dtype, declared.type.shape
        if kind != "f32":
            return jnp.full(sizes, 3, dtype_of(kind))
        scale = 1.0 if declared.role == "state" else 0.1
        return jnp.asarray(scale * random.standard_normal(sizes), jnp.float32)

    return [draw(each) for each in program.inputs]


@cache
def weights(library: str, model: str) -> Any:
    return random_params(built(library, model, "decode", batch=SERVED))


@cache
def expected(library: str, model: str) -> Served:
    """What the library's own functions serve."""
    steps = (
        jax.jit(built(library, model, phase, batch=SERVED).function) for phase in reversed(PHASES)
    )
    return served(*steps, library, model)


def assert_serves_the_same(
    library: str,
    model: str,
    prefill: Callable[..., Any],
    decode: Callable[..., Any],
    restore: Callable[[Any], Any] = lambda cache: cache,
    restore_last: Callable[[Any], Any] = lambda cache: cache,
) -> None:
    """The same logits and caches as the library's own functions, and the same greedy tokens.

    Where activations are rounded to int8, the last bit of a sum can be a whole step of the
    rounding: jitted or not, the library's own function differs from itself by 0.1 in logits of up
    to 4. There the tokens are given.
    """
    wanted = expected(library, model)
    rounds = model.endswith("_w8a8")
    tokens, tolerance = (wanted.tokens, 0.25) if rounds else (None, 2e-4)
    found = served(prefill, decode, library, model, restore, tokens)
    np.testing.assert_allclose(found.logits, wanted.logits, rtol=1e-4, atol=tolerance)
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    cache = restore_last(found.cache)
    assert jax.tree.structure(cache) == jax.tree.structure(wanted.cache)
    for one, other in zip(jax.tree.leaves(cache), jax.tree.leaves(wanted.cache)):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=tolerance)


def assert_program_serves_the_same(library: str, model: str) -> None:
    """import -> normalize -> recognize -> export is the library's own function."""
    decode, prefill = (recognized(library, model, phase, batch=SERVED) for phase in PHASES)
    assert_serves_the_same(library, model, jax.jit(prefill.__call__), jax.jit(decode.__call__))


def assert_quantised_serves_nearly_the_same(library: str, model: str, mesh: Any) -> None:
    """Weights, activations and cache in eight bits, on eight devices, over the same tokens."""
    wanted = expected(library, model)
    decode, prefill = (
        auto_shard(built(library, model, phase, batch=SERVED).function, mesh, pipeline=QUANTIZED)
        for phase in PHASES
    )
    found = served(prefill, decode, library, model, prefill.restore, wanted.tokens)
    off = np.std(found.logits - wanted.logits) / np.std(wanted.logits)
    assert 1e-4 < off < 0.1


def assert_sharded_serves_the_same(library: str, model: str, mesh: Any, pipeline: str) -> None:
    """The whole exact pipeline, on eight devices, is the library's own function."""
    decode, prefill = (
        auto_shard(built(library, model, phase, batch=SERVED).function, mesh, pipeline=pipeline)
        for phase in PHASES
    )
    assert_serves_the_same(library, model, prefill, decode, prefill.restore, decode.restore)
