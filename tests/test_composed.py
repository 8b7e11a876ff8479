"""A step inside functions that JAX transforms, and under the meshes and settings of its caller."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from examples import llama
from rewrite import ShardwrightError, auto_shard
from tests.kit import arrays_of, assert_close

CONFIG = llama.CONFIGS["toy"]
STEPS = 3
# The cache is kept with its axes in another order.
PASSES = "normalize, recognize, carry_cache, cache_layout, plan{ffn=ws1d}, shard, stage, lower"


@pytest.fixture(scope="module")
def args() -> Any:
    return arrays_of(llama, CONFIG, 8, 32)


@pytest.fixture(scope="module")
def step() -> Any:
    return auto_shard(partial(llama.decode_step, CONFIG), "cpu:8", pipeline=PASSES)


def generated(step: Any, params: Any, cache: Any, tokens: jax.Array) -> Any:
    """Everybody's loop: the most likely token is the next."""

    def body(carry: Any, _: None) -> Any:
        cache, token = carry
        logits, cache = step(params, cache, token)
        token = jnp.argmax(logits, -1).astype(token.dtype)
        return (cache, token), token

    (cache, _), made = jax.lax.scan(body, (cache, tokens), None, length=STEPS)
    return made, cache


def test_jit(step: Any, args: Any) -> None:
    expected, kept = llama.decode_step(CONFIG, *args)
    logits, cache = jax.jit(lambda *given: step(*given))(*args)
    assert_close(logits, expected)
    assert_close(cache["k"], kept["k"])


@pytest.mark.parametrize("outside", ["scan", "jit"])
def test_a_loop_over_tokens(step: Any, args: Any, outside: str) -> None:
    expected, kept = generated(partial(llama.decode_step, CONFIG), *args)
    run = partial(generated, step)
    made, cache = (jax.jit(run) if outside == "jit" else run)(*args)
    np.testing.assert_array_equal(made, expected)
    assert_close(cache["v"], kept["v"])


def test_packed_parameters_and_an_adapted_state(step: Any, args: Any) -> None:
    params, cache, tokens = args
    packed = step.prepare(params, cache, tokens)
    expected, kept = generated(partial(llama.decode_step, CONFIG), *args)
    made, state = jax.jit(partial(generated, step))(packed, step.adapt(cache), tokens)
    np.testing.assert_array_equal(made, expected)
    assert_close(step.restore(state)["k"], kept["k"])


def test_packed_parameters_that_are_closed_over(step: Any, args: Any) -> None:
    params, cache, tokens = args
    packed = step.prepare(params, cache, tokens)
    expected, _ = generated(partial(llama.decode_step, CONFIG), *args)
    made, _ = jax.jit(lambda cache, tokens: generated(step, packed, cache, tokens))(cache, tokens)
    np.testing.assert_array_equal(made, expected)


def test_vmap(step: Any, args: Any) -> None:
    params, cache, tokens = args
    several = jnp.stack([tokens, tokens[::-1]])
    plain = jax.vmap(lambda each: llama.decode_step(CONFIG, params, cache, each)[0])(several)
    assert_close(jax.vmap(lambda each: step(params, cache, each)[0])(several), plain)


def test_grad(step: Any, args: Any) -> None:
    params, cache, tokens = args

    def loss(step: Any, params: Any) -> jax.Array:
        return jnp.mean(step(params, cache, tokens)[0] ** 2)

    expected = jax.grad(partial(loss, partial(llama.decode_step, CONFIG)))(params)
    found = jax.grad(partial(loss, step))(params)
    assert_close(found["layers"]["w_up"], expected["layers"]["w_up"])
    assert_close(found["embedding"], expected["embedding"])


def test_eval_shape(step: Any, args: Any) -> None:
    logits, cache = jax.eval_shape(step, *args)
    assert (logits.shape, logits.dtype) == ((8, CONFIG.vocab), np.float32)
    assert cache["k"].shape == args[1]["k"].shape


def test_a_loop_with_a_counter(step: Any, args: Any) -> None:
    """`fori_loop`, with packed parameters and an adapted state in its carry."""
    params, cache, tokens = args
    expected, _ = generated(partial(llama.decode_step, CONFIG), *args)

    def run(packed: Any, state: Any, tokens: jax.Array) -> jax.Array:
        def body(number: Any, carry: Any) -> Any:
            state, token, made = carry
            logits, state = step(packed, state, token)
            token = jnp.argmax(logits, -1).astype(token.dtype)
            return state, token, made.at[number].set(token)

        made = jnp.zeros((STEPS, *tokens.shape), tokens.dtype)
        return jax.lax.fori_loop(0, STEPS, body, (state, tokens, made))[2]

    packed = step.prepare(params, cache, tokens)
    np.testing.assert_array_equal(jax.jit(run)(packed, step.adapt(cache), tokens), expected)


