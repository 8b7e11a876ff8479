"""Axes padded with zeros: the same numbers, longer arrays; where it is refused; what it costs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialect.machine.mesh import MeshSpec
from dialect.naming.axes import infer_axes
from dialect.naming.axis import leaves
from dialect.ops.nn import Traced
from dialect.padded.pad_analysis import stays_zero
from dialect.padded.pad_axis import NotPadded, Padding, padded_program
from dialect.planning.decoder import decoder_shape
from dialect.planning.partitionings import partition
from dialect.planning.search import TIE
from dialect.planning.workload import Workload
from examples import gpt, llama, palm
from passes.pad import Option, Pad, _fastest_first
from rewrite import Pipeline, Program, Target, auto_shard, trace
from rewrite.errors import PlanError
from tests.decoder_shapes import LLAMA_8B, varied
from tests.fuzz.checks import Tally
from tests.fuzz.decoders import Decoder, failure_of
from tests.kit import arrays_of, assert_close, notes_of, run, shapes_of, traced_step

BATCH, CONTEXT, STEPS = 8, 8, 4
MESH = (("x", 2), ("y", 4))
CPU = Target("cpu:8", MESH)
RECOGNISED = "normalize, recognize, roll, carry_cache"


def config_of(model: Any, **sizes: Any) -> Any:
    small = {"layers": 2, "d_model": 32, "d_head": 4, "d_ff": 32, "vocab": 32}
    return replace(model.CONFIGS["toy"], **small, **sizes)


def sharded(function: Any, pad: str, plan: str = "plan") -> Any:
    passes = f"{RECOGNISED}, {pad}, {plan}, shard, stage, lower"
    return auto_shard(function, pipeline=f"target cpu:8 mesh x=2 y=4 decode {{ {passes} }}")


def packed_shapes(program: Program) -> dict[str, tuple[int, ...]]:
    return {each.name.rpartition("/")[2]: each.type.shape for each in program.step_inputs}


def recognised_step(model: Any, config: Any, batch: int = BATCH, context: int = CONTEXT) -> Program:
    """A decode step that is recognised, from shapes alone."""
    return Pipeline.parse(RECOGNISED).run(traced_step(model, config, batch, context))


def all_notes(program: Program) -> str:
    return "\n".join(notes_of(program))


WS1D = "plan{ffn=ws1d, attention=heads}"
CASES = {
    "multiquery, 6 heads": (
        (palm, {"heads": 6}, "pad{heads=8}", WS1D),
        {"wq.padded": (2, 32, 8, 4), "wo.padded": (2, 8, 4, 32), "k": (2, BATCH, CONTEXT, 4)},
    ),
    "multiquery, 3 heads": (
        (palm, {"heads": 3}, "pad{heads=4}", "plan{ffn=ws2d, attention=batch}"),
        {"wq.padded": (2, 32, 4, 4), "wo.padded": (2, 4, 4, 32)},
    ),
    "grouped, more queries": (
        (llama, {"heads": 18, "kv_heads": 3}, "pad{heads=24}", WS1D),
        {"wq.padded": (2, 32, 3, 8, 4), "wk": (2, 32, 3, 4), "k": (2, BATCH, CONTEXT, 3, 4)},
    ),
    "grouped, more groups": (
        (llama, {"heads": 6, "kv_heads": 3}, "pad{heads=16}", WS1D),
        {"wq.padded": (2, 32, 16, 4), "wk.padded": (2, 32, 8, 4), "k": (2, 8, CONTEXT, 8, 4)},
    ),
    "multi-head": (
        (gpt, {"heads": 6}, "pad{heads=8}", WS1D),
        {"wq.padded": (2, 32, 8, 4), "bq.padded": (2, 8, 4), "v": (2, 8, CONTEXT, 8, 4)},
    ),
    "d_ff and vocabulary": (
        (llama, {"heads": 8, "kv_heads": 8, "d_ff": 30, "vocab": 27}, "pad{d_ff=32, vocab=32}", ""),
        {"w_down.padded": (2, 32, 32), "embedding.padded": (32, 32), "head.padded": (32, 32)},
    ),
    "biased d_ff, tied vocabulary": (
        (gpt, {"heads": 8, "d_ff": 30, "vocab": 27}, "pad{d_ff=32, vocab=32}", WS1D),
        {"w_up.padded": (2, 32, 32), "b_up.padded": (2, 32), "embedding.padded": (32, 32)},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_padded_steps_give_the_same_numbers(case):
    (model, sizes, pad, plan), shapes = CASES[case]
    config = replace(config_of(model, heads=1), **sizes)
    params, cache, tokens = arrays_of(model, config, BATCH, CONTEXT)
    function = partial(model.decode_step, config)
    step = sharded(function, pad, plan or "plan")
    packed, mine = step.prepare(params, cache, tokens), step.adapt(cache)
    found = packed_shapes(step.program(params, cache, tokens))
    assert {name: found[name] for name in shapes} == shapes
    plain = jax.jit(function)
    for _ in range(STEPS):
        logits, mine = step(packed, mine, tokens)
        wanted, cache = plain(params, cache, tokens)
        assert_close(logits, wanted)
        tokens = jnp.argmax(wanted, -1).astype(jnp.int32)
    assert_close(step.restore(mine), cache)


def test_a_padded_cache_goes_round():
    config = config_of(gpt, heads=6)
    params, cache, tokens = arrays_of(gpt, config, BATCH, CONTEXT)
    cache = jax.tree.map(lambda x: jnp.arange(x.size, dtype=x.dtype).reshape(x.shape), cache)
    step = sharded(partial(gpt.decode_step, config), "pad{heads=8}")
    step.prepare(params, cache, tokens)
    program = step.program(params, cache, tokens)
    kept = program.stages.adapt
    assert [value.type.shape for value in kept.outputs] == [(2, 8, 8, 8, 4), (), (2, 8, 8, 8, 4)]
    adapted = step.adapt(cache)
    for one, other in zip(jax.tree.leaves(step.restore(adapted)), jax.tree.leaves(cache)):
        np.testing.assert_array_equal(one, other)


def test_padding_leaves_the_step():
    """Weights are padded in prepare, the cache in adapt; the step itself pads and cuts nothing."""
    program = Pipeline.parse("pad{heads=8}, stage").run(
        recognised_step(gpt, config_of(gpt, heads=6))
    )
    names = {name: {op.name for op, _ in g.walk()} for name, g in program.graphs.items()}
    assert "padded" in names["prepare"] and "padded" in names["adapt"]
    assert "unpadded" in names["restore"]
    assert not names["step"] & {"padded", "unpadded"}
    assert Program.parse(str(program)) == program
    assert infer_axes(program).sizes()["heads"] == 8


def test_quantised_weights_are_padded():
    config = config_of(palm, heads=6)
    args = arrays_of(palm, config, BATCH, CONTEXT)
    program = trace(partial(palm.decode_step, config), *args)
    plain = Pipeline.parse(f"{RECOGNISED}, quantize").run(program)
    for passes in ("quantize, pad{heads=8, d_ff=40}", "pad{heads=8, d_ff=40}, quantize"):
        padded = Pipeline.parse(f"{RECOGNISED}, {passes}, stage, lower").run(program)
        shapes = {each.type.shape for each in padded.step_inputs if each.type.dtype == "i8"}
        assert {(2, 32, 8, 4), (2, 8, 4, 32), (2, 32, 40), (2, 40, 32)} <= shapes
        assert_close(jax.jit(padded)(*args), jax.jit(plain)(*args))


# A decoder of few lines, with what may lie along heads besides: slopes, sinks, a merged axis.

HEADS, D_HEAD = 6, 4
SLOPES = np.asarray([2.0**-i for i in range(1, HEADS + 1)], np.float32)


def own_params(seed: int = 0) -> dict[str, jax.Array]:
    shapes = {"embedding": (11, 16), "wq": (16, 24), "wk": (16, 24), "wv": (16, 24)}
    shapes |= {"wo": (24, 16), "sinks": (HEADS,), "scale": (HEADS, D_HEAD)}
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {n: jax.random.normal(k, s) / 4 for (n, s), k in zip(shapes.items(), keys)}


def own_step(params: Any, cache: Any, tokens: Any, take: Any = None) -> Any:
    """One head's width in four of 24 columns; ALiBi (arXiv:2108.12409) and sinks along heads."""
    x = take(params["embedding"], tokens) if take else params["embedding"][tokens]
    q, k, v = (
        (x @ params[name]).reshape(x.shape[0], 1, HEADS, D_HEAD) for name in ("wq", "wk", "wv")
    )
    q = q * params["scale"]
    at = cache["position"]
    keys = jax.lax.dynamic_update_slice(cache["k"], k, (0, at, 0, 0))
    values = jax.lax.dynamic_update_slice(cache["v"], v, (0, at, 0, 0))
    logits = jnp.einsum("bthk,bshk->bhts", q, keys) * 0.5
    places = jnp.arange(keys.shape[1])
    logits = logits + SLOPES[:, None, None] * (places - at).astype(jnp.float32)
    logits = jnp.where(places <= at, logits, -jnp.inf)
    sinks = jnp.broadcast_to(params["sinks"][:, None, None], (*logits.shape[:-1], 1))
    weights = jax.nn.softmax(jnp.concatenate([logits, sinks], -1), axis=-1)[..., :-1]
    mixed = jnp.einsum("bhts,bshk->bthk", weights, values)
    x = x + mixed.reshape(x.shape[0], 24) @ params["wo"]
    return x @ params["embedding"].T, {"k": keys, "v": values, "position": at + 1}


