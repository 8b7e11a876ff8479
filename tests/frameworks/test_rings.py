"""Decoders of others whose layers have a window, all or every second one: served with rings."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from case import empty_cache
from harness import EXACT, SERVED, built, expected, positions, served, weights

from rewrite import auto_shard

RINGS = EXACT.replace("absorb", "cache_layout, ring, absorb")


MODELS = [
    ("hf_flax", "mistral", [33]),
    ("hf_flax", "gpt_neo", [32, 64]),
    ("tunix_models", "gemma2_9b", [32, 64]),
    ("tunix_models", "gemma3_27b", [32, 64]),
]


@pytest.mark.parametrize(("library", "model", "places"), MODELS)
@pytest.mark.parametrize("mesh", ["cpu:1", "cpu:8"])
def test_rings_serve_the_same(library: str, model: str, places: list[int], mesh: str) -> None:
    """A prompt of 32 positions is prefilled whole and handed over; then the rings go around."""
    case = built(library, model, "decode", batch=SERVED)
    step = auto_shard(case.function, mesh, pipeline=RINGS, params=0, state=1)
    rest = np.zeros(case.tokens.shape, "int32"), *positions(case, np.zeros((SERVED, 1), "int32"))
    packed = step.prepare(weights(library, model), empty_cache(case), *rest)
    prefill = jax.jit(built(library, model, "prefill", batch=SERVED).function)
    found = served(
        prefill, lambda _, *given: step(packed, *given), library, model, restore=step.adapt
    )
    wanted = expected(library, model)
    np.testing.assert_allclose(found.logits, wanted.logits, rtol=1e-4, atol=2e-4)
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    inputs = step.program(case.params, case.cache, *rest).step_inputs
    sizes = {size for source in inputs if source.role == "state" for size in source.type.shape}
    assert {33, 32, 64} & sizes == set(places)
