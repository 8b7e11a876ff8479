"""What was asked for and did not happen is said first; it is an error where `strict` is asked for,
and always where nothing at all happened."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from dialect.front.strict import NotDone
from examples import llama, palm
from rewrite import auto_shard
from rewrite.errors import ShardwrightError
from tests.kit import Captured, complaint, printed, shapes_of

CONFIG = llama.CONFIGS["toy"]
ARGS = shapes_of(llama, CONFIG, 8, 64)
SHARDED = "plan, shard, stage, lower"
TOY = ("examples/llama.py:decode_step", "--config", "toy", "--target", "cpu:8")


def step_of(passes: str, **options: Any) -> Any:
    function = partial(llama.decode_step, CONFIG)
    passes = f"normalize, recognize, {passes}, {SHARDED}"
    return auto_shard(function, "cpu:8", pipeline=passes, **options)


NOT_DONE = [
    ('quantize{rules=("w_upp: int4",)}', "no parameter matches w_upp: int4"),
    ("first_layer{budget=0.0001}", "declined: the tables take"),
]


@pytest.mark.parametrize(("passes", "reason"), NOT_DONE, ids=["rule", "first layer"])
def test_what_was_not_done_is_said_first(passes: str, reason: str) -> None:
    first = step_of(passes).explain(*ARGS).split("\n")[0]
    assert first.startswith(f"not done: {passes.split('{')[0]}") and reason in first


@pytest.mark.parametrize(("passes", "reason"), NOT_DONE, ids=["rule", "first layer"])
def test_strict_refuses_it(passes: str, reason: str) -> None:
    with pytest.raises(NotDone, match="not all that was asked for was done") as error:
        step_of(passes, strict=True).program(*ARGS)
    assert reason in str(error.value)


def test_strict_takes_what_was_done() -> None:
    program = step_of("quantize", strict=True).program(*ARGS)
    assert "not done" not in str(program.history)


def test_a_weight_of_unknown_axes_that_is_split_by_size_is_said_first() -> None:
    """Nothing tells what its axes are, and it is large."""

    def function(params: Any, x: jax.Array) -> jax.Array:
        return jnp.sin(jnp.cos(x @ params["a"]) @ params["b"])

    args = {
        "a": jax.ShapeDtypeStruct((512, 1024), "f4"),
        "b": jax.ShapeDtypeStruct((1024, 513), "f4"),
    }
    step = auto_shard(function, "cpu:8", pipeline=f"normalize, recognize, {SHARDED}")
    text = step.explain(args, jax.ShapeDtypeStruct((8, 512), "f4"))
    assert text.startswith("not done: plan: split by size alone, its axes being unknown: params/a")


def test_nothing_quantised_is_an_error() -> None:
    """Weights that are closed over are constants: 0 weights were quantised, without a word."""
    weights = jnp.ones((64, 64))

    def function(params: Any, x: jax.Array) -> jax.Array:
        return x @ weights + params

    step = auto_shard(function, "cpu:8", pipeline=f"normalize, recognize, quantize, {SHARDED}")
    with pytest.raises(ShardwrightError, match="nothing is quantised"):
        step.program(jnp.ones(64), jnp.ones((8, 64)))


def test_quantising_twice_is_no_error() -> None:
    step_of("quantize, quantize").program(*ARGS)


def test_the_command_fails_with_strict_only(capsys: Captured) -> None:
    passes = ("-p", f"normalize, recognize, {NOT_DONE[1][0]}, {SHARDED}")
    assert printed(capsys, "show", *TOY, *passes, "--explain").startswith("not done: first_layer")
    assert "declined" in complaint(capsys, "show", *TOY, *passes, "--strict")


def test_a_cache_that_the_plan_keeps_whole_is_as_asked_for() -> None:
    """One KV head is on every chip if attention is split over heads."""
    config = palm.CONFIGS["toy"]
    args = shapes_of(palm, config, 64, 4096)
    passes = "normalize, recognize, plan{ffn=ws1d, attention=heads}, shard, stage, lower"
    step = auto_shard(partial(palm.decode_step, config), "cpu:8", pipeline=passes, strict=True)
    notes = [note for done in step.program(*args).history for note in done.notes]
    assert any(note.startswith("whole on every chip: cache/k") for note in notes)