def own_cache() -> dict[str, jax.Array]:
    kept = jax.random.normal(jax.random.key(3), (2, 4, 5, HEADS, D_HEAD))
    return {"k": kept[0], "v": kept[1], "position": jnp.int32(2)}


def own_program(function: Any = own_step, tokens: Any = jnp.asarray([1, 10, 3, 0])) -> tuple:
    args = (own_params(), own_cache(), tokens)
    return Pipeline.parse("normalize, recognize").run(trace(function, *args)), args


def test_slopes_sinks_and_merged_heads():
    program, args = own_program()
    (attend,) = [op for op in program.graph.ops if op.name == "attend"]
    assert "sink" in attend["given"] and "bias" in attend["given"]
    padded = Pipeline.parse("pad{heads=8}").run(program)
    (attend,) = [op for op in padded.graph.ops if op.name == "attend"]
    assert {arg.type.shape[2] for arg in attend.args[:3]} == {8}
    assert_close(run(padded, *args), run(program, *args))
    assert "heads 6 -> 8, as asked: 2.04 KiB more weights, 1.25 KiB more cache" in all_notes(padded)


def test_grouped_heads_keep_their_numbers():
    decoder = Decoder(positions="alibi", kv_heads=2)
    assert failure_of(decoder, ("recognize", "pad{heads=8}"), Tally()) is None


