"""Tunix's decoders: what is found in them, and what their axes are."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import pytest
from axes_tables import TUNIX
from harness import PHASES, other_axes, recognition, recognized, wrong_axes

FLOATS = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])


def found(layers: int = 2, norms: int = 2) -> dict[str, int]:
    """Counted by hand in the models' definitions; `norms` are those of one layer."""
    return {
        "embedding": 1,
        "head": 1,
        "attend": layers,
        "ffn": layers,
        "norm": layers * norms + 1,
        "rope": 2 * layers,
    }


FOUND = {
    "llama3_70b": found(),
    "llama3_405b": found(),
    "llama3_8b_remat": found(),
    "llama3_70b_w8": found(),
    "llama3_70b_w8a8": found(),  # its products of integers are attention, too
    "llama3_8b_remat_w8": found(),
    "llama3_8b_remat_w8a8": found(),
    "gemma_2b": found(),
    "gemma_7b": found(),
    "gemma2_9b": found(norms=4),  # also behind attention and the feed-forward unit
    "gemma3_27b": found(layers=6, norms=6),  # and of queries and keys
    "qwen2p5_7b": found(),
    "qwen3_32b": found(norms=4),
    "qwen3_30b_a3b": found(norms=4),  # all experts of a layer are one unit
}


@FLOATS
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("model", TUNIX)
def test_axes(model: str, phase: str, dtype: Any) -> None:
    assert wrong_axes(recognized("tunix_models", model, phase, dtype=dtype), TUNIX[model]) == []


@pytest.mark.parametrize("model", TUNIX)
@pytest.mark.parametrize("phase, given", [("decode", "batch 1"), ("prefill", "batch time")])
def test_axes_of_arguments_and_logits(model: str, phase: str, given: str) -> None:
    wanted = {"tokens": given, "positions": given, "out": f"{given} vocab"}
    assert other_axes(recognized("tunix_models", model, phase)) == wanted


@FLOATS
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("model", FOUND)
def test_recognition(model: str, phase: str, dtype: Any) -> None:
    assert recognition(recognized("tunix_models", model, phase, dtype=dtype)) == FOUND[model]
