"""Tunix's decoders behind the engine: every request gets the tokens that it gets alone."""

from __future__ import annotations

import pytest
from served import wrong_answers


# gemma3: windows in turn; qwen3_30b_a3b: experts; llama3_70b_w8: int8 weights.
@pytest.mark.parametrize(
    ("model", "mesh"),
    [("gemma3_27b", "cpu:1"), ("qwen3_30b_a3b", "cpu:1"), ("llama3_70b_w8", "cpu:8")],
)
def test_every_request_gets_its_own_tokens(model: str, mesh: str) -> None:
    assert wrong_answers("tunix_models", model, mesh, 50) == []