TAKES = {
    "as indexed": None,
    "clipped": partial(jnp.take, axis=0, mode="clip"),
    "filled": partial(jnp.take, axis=0, mode="fill"),
}


@pytest.mark.parametrize("dtype", ["int32", "uint8"])
@pytest.mark.parametrize("how", TAKES)
def test_ids_out_of_bounds_stay_out_of_bounds(how, dtype):
    tokens = jnp.asarray([0, 10, 11, 13], dtype)
    program, args = own_program(partial(own_step, take=TAKES[how]), tokens)
    padded = Pipeline.parse("pad{vocab=16}").run(program)
    assert padded.graph.outputs[0].op.name == "unpadded"
    assert_close(run(padded, *args), run(program, *args))


# Where it is refused.


def hidden_step(params: Any, cache: Any, tokens: Any, between: Any) -> Any:
    x = params["embedding"][tokens]
    hidden = between(jax.nn.silu(x @ params["gate"]) * (x @ params["up"]))
    cache = cache + 1
    return (x + hidden @ params["down"]) @ params["embedding"].T, cache


BETWEEN = {
    "softmax": (partial(jax.nn.softmax, axis=-1), "softmax at"),
    "largest": (lambda x: x - jnp.max(x, -1, keepdims=True), "reduce_max at"),
    "running": (lambda x: jnp.cumsum(x, axis=-1), "cumsum reads"),
    "turned round": (lambda x: x[..., ::-1], "rev at"),
    "sorted": (lambda x: jnp.sort(x, axis=-1), "sort reads"),
    "torn": (lambda x: x.reshape(3, 8).T.reshape(4, 6), "reshape at"),
}
KEPT = {
    "as it is": lambda x: x,
    "a mean": lambda x: x - 0.1 * jnp.mean(x, axis=-1, keepdims=True),
    "shifted": lambda x: jnp.exp(x) + 1,
    "in a loop": lambda x: jax.lax.fori_loop(0, 3, lambda i, y: y * 2 + jnp.cos(y), x),
    "in a loop until": lambda x: jax.lax.while_loop(
        lambda y: y.sum() < 1e3, lambda y: y * 2 + jnp.cos(y), x
    ),
    "in a choice": lambda x: jax.lax.cond(x.sum() > 0, jnp.cos, lambda y: y * 2, x),
    "counted": lambda x: x * jnp.arange(x.shape[-1]),
    "logarithm": lambda x: jnp.log(jnp.square(x)),
}


