"""Products that share an input, or whose results are summed, become one: the same numbers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from dialect.compiled.executable import read
from dialect.naming.axes import infer_axes
from dialect.planning.decoder import decoder_shape
from examples import gpt, llama, palm
from passes.merge_dots import MergeDots
from rewrite import Pipeline, Program, Target, auto_shard
from tests.kit import arrays_of, assert_close, run, shapes_of, traced_step

BATCH, CONTEXT, PROMPT = 8, 16, 4
BEFORE = "normalize, recognize, roll, carry_cache"
MODELS = (llama, palm, gpt)


def traced(model: Any, unrolled: bool = False, prompt: int | None = None, **sizes: Any) -> Program:
    config = replace(model.CONFIGS["toy"], **sizes)
    return traced_step(model, config, BATCH, CONTEXT, prompt=prompt, unrolled=unrolled)


def merged(program: Program, chips: int = 1) -> Program:
    before = Pipeline.parse(BEFORE).run(program)
    return MergeDots().run(before, Target("", (("x", chips),)))


def products(program: Program) -> list[str]:
    """The subscripts of the products that are left in the layer, and of the logits."""
    return [op["spec"] for op, _ in program.graph.walk() if op.name == "contract"]


@pytest.mark.parametrize(("unrolled", "prompt"), [(False, PROMPT), (True, None)])
@pytest.mark.parametrize("model", MODELS)
def test_the_numbers_stay(model, unrolled, prompt):
    program = traced(model, unrolled, prompt)
    how = {"prompt": prompt, "unrolled": unrolled}
    args = arrays_of(model, model.CONFIGS["toy"], BATCH, CONTEXT, **how)
    assert_close(run(merged(program), *args), run(program, *args))


def test_a_serial_block_has_four_products():
    program = merged(traced(llama))
    assert len(products(program)) == 5
    assert program.history[-1].notes == (
        "params/layers/wq, params/layers/wk, params/layers/wv: "
        "one product of their input, joined in 8 slots",
        "params/layers/w_gate, params/layers/w_up: one product of their input, stacked",
    )


def test_a_parallel_block_has_three_products():
    program = merged(traced(palm))
    assert len(products(program)) == 4
    assert program.history[-1].notes == (
        "params/layers/wq, params/layers/w_gate, params/layers/w_up: "
        "one product of their input, joined in 16 slots",
        "params/layers/wk, params/layers/wv: one product of their input, stacked",
        "params/layers/wo, params/layers/w_down: one product into their sum, joined in 16 slots",
    )


def test_heads_that_are_alike_are_stacked():
    program = merged(traced(gpt))
    assert program.history[-1].notes == (
        "params/layers/wq, params/layers/wk, params/layers/wv: one product of their input, stacked",
    )


def test_what_would_not_split_over_the_mesh_is_left_apart():
    program = merged(traced(llama), chips=16)  # 8 KV heads
    assert program.history[-1].notes == (
        "params/layers/wq left apart: "
        "no other product of its input splits over the mesh as it does",
        "params/layers/wk, params/layers/wv: one product of their input, stacked",
        "params/layers/w_gate, params/layers/w_up: one product of their input, stacked",
    )


def test_nothing_to_merge_changes_nothing():
    once = merged(traced(llama))
    again = MergeDots().run(once, Target())
    assert again.graph == once.graph
    assert again.history[-1].notes == ("no products share an input or are summed",)


def test_weights_are_joined_once():
    program = Pipeline.parse("stage").run(merged(traced(palm)))
    packed = {each.type.shape for each in program.step_inputs if each.role == "param"}
    config = palm.CONFIGS["toy"]
    inner = 2 * config.d_ff // config.heads + config.d_head
    assert (config.layers, config.d_model, config.heads, inner) in packed
    assert not any(
        op.name == "concatenate" and op.args[0].type.rank == 3
        for op, _ in program.graph.walk()
        if op.types[0].shape[:1] == (config.d_model,)
    )


@pytest.mark.parametrize("model", MODELS)
def test_the_decoder_is_known_again(model):
    """The planner reads the same sizes off the joined weights."""
    before = Pipeline.parse(BEFORE).run(traced(model))
    after = merged(traced(model))
    assert decoder_shape(after, infer_axes(after)) == decoder_shape(before, infer_axes(before))


@pytest.mark.parametrize(
    ("model", "plan"),
    [(model, "plan{ffn=ws2d, attention=batch}") for model in MODELS] + [(palm, "plan{ffn=ws1d}")],
)
def test_on_eight_devices(model, plan):
    config = model.CONFIGS["toy"]
    params, cache, tokens = arrays_of(model, config, BATCH, CONTEXT)
    want, _ = jax.jit(partial(model.decode_step, config))(params, cache, tokens)
    pipeline = f"{BEFORE}, merge_dots, {plan}, shard, stage, lower"
    step = auto_shard(partial(model.decode_step, config), "cpu:8", pipeline=pipeline)
    got, _ = step(params, model.init_cache(config, BATCH, CONTEXT), tokens)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def test_the_integers_of_joined_weights_are_those_of_each():
    """A scale for each output channel: joining changes none."""
    config = llama.CONFIGS["toy"]
    args = arrays_of(llama, config, BATCH, CONTEXT)
    shared = f"{BEFORE}, {{}}quantize, stage"
    apart, joined = (
        Pipeline.parse(shared.format(more)).run(traced(llama)) for more in ("", "merge_dots, ")
    )
    want, got = (run(program, *args)[0] for program in (apart, joined))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_fewer_collectives_on_a_tpu():
    """One reduction for two products that are summed, in the compiled program."""
    config = replace(palm.CONFIGS["8b"], layers=2)
    args = shapes_of(palm, config, 16, 256)

    def collectives(more: str) -> int:
        pipeline = f"{BEFORE}, {more}plan{{ffn=ws2d, attention=batch}}, shard, stage, lower"
        step = auto_shard(partial(palm.decode_step, config), "v4:2x2x2", pipeline=pipeline)
        found = read(step.lower(*args).compile(), step.mesh)
        return sum(each.count * (each.trip_count or 1) for each in found.collectives)

    assert collectives("merge_dots, ") < collectives("")


def test_quantised_weights_stay_integers() -> None:
    """Joined, they would be floats again, of four times the bytes."""
    program = Pipeline.parse(f"{BEFORE}, quantize, merge_dots").run(traced(llama))
    apart = [note for note in program.history[-1].notes if "left apart" in note]
    assert len(apart) == 7
    assert all("merge before quantizing" in note for note in apart)
    before = Pipeline.parse(f"{BEFORE}, quantize").run(traced(llama))
    assert str(program.graph) == str(before.graph)
