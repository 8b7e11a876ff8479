"""`auto_shard` on eight CPU devices: the numbers of the unsharded function, whatever the plan."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialect.machine import mesh
from dialect.machine.mesh import TargetError
from examples import gpt, llama, palm
from rewrite import Pipeline, ShardwrightError, Target, auto_shard
from tests.kit import arrays_of, step_of, traced_step

MODELS = {"llama": llama, "palm": palm, "gpt": gpt}
EXACT = "normalize, recognize, carry_cache, {more} plan{{{plan}}}, shard, stage, lower"
BATCH, CONTEXT = 8, 32


def toy(name: str, prompt: int | None = None, unrolled: bool = False):
    """(step, params, cache, tokens)."""
    model, config = MODELS[name], MODELS[name].CONFIGS["toy"]
    how = {"prompt": prompt, "unrolled": unrolled}
    return step_of(model, config, prompt), *arrays_of(model, config, BATCH, CONTEXT, **how)


def largest_difference(one, other) -> float:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(jnp.max(jnp.abs(a.astype("float32") - b.astype("float32")))) for a, b in pairs)


def steps(step, params, cache, tokens, count: int = 3):
    """Logits of some greedy steps, and the last cache."""
    logits = []
    for _ in range(count):
        out, cache = step(params, cache, tokens)
        logits.append(np.asarray(out))
        tokens = jnp.argmax(out, axis=-1).astype(jnp.int32)
    return np.stack(logits), cache


@pytest.mark.parametrize(
    ("name", "plan", "more"),
    [
        ("llama", "ffn=ws1d, attention=heads", ""),
        ("llama", "ffn=ws2d, attention=batch", "cache_layout, first_layer{budget=10.0},"),
        ("palm", "ffn=ws2d, attention=batch", "first_layer{budget=10.0},"),
        ("palm", "ffn=wg_xyz, attention=batch", "cache_layout, unroll,"),
        ("gpt", "ffn=ws1d, attention=heads", "unroll,"),
        ("gpt", "ffn=wg_x, attention=heads", "cache_layout,"),
    ],
)
def test_equals_the_original_for_every_named_partitioning(name, plan, more):
    function, params, cache, tokens = toy(name)
    expected, expected_cache = steps(jax.jit(function), params, cache, tokens)
    step = auto_shard(function, "cpu:8", pipeline=EXACT.format(plan=plan, more=more))
    packed = step.prepare(params, cache, tokens)
    found, found_cache = steps(step, packed, step.adapt(cache), tokens)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert largest_difference(step.restore(found_cache), expected_cache) < 1e-4


def test_heads_split_in_both_axes_are_two_axes_from_their_product_on():
    """Two KV heads of eight queries over x=2 y=4: split as one axis, the heads of a chip would be
    others behind the product than in attention."""
    config = replace(llama.CONFIGS["toy"], kv_heads=2)
    function = step_of(llama, config)
    params, cache, tokens = arrays_of(llama, config, BATCH, CONTEXT)
    pipeline = EXACT.format(plan="ffn=ws1d, attention=heads", more="")
    step = auto_shard(function, "cpu:8", pipeline=pipeline)
    assert step.plan(params, cache, tokens).split("attention") == {
        "kv_heads": ("x",),
        "q_per_kv": ("y",),
    }
    graph = step.program(params, cache, tokens).graph
    pinned = [op for op, _ in graph.walk() if op.name == "constrain" and "x" in op["layout"][-2]]
    assert not [op for op in pinned if 16 in op.types[0].shape]
    found, _ = steps(step, step.prepare(params, cache, tokens), step.adapt(cache), tokens)
    expected, _ = steps(jax.jit(function), params, cache, tokens)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_the_weights_are_split_over_the_mesh():
    function, params, cache, tokens = toy("llama")
    step = auto_shard(
        function, "cpu:8", pipeline=EXACT.format(plan="ffn=ws1d, attention=heads", more="")
    )
    packed = step.prepare(params, cache, tokens)
    layouts = dict(zip(packed.names, (leaf.sharding.spec for leaf in packed.leaves)))
    assert layouts["params/layers/w_gate"] == jax.sharding.PartitionSpec(None, None, ("x", "y"))
    assert layouts["params/layers/w_down"] == jax.sharding.PartitionSpec(None, ("x", "y"), None)
    adapted = step.adapt(cache)
    assert adapted["k"].sharding.spec == jax.sharding.PartitionSpec(
        None, None, None, ("x", "y"), None
    )


def test_raw_parameters_and_caches_are_accepted_and_packed_once():
    function, params, cache, tokens = toy("llama")
    expected, _ = steps(jax.jit(function), params, cache, tokens, 2)
    step = auto_shard(function, "cpu:8", donate_state=False)
    found, _ = steps(step, params, cache, tokens, 2)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    packed = step._known[1]
    step(params, cache, tokens)
    assert step._known[1] is packed


def test_a_state_that_was_donated_is_refused_by_name():
    """Its memory is that of the state that came back; reading it ended the process."""
    function, params, cache, tokens = toy("llama")
    step = auto_shard(function, "cpu:8")
    packed, given = step.prepare(params, cache, tokens), step.adapt(cache)
    _, returned = step(packed, given, tokens)
    with pytest.raises(ShardwrightError, match="cache/k was donated to an earlier step") as error:
        step(packed, given, tokens)
    assert "donate_state=False" in error.value.hint
    with pytest.raises(ShardwrightError, match="cache/k was donated to an earlier step"):
        step.restore(given)
    assert step(packed, returned, tokens)[0].shape == (BATCH, 256)
    assert int(given["position"]) == int(cache["position"])  # a scalar is not donated


def test_a_state_of_other_shapes_waits_for_its_call():
    function, params, cache, tokens = toy("llama")
    step = auto_shard(function, "cpu:8")
    step(params, cache, tokens)
    for other in (jax.tree.map(lambda x: x[:, :4] if x.ndim > 1 else x, cache), {"k": 1}):
        assert step.adapt(other) is other


def test_keys_in_state_and_parameters_draw_what_the_function_draws():
    def sample(params, state, x):
        key, now = jax.random.split(state["key"])
        noise = jax.random.normal(now, x.shape) + jax.random.normal(params["key"], x.shape)
        return x @ params["w"] + noise, {"key": key, "count": state["count"] + 1}

    params = {"w": jnp.ones((4, 4)), "key": jax.random.key(1)}
    state, x = {"key": jax.random.key(0), "count": jnp.zeros(8, jnp.int32)}, jnp.ones((8, 4))
    step = auto_shard(sample, "cpu:8", state=1)
    packed, adapted = step.prepare(params, state, x), step.adapt(state)
    for _ in range(2):
        expected, state = sample(params, state, x)
        found, adapted = step(packed, adapted, x)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (step.restore(adapted)["key"] == state["key"]).all()


def test_packing_waits_for_the_shapes():
    function, params, cache, tokens = toy("palm")
    step = auto_shard(function, "cpu:8")
    packed, adapted = step.prepare(params), step.adapt(cache)
    logits, _ = step(packed, adapted, tokens)
    expected, _ = jax.jit(function)(params, llama_like(cache), tokens)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert packed.raw is None


def llama_like(cache):
    """A fresh cache of the same shapes: the step was given the first one."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), cache)