def test_checkpoint_and_forward_derivatives(step: Any, args: Any) -> None:
    params, cache, tokens = args

    def loss(step: Any, params: Any) -> jax.Array:
        return jnp.mean(step(params, cache, tokens)[0] ** 2)

    plain = partial(loss, partial(llama.decode_step, CONFIG))
    found = jax.grad(partial(loss, jax.checkpoint(step)))(params)
    assert_close(found["embedding"], jax.grad(plain)(params)["embedding"])
    tangents = (jax.jvp(each, (params,), (params,))[1] for each in (partial(loss, step), plain))
    assert_close(*tangents)


def test_disabled_jit_is_for_the_callers_own_code(args: Any) -> None:
    params, cache, tokens = args
    expected, _ = generated(partial(llama.decode_step, CONFIG), *args)
    with jax.disable_jit():
        fresh = auto_shard(partial(llama.decode_step, CONFIG), "cpu:8", pipeline=PASSES)
        packed = fresh.prepare(params, cache, tokens)
        made, _ = generated(fresh, packed, fresh.adapt(cache), tokens)
    np.testing.assert_array_equal(made, expected)


# Meshes of the caller: JAX's default axes are Explicit.

MESHES = {
    "explicit": ((2, 4), ("a", "b"), AxisType.Explicit),
    "explicit, another grid": ((8,), ("d",), AxisType.Explicit),
    "auto": ((4, 2), ("a", "b"), AxisType.Auto),
}
BLOCKS = PASSES.replace("plan", "flash{query=4, key=8}, plan")  # with functions of blocks


def mesh_of(name: str) -> jax.sharding.Mesh:
    sizes, names, kind = MESHES[name]
    return jax.make_mesh(sizes, names, axis_types=(kind,) * len(sizes))


@pytest.mark.parametrize("made_for", ["cpu:8", None])
@pytest.mark.parametrize("name", MESHES)
def test_under_a_mesh_of_the_caller(name: str, made_for: str | None, args: Any) -> None:
    params, cache, tokens = args
    expected, kept = generated(partial(llama.decode_step, CONFIG), *args)
    with jax.set_mesh(mesh_of(name)):
        step = auto_shard(partial(llama.decode_step, CONFIG), made_for, pipeline=PASSES)
        packed, state, token = step.prepare(*args), step.adapt(cache), tokens
        for number in range(STEPS):
            logits, state = step(packed, state, token)
            token = jnp.argmax(logits, -1).astype(jnp.int32)
            np.testing.assert_array_equal(token, expected[number])
        assert_close(np.asarray(step.restore(state)["k"]), kept["k"])
        made, cache = jax.jit(partial(generated, step))(params, cache, tokens)
        np.testing.assert_array_equal(made, expected)
        assert_close(np.asarray(cache["v"]), kept["v"])


@pytest.mark.parametrize("name", ["explicit", "auto"])
def test_packed_in_int8_inside_a_jit_under_a_mesh(name: str, args: Any) -> None:
    params, cache, tokens = args
    passes = PASSES.replace("plan", "quantize{weights=int8}, plan")
    with jax.set_mesh(mesh_of(name)):
        step = auto_shard(partial(llama.decode_step, CONFIG), "cpu:8", pipeline=passes)
        packed = step.prepare(params, cache, tokens)
        expected, _ = step(packed, step.adapt(cache), tokens)
        logits, _ = jax.jit(step)(packed, step.adapt(cache), tokens)
        assert_close(np.asarray(logits), np.asarray(expected))


@pytest.mark.parametrize("name", MESHES)
def test_functions_of_blocks_under_a_mesh(name: str) -> None:
    params, cache, tokens = arrays_of(llama, CONFIG, 8, 32, prompt=8)
    prefill = partial(llama.prefill, CONFIG)
    step = auto_shard(prefill, "cpu:8", pipeline=BLOCKS)
    with jax.set_mesh(mesh_of(name)):
        logits, _ = jax.jit(step)(params, cache, tokens)
    assert_close(np.asarray(logits), prefill(params, cache, tokens)[0])


