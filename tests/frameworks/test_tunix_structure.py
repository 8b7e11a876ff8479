"""Tunix's decoders: what is found in them, and what their axes are."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import pytest
from axes_tables import TUNIX
from harness import PHASES, other_axes, recognition, recognized, wrong_axes

IN_FLOATS = [
    *((model, phase, jnp.float32) for model in TUNIX for phase in PHASES),
    *((model, "decode", jnp.bfloat16) for model in TUNIX),
]


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


@pytest.mark.parametrize("model, phase, dtype", IN_FLOATS)
def test_axes(model: str, phase: str, dtype: Any) -> None:
    assert wrong_axes(recognized("tunix_models", model, phase, dtype=dtype), TUNIX[model]) == []


@pytest.mark.parametrize("model", TUNIX)
@pytest.mark.parametrize("phase, given", [("decode", "batch 1"), ("prefill", "batch time")])
def test_axes_of_arguments_and_logits(model: str, phase: str, given: str) -> None:
    wanted = {"tokens": given, "positions": given, "out": f"{given} vocab"}
    assert other_axes(recognized("tunix_models", model, phase, dtype=jnp.float32)) == wanted


@pytest.mark.parametrize("model, phase, dtype", IN_FLOATS)
def test_recognition(model: str, phase: str, dtype: Any) -> None:
    assert recognition(recognized("tunix_models", model, phase, dtype=dtype)) == FOUND[model]