def test_a_second_call_never_traces_again():
    traces = []
    function, params, cache, tokens = toy("llama")

    def counted(params, cache, tokens):
        traces.append(None)
        return function(params, cache, tokens)

    step = auto_shard(counted, "cpu:8")
    packed = step.prepare(params, cache, tokens)
    cache = step.adapt(cache)
    _, cache = step(packed, cache, tokens)
    known = len(traces)
    _, cache = step(packed, cache, tokens)
    step(packed, cache, tokens)
    assert len(traces) == known


def test_as_a_decorator_with_and_without_arguments():
    function, params, cache, tokens = toy("gpt")
    expected = jax.jit(function)(params, cache, tokens)[0]

    @auto_shard(mesh="cpu:8")
    def named(params, cache, tokens):
        return function(params, cache, tokens)

    @auto_shard
    def bare(params, cache, tokens):
        return function(params, cache, tokens)

    for step in (named, bare):
        np.testing.assert_allclose(
            step(params, llama_like(cache), tokens=tokens)[0], expected, atol=1e-4
        )
    assert named.__name__ == "named"


@pytest.mark.parametrize("kind", ["mesh", "abstract"])
def test_jax_meshes_of_both_kinds(kind):
    function, params, cache, tokens = toy("llama")
    expected = jax.jit(function)(params, cache, tokens)[0]
    if kind == "mesh":
        step = auto_shard(function, jax.make_mesh((2, 4), ("a", "b")))
    else:
        abstract = jax.sharding.AbstractMesh((2, 4), ("a", "b"))
        step = auto_shard(function, abstract, target="cpu:8")
    assert step.plan(params, cache, tokens).mesh == (("a", 2), ("b", 4))
    np.testing.assert_allclose(step(params, cache, tokens)[0], expected, atol=1e-4)


def test_shapes_are_enough_to_look_and_to_compile():
    function, params, cache, tokens = toy("llama")
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (params, cache, tokens)
    )
    step = auto_shard(function, "cpu:8")
    assert "attend" in str(step.program(*shapes).history)
    assert "heads" in step.ir(*shapes)
    assert "CHOSEN" in step.details(*shapes)
    compiled = step.lower(*shapes).compile()
    assert compiled.memory_analysis().alias_size_in_bytes > 0


def test_a_machine_that_is_not_here_is_planned_for_without_its_compiler(monkeypatch):
    monkeypatch.setattr(mesh, "prepare_libtpu", lambda: pytest.fail("libtpu is asked for"))
    monkeypatch.setattr("glob.glob", lambda pattern: [])
    shapes = {"w": jax.ShapeDtypeStruct((8, 8), "float32")}, jax.ShapeDtypeStruct((4, 8), "float32")
    for name, told in (("v5e:2x4", "there are no 8 TPU v5 lite here"), ("h100:8", "h100:8 needs")):
        step = auto_shard(lambda params, x: x @ params["w"], name)
        assert step.explain(*shapes).startswith(f"lambda for {name}: 8 chips, mesh x=2 y=4")
        assert step.plan(*shapes).target == name
        with pytest.raises(TargetError, match=told):
            step.prepare(*shapes)


