"""States that are no attention: updated in place, named, planned, beside attention and alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from rewrite import Pipeline, auto_shard, trace
from tests.kit import assert_close, run
from tests.stateful_decoders import LAYERS, arguments, decoder

STATES = [kind for kind in LAYERS if kind != "attention"]
HYBRIDS = [
    ("attention", "linear attention") * 2,
    ("state space", "attention") * 2,
    ("gated recurrence", "gated recurrence", "attention") * 2,
    ("delta rule", "delta rule", "delta rule", "attention"),
]
DECODERS = [*((kind,) * 2 for kind in STATES), *HYBRIDS]
FOUND = "normalize, recognize, roll, carry_cache"


def notes(program: Any, name: str) -> tuple[str, ...]:
    return next(each.notes for each in program.history if each.text.startswith(name))


@pytest.mark.parametrize("kinds", DECODERS, ids=" ".join)
def test_layers_with_a_state_are_served(kinds: tuple[str, ...]) -> None:
    """Two steps on eight devices: what comes back is the state of the next."""
    step = auto_shard(decoder(*kinds), "cpu:8", state=1)
    params, state, tokens = arguments(*kinds)
    wanted, packed = jax.jit(decoder(*kinds)), step.prepare(params, state, tokens)
    given = step.adapt(jax.tree.map(jnp.array, state))
    for _ in range(2):
        logits, state = wanted(params, state, tokens)
        found, given = step(packed, given, tokens)
        assert_close(found, logits, 1e-4)
    assert_close(step.restore(given), state, 1e-4)


@pytest.mark.parametrize("kinds", DECODERS, ids=" ".join)
def test_a_loop_carries_every_state(kinds: tuple[str, ...]) -> None:
    """In place, whether a place of it is written or all of it is computed anew. (Positions are
    numbers, and are stacked.)"""
    args = arguments(*kinds)
    program = Pipeline.parse(FOUND).run(trace(decoder(*kinds), *args, state=(1,)))
    scans = [op for op, _ in program.graph.walk() if op.name == "scan"]
    stacked = [type_ for op in scans for type_ in op.types[op["carry"] :]]
    assert scans and all(type_.rank == 1 for type_ in stacked)
    assert any("computed anew carried" in note for note in notes(program, "carry_cache"))
    assert_close(run(program, *args), jax.jit(decoder(*kinds))(*args), 1e-4)


@pytest.mark.parametrize("kind", STATES)
def test_a_state_is_named(kind: str) -> None:
    """With all that computes it: nothing of these layers is left unrecognised."""
    text = auto_shard(decoder(kind, kind), "cpu:8", state=1).details(*arguments(kind, kind))
    assert "recognised: 100.0 % of" in text and "NOT RECOGNISED" not in text
    assert "state update" in text and "state/*" in text


def scanned(kind: str) -> Any:
    """A prompt, one token after the other."""

    def prefill(params: Any, state: Any, tokens: jax.Array) -> Any:
        def one(state: Any, token: jax.Array) -> Any:
            logits, state = decoder(kind)(params, state, token)
            return state, logits

        state, logits = jax.lax.scan(one, state, tokens.T)
        return logits[-1], state

    return prefill


@pytest.mark.parametrize("kind", STATES)
def test_a_scan_over_tokens_is_served(kind: str) -> None:
    params, state, tokens = arguments(kind)
    prompt = jnp.stack([tokens, tokens + 1, tokens * 2 % 96], 1)
    step = auto_shard(scanned(kind), "cpu:8", state=1)
    wanted = jax.jit(scanned(kind))(params, state, prompt)
    packed = step.prepare(params, state, prompt)
    logits, new = step(packed, step.adapt(jax.tree.map(jnp.array, state)), prompt)
    assert_close((logits, step.restore(new)), wanted, 1e-4)