def hidden_program(between: Any) -> tuple[Program, tuple]:
    keys = jax.random.split(jax.random.key(1), 4)
    shapes = {"embedding": (11, 8), "gate": (8, 6), "up": (8, 6), "down": (6, 8)}
    params = {n: jax.random.normal(k, s) for (n, s), k in zip(shapes.items(), keys)}
    args = (params, jnp.zeros(4), jnp.asarray([1, 2, 3, 4]))
    program = trace(partial(hidden_step, between=between), *args)
    return Pipeline.parse("normalize, recognize").run(program), args


@pytest.mark.parametrize("name", BETWEEN)
def test_what_reads_the_whole_axis_refuses(name):
    between, reason = BETWEEN[name]
    program, _ = hidden_program(between)
    with pytest.raises(PlanError, match=f"cannot pad d_ff to 8: .*d_ff 6 -> 8: .*{reason}"):
        Pipeline.parse("pad{d_ff=8}").run(program)


@pytest.mark.parametrize("name", KEPT)
def test_what_only_sums_the_axis_is_padded(name):
    program, args = hidden_program(KEPT[name])
    padded = Pipeline.parse("pad{d_ff=8}").run(program)
    assert infer_axes(padded).sizes()["d_ff"] == 8
    assert_close(run(padded, *args), run(program, *args))


def test_a_state_whose_padding_is_not_zero_refuses():
    def step(params: Any, cache: Any, tokens: Any) -> Any:
        logits, cache = own_step(params, cache, tokens)
        return logits, cache | {"k": cache["k"] + 1}

    program, _ = own_program(step)
    with pytest.raises(PlanError, match="1/k keeps in its padding is not zero"):
        Pipeline.parse("pad{heads=8}").run(program)


def test_argmax_over_the_vocabulary_refuses():
    def step(params: Any, cache: Any, tokens: Any) -> Any:
        logits, cache = own_step(params, cache, tokens)
        return jnp.argmax(logits, -1), cache

    program, _ = own_program(step)
    with pytest.raises(PlanError, match="argmax at .*test_pad.py.* reads the whole axis"):
        Pipeline.parse("pad{vocab=16}").run(program)


def test_sizes_that_cannot_be():
    program = recognised_step(llama, config_of(llama, heads=6, kv_heads=3))
    with pytest.raises(PlanError, match="cannot pad heads to 4: this program has 6"):
        Pipeline.parse("pad{heads=4}").run(program)
    with pytest.raises(PlanError, match="cannot pad heads to 7: this program has 6"):
        Pipeline.parse("pad{heads=7}").run(program)
    assert all_notes(Pipeline.parse("pad{heads=6}").run(program)).startswith("heads are 6 already")
    padded = Pipeline.parse("pad{heads=9}").run(program)
    with pytest.raises(PlanError, match="padded already"):
        Pipeline.parse("pad{heads=12}").run(padded)


# What padding holds.


def is_zero(function: Any, *given: bool | None) -> bool:
    """Whether the padding of the one op that `function` is stays zero."""
    arrays = [jax.ShapeDtypeStruct((2, 3), jnp.float32)] * len(given)
    graph = trace(lambda params, *args: function(*args), (), *arrays).graph
    op, known = graph.outputs[0].op, dict(zip(graph.inputs[-len(given) :], given))
    return stays_zero(op, [known.get(arg) for arg in op.args])


NORM = Traced["rms_norm"]