@pytest.mark.parametrize("name", ["explicit", "auto"])
def test_gradients_under_a_mesh(name: str, args: Any) -> None:
    params, cache, tokens = args

    def loss(step: Any, params: Any) -> jax.Array:
        return jnp.mean(step(params, cache, tokens)[0] ** 2)

    expected = jax.grad(partial(loss, partial(llama.decode_step, CONFIG)))(params)
    with jax.set_mesh(mesh_of(name)):
        step = auto_shard(partial(llama.decode_step, CONFIG), "cpu:8", pipeline=PASSES)
        for gradient in (jax.grad, lambda function: jax.jit(jax.grad(function))):
            found = gradient(partial(loss, step))(params)
            assert_close(np.asarray(found["embedding"]), expected["embedding"])
            if name == "explicit":
                assert jax.typeof(found["embedding"]).sharding.mesh.axis_names == ("a", "b"), (
                    gradient
                )
            updated = params["embedding"] - found["embedding"]
            assert_close(np.asarray(updated), params["embedding"] - expected["embedding"])


def test_arrays_with_explicit_shardings(args: Any) -> None:
    params, cache, tokens = args
    split = NamedSharding(mesh_of("explicit"), PartitionSpec("a"))
    tokens = jax.device_put(tokens, split)
    expected, _ = llama.decode_step(CONFIG, params, cache, np.asarray(tokens))
    step = auto_shard(partial(llama.decode_step, CONFIG), "cpu:8", pipeline=PASSES)
    for run in (step, jax.jit(lambda *given: step(*given))):
        logits, _ = run(params, jax.tree.map(jnp.copy, cache), tokens)
        assert_close(np.asarray(logits), expected)


def test_meshes_that_a_step_cannot_be_traced_under(step: Any, args: Any) -> None:
    few = jax.make_mesh((4,), ("q",), devices=jax.devices()[:4], axis_types=(AxisType.Auto,))
    with jax.set_mesh(few), pytest.raises(ShardwrightError, match="x=2 y=4.*another, q=4") as error:
        jax.jit(lambda *given: step(*given))(*args)
    assert "auto_shard(step, mesh)" in error.value.hint
    with jax.set_mesh(few):  # not traced under it
        expected, _ = llama.decode_step(CONFIG, *jax.device_get(args))
        found, _ = step(*jax.device_get(args))
    assert_close(np.asarray(found), np.asarray(expected))
    inside = jax.shard_map(
        lambda *given: step(*given)[0],
        mesh=mesh_of("explicit"),
        in_specs=PartitionSpec(),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    with pytest.raises(ShardwrightError, match="inside jax.shard_map over a=2 b=4"):
        inside(*args)


def test_a_step_is_lowered_for_a_gpu_that_is_not_there(step: Any, args: Any) -> None:
    """As far as XLA, which tunes its kernels on the device: constraints and loops among the ops."""
    exported = jax.export.export(jax.jit(step), platforms=("cuda",))(*args)
    assert exported.platforms == ("cuda",) and exported.nr_devices == 8
    assert [leaf.shape for leaf in exported.out_avals][0] == (8, CONFIG.vocab)
    assert "stablehlo.while" in exported.mlir_module() and "mesh" in exported.mlir_module()


def test_a_jit_of_other_devices_names_those_of_the_step(step: Any, args: Any) -> None:
    """It is JAX that refuses it, outside of the step: what it prints is the name of a function."""

    def lowered(mesh: jax.sharding.Mesh) -> Any:
        there = NamedSharding(mesh, PartitionSpec())
        run = jax.jit(lambda *given: step(*given)[0], in_shardings=(None, None, there))
        return run.lower(*args)

    assert lowered(step.mesh).out_info.shape == (8, CONFIG.vocab)
    with pytest.raises(ValueError, match="on_all_devices_of_the_step"):
        lowered(jax.make_mesh((4,), ("q",), devices=jax.devices()[:4]))


def test_a_state_on_another_grid_is_refused_inside_a_jit(args: Any) -> None:
    params, cache, tokens = args
    with jax.set_mesh(mesh_of("explicit, another grid")):
        step = auto_shard(partial(llama.decode_step, CONFIG), "cpu:8", pipeline=PASSES)
        packed = step.prepare(*args)
        with pytest.raises(ShardwrightError, match="the state lies on the mesh x=2 y=4"):
            jax.jit(step)(packed, step.adapt(cache), tokens)
