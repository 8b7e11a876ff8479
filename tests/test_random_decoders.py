"""Random decoders through every pass, each in an order of its own: passes keep what they claim."""

from __future__ import annotations

import pytest

from tests.fuzz import decoders
from tests.fuzz.checks import Tally
from tests.kit import assert_gives_the_same, op_names, traced_after


@pytest.mark.parametrize("seed", [2, 5, 8, 13, 22])
def test_every_pass_keeps_what_it_claims_of_a_random_decoder(seed: int) -> None:
    decoder, failure = decoders.checked(seed, tally := Tally())
    assert failure is None, f"{decoder}: {failure}"
    assert tally.counts["imported"] == 1


def test_a_staged_state_that_was_taken_apart_is_padded() -> None:
    """Its step has an output for each layer's keys and values, where the user has two."""
    decoder = decoders.of_seed(530827)
    passes = ("recognize", "lower", "roll", "unroll", "carry_cache", "stage", "pad{vocab=12}")
    failure = decoders.failure_of(decoder, passes, tally := Tally())
    assert failure is None, failure
    assert tally.counts["pad{vocab=12} ran"] == 1


def test_a_product_that_sums_over_experts_too_is_not_cut_along_them() -> None:
    """Three experts do not divide over the two chips that share d_ff."""
    failure = decoders.failure_of(
        decoders.of_seed(51), ("recognize", "plan", "shard", "lower"), Tally()
    )
    assert failure is None, failure


@pytest.mark.parametrize("kv_heads", decoders.CHOICES["kv_heads"])
@pytest.mark.parametrize("positions", decoders.CHOICES["positions"])
def test_attention_is_recognised_with_all_positions(positions: str, kv_heads: int) -> None:
    """Interleaved rotary positions of queries that share no keys were taken apart by their product,
    so that neither was recognised."""
    decoder = decoders.Decoder(positions=positions, kv_heads=kv_heads)
    arguments = decoder.params(), decoder.cache(), decoder.given()
    program = traced_after("normalize, recognize", decoder.step, *arguments)
    assert op_names(program).count("attend") == 1
    assert op_names(program).count("rope") == 2 * (positions not in ("none", "learned", "alibi"))
    assert_gives_the_same(program, decoder.step, *arguments)
