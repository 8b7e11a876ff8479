"""Layers in a loop that counts them: `fori_loop` with the layer's place in stacked arrays."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialect.naming.axes import infer_axes
from dialect.planning.decoder import decoder_shape
from examples import llama
from rewrite import Pipeline, Program, auto_shard, trace
from tests.kit import arrays_of, assert_close, shapes_of

CONFIG = llama.CONFIGS["toy"]
BATCH, CONTEXT = 8, 32
INDEX = {
    "dynamic_index_in_dim": partial(jax.lax.dynamic_index_in_dim, keepdims=False),
    "brackets": lambda stack, i: stack[i],
    "counted from one": lambda stack, i: stack[i + 1 - 1],
}


def counted(index: Any, block: Any, x: jax.Array, stacks: Any) -> Any:
    """What `lax.scan` does in the Llama of the examples, with a counter."""
    layers, keys, values = stacks

    def body(i: jax.Array, carry: Any) -> Any:
        x, keys, values = carry
        layer = jax.tree.map(lambda stack: index(stack, i), layers)
        x, (key, value) = block(x, (layer, index(keys, i), index(values, i)))
        return x, keys.at[i].set(key), jax.lax.dynamic_update_index_in_dim(values, value, i, 0)

    x, keys, values = jax.lax.fori_loop(0, keys.shape[0], body, (x, keys, values))
    return x, (keys, values)


@pytest.fixture(params=INDEX)
def step(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A decode step whose loop over layers counts."""

    def decode(params: Any, cache: Any, tokens: jax.Array) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(jax.lax, "scan", partial(counted, INDEX[request.param]))
            return llama.decode_step(CONFIG, params, cache, tokens)

    return decode


def rewritten(step: Any, passes: str) -> Program:
    args = shapes_of(llama, CONFIG, BATCH, CONTEXT)
    return Pipeline.parse(f"normalize, recognize, {passes}").run(trace(step, *args))


def test_weights_are_quantised(step: Any) -> None:
    """`0 weights quantised`, it said, as a weight depended on the counter."""
    history = rewritten(step, "quantize").history
    assert history[-1].notes[0].startswith("7 weights quantised: params/layers/wq")


def test_caches_are_carried_and_updated_in_place(step: Any) -> None:
    program = rewritten(step, "carry_cache")
    assert program.history[-1].notes == (f"2 caches carried through a loop of {CONFIG.layers}",)
    writes = [op for op, _ in program.graph.walk() if op.name == "cache_write"]
    assert [op["axes"] for op in writes] == [(0, 2), (0, 2)]


def test_layers_are_planned_as_those_of_a_scan(step: Any) -> None:
    args = shapes_of(llama, CONFIG, BATCH, CONTEXT)
    scanned = trace(partial(llama.decode_step, CONFIG), *args)
    scanned = Pipeline.parse("normalize, recognize").run(scanned)
    program = rewritten(step, "carry_cache")
    shapes = [decoder_shape(each, infer_axes(each)) for each in (program, scanned)]
    assert shapes[0] == shapes[1]


def test_eight_devices_give_the_same(step: Any) -> None:
    params, cache, tokens = arrays_of(llama, CONFIG, BATCH, CONTEXT)
    expected, kept = jax.jit(step)(params, cache, tokens)
    sharded = auto_shard(step, "cpu:8")
    logits, state = sharded(params, cache, tokens)
    assert_close(logits, expected)
    assert_close(sharded.restore(state)["k"], kept["k"])


@pytest.mark.parametrize(
    ("begin", "end", "step_"), [(1, 4, 1), (0, 3, 1), (0, 4, 1)], ids=["later", "fewer", "all"]
)
def test_other_ranges_are_the_same(begin: int, end: int, step_: int) -> None:
    def function(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(begin, end, lambda i, x: jnp.tanh(x @ w[i * step_]), x)

    w, x = jax.random.normal(jax.random.key(0), (4, 5, 5)), jnp.ones((2, 5))
    program = Pipeline.parse("normalize, recognize").run(trace(function, w, x))
    (loop,) = (op for op in program.graph.ops if op.name == "scan")
    assert len(loop.args) - loop["consts"] - loop["carry"] == 1
    np.testing.assert_allclose(program(w, x), function(w, x), rtol=1e-6)


def test_layers_that_share_weights_are_left_alone() -> None:
    """Every two layers read one row, which is no scan over the stack."""

    def function(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 4, lambda i, x: jnp.tanh(x @ w[i // 2]), x)

    w, x = jax.random.normal(jax.random.key(0), (4, 5, 5)), jnp.ones((2, 5))
    program = Pipeline.parse("normalize, recognize").run(trace(function, w, x))
    np.testing.assert_allclose(program(w, x), function(w, x), rtol=1e-6)
    (loop,) = (op for op in program.graph.ops if op.name == "scan")
    assert len(loop.args) - loop["consts"] - loop["carry"] == 0
