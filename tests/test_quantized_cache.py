"""The int8 KV cache: what it holds, what attention makes of it, and what a TPU stores."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rewrite
from dialect.arrays.evaluate import evaluate
from dialect.caching import quantized_cache
from dialect.caching.quantized_cache import attend_in_integers, with_quantized_cache
from dialect.caching.state_forms import keep_in
from dialect.compiled.compiling import Compilable, compiled
from dialect.compiled.executable import read
from dialect.ops.quant import dequantize, quantize
from examples import llama
from rewrite import Pipeline, Program, auto_shard, trace
from tests.decoders import arguments as written_out_arguments
from tests.decoders import recognized
from tests.kit import arrays_of, assert_close, normal, op_names, run, shapes_of
from tests.tiny import BATCH, CASES, CONTEXT, D_HEAD, KV_HEADS, LAYERS, Case, arguments, expected
from tests.tiny import traced as traced_case

FIRST = "normalize, recognize, carry_cache"


def quantized(program: Program, first: str = FIRST, last: str = "") -> tuple[Program, list[str]]:
    """The program with an int8 cache between these passes, and the notes."""
    made, notes = with_quantized_cache(Pipeline.parse(first).run(program), "int8")
    made.verify()
    return Pipeline.parse(last).run(made) if last else made, notes


def kept(x: Any, axis: int) -> list[jax.Array]:
    """The integers of a cache, and the scales."""
    return quantize(x, axes=(axis,), **quantized_cache._FORMS["int8"])


def states(program: Program) -> dict[str, str]:
    return {each.name: str(each.type) for each in program.step_inputs if each.role == "state"}


# The two forms.


def test_a_number_is_off_by_half_a_step_at_most(rng: np.random.Generator) -> None:
    x = normal(rng, 3, 5, 16)
    q, scale = kept(x, 2)
    assert (q.dtype, scale.dtype, scale.shape) == (jnp.int8, jnp.bfloat16, (3, 5))
    steps = np.asarray(scale, "float32")[..., None]
    back = dequantize(q, scale, axes=(2,), dtype="float32")
    # A scale that bf16 rounds down cuts the largest number off: by 127 / 256 of a step at most.
    assert np.all(np.abs(back - x) <= 0.5001 * steps)
    assert np.max(np.abs(q), axis=2).min() == 127


def test_what_is_read_and_rounded_again_is_what_it_was(rng: np.random.Generator) -> None:
    q, scale = kept(normal(rng, 4, 32) * 50, 1)
    again = kept(dequantize(q, scale, axes=(1,), dtype="float32"), 1)
    np.testing.assert_array_equal(again[0], q)
    np.testing.assert_array_equal(again[1], scale)


def test_a_head_of_zeros_stays_zero() -> None:
    q, scale = kept(jnp.zeros((2, 4)), 1)
    assert not q.any() and (scale == 1).all()


# Decoders.


@pytest.mark.parametrize("case", [c for c in CASES if not (c.prefill and c.unrolled)], ids=str)
def test_integers_reach_attention_in_every_decoder(case: Case) -> None:
    made, notes = quantized(traced_case(case))
    assert not [note for note in notes if "left alone" in note]
    staged = Pipeline.parse("stage, lower").run(made)
    kinds = {
        text.partition("[")[0] for name, text in states(staged).items() if "position" not in name
    }
    assert kinds == {"i8", "bf16"}
    assert {op.name for op in staged.stages.restore.ops} <= {"dequantize", *_lax(staged)}
    # Scales outside of the products are what the numbers that they stand for would give.
    plain = Pipeline.parse(FIRST).run(traced_case(case))
    plain, _ = keep_in(
        plain,
        {
            number: quantized_cache._change("f32", (plain.inputs[number].type.rank - 1,), "int8")
            for number in (out.updates for out in plain.outputs)
            if number is not None and plain.inputs[number].type.rank
        },
        [rule for rule in quantized_cache.RULES if rule is not attend_in_integers],
    )
    args = arguments(case)
    found, wanted = run(staged, *args), run(plain, *args)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)
    # Against floats: logits of size 1 to 4.
    np.testing.assert_allclose(found[0], expected(case)[0], atol=0.03)


def _lax(staged: Program) -> set[str]:
    return {op.name for op in staged.stages.restore.ops if op.name != "dequantize"}


def test_bytes_of_each_cache_are_told() -> None:
    case = Case("llama")
    made, notes = quantized(traced_case(case), last="stage, lower")
    numbers = LAYERS * BATCH * CONTEXT * KV_HEADS
    before, after = 4 * numbers * D_HEAD, numbers * D_HEAD + 2 * numbers
    assert notes == [f"cache/{x} kept in int8: {before:,} bytes -> {after:,}" for x in "kv"]
    shape = f"{LAYERS},{BATCH},{CONTEXT},{KV_HEADS}"
    assert states(made) == {
        "cache/k.quantized": f"i8[{shape},{D_HEAD}]",
        "cache/k.scale": f"bf16[{shape}]",
        "cache/position": "i32[]",
        "cache/v.quantized": f"i8[{shape},{D_HEAD}]",
        "cache/v.scale": f"bf16[{shape}]",
    }


def test_the_first_layer_holds_what_the_decoder_wrote_to_half_a_step() -> None:
    """Deeper layers see what attention made of it."""
    case = Case("gpt")
    params, _, tokens = arguments(case)
    cache = case.module.init_cache(case.config, BATCH, CONTEXT)
    made, _ = quantized(traced_case(case), last="stage, lower")
    kept, own = cache, cache
    for step in range(3):
        tokens = (tokens + step) % 16
        logits, kept = run(made, params, kept, tokens)
        wanted, own = run(case.function, params, own, tokens)
        np.testing.assert_allclose(logits, wanted, atol=0.05)
    for name in "kv":
        first, exact = np.asarray(kept[name][0]), np.asarray(own[name][0])
        assert np.abs(first - exact).max() > 0
        steps = np.abs(exact).max(-1, keepdims=True) / 127
        assert np.all(np.abs(first - exact) <= 0.51 * steps)


@pytest.mark.parametrize("layout", ["before", "after"])
def test_order_and_integers_go_together(layout: str) -> None:
    case = Case("llama")
    if layout == "before":
        made, _ = quantized(traced_case(case), f"{FIRST}, cache_layout", "stage, lower")
    else:
        made, _ = quantized(traced_case(case), last="cache_layout, stage, lower")
    plain, _ = quantized(traced_case(case), last="stage, lower")
    shape = f"{LAYERS},{BATCH},{KV_HEADS},{CONTEXT}"
    assert states(made)["cache/k.quantized"] == f"i8[{shape},{D_HEAD}]"
    assert states(made)["cache/k.scale"] == f"bf16[{shape}]"
    assert "transpose" not in [op.name for op in made.graph.ops if op.types[0].dtype == "i8"]
    for one, other in zip(*(jax.tree.leaves(run(p, *arguments(case))) for p in (made, plain))):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("more", ["", ", roll, carry_cache", ", roll, carry_cache, cache_layout"])
def test_sequences_with_places_of_their_own(more: str) -> None:
    program, args = recognized("ggg", "rows", more=more), written_out_arguments("ggg", "rows")
    made, notes = with_quantized_cache(program, "int8")
    staged = Pipeline.parse("stage, lower").run(made)
    assert len(notes) == 6 and all("kept in int8" in note for note in notes)
    assert sum(text.startswith("i8") for text in states(staged).values()) == (2 if more else 6)
    np.testing.assert_allclose(run(staged, *args)[0], run(program, *args)[0], atol=0.05)


def test_the_text_reads_back() -> None:
    made, _ = quantized(traced_case(Case("llama")), last="stage, lower")
    assert Program.parse(str(made)) == made


@pytest.mark.parametrize(
    "passes", ["quantize{cache=int8}, pad{heads=8}", "pad{heads=8}, quantize{cache=int8}"]
)
def test_a_padded_cache_of_integers_goes_round(passes: str) -> None:
    """Idle heads are zeros, whose scale is one: the numbers of the others do not change."""
    case = Case("gpt")
    params, cache, tokens = arguments(case)
    program = Pipeline.parse(FIRST).run(traced_case(case))
    made, plain = (
        Pipeline.parse(f"{each}, stage, lower").run(program)
        for each in (passes, "quantize{cache=int8}")
    )
    assert states(made)["cache/k.quantized"] == f"i8[{LAYERS},{BATCH},{CONTEXT},8,{D_HEAD}]"
    assert states(made)["cache/k.scale"] == f"bf16[{LAYERS},{BATCH},{CONTEXT},8]"
    mine = cache
    for _ in range(2):
        wanted, cache = run(plain, params, cache, tokens)
        found, mine = run(made, params, mine, tokens)
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)
    for one, other in zip(jax.tree.leaves(mine), jax.tree.leaves(cache), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


# What is left alone.


def test_a_cache_that_something_else_reads_is_left_alone() -> None:
    case = Case("gpt")
    whole = case.function

    def step(params: Any, cache: Any, tokens: jax.Array) -> Any:
        logits, new = whole(params, cache, tokens)
        return logits + jnp.max(new["k"]), new

    program = rewrite.trace(step, *arguments(case))
    made, notes = quantized(program)
    kept, alone = sorted(map(str, notes), key=lambda note: "left alone" in note)
    assert kept.startswith("cache/v kept in int8")
    where = rf"reduce_max at {re.escape(__file__)}:\d+ .*"
    assert re.fullmatch(rf"cache/k left alone: {where} reads it in its original form", alone)
    np.testing.assert_allclose(
        run(made, *arguments(case))[0], run(step, *arguments(case))[0], atol=0.1
    )


@pytest.mark.parametrize(
    ("before", "word"), [("paged{page=4}", "pages"), ("sparq{r=4, k=8, local=2}", "columns")]
)
def test_a_cache_in_another_form_says_which_pass_is_first(before: str, word: str) -> None:
    """`sparq` in front of it was a crash."""
    case = Case("llama")
    text = f"normalize, recognize, roll, carry_cache, {before}"
    notes = quantized(traced_case(case), text)[1]
    said = f"cache/k left alone: `{word}` keeps it in another form already: name this pass before"
    assert any(str(note).startswith(said) for note in notes)
    assert not any("cache/k kept" in str(note) for note in notes)


def test_a_cache_that_is_scanned_is_left_alone() -> None:
    _, notes = quantized(traced_case(Case("palm")), "normalize, recognize")
    assert all(
        re.search(r"left alone: scan at .* reads it in its original form", str(note))
        for note in notes
    )


def test_a_cache_of_integers_is_left_alone() -> None:
    once, _ = quantized(traced_case(Case("gpt")))
    again, notes = with_quantized_cache(once, "int8")
    # What is quantised already is quantised to what it is.
    assert op_names(again).count("quantize") == op_names(once).count("quantize")
    with pytest.raises(ValueError, match="a cache is kept in int8, not in 'int3'"):
        with_quantized_cache(once, "int3")


# Machines.


def on_mesh(config: Any, topology: str, plan: str, args: tuple[Any, ...]) -> Compilable:
    step = auto_shard(partial(llama.decode_step, config), topology, pipeline="stage")
    program = rewrite.trace(step.function, *args)
    made, _ = with_quantized_cache(Pipeline.parse(FIRST).run(program, step.target), "int8")
    last = Pipeline.parse(f"plan{{{plan}}}, shard, stage, lower")
    return Compilable(last.run(made, step.target), step.mesh)


@pytest.mark.parametrize("attention", ["heads", "batch"])
def test_scales_lie_as_their_cache_on_eight_devices(attention: str) -> None:
    config = llama.CONFIGS["toy"]
    args = params, cache, tokens = arrays_of(llama, config, 8, 64)
    wanted = jax.jit(partial(llama.decode_step, config))(*args)[0]
    compilable = on_mesh(config, "cpu:8", f"ffn=ws1d, attention={attention}", args)
    program = compilable.program
    layouts = {each.name: each.layout for each in program.step_inputs}
    for name in "kv":
        assert layouts[f"cache/{name}.scale"] == layouts[f"cache/{name}.quantized"][:-1]
        assert any(layouts[f"cache/{name}.scale"])
    packed = evaluate(program.stages.prepare, jax.tree.leaves(params))
    state = evaluate(program.stages.adapt, jax.tree.leaves(cache))
    executable = compilable.lower().compile()
    groups = packed, [x for x in state if x.ndim], [x for x in state if not x.ndim], [tokens]
    given = [
        jax.device_put(arrays, list(where))
        for arrays, where in zip(groups, executable.input_shardings[0])
    ]
    results = executable(*given)
    logits = next(x for x, out in zip(results, program.step_outputs) if out.updates is None)
    np.testing.assert_allclose(logits, wanted, atol=0.03)


@pytest.fixture(scope="module")
def on_v5e() -> tuple[Compilable, Any, str]:
    config = replace(llama.CONFIGS["8b"], layers=2, vocab=1024)
    compilable = on_mesh(config, "v5e:2x4", "attention=heads", shapes_of(llama, config, 64, 2048))
    executable, _ = compiled(compilable)
    return compilable, read(executable, compilable.mesh), executable.as_text()


def test_a_tpu_stores_integers_and_updates_them_in_place(on_v5e: Any) -> None:
    compilable, report, _ = on_v5e
    state = [each for each in compilable.program.step_inputs if each.role == "state"]
    numbers = 2 * 2 * 64 * 2048 * 8
    assert report.by_dtype()["s8"] == (2, numbers * 128 // 8)
    assert sum(each.type.bytes for each in state) == numbers * 130 + 4
    assert len(report.aliases) == sum(each.type.rank > 0 for each in state)
    assert report.memory.alias_bytes == pytest.approx(numbers * 130 // 8, rel=0.001)
    assert report.memory.temp_bytes < 0.02 * report.memory.alias_bytes


def test_a_tpu_reads_integers_and_makes_no_cache_of_floats(on_v5e: Any) -> None:
    """No array of floats as large as a layer's keys on a chip leaves any fusion."""
    text = on_v5e[2]
    assert re.search(r"= s8\[2,64,2048,1,128\]\S* parameter", text)
    entry = [line for line in text.splitlines() if re.match(r"\s+(ROOT )?%\S+ = ", line)]
    made = [re.match(r"\s+(?:ROOT )?%\S+ = (\w+)\[([\d,]*)\]\S* (fusion|copy)\(", x) for x in entry]
    large = {
        (found[1], found[2])
        for found in made
        if found and np.prod([int(x) for x in found[2].split(",") if x]) >= 64 * 2048 * 128
    }
    assert large and {dtype for dtype, _ in large} == {"s8"}


