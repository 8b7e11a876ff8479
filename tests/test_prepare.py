"""`prepare` part by part: the bits of one function, and never two full copies."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialect.compiled.compiling import Compilable, compiled_stage
from dialect.prepared import streaming
from dialect.prepared.checkpoint_trees import as_tree, stacked
from dialect.prepared.originals import Lazy
from dialect.prepared.packed_schema import PackedError
from dialect.prepared.streaming import Preparation
from dialect.staging.prepare_parts import Part, Read, in_order, independent_groups, parts, separated
from examples import gpt, llama, palm
from rewrite import ShardwrightError, auto_shard
from rewrite.ir import Graph, Type, new_input
from rewrite.text import parse_graph, parse_program, show_graph
from tests.kit import arrays_of, assert_same_shards, step_of

MODELS = {"llama": llama, "palm": palm, "gpt": gpt}
SERVE = (
    "normalize, recognize, roll, carry_cache, quantize{{weights={weights}}}, "
    "{more} plan{{ffn=ws1d, attention=heads}}, shard, stage, lower"
)
FIRST = "first_layer{budget=10.0},"


def toy(name: str, unrolled: bool = False) -> Any:
    """(step, params, the other arguments) of a toy decoder."""
    model, config = MODELS[name], MODELS[name].CONFIGS["toy"]
    params, *rest = arrays_of(model, config, 8, 32, unrolled=unrolled)
    return step_of(model, config), params, rest


def preparation(step: Any, *args: Any, grain_bytes: int = 0) -> Preparation:
    """The `prepare` of a step, in parts as small as can be."""
    program = step.program(*args)
    inputs = [each for each in program.inputs if each.role == "param"]
    shardings = Compilable(program, step.mesh).shardings("param")
    return Preparation(program.stages.prepare, inputs, shardings, grain_bytes)


def assert_equal(found: Any, expected: Any) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


# The same as in one function.


@pytest.mark.parametrize(
    ("name", "weights", "more", "unrolled"),
    [
        ("llama", "int8", "", False),
        ("llama", "int4", FIRST, False),
        ("llama", "int8", FIRST, True),
        ("palm", "int8", "", True),
        ("gpt", "int8", "", False),
        ("gpt", "int8", "unroll,", False),
    ],
)
def test_the_same_bits_as_in_one_function(
    name: str, weights: str, more: str, unrolled: bool
) -> None:
    function, params, rest = toy(name, unrolled)
    step = auto_shard(function, "cpu:8", pipeline=SERVE.format(weights=weights, more=more))
    made = preparation(step, params, *rest)
    whole = compiled_stage(made.graph, made.shardings)
    assert len(made.parts) > 5
    assert_same_shards(made(jax.tree.leaves(params)), whole(jax.tree.leaves(params)))


@pytest.mark.parametrize("mesh", ["cpu:1", "cpu:8"])
def test_tables_of_products_may_be_summed_in_another_order_over_chips(mesh: str) -> None:
    function, params, rest = toy("palm")
    step = auto_shard(function, mesh, pipeline=SERVE.format(weights="int8", more=FIRST))
    made = preparation(step, params, *rest)
    whole = compiled_stage(made.graph, made.shardings)
    found, expected = made(jax.tree.leaves(params)), whole(jax.tree.leaves(params))
    assert_same_shards(found, expected, 0.0 if mesh == "cpu:1" else 1e-5)


def test_int4_weights_run_on_a_cpu() -> None:
    function, params, rest = toy("llama")
    step = auto_shard(function, "cpu:8", pipeline=SERVE.format(weights="int4", more=""))
    program = step.program(params, *rest)
    logits, _ = step(step.prepare(params, *rest), *rest)
    fresh = llama.init_cache(llama.CONFIGS["toy"], 8, 32)
    expected, _ = jax.jit(program)(params, fresh, rest[1])
    np.testing.assert_allclose(logits, expected, atol=2e-4)


# How it is cut.


def prepared(text: str) -> Graph:
    return parse_graph(text)


QUANTIZED_LAYERS = """graph (%0 : f32[6,8,16], %1 : f32[6,16,8]) {
  %2:3 = scan(%0, %1) {carry=0, consts=0, length=6, reverse=false, unroll=1} :
 f32[6,16], f32[6,8,16], f32[6,8]
    (%3 : f32[8,16], %4 : f32[16,8]) {
      %5 = reduce_max(%3) {axes=(0,)} : f32[16]
      %6 = broadcast_in_dim(%5) {broadcast_dimensions=(1,), shape=(8, 16)} : f32[8,16]
      %7 = div(%3, %6) : f32[8,16]
      %8 = reduce_max(%4) {axes=(0,)} : f32[8]
      return %5, %7, %8
    }
  return %2.0, %2.1, %2.2
}""".replace("\n f32[6,16]", " f32[6,16]")


def test_a_loop_becomes_one_for_each_weight() -> None:
    graph = separated(prepared(QUANTIZED_LAYERS))
    assert [op.name for op in graph.ops] == ["scan", "scan"]
    assert independent_groups(graph) == [[0, 1], [2]]
    first, second = parts(graph, 0)
    assert first.makes == (0, 1) and second.makes == (2,)
    assert first.fixed == () and first.layers == tuple((Read(0, (i, i + 1)),) for i in range(6))
    assert show_graph(second.graph) == (
        "graph (%0 : f32[1,16,8]) {\n"
        "  %1 = reshape(%0) {new_sizes=(16, 8)} : f32[16,8]\n"
        "  %2 = reduce_max(%1) {axes=(0,)} : f32[8]\n"
        "  return %2\n}"
    )


def test_rows_are_read_alone_and_stacks_by_their_layers() -> None:
    graph = prepared("""graph (%0 : f32[6,8], %1 : f32[8], %2 : f32[8], %3 : f32[8]) {
  %4 = slice(%0) {limit_indices=(3, 8), start_indices=(1, 0)} : f32[2,8]
  %5 = neg(%4) : f32[2,8]
  %6 = stack(%1, %2, %3) {axis=0} : f32[3,8]
  %7 = slice(%6) {limit_indices=(3, 8), start_indices=(1, 0)} : f32[2,8]
  return %5, %7
}""")
    rows, stack = parts(graph, 0)
    assert rows.fixed == (Read(0, (1, 3)),) and [op.name for op in rows.graph.ops] == ["neg"]
    assert stack.layers == ((Read(2),), (Read(3),)) and not stack.graph.ops


def test_small_parts_run_together_and_a_small_shared_op_twice() -> None:
    text = """graph (%0 : f32[1,4], %1 : f32[64,4], %2 : f32[64,4]) {
  %3 = neg(%0) : f32[1,4]
  %4 = mul(%1, %3) : f32[64,4]
  %5 = mul(%2, %3) : f32[64,4]
  return %4, %5
}"""
    graph = prepared(text)
    assert independent_groups(graph) == [[0], [1]]
    assert [part.makes for part in parts(graph, 0)] == [(0,), (1,)]
    assert [part.makes for part in parts(graph, 1 << 20)] == [(0, 1)]


def part(makes: int, made: int, *read: tuple[int, int]) -> Part:
    """A part that makes `made` bytes of originals (number, bytes)."""
    inputs = tuple(new_input(Type("i8", (size,))) for _, size in read)
    made_of = new_input(Type("i8", (made,)))
    return Part(Graph(inputs, (made_of,)), (makes,), tuple(Read(number) for number, _ in read))


def test_what_frees_most_for_least_comes_first() -> None:
    halves = [part(0, 500, (0, 1000)), part(1, 50, (1, 100)), part(2, 5, (2, 10))]
    grows, shares = part(3, 900, (3, 100)), part(4, 1, (1, 100))
    ordered = in_order([grows, *halves, shares], [1000, 100, 10, 100])
    assert [each.makes[0] for each in ordered] == [2, 1, 4, 0, 3]
    kept = in_order(halves, [0, 0, 0])
    assert [each.makes[0] for each in kept] == [0, 1, 2]  # the largest excess over what stays


def test_parts_of_equal_structure_are_compiled_once() -> None:
    function, params, rest = toy("gpt")
    step = auto_shard(
        function, "cpu:1", pipeline="normalize, recognize, unroll, quantize, stage, lower"
    )
    made = preparation(step, params, *rest)
    made(jax.tree.leaves(params))
    with_work = [each for each in made.parts if each.graph.ops]
    assert len(made._compiled) < len(with_work) / 2


# Whose the originals are.


def test_the_users_arrays_live_on_unless_they_are_given_away() -> None:
    function, params, rest = toy("llama")
    step = auto_shard(function, "cpu:8", pipeline=SERVE.format(weights="int8", more=""))
    kept = step.prepare(params, *rest)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))
    given = step.prepare(params, *rest, donate=True)
    assert_same_shards(given.leaves, kept.leaves)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(params))


def test_an_original_that_is_packed_as_it_is_lives_on_in_the_result() -> None:
    """On one device nothing moves, and the array that goes in comes out."""
    function, params, rest = toy("llama")
    step = auto_shard(function, "cpu:1", pipeline="normalize, stage, lower")
    kept = [np.array(leaf) for leaf in step.prepare(params, *rest).leaves]
    packed = step.prepare(params, *rest, donate=True)
    assert_equal(packed.leaves, kept)


def test_one_array_as_two_parameters_is_given_away_once() -> None:
    def step(params: Any, cache: Any, x: Any) -> Any:
        y = x @ params["a"] @ params["b"].T
        return y, cache + y

    shared = jnp.arange(64.0).reshape(8, 8)
    sharded = auto_shard(step, "cpu:8", pipeline="normalize, quantize, stage, lower")
    rest = (jnp.zeros((2, 8)), jnp.ones((2, 8)))
    kept = sharded.prepare({"a": shared, "b": shared}, *rest)
    packed = sharded.prepare({"a": shared, "b": shared}, *rest, donate=True)
    assert shared.is_deleted()
    assert_same_shards(packed.leaves, kept.leaves)


def test_giving_away_may_wait_for_the_first_call() -> None:
    function, params, rest = toy("palm")
    step = auto_shard(function, "cpu:8", pipeline=SERVE.format(weights="int8", more=""))
    packed = step.prepare(params, donate=True)
    assert not params["embedding"].is_deleted()
    step(packed, *rest)
    assert params["embedding"].is_deleted() and packed.raw is None
    _, params, rest = toy("palm")
    assert_same_shards(packed.leaves, step.prepare(params, *rest).leaves)


# What is read when it is needed.


class Recorded:
    """Parameters that note what is read of them, in bytes at a time."""

    def __init__(self, params: Any) -> None:
        self.bytes: list[int] = []
        self.params = jax.tree.map(self.lazy, params)

    def lazy(self, leaf: Any) -> Lazy:
        array = np.asarray(leaf)

        def read(index: tuple[slice, ...]) -> np.ndarray:
            found = array[index]
            self.bytes.append(found.nbytes)
            return found

        return Lazy(array.shape, array.dtype, read)


def test_lazy_originals_are_read_a_layer_and_a_share_at_a_time(monkeypatch: Any) -> None:
    monkeypatch.setattr(Preparation.__init__, "__defaults__", (0,))
    function, params, rest = toy("llama")
    step = auto_shard(function, "cpu:8", pipeline=SERVE.format(weights="int8", more=""))
    expected = step.prepare(params, *rest)
    recorded = Recorded(params)
    found = step.prepare(recorded.params, *rest)
    assert_same_shards(found.leaves, expected.leaves)
    layer = params["layers"]["w_gate"].nbytes // 3
    assert max(recorded.bytes) <= layer // 8


def test_host_arrays_are_copied_and_memory_mapped_ones_read(tmp_path: Path) -> None:
    function, params, rest = toy("gpt")
    step = auto_shard(function, "cpu:8", pipeline=SERVE.format(weights="int8", more=""))
    expected = step.prepare(params, *rest)
    host = jax.tree.map(np.array, params)
    found = step.prepare(host, *rest)
    for leaf in jax.tree.leaves(host):
        leaf[...] = 7  # the packed ones are the step's own
    assert_same_shards(found.leaves, expected.leaves)
    np.save(tmp_path / "embedding.npy", np.asarray(params["embedding"]))
    mapped = {**params, "embedding": np.load(tmp_path / "embedding.npy", mmap_mode="r")}
    assert_same_shards(step.prepare(mapped, *rest).leaves, expected.leaves)


def test_lazy_arrays_are_stacked_and_told_from_their_shapes() -> None:
    layers = [Recorded(np.full((2, 3), number, "float32")) for number in range(4)]
    whole = stacked([each.params for each in layers])
    assert whole.shape == (4, 2, 3)
    part = whole[slice(1, 3), slice(0, 1), slice(0, 3)]
    np.testing.assert_array_equal(part[:, 0, 0], [1, 2])
    assert [each.bytes for each in layers] == [[], [12], [12], []]
    shapes = {"layers": {"w": jax.ShapeDtypeStruct((4, 2, 3), jnp.float32)}}
    assert as_tree(shapes, {"layers/w": whole})["layers"]["w"] is whole
    with pytest.raises(ShardwrightError, match="there is no array 'layers/w'"):
        as_tree(shapes, {"layers/v": whole})
    with pytest.raises(ShardwrightError, match=r"layers/w has the shape \(3, 2, 3\), not"):
        as_tree(shapes, {"layers/w": stacked([each.params for each in layers[:3]])})
    other = Lazy((2, 3), np.dtype("int8"), lambda index: None, "b")
    with pytest.raises(ShardwrightError, match=r"b is int8\[2, 3\]: they cannot be stacked"):
        stacked([layers[0].params, other])


def test_a_reader_that_returns_something_else_is_told() -> None:
    wrong = Lazy((4, 8), np.dtype("float32"), lambda index: np.zeros((4, 8)), "layers.0.w")
    with pytest.raises(
        ShardwrightError,
        match=r"layers.0.w was read as float64\[4, 8\], and should be float32\[2, 8\]",
    ):
        wrong[slice(0, 2), slice(0, 8)]


# What is refused.


def test_other_originals_are_refused_by_name() -> None:
    function, params, rest = toy("llama")
    step = auto_shard(function, "cpu:8", pipeline=SERVE.format(weights="int8", more=""))
    step.prepare(params, *rest)
    halved = {**params, "head": params["head"].astype("bfloat16")}
    with pytest.raises(
        ShardwrightError,
        match=r"params/head is bf16\[64,256\], the program has f32\[64,256\]",
    ):
        step.prepare(halved)


def test_changed_packed_arrays_are_refused_by_name() -> None:
    function, params, rest = toy("llama")
    step = auto_shard(function, "cpu:8", pipeline=SERVE.format(weights="int8", more=""))
    packed = step.prepare(params, *rest)
    cast = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), packed)
    with pytest.raises(PackedError, match="params/embedding is bfloat16") as error:
        step(cast, *rest)
    assert "should be f32[256,64]" in str(error.value)


def test_another_programs_parameters_are_refused_with_the_difference(tmp_path: Path) -> None:
    function, params, rest = toy("llama")
    eight, four, spread = (
        auto_shard(
            function, "cpu:8", pipeline=SERVE.format(weights=weights, more="").replace(*plan)
        )
        for weights, plan in (("int8", ("", "")), ("int4", ("", "")), ("int8", ("ws1d", "ws2d")))
    )
    packed = eight.prepare(params, *rest)
    with pytest.raises(PackedError) as error:
        four(packed, *rest)
    told = str(error.value)
    assert "packed: params/layers/wq.quantized is i8[3,64,16,8] there, i4[3,64,16,8] here" in told
    assert "pipeline: quantize{weights=int4} only here" in told
    folder = tmp_path / "packed.safetensors"
    packed.save(folder)
    with pytest.raises(PackedError) as error:
        spread.load(folder, params, *rest)
    told = str(error.value)
    assert "plan: ws1d/heads there, ws2d/heads here" in told
    assert "packed: params/embedding has the sharding xy _ there, y x here" in told


def test_steps_whose_parameters_lie_alike_share_them() -> None:
    """Prefill and decode, or another batch: what differs in their plans is not in the weights."""
    function, params, rest = toy("llama")
    pipeline = SERVE.format(weights="int8", more="")
    packed = auto_shard(function, "cpu:8", pipeline=pipeline).prepare(params, *rest)
    other = auto_shard(function, "cpu:8", pipeline=pipeline.replace("=heads", "=batch"))
    found, _ = other(packed, *rest)
    _, params, rest = toy("llama")
    np.testing.assert_array_equal(found, other(params, *rest)[0])


# Memory and progress.

LARGE = llama.Config(24, 512, 8, 8, 64, 2048, 8192, dtype="float32")
PEAK = """
import resource, jax, jax.numpy as jnp, json, sys
from functools import partial
from examples import llama
from rewrite import auto_shard
from test_prepare import LARGE

