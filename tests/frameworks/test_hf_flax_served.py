"""Hugging Face's Flax decoders behind the engine: every request gets the tokens it gets alone."""

from __future__ import annotations

import pytest
from served import wrong_answers


# mistral: its layers are rolled into a loop only where their caches lie in pages.
@pytest.mark.parametrize(("model", "mesh"), [("mistral", "cpu:1"), ("gpt2", "cpu:8")])
def test_every_request_gets_its_own_tokens(model: str, mesh: str) -> None:
    assert wrong_answers("hf_flax", model, mesh, 50) == []