def test_scales_beside_the_products_are_those_of_keys_and_values() -> None:
    """As jax-llm-examples reads its cache: scales of keys at the logits, of values at weights."""

    def step(params: Any, cache: Any, x: jax.Array) -> Any:
        q, k = x @ params["q"], x @ params["k"]
        scale = jnp.max(jnp.abs(k), -1) / 127 + 1e-9
        at = cache["at"]
        rows = {
            "k": jax.lax.dynamic_update_slice(
                cache["k"], jnp.round(k / scale[:, None]).astype(jnp.int8)[:, None], (0, at, 0)
            ),
            "s": jax.lax.dynamic_update_slice(cache["s"], scale[:, None], (0, at)),
            "at": at + 1,
        }
        logits = jnp.einsum("bd,bsd->bs", q, rows["k"].astype(jnp.float32)) * rows["s"]
        logits = jnp.where(jnp.arange(8) <= at, logits, -1e30)
        weights = jax.nn.softmax(logits) * rows["s"]
        return jnp.einsum("bs,bsd->bd", weights, rows["k"].astype(jnp.float32)), rows

    keys = jax.random.split(jax.random.key(0), 3)
    params = {name: jax.random.normal(key, (16, 16)) for name, key in zip("qk", keys)}
    cache = {"k": jnp.zeros((4, 8, 16), jnp.int8), "s": jnp.ones((4, 8)), "at": jnp.int32(0)}
    x = jax.random.normal(keys[2], (4, 16))
    program = Pipeline.parse("normalize, recognize").run(trace(step, params, cache, x))
    names = [op.name for op, _ in program.graph.walk()]
    assert names.count("attend") == 1 and names.count("dequantize") == 1  # keys are values here
    expected, kept = step(params, step(params, cache, x)[1], x[::-1])
    sharded = auto_shard(step, "cpu:8", state="cache")
    found, state = sharded(params, sharded(params, cache, x)[1], x[::-1])
    assert_close(found, expected)
    np.testing.assert_array_equal(sharded.restore(state)["k"], kept["k"])
