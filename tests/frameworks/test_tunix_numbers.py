"""Tunix's decoders: rewritten, and rewritten and sharded, they serve the same."""

from __future__ import annotations

import pytest
from axes_tables import TUNIX
from harness import (
    EXACT,
    ONCE,
    assert_program_serves_the_same,
    assert_quantised_serves_nearly_the_same,
    assert_sharded_serves_the_same,
)


@pytest.mark.parametrize("model", list(TUNIX)[::3])
def test_rewritten_program_serves_the_same(model: str) -> None:
    assert_program_serves_the_same("tunix_models", model)


@pytest.mark.parametrize("model", list(TUNIX)[2::3])  # these on eight devices
def test_eight_devices_serve_the_same(model: str) -> None:
    assert_sharded_serves_the_same("tunix_models", model, "cpu:8", EXACT)


@pytest.mark.parametrize("model", list(TUNIX)[1::3])  # and these with all passes
def test_all_that_is_done_once_serves_the_same(model: str) -> None:
    assert_sharded_serves_the_same("tunix_models", model, "cpu:8", ONCE)


@pytest.mark.parametrize("model", ["gemma2_9b"])
def test_quantised_it_serves_nearly_the_same(model: str) -> None:
    assert_quantised_serves_nearly_the_same("tunix_models", model, "cpu:8")
