"""A loop over tokens: prefill and decode steps in one function, with one copy of the weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialect.machine.mesh import MeshSpec
from dialect.naming.axes import infer_axes
from dialect.planning.decoder import decoder_shape
from dialect.planning.partitionings import partition
from dialect.planning.workload import Workload
from examples import llama
from rewrite import Pipeline, Program, auto_shard, trace
from tests.kit import arrays_of, shapes_of

BATCH, PROMPT, STEPS, CONTEXT = 8, 16, 32, 64
CONFIG = llama.CONFIGS["toy"]


def generate(params: Any, cache: Any, prompt: jax.Array) -> Any:
    """Prefill, and a loop of decode steps that picks the most likely token."""
    logits, cache = llama.prefill(CONFIG, params, cache, prompt)

    def step(carry: Any, _: None) -> Any:
        cache, token = carry
        logits, cache = llama.decode_step(CONFIG, params, cache, token)
        token = jnp.argmax(logits, -1).astype(jnp.int32)
        return (cache, token), token

    token = jnp.argmax(logits, -1).astype(jnp.int32)
    (cache, _), tokens = jax.lax.scan(step, (cache, token), None, length=STEPS)
    return tokens, cache


def sample_until_done(params: Any, cache: Any, prompt: jax.Array, key: jax.Array) -> Any:
    """Prefill, and a loop of decode steps that samples until every sequence has ended."""

    def goes_on(carry: Any) -> jax.Array:
        count, ended, *_ = carry
        return (count < STEPS) & ~jnp.all(ended)

    def step(carry: Any) -> Any:
        count, ended, cache, token, tokens, key = carry
        logits, cache = llama.decode_step(CONFIG, params, cache, token)
        key, drawn = jax.random.split(key)
        token = jnp.where(ended, 0, jax.random.categorical(drawn, logits)).astype(jnp.int32)
        tokens = jax.lax.dynamic_update_slice(tokens, token[:, None], (0, count))
        return count + 1, ended | (token == 1), cache, token, tokens, key

    logits, cache = llama.prefill(CONFIG, params, cache, prompt)
    token = jnp.argmax(logits, -1).astype(jnp.int32)
    tokens = jnp.zeros((BATCH, STEPS), jnp.int32)
    first = jnp.int32(0), jnp.zeros(BATCH, bool), cache, token, tokens, key
    _, _, cache, _, tokens, _ = jax.lax.while_loop(goes_on, step, first)
    return tokens, cache


def continued(params: Any, cache: Any, token: jax.Array) -> Any:
    """The loop alone, whose table is read in its body only."""

    def step(carry: Any, _: None) -> Any:
        cache, token = carry
        logits, cache = llama.decode_step(CONFIG, params, cache, token)
        return (cache, jnp.argmax(logits, -1).astype(jnp.int32)), None

    (cache, token), _ = jax.lax.scan(step, (cache, token), None, length=STEPS)
    return token, cache


def test_a_table_that_is_read_in_a_loop_alone_is_the_vocabulary() -> None:
    """It was called positions, and no logits were planned."""
    params, cache, token = shapes_of(llama, CONFIG, BATCH, CONTEXT)
    program = trace(continued, params, cache, token, params=0, state=1)
    program = Pipeline.parse("normalize, recognize").run(program)
    shape = decoder_shape(program, infer_axes(program))
    assert (shape.vocab, shape.steps) == (CONFIG.vocab, STEPS) and shape.is_costed


def generating(passes: str, function: Any = generate) -> Program:
    params, cache, _ = shapes_of(llama, CONFIG, BATCH, CONTEXT)
    args = [params, cache, jax.ShapeDtypeStruct((BATCH, PROMPT), "int32")]
    if function is sample_until_done:
        args.append(jax.eval_shape(lambda: jax.random.key(0)))
    program = trace(function, *args, params=0, state=1)
    return Pipeline.parse(f"normalize, recognize{passes}").run(program)


@pytest.mark.parametrize("function", [generate, sample_until_done])
@pytest.mark.parametrize("passes", ["", ", roll, carry_cache"])
def test_weights_are_read_in_every_step_and_stored_once(passes: str, function: Any) -> None:
    """They were counted once a step: 60 GiB for a generate function of a step of 0.26. A loop that
    ends by a condition runs as often as its counter allows."""
    program = generating(passes, function)
    shape = decoder_shape(program, infer_axes(program))
    layers = CONFIG.layers
    assert shape.steps == 1 + STEPS
    assert [(block.times, block.stored, block.time) for block in shape.blocks] == [
        (layers, layers, None),
        (layers, layers, None),
        (layers * STEPS, 0, 1),
        (layers * STEPS, 0, 1),
    ]
    alone = MeshSpec((("x", 1),))
    memory = Workload(shape, alone, partition("ws1d", "heads", shape, alone)).memory()
    params, cache, _ = shapes_of(llama, CONFIG, BATCH, CONTEXT)
    assert memory["cache"] == sum(x.size * x.dtype.itemsize for x in (cache["k"], cache["v"]))
    matrices = [w for w in jax.tree.leaves(params["layers"]) if len(w.shape) > 2]
    assert memory["weights"] == sum(w.size * w.dtype.itemsize for w in matrices)


@pytest.mark.parametrize("function", [generate, sample_until_done])
def test_what_is_the_same_in_every_step_is_packed_once(function: Any) -> None:
    """A weight in another shape was packed as often as the loop has steps."""
    program = Pipeline.parse("stage").run(generating(", roll, carry_cache", function))
    packed, given = (
        sum(each.type.bytes for each in inputs if each.role == "param")
        for inputs in (program.step_inputs, program.inputs)
    )
    assert packed == given


def test_eight_devices_generate_the_same_tokens() -> None:
    params, cache, _ = arrays_of(llama, CONFIG, BATCH, CONTEXT)
    prompt = jax.random.randint(jax.random.key(1), (BATCH, PROMPT), 0, CONFIG.vocab)
    expected, _ = jax.jit(generate)(params, cache, prompt)
    tokens, _ = auto_shard(generate, "cpu:8")(params, cache, prompt)
    np.testing.assert_array_equal(tokens, expected)


def test_eight_devices_sample_the_same_tokens_until_all_have_ended() -> None:
    params, cache, _ = arrays_of(llama, CONFIG, BATCH, CONTEXT)
    prompt = jax.random.randint(jax.random.key(1), (BATCH, PROMPT), 0, CONFIG.vocab)
    expected, _ = jax.jit(sample_until_done)(params, cache, prompt, jax.random.key(2))
    step = auto_shard(sample_until_done, "cpu:8")
    tokens, _ = step(params, cache, prompt, jax.random.key(2))
    np.testing.assert_array_equal(tokens, expected)
    note = (
        "a loop that ends by a condition is planned as 32 trips, the most that its counter allows"
    )
    assert note in step.details(params, cache, prompt, jax.random.key(2))


def test_what_a_while_makes_of_parameters_alone_is_made_once() -> None:
    def squared(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x + (w @ w).sum(), x)

    w = jax.ShapeDtypeStruct((4, 4), "float32")
    program = trace(squared, w, jax.ShapeDtypeStruct((3,), "float32"), params=0)
    program = Pipeline.parse("normalize, stage").run(program)
    assert [op.name for op in program.stages.prepare.ops] == ["contract", "reduce_sum"]
    (loop,) = (op for op in program.graph.ops if op.name == "while")
    assert [op.name for op in loop.regions[1].ops] == ["add"]
    assert [each.type.shape for each in program.graph.inputs] == [(), (3,)]
