"""Layers of other libraries' decoders are left out: written out or in a loop, the same remains."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from case import Case, empty_cache, random_params, random_tokens
from harness import built

import rewrite
from rewrite import Pipeline, Program, auto_shard
from tests.kit import assert_close, notes_of, run

FOUND, SKIP = "normalize, recognize, ", 'skip_layers{layers="1"}'
SHARDED = f"{FOUND}{SKIP}, roll, carry_cache, plan, shard, stage, lower"


def skipped(case: Case, passes: str) -> Program:
    return Pipeline.parse(FOUND + passes).run(rewrite.trace(case.function, *case.args, state=1))


def arguments(case: Case) -> list[Any]:
    """Of the first tokens that there are."""
    given = [random_params(case), empty_cache(case), random_tokens(case)]
    if case.positions is not None:
        counted = np.broadcast_to(np.arange(case.positions.shape[1]), case.positions.shape)
        given.append(jax.numpy.asarray(counted, "int32"))
    return given


@pytest.mark.parametrize(
    ("library", "model", "phase"),
    [("hf_flax", "gpt2", "decode"), ("tunix_models", "gemma2_9b", "prefill")],
)
def test_written_out_or_in_a_loop_the_same_remains(library: str, model: str, phase: str) -> None:
    case = built(library, model, phase)
    args = arguments(case)
    whole, apart, looped = (
        run(skipped(case, passes), *args)[0]
        for passes in ("roll", SKIP, f"roll, carry_cache, {SKIP}")
    )
    assert_close(looped, apart)
    assert np.abs(np.asarray(whole) - np.asarray(apart)).max() > 0.1


def test_on_eight_devices_too() -> None:
    case = built("hf_flax", "llama", "decode")
    args = arguments(case)
    step = auto_shard(case.function, "cpu:8", pipeline=SHARDED, state=1, donate_state=False)
    params, cache, *rest = args
    logits, _ = step(step.prepare(*args), step.adapt(cache), *rest)
    assert_close(logits, run(skipped(case, SKIP), *args)[0], 1e-4)


def test_layers_in_a_loop_and_outside_are_not_told_apart() -> None:
    """The last layer of six attends to all, those before to a window."""
    case = built("tunix_models", "gemma3_27b", "decode")
    (remark,) = skipped(case, f"roll, {SKIP}").history[-1].remarks
    assert "some layers are in a loop, and where those behind it end is not known" in remark.text
    for before in ("", "roll, unroll, "):  # as it says
        assert notes_of(skipped(case, before + SKIP))[0] == "layers without: 1"