@pytest.mark.parametrize(
    ("function", "given", "wanted"),
    [
        (jnp.add, (True, True), True),
        (jnp.add, (True, None), False),
        (jnp.multiply, (True, None), False),  # by what may be infinite
        (jnp.multiply, (True, False), False),
        (jnp.multiply, (True, True), True),
        (lambda x: x * 3, (True,), True),
        (lambda x: x * jnp.inf, (True,), False),
        (jnp.divide, (True, None), False),
        (lambda x: x / 3, (True,), True),
        (lambda x: x / jnp.float32(0), (True,), False),
        (jnp.tanh, (True,), True),
        (jnp.cos, (True,), False),
        (jnp.log, (True,), False),
        (jnp.transpose, (False,), False),
        (lambda x: jnp.maximum(x, 0), (True,), True),
        (lambda x: jnp.maximum(x, 1), (True,), False),
        (partial(NORM, epsilon=1e-6), (True,), True),
        (partial(NORM, epsilon=0.0), (True,), False),
        (Traced["softmax"], (True,), False),
        (partial(Traced["gate"], kind="silu"), (True, True), True),
        (partial(Traced["activate"], kind="gelu"), (True,), True),
        (lambda x: Traced["quantize"](x, axes=(1,), form="int8")[0], (True,), True),
    ],
)
def test_what_becomes_of_zeros(function, given, wanted):
    assert is_zero(function, *given) is wanted


EXTREMES = {
    "infinite": (jnp.inf, lambda x: x),
    "infinite below": (-jnp.inf, jax.nn.relu),
    "undefined": (jnp.nan, lambda x: jnp.where(jnp.isnan(x), 0, x)),
}


@pytest.mark.parametrize("name", EXTREMES)
def test_infinity_times_the_zeros_of_padding_is_not_summed(name):
    extreme, between = EXTREMES[name]
    program, (params, cache, tokens) = hidden_program(between)
    params = params | {n: jnp.abs(params[n]) for n in ("gate", "up")}
    params["embedding"] = params["embedding"].at[2, 3].set(extreme)
    padded = Pipeline.parse("pad{d_ff=8}").run(program)
    assert_close(run(padded, params, cache, tokens), run(program, params, cache, tokens))


def test_rows_read_by_their_number_refuse_more_rows_in_between():
    def step(table: Any, ids: Any) -> Any:
        return table[ids], jnp.sin(table.reshape(2, 3, 4))

    program = trace(step, jnp.ones((6, 4)), jnp.arange(5))
    program = Pipeline.parse("normalize, recognize").run(program)
    axes = infer_axes(program)
    (inner,) = leaves(axes.at(program.graph.outputs[1])[1])
    with pytest.raises(NotPadded, match="take at .* reads rows by their number"):
        padded_program(program, Padding(axes, {inner: 4}))


def test_an_axis_in_parts_refuses():
    program = recognised_step(llama, config_of(llama, heads=6, kv_heads=3))
    with pytest.raises(NotPadded, match="something cuts it into parts"):
        Padding.named(infer_axes(program), "heads", 6, 8)
    longer = Padding.named(infer_axes(program), "kv_heads", 3, 4)
    assert infer_axes(padded_program(program, longer)).sizes()["kv_heads"] == 4


# When it pays, and what it costs.


def test_palm_540b_with_64_heads():
    """18 B parameters and 3 % of the arithmetic more (arXiv:2211.05102, appendix D.1)."""
    target = Target("v4:4x4x4", (("x", 4), ("y", 4), ("z", 4)))
    program = recognised_step(palm, palm.CONFIGS["540b"], 64, 2048)
    asked = Pipeline.parse("pad{heads=64}, plan{ffn=ws2d, attention=batch}").run(program, target)
    plain = Pipeline.parse("plan{ffn=ws2d, attention=batch}").run(program, target)
    axes = infer_axes(program)
    more = Padding.named(axes, "heads", 48, 64).extra_bytes(program.values("param")) / 2
    assert more == 118 * 2 * 18432 * 16 * 256 == pytest.approx(18e9, rel=0.02)
    flops = asked.plan.predicted.compute_s / plain.plan.predicted.compute_s
    assert flops == pytest.approx(1 + more / 540e9, abs=0.005)
    assert asked.plan.predicted.memory_bytes > plain.plan.predicted.memory_bytes
    assert "heads 48 -> 64, as asked" in asked.history[-2].notes[0]
    assert "33.19 GiB more weights" in asked.history[-2].notes[0]


def test_compiled_for_v4_with_64_heads():
    config = palm.CONFIGS["540b"]
    args = shapes_of(palm, config, 64, 2048)
    passes = (
        f"{RECOGNISED}, pad{{heads=64}}, plan{{ffn=ws2d, attention=batch}}, shard, stage, lower"
    )
    step = auto_shard(partial(palm.decode_step, config), "v4:4x4x4", pipeline=passes)
    program = step.program(*args)
    shapes = packed_shapes(program)
    assert shapes["wq.padded"] == (118, 18432, 64, 256)
    assert shapes["wo.padded"] == (118, 64, 256, 18432)
    memory = step.lower(*args).compile().memory_analysis()
    ways = [4 ** sum(map(len, each.layout)) for each in program.step_inputs]
    stored = sum(each.type.bytes / by for each, by in zip(program.step_inputs, ways))
    assert memory.argument_size_in_bytes == pytest.approx(stored, rel=1e-3)