def test_a_named_tuple_cache_goes_through_unchanged():
    from typing import NamedTuple

    class Cache(NamedTuple):
        total: jax.Array

    def step(params, cache, x):
        y = x @ params["w"]
        return y, Cache(cache.total + y)

    params = {"w": jnp.eye(8)}
    sharded = auto_shard(step, "cpu:8", pipeline="normalize, stage, lower")
    y, cache = sharded(params, Cache(jnp.zeros((2, 8))), jnp.ones((2, 8)))
    assert isinstance(cache, Cache)
    np.testing.assert_array_equal(cache.total, np.ones((2, 8)))


def test_static_arguments():
    def step(params, cache, x, times):
        y = x @ params * times
        return y, cache + y

    sharded = auto_shard(step, "cpu:8", pipeline="normalize, stage, lower", static_argnums=3)
    for times in (2, 3):
        y, _ = sharded(jnp.eye(4), jnp.zeros((2, 4)), jnp.ones((2, 4)), times)
        np.testing.assert_array_equal(y, np.full((2, 4), times))


def test_a_mesh_that_does_not_divide_says_which_and_what_to_do():
    function, params, cache, tokens = toy("llama")
    step = auto_shard(
        function, "cpu:8", pipeline=EXACT.format(plan="ffn=wg_xyz, attention=batch", more="")
    )
    few = jax.tree.map(lambda leaf: leaf[:, :3] if leaf.ndim > 1 else leaf, cache)
    with pytest.raises(ShardwrightError, match=r"batch \(3\) does not divide") as error:
        step.program(params, few, tokens[:3])
    assert "pad batch to 8" in str(error.value)
    assert "llama.py:" in error.value.where and "(decode_step)" in error.value.where


def test_pipelines_by_file_text_and_object(tmp_path):
    function, params, cache, tokens = toy("gpt")
    text = (
        "target cpu:8\nmesh x=2 y=4\ndecode { normalize, recognize, plan, shard, stage, lower }\n"
    )
    path = tmp_path / "serve.pipeline"
    path.write_text(text)
    plans = [
        auto_shard(function, pipeline=given).plan(params, cache, tokens)
        for given in (path, str(path), text, Pipeline.parse(text))
    ]
    assert plans[0] is not None and all(plan == plans[0] for plan in plans)


def test_stage_twice_and_no_pass_at_all():
    function, params, cache, tokens = toy("gpt")
    step = auto_shard(function, "cpu:8", pipeline="normalize, stage, stage, lower")
    with pytest.raises(ShardwrightError, match="cut into stages already") as error:
        step.program(params, cache, tokens)
    assert "`stage` stands once in a pipeline" in error.value.hint
    with pytest.raises(ShardwrightError, match="the pipeline names no pass"):
        auto_shard(function, "cpu:8", pipeline=" ")


def test_a_pipeline_file_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "windows.pipeline"
    path.write_bytes("\ufefftarget cpu:8\r\ndecode {\r\n normalize, stage, lower }\r\n".encode())
    assert [str(each) for each in Pipeline.load(path).passes()] == ["normalize", "stage", "lower"]
    path.write_bytes(path.read_text(encoding="utf-8").encode("utf-16"))
    with pytest.raises(ShardwrightError, match="cannot read the pipeline file"):
        Pipeline.load(path)


@pytest.mark.parametrize("unrolled", [False, True], ids=["scanned", "unrolled"])
@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("llama", "ffn=wg_xyz, attention=batch"),
        ("palm", "ffn=ws2d, attention=heads"),
        ("gpt", "ffn=ws2d, attention=batch"),
    ],
)
def test_prefill_equals_the_original(name, plan, unrolled):
    function, params, cache, tokens = toy(name, 4, unrolled)
    expected, expected_cache = jax.jit(function)(params, cache, tokens)
    more = "first_layer{budget=10.0},"
    step = auto_shard(function, "cpu:8", pipeline=EXACT.format(plan=plan, more=more))
    found, found_cache = step(params, cache, tokens)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert largest_difference(step.restore(found_cache), expected_cache) < 1e-4


def test_the_last_token_is_cut_off_before_the_stream_moves():
    """Not all tokens are exchanged for the sake of one."""
    target = Target("cpu:8", (("x", 2), ("y", 4)))
    passes = "normalize, recognize, carry_cache, plan{ffn=wg_xyz, attention=batch}, shard"
    traced = traced_step(llama, llama.CONFIGS["toy"], BATCH, CONTEXT, prompt=4)
    program = Pipeline.parse(passes).run(traced, target)
    (cut,) = [op for op in program.graph.ops if op.name == "slice" and op.types[0].rank == 3]
    (reader,) = [op for op, _ in program.graph.users[cut.results[0]]]
    assert reader["layouts"] == "batch@x,y 1 d_model"
