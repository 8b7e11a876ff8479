"""The page that `explain` prints: what it says, and that it fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from dialect.machine.mesh import MeshSpec, Topology
from dialect.naming.axes import infer_axes
from dialect.planning.cost import estimate
from dialect.planning.decoder import decoder_shape
from dialect.planning.label_words import in_words, legend
from dialect.planning.partitionings import partition
from dialect.printed.story import Done, Story, story
from dialect.printed.story_page import COLUMNS, LINES, page
from dialect.reports.coverage import coverage
from dialect.reports.explained import Explained
from examples import gpt, llama, palm
from rewrite import Pipeline, auto_shard, manager
from rewrite.program import Program
from tests.kit import Captured, after, printed, shapes_of, step_of, traced_after, traced_step

SERVE = Pipeline.load(Path(llama.__file__).with_name("serve.pipeline"))
EIGHT_B = traced_step(llama, llama.CONFIGS["8b"], 64, 2048)
LLAMA = f"{Path(llama.__file__)}:decode_step"


def told(program: Program, pipeline: Pipeline = SERVE) -> Story:
    explained, target = Explained(), pipeline.target()
    done, _ = manager.run(program, pipeline.passes(), target, (explained,))
    return story(explained, done, target)


TOLD = told(EIGHT_B)


# --- what it says ----------------------------------------------------------------------------


def test_before_is_the_program_as_it_was_on_one_chip() -> None:
    recognized = after(EIGHT_B, "normalize, recognize")
    shape = decoder_shape(recognized, infer_axes(recognized))
    one = Topology.parse("v5e:1x1"), MeshSpec((("x", 1),))
    assert TOLD.before == estimate(shape, *one, partition("ws1d", "heads", shape, one[1]))
    assert TOLD.before.memory_bytes > TOLD.usable_bytes
    assert TOLD.tokens == 64 and TOLD.chips == 8


def test_after_is_the_plan() -> None:
    assert TOLD.plan is not None and TOLD.after == TOLD.plan.predicted
    before, now = TOLD.held
    assert before.state == now.state
    assert before.params == sum(x.type.bytes for x in EIGHT_B.inputs if x.role == "param")
    assert now.params < before.params


def test_the_page_says_what_it_bought() -> None:
    assert TOLD.before and TOLD.after
    lines = {line[2:30].strip(): line[32:].split("  ") for line in page(TOLD).splitlines()}
    shown = [text.strip() for text in lines["tokens a second"] if text.strip()]
    assert shown == [f"{64 / each.time_s:,.0f}" for each in (TOLD.before, TOLD.after)]
    assert lines["time of a step"][0].endswith("ms (does not fit)")
    assert "of 15.75 GiB" in lines["memory of a chip"][0]


def test_passes_are_told_with_what_they_changed() -> None:
    by_name = {done.text.partition("{")[0]: done for done in TOLD.done}
    assert by_name["recognize"].ops == (134, 68) and by_name["recognize"].counted
    assert by_name["quantize"].keeps == "approx" and not by_name["quantize"].counted
    text = page(TOLD)
    assert (
        "recognize                  134 -> 68 ops     Finds attention (10 rules, 16 times)" in text
    )
    assert "quantize, approximately    73 -> 87 ops      7 weights quantised" in text
    assert "nothing to do for          retarget, roll" in text


def test_what_was_left_stands_by_its_reason_and_hints_are_things_to_try() -> None:
    text = page(TOLD)
    assert "  params/embedding, params/head: quantize: it is a table over the vocabulary\n" in text
    assert "  - quantize{vocab=true} takes it too\n" in text
    assert "  - most of a step is reading memory: " in text
    assert "shardwright eval" in text


def test_what_was_not_recognised_is_named() -> None:
    def odd(params: Any, x: jax.Array) -> jax.Array:
        return jnp.sin(jnp.cos(x @ params["a"])) @ params["b"]

    args = {"a": jnp.ones((8, 16)), "b": jnp.ones((16, 8))}, jnp.ones((4, 8))
    step = auto_shard(odd, "cpu:1", pipeline="normalize, recognize, stage, lower")
    text = step.explain(*args)
    assert "not recognised: " in text and "test_story.py" in text
    assert "recognised: 100.0 %" not in text.partition("not recognised")[0].partition("arith")[2]


def test_what_must_be_said_first_is() -> None:
    assert page(TOLD, ["not done: something"]).splitlines()[0] == "not done: something"


# --- that it fits ----------------------------------------------------------------------------

PIPELINES = {
    "plain": "normalize, recognize",
    "planned": "normalize, recognize, roll, carry_cache, plan, shard, stage, lower",
    "served": "normalize, recognize, roll, carry_cache, quantize{weights=int8}, plan, shard, stage,"
    " lower",
}


@pytest.mark.parametrize("passes", PIPELINES.values(), ids=PIPELINES)
@pytest.mark.parametrize("model", [llama, palm, gpt], ids=lambda model: model.__name__)
@pytest.mark.parametrize("machine", ["target v5e:2x4 mesh x=2 y=4", "target cpu:8 mesh x=8"])
def test_a_page_is_a_page(model: Any, passes: str, machine: str) -> None:
    program = traced_step(model, model.CONFIGS["toy"], 8, 64)
    pipeline = Pipeline.parse(f"{machine} decode {{ {passes} }}")
    lines = page(told(program, pipeline), ["not done: one", "not done: two"]).splitlines()
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= COLUMNS
    titles = ["What it buys", "What was done", "What to try next"]
    assert [line for line in lines if line in titles] == titles


# --- words -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("ws1d/heads", "weights stay on their chips, split over d_ff; attention over heads"),
        ("wg_x/batch", "weights are gathered over x in every layer"),
        (
            "E_xF>B_yE_x/heads+batch",
            "weights stored as E_x F, residual stream as B_y E_x; attention over heads and batch",
        ),
        ("own", ""),
    ],
)
def test_labels_in_words(label: str, words: str) -> None:
    assert in_words(label).startswith(words) and bool(in_words(label)) == bool(words)


def test_letters_are_told_where_they_are_used() -> None:
    assert TOLD.plan is not None
    said = "(EF_xy>BE_x: weights stored as E F_xy, residual stream as B E_x (E d_model, F d_ff,"
    assert said in TOLD.plan.explain()
    assert legend(["ws1d/heads", "ws2d/batch"]) == ""


def test_transposes_that_vanish_are_not_counted_as_unrecognised() -> None:
    def turned(params: Any, x: jax.Array) -> jax.Array:
        return (params["w"] @ x.T).T

    args = {"w": jnp.ones((64, 64))}, jnp.ones((64, 64))
    found = coverage(traced_after("recognize", turned, *args))
    assert found.cost.bytes == 3 * 64 * 64 * 4
    assert not any("transpose" in group.ops for group in found.unrecognised)


def test_rules_are_counted_beside_notes_of_other_kinds() -> None:
    fired = (
        "softmax_of_exp: 3",
        "max_of_more: 2, proven: no less",
        "attend nearly fired at a.py:3",
    )
    assert Done("recognize", "reals", "", fired, (9, 5)).counted == "2 rules, 5 times"
    assert Done("lower", "bits", "", ("expand: 52",), (9, 5)).counted == "1 rule, 52 times"
    assert Done("stage", "bits", "", ("parameters: 720,832 bytes",), (9, 5)).counted == ""


# --- the command -----------------------------------------------------------------------------


def test_explain_prints_the_page(capsys: Captured) -> None:
    step = (LLAMA, "--config", "toy", "--batch", "8", "--context", "64", "--target", "cpu:8")
    text = printed(capsys, "explain", *step)
    config = llama.CONFIGS["toy"]
    shapes = shapes_of(llama, config, 8, 64)
    assert text.count("--details") == 1
    in_python = text.rstrip("\n").replace("--details", "step.details(...)")
    assert in_python == auto_shard(step_of(llama, config), "cpu:8").explain(*shapes)
    details = printed(capsys, "explain", *step, "--details")
    assert details.count("\n") > 80 and "CHOSEN" in details
    facts = json.loads(printed(capsys, "explain", *step, "--json"))["story"]
    assert facts["chips"] == 8 and facts["tokens"] == 8
    assert facts["predicted"]["after"]["time_s"] > 0