def test_an_odd_width_is_padded_where_that_pays():
    target = Target("v5e:2x4", MESH)
    odd = replace(llama.CONFIGS["8b"], d_ff=14337)
    program = Pipeline.parse("pad").run(recognised_step(llama, odd, 8, 2048), target)
    told = all_notes(program)
    assert "heads (32) divides as it is" in told
    assert "vocab (128256) divides as it is" in told
    assert "d_ff 14337 -> 14344: " in told and "5.25 MiB more weights" in told
    assert decoder_shape(program, infer_axes(program)).d_ff == 14344


def test_of_equally_fast_options_the_one_that_pads_least_is_taken():
    shape = LLAMA_8B
    small, large, slow = (Option("d_ff", 320, new, shape) for new in (512, 1024, 384))
    times = {large: 1.0, slow: 1.2, small: 1 + TIE / 2}
    assert [option for option, _ in _fastest_first(times, 2.0)] == [small, large, slow]
    barely = 1 + TIE * 1.1  # so that only the fastest pays
    assert [option for option, _ in _fastest_first(times, barely)] == [large, small, slow]


def test_what_does_not_pay_is_told():
    config = replace(config_of(llama, heads=8, kv_heads=8), d_ff=9, d_model=8192)
    program = recognised_step(llama, config, 8, 2048)
    done = Pipeline.parse("pad{vocab=off}").run(program, Target("v5e:2x4", MESH))
    assert "does not pay: " in all_notes(done) and "d_ff 9 -> " in all_notes(done)
    assert done.graph == program.graph
    alone = Pipeline.parse("pad").run(program, Target())
    assert all_notes(alone) == "there is no mesh, so only what is asked for is padded"


def test_text_of_the_pass():
    assert str(Pad()) == "pad"
    assert str(Pad(heads=64, vocab="off")) == "pad{heads=64, vocab=off}"
    assert Pad.keeps == "reals"


# KV heads that do not divide the mesh are copied.


@pytest.mark.parametrize("kv_heads", [2, 3])
def test_copied_kv_heads_are_exact(kv_heads):
    config = config_of(llama, heads=8 * kv_heads, kv_heads=kv_heads)
    params, cache, tokens = arrays_of(llama, config, BATCH, CONTEXT)
    function = partial(llama.decode_step, config)
    step = sharded(function, "pad{heads=off}", WS1D)
    packed, mine = step.prepare(params, cache, tokens), step.adapt(cache)
    plain = jax.jit(function)
    heads = step.plan(params, cache, tokens).split("cache").get("kv_heads", ())
    assert heads == (("x",) if kv_heads == 2 else ())
    for _ in range(2):
        logits, mine = step(packed, mine, tokens)
        wanted, cache = plain(params, cache, tokens)
        assert_close(logits, wanted)
    assert_close(step.restore(mine), cache)


def test_copied_kv_heads_are_priced():
    """A cache of 2 heads on a mesh of 2 x 4 is on four chips each; one of 8 heads on one each."""
    mesh = MeshSpec(MESH)
    program = recognised_step(llama, config_of(llama, heads=16, kv_heads=2))
    shape = decoder_shape(program, infer_axes(program))
    copied = Workload(shape, mesh, partition("ws1d", "heads", shape, mesh))
    more = varied(shape, kv_heads=8)
    split = Workload(more, mesh, partition("ws1d", "heads", more, mesh))
    assert copied.memory()["cache"] == copied.cache_bytes() == split.cache_bytes()
    whole = 2 * 2 * 4 * BATCH * CONTEXT * 2 * 4  # keys and values, 2 heads of 4, 2 layers, f32
    assert copied.cache_bytes() == whole / 2
    assert split.cache_bytes() == 4 * whole / 8
    ((attention, _),) = shape.attentions
    weights = copied.attention_weights(attention, "weights") - 32 * 2 * 64 / 8
    assert weights == 32 * 16 / 2  # keys and values of one head, on each chip
