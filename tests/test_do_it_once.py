"""What is done once, together: every such pass on every example, on one device and on eight."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewrite import Pipeline, auto_shard, trace
from tests.kit import run
from tests.tiny import BATCH, CASES, CONTEXT, Case, arguments, expected

FRONT = "normalize, recognize, roll, carry_cache"
EXACT = "fold_scales, merge_dots, cache_layout, first_layer{budget=10.0}"
ROUNDED = (
    "fold_scales, merge_dots, quantize{weights=int8, cache=int8}, cache_layout, "
    "first_layer{budget=10.0}"
)
SERVE = "plan, shard, stage, lower"
SCANNED = tuple(case for case in CASES if not case.unrolled)


def program_of(case: Case, passes: str) -> Any:
    return Pipeline.parse(f"{FRONT}, {passes}, stage, lower").run(
        trace(case.function, *arguments(case))
    )


def largest_difference(found: Any, wanted: Any) -> float:
    """Of the logits, as a share of the largest."""
    return float(np.abs(np.asarray(found) - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_exact_passes_together(case: Case) -> None:
    logits, state = run(program_of(case, EXACT), *arguments(case))
    wanted, kept = expected(case)
    assert largest_difference(logits, wanted) < 1e-5
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(kept), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", SCANNED, ids=str)
def test_with_integers(case: Case) -> None:
    logits, state = run(program_of(case, ROUNDED), *arguments(case))
    wanted, kept = expected(case)
    assert largest_difference(logits, wanted) < 0.06
    assert int(state["position"]) == int(kept["position"])


@pytest.mark.parametrize(
    ("case", "passes"),
    [
        (case, EXACT if case.unrolled else ROUNDED)
        for case in CASES
        if case.unrolled == case.prefill
    ],
    ids=str,
)
def test_eight_devices_give_what_one_gives(case: Case, passes: str) -> None:
    params, cache, tokens = arguments(case)
    step = auto_shard(case.function, "cpu:8", pipeline=f"{FRONT}, {passes}, {SERVE}")
    found, _ = step(params, jax.tree.map(jnp.copy, cache), tokens)
    alone, _ = run(program_of(case, passes), params, cache, tokens)
    # An activation that is rounded to the other side of a step moves the logits by a step.
    np.testing.assert_allclose(found, alone, atol=(1e-5 if passes == EXACT else 2e-2))


def test_a_cache_is_carried_on() -> None:
    """Prefill, then decode: the state that one step gives back is the other's."""
    prefill, decode = Case("llama", prefill=True), Case("llama")
    params, _, prompt = arguments(prefill)
    cache = decode.module.init_cache(decode.config, BATCH, CONTEXT)
    pipeline = f"{FRONT}, {ROUNDED}, {SERVE}"
    first, then = (auto_shard(c.function, "cpu:8", pipeline=pipeline) for c in (prefill, decode))
    logits, kept = first(params, jax.tree.map(jnp.copy, cache), prompt)
    token = jnp.argmax(logits, -1).astype(jnp.int32)
    found, _ = then(params, first.restore(kept), token)
    _, plain = jax.jit(prefill.function)(params, cache, prompt)
    wanted, _ = jax.jit(decode.function)(params, plain, token)
    assert largest_difference(found, np.asarray(wanted)) < 0.06