shapes = jax.eval_shape(partial(llama.init_params, LARGE), jax.random.key(0))
cache = jax.eval_shape(partial(llama.init_cache, LARGE, 1, 32))
rest = (cache, jax.ShapeDtypeStruct((1,), jnp.int32))
pipeline = "normalize, recognize, carry_cache, quantize, stage, lower"
step = auto_shard(partial(llama.decode_step, LARGE), "cpu:1", pipeline=pipeline)
prepare = step._executable(step._call((shapes, *rest), {})).prepare
for part in prepare.parts:
    if part.graph.ops:
        (prepare.layer if part.layers else prepare.at_once)(part)
params = jax.tree.map(lambda each: jnp.full(each.shape, 0.5, each.dtype), shapes)
jax.block_until_ready(params)
original = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
largest = max(part.made_bytes + part.step_bytes for part in prepare.parts)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
packed = step.prepare(params, *rest, donate=True)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
json.dump([original, largest, sum(x.nbytes for x in packed.leaves), (after - before) << 10],
          sys.stdout)
"""


def test_no_two_full_copies_in_resident_memory() -> None:
    """A model of 416 MiB in a process of its own: the peak is the originals and one part."""
    here = Path(__file__).parent
    result = subprocess.run(
        [sys.executable, "-c", PEAK],
        env={
            **os.environ,
            "PYTHONPATH": f"{here.parent}{os.pathsep}{here}",
            "MALLOC_MMAP_THRESHOLD_": str(1 << 18),  # what is freed is given back at once
        },
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    original, largest, packed, grown = json.loads(result.stdout)
    assert original > 400 << 20 and largest < original / 6 and packed < original / 3
    assert grown < largest + (32 << 20)
    assert grown < packed / 2


def live_bytes() -> int:
    """Of all arrays, those that share memory counted once."""
    shards = {
        (shard.device, shard.data.unsafe_buffer_pointer()): shard.data.nbytes
        for array in jax.live_arrays()
        if not array.is_deleted()
        for shard in array.addressable_shards
    }
    return sum(shards.values())


def test_originals_are_freed_as_it_goes(monkeypatch: Any) -> None:
    function, params, rest = toy("llama")
    step = auto_shard(function, "cpu:8", pipeline=SERVE.format(weights="int8", more=""))
    made = preparation(step, params, *rest)
    original = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    gc.collect()  # what other tests have left
    before = live_bytes() - original
    held: list[int] = []

    def sampled(work: Any, doing: str) -> Any:
        for each in work:
            yield each
            held.append(live_bytes() - before)

    monkeypatch.setattr(streaming, "tracked", sampled)
    result = made(jax.tree.leaves(params), donate=True)
    assert len(held) == sum(part.units for part in made.parts) > 20
    largest = max(part.made_bytes for part in made.parts)
    assert max(held) <= original + largest
    shards = (shard.data for array in result for shard in array.addressable_shards)
    assert held[-1] == sum(each.nbytes for each in shards)


def test_a_pipe_sees_no_progress(capfd: Any) -> None:
    function, params, rest = toy("gpt")
    step = auto_shard(function, "cpu:8", pipeline=SERVE.format(weights="int8", more=""))
    capfd.readouterr()
    step.prepare(params, *rest)
    assert capfd.readouterr() == ("", "")


def one_hot_decoder() -> tuple[Any, Any, Any]:
    """(step, params, ids): an embedding by a one-hot product, which `recognize` makes a gather."""
    params = {"head": jnp.ones((4, 8)), "table": jnp.ones((8, 4))}

    def step(params: Any, ids: Any) -> Any:
        return jax.nn.one_hot(ids, 8) @ params["table"] @ params["head"]

    return step, params, jnp.arange(3)


def test_a_parameter_that_must_be_finite_is_refused_by_name_where_it_is_not() -> None:
    function, params, ids = one_hot_decoder()
    step = auto_shard(function, "cpu:1", pipeline="normalize, recognize, stage, lower", state=None)
    program = step.program(params, ids)
    assert [each.name for each in program.inputs if each.finite] == ["params/table"]
    assert parse_program(str(program)).inputs == program.inputs
    params["table"] = params["table"].at[7].set(jnp.nan)
    with pytest.raises(ShardwrightError, match="params/table has NaN or infinity"):
        step.prepare(params, ids)
    params["table"], params["head"] = jnp.ones((8, 4)), params["head"].at[0].set(jnp.inf)
    assert np.isinf(step(step.prepare(params, ids), ids)).all()
