"""Hugging Face's Flax decoders: rewritten, and rewritten and sharded, they serve the same."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from axes_tables import HF_FLAX
from case import random_params, random_tokens
from harness import (
    EXACT,
    ONCE,
    assert_program_serves_the_same,
    assert_quantised_serves_nearly_the_same,
    assert_sharded_serves_the_same,
    built,
    recognized,
)


@pytest.mark.parametrize("model", list(HF_FLAX)[::3])
def test_rewritten_program_serves_the_same(model: str) -> None:
    assert_program_serves_the_same("hf_flax", model)


@pytest.mark.parametrize("model", list(HF_FLAX)[2::3])  # these on eight devices
def test_eight_devices_serve_the_same(model: str) -> None:
    assert_sharded_serves_the_same("hf_flax", model, "cpu:8", EXACT)


@pytest.mark.parametrize("model", list(HF_FLAX)[1::3])  # and these with all passes
def test_all_that_is_done_once_serves_the_same(model: str) -> None:
    assert_sharded_serves_the_same("hf_flax", model, "cpu:8", ONCE)


@pytest.mark.parametrize("model", ["llama"])
def test_quantised_it_serves_nearly_the_same(model: str) -> None:
    assert_quantised_serves_nearly_the_same("hf_flax", model, "cpu:8")


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_the_librarys_own_loop_generates_the_same(model: str) -> None:
    case = built("hf_flax", model, "generate")
    args = random_params(case), random_tokens(case)
    found = jax.jit(recognized("hf_flax", model, "generate").__call__)(*args)
    np.testing.assert_array_equal(found, jax.jit(case.function)(*args))
