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


def generating(passes: str) -> Program:
    params, cache, _ = shapes_of(llama, CONFIG, BATCH, CONTEXT)
    prompt = jax.ShapeDtypeStruct((BATCH, PROMPT), "int32")
    program = trace(generate, params, cache, prompt, params=0, state=1)
    return Pipeline.parse(f"normalize, recognize{passes}").run(program)


@pytest.mark.parametrize("passes", ["", ", roll, carry_cache"])
def test_weights_are_read_in_every_step_and_stored_once(passes: str) -> None:
    """They were counted once a step: 60 GiB for a generate function of a step of 0.26."""
    program = generating(passes)
    shape = decoder_shape(program, infer_axes(program))
    layers = CONFIG.layers
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


def test_what_is_the_same_in_every_step_is_packed_once() -> None:
    """A weight in another shape was packed as often as the loop has steps."""
    program = Pipeline.parse("stage").run(generating(", roll, carry_cache"))
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
