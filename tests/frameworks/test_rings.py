"""Decoders of others whose layers have a window, all or every second one: served with rings."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from case import empty_cache
from harness import EXACT, SERVED, built, expected, positions, served, weights

from rewrite import auto_shard

RINGS = EXACT.replace("absorb", "cache_layout, ring, absorb")


@pytest.mark.parametrize(("model", "places"), [("mistral", [33]), ("gpt_neo", [32, 64])])
@pytest.mark.parametrize("mesh", ["cpu:1", "cpu:8"])
def test_rings_serve_the_same(model: str, places: list[int], mesh: str) -> None:
    """A prompt of 32 positions is prefilled whole and handed over; then the rings go around."""
    case = built("hf_flax", model, "decode", batch=SERVED)
    step = auto_shard(case.function, mesh, pipeline=RINGS, params=0, state=1)
    rest = np.zeros(case.tokens.shape, "int32"), *positions(case, np.zeros((SERVED, 1), "int32"))
    packed = step.prepare(weights("hf_flax", model), empty_cache(case), *rest)
    prefill = jax.jit(built("hf_flax", model, "prefill", batch=SERVED).function)
    found = served(
        prefill, lambda _, *given: step(packed, *given), "hf_flax", model, restore=step.adapt
    )
    wanted = expected("hf_flax", model)
    np.testing.assert_allclose(found.logits, wanted.logits, rtol=1e-4, atol=2e-4)
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    inputs = step.program(case.params, case.cache, *rest).step_inputs
    sizes = {size for source in inputs if source.role == "state" for size in source.type.shape}
    assert {33, 32, 64} & sizes == set(places)
