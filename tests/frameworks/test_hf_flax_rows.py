"""Hugging Face's Flax decoders with rows at places of their own, and in pages."""

from __future__ import annotations

import pytest
from axes_tables import HF_FLAX
from harness import EXACT
from rows import PAGED, assert_rows_are_alone


@pytest.mark.parametrize("model", list(HF_FLAX)[1::4])
def test_rows_take_the_tokens_of_their_sequences(model: str) -> None:
    assert_rows_are_alone("hf_flax", model, "cpu:8", EXACT)


@pytest.mark.parametrize("model", list(HF_FLAX)[::2])
def test_rows_in_pages_take_the_tokens_of_their_sequences(model: str) -> None:
    assert_rows_are_alone("hf_flax", model, "cpu:8", PAGED)
