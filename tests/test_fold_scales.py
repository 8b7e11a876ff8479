"""Scales beside weights move into them: the same numbers, fewer ops in the step."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import gpt, llama, palm
from passes.fold_scales import FoldScales
from rewrite import Pipeline, Program, Target, auto_shard, trace
from tests.kit import arrays_of, assert_close, run

BATCH, CONTEXT, PROMPT = 8, 16, 4
BEFORE = "normalize, recognize, roll, carry_cache"
MODELS = (llama, palm, gpt)


def arguments(model: Any, unrolled: bool = False, prompt: int | None = None) -> tuple[Any, ...]:
    """Parameters with norm scales and biases that are not what they were initialised to."""
    config = model.CONFIGS["toy"]
    how = {"prompt": prompt, "unrolled": unrolled}
    params, cache, tokens = arrays_of(model, config, BATCH, CONTEXT, **how)
    noise = iter(jax.random.split(jax.random.key(2), len(jax.tree.leaves(params))))
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(noise), x.shape), params)
    return params, cache, tokens


def traced(model: Any, args: tuple[Any, ...]) -> Program:
    function = model.prefill if args[2].ndim == 2 else model.decode_step
    return trace(partial(function, model.CONFIGS["toy"]), *args)


def folded(program: Program) -> Program:
    return FoldScales().run(Pipeline.parse(BEFORE).run(program), Target())


def ops(program: Program, *names: str) -> list[Any]:
    return [op for op, _ in program.graph.walk() if op.name in names]


@pytest.mark.parametrize(("unrolled", "prompt"), [(False, PROMPT), (True, None)])
@pytest.mark.parametrize("model", MODELS)
def test_the_numbers_stay(model, unrolled, prompt):
    args = arguments(model, unrolled, prompt)
    program = traced(model, args)
    assert_close(run(folded(program), *args), run(program, *args), 2e-4)


@pytest.mark.parametrize("model", MODELS)
def test_attention_scales_nothing_any_more(model):
    """1 / sqrt(d_head) is in the query's weights, and log2(e) beside it."""
    program = folded(traced(model, arguments(model)))
    assert [(op["scale"], op["base"]) for op in ops(program, "attend")] == [(1.0, 2.0)]


def test_a_norm_is_followed_by_products_at_once():
    """The step of a Llama multiplies no norm by its scale, and packs no scale."""
    program = Pipeline.parse("stage").run(folded(traced(llama, arguments(llama))))
    norms = {op.results[0] for op in ops(program, "rms_norm")}
    assert not [op for op in ops(program, "mul") if norms & set(op.args)]
    assert not [each.name for each in program.step_inputs if each.name.endswith("norm")]


def test_a_shift_becomes_part_of_the_bias():
    """Layer norms of a GPT: (n * s + b) @ w + c  ->  n @ (s * w) + (b @ w + c)."""
    plain = Pipeline.parse(BEFORE).run(traced(gpt, arguments(gpt)))

    def wide(program: Program) -> int:
        staged = Pipeline.parse("stage").run(program)
        return sum(op.types[0].size >= BATCH * 64 for op in ops(staged, "add", "mul"))

    assert (wide(plain), wide(FoldScales().run(plain, Target()))) == (15, 11)


def test_a_tied_table_is_not_copied():
    """PaLM's table is its head too: the scale of its logits goes to the norm before it."""
    program = folded(traced(palm, arguments(palm)))
    assert "scale_before_product: 1" in program.history[-1].notes
    packed = Pipeline.parse("stage").run(program)
    tables = [each.type.shape for each in packed.step_inputs if 256 in each.type.shape[:1]]
    assert tables == [(256, 64)]


def test_integers_are_left_alone():
    """What is quantised already would be stored wide with a scale in it."""
    args = arguments(llama)
    program = Pipeline.parse(f"{BEFORE}, quantize").run(traced(llama, args))
    after = FoldScales().run(program, Target())
    kept = [op for op in ops(after, "contract") if op.args[1].op.name == "dequantize"]
    assert (
        len(kept)
        == len([op for op in ops(program, "contract") if op.args[1].op.name == "dequantize"])
        == 7
    )


def test_bfloat16_weights_stay_bfloat16():
    """A scale in f32 is folded in f32 and rounded once."""

    def step(params: Any, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + 1e-6) * params["scale"]
        return y.astype(jnp.bfloat16) @ params["w"]

    key = jax.random.key(0)
    params = {
        "scale": 1 + 0.1 * jax.random.normal(key, (16,)),
        "w": jax.random.normal(key, (16, 8)).astype(jnp.bfloat16),
    }
    x = jax.random.normal(key, (4, 16)).astype(jnp.bfloat16)
    program = Pipeline.parse("normalize, recognize, fold_scales, stage").run(trace(step, params, x))
    (packed,) = [each for each in program.step_inputs if each.role == "param"]
    assert str(packed.type) == "bf16[16,8]"
    want = np.asarray(step(params, x), np.float32)
    np.testing.assert_allclose(np.asarray(program(params, x), np.float32), want, atol=0.06)


@pytest.mark.parametrize("model", MODELS)
def test_with_everything_on_eight_devices(model):
    args = arguments(model)
    config = model.CONFIGS["toy"]
    want, _ = jax.jit(partial(model.decode_step, config))(*args)
    pipeline = f"{BEFORE}, fold_scales, merge_dots, plan, shard, stage, lower"
    step = auto_shard(partial(model.decode_step, config), "cpu:8", pipeline=pipeline)
    got, _ = step(args[0], model.init_cache(config, BATCH, CONTEXT), args[2])
    np.testing.assert_allclose(got, want, rtol=5e-4, atol=5e-4)
