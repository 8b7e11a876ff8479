"""Hugging Face's Flax decoders: what is found in them, and what their axes are."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import pytest
from axes_tables import HF_FLAX
from harness import PHASES, other_axes, recognition, recognized, wrong_axes

LAYERS = 2
GENERATED = ("llama", "gpt2")
CASES = [
    *((model, phase) for model in HF_FLAX for phase in PHASES),
    *((model, "generate") for model in GENERATED),
]
IN_FLOATS = [
    *((*case, jnp.float32) for case in CASES),
    *((model, "decode", jnp.bfloat16) for model in HF_FLAX),
]
# Counted by hand in the models' definitions.
PLAIN = {"embedding": 1, "head": 1, "attend": LAYERS, "ffn": LAYERS, "norm": 2 * LAYERS + 1}
ROTARY = PLAIN | {"rope": 2 * LAYERS}
FOUND = {
    "llama": ROTARY,
    "mistral": ROTARY,
    "gemma": ROTARY,
    "gptj": ROTARY | {"norm": LAYERS + 1},  # attention and feed-forward unit share one
    "gpt_neo": PLAIN,
    "gpt2": PLAIN,
    "bloom": PLAIN | {"norm": 2 * LAYERS + 2},  # one more behind the embedding
    "opt": PLAIN,
    "xglm": PLAIN,
}


@pytest.mark.parametrize("model, phase, dtype", IN_FLOATS)
def test_axes(model: str, phase: str, dtype: Any) -> None:
    assert wrong_axes(recognized("hf_flax", model, phase, dtype=dtype), HF_FLAX[model]) == []


@pytest.mark.parametrize("model", HF_FLAX)
@pytest.mark.parametrize("phase, given", [("decode", "batch 1"), ("prefill", "batch time")])
def test_axes_of_arguments_and_logits(model: str, phase: str, given: str) -> None:
    wanted = {"tokens": given, "out": f"{given} vocab"}
    wanted |= {"positions": given} if model != "bloom" else {}
    assert other_axes(recognized("hf_flax", model, phase, dtype=jnp.float32)) == wanted


@pytest.mark.parametrize("model, phase, dtype", IN_FLOATS)
def test_recognition(model: str, phase: str, dtype: Any) -> None:
    runs = 2 if phase == "generate" else 1  # a prefill, and a step in the loop behind it
    wanted = {name: runs * count for name, count in FOUND[model].items()}
    assert recognition(recognized("hf_flax", model, phase, dtype=dtype)) == wanted


def test_full_size() -> None:
    """BLOOM-7B1 in bfloat16, from shapes alone."""
    program = recognized("hf_flax", "bloom", "decode", size="full")
    layers = 30
    wanted = {"embedding": 1, "head": 1, "attend": layers, "ffn": layers, "norm": 2 * layers + 2}
    assert recognition(program) == wanted
    assert wrong_axes(program, HF_FLAX["bloom"]) == []
