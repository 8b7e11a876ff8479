"""Tunix's decoders with rows at places of their own, and in pages."""

from __future__ import annotations

import pytest
from axes_tables import TUNIX
from harness import EXACT
from rows import PAGED, assert_rows_are_alone

PAGES = [model for model in list(TUNIX)[::2] if not model.endswith("a8")]  # these round to steps


@pytest.mark.parametrize("model", list(TUNIX)[2::5])
def test_rows_take_the_tokens_of_their_sequences(model: str) -> None:
    assert_rows_are_alone("tunix_models", model, "cpu:8", EXACT)


@pytest.mark.parametrize("model", PAGES)
def test_rows_in_pages_take_the_tokens_of_their_sequences(model: str) -> None:
    assert_rows_are_alone("tunix_models", model, "cpu:8", PAGED)
