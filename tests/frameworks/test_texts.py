"""Decoders of libraries that are not installed for tests, kept as the text of their programs."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harness import RECOGNIZE, recognition

from dialect.evaluate import evaluate
from rewrite import Program
from rewrite.program import Input

FOLDER = Path(__file__).parent / "ir"
LAYERS = 2
# Counted by hand in the models' definitions; what a table does not name is not looked for.
GATED = {"embedding": 1, "head": 1, "attend": LAYERS, "ffn": LAYERS, "norm": 2 * LAYERS + 1}
FOUND = {
    "equinox_llama": GATED,
    "haiku_gpt": GATED,
    "keras_hub_bloom": GATED | {"norm": 2 * LAYERS + 2},  # one more behind the embedding
    "keras_hub_falcon": GATED,
    "keras_hub_gemma": GATED | {"norm": 4 * LAYERS + 1},  # also behind attention and unit
    "keras_hub_gpt2": GATED,
    "keras_hub_gpt_neo_x": GATED | {"norm": LAYERS + 1},  # two of the same values are one
    "keras_hub_gpt_oss": {name: count for name, count in GATED.items() if name != "ffn"},
    "keras_hub_llama": GATED,
    "keras_hub_mixtral": GATED,
    "keras_hub_opt": GATED,
    "keras_hub_phi3": GATED,
    "keras_hub_qwen": GATED,
    "penzai_gemma": GATED,
    "penzai_llama": GATED,
    "penzai_llama_scanned": GATED,
}


@cache
def read(name: str) -> Program:
    return Program.parse((FOLDER / f"{name}.ir").read_text(encoding="utf-8"))


@cache
def recognized(name: str) -> Program:
    return RECOGNIZE.run(read(name))


def test_every_text_is_tested_and_small() -> None:
    sizes = {path.stem: path.stat().st_size for path in FOLDER.glob("*.ir")}
    assert set(sizes) == set(FOUND)
    assert max(sizes.values()) < 100_000


@pytest.mark.parametrize("name", FOUND)
def test_recognition(name: str) -> None:
    found = recognition(recognized(name))
    assert {each: found.get(each, 0) for each in FOUND[name]} == FOUND[name]


@pytest.mark.parametrize("name", FOUND)
def test_rewritten_program_is_equal(name: str) -> None:
    random = np.random.default_rng(0)

    def draw(declared: Input) -> jax.Array:
        """Weights and caches at random; tokens and positions are three."""
        kind, sizes = declared.type.dtype, declared.type.shape
        if kind != "f32":
            return jnp.full(sizes, 3, jnp.int32)
        scale = 1.0 if declared.role == "state" else 0.1
        return jnp.asarray(scale * random.standard_normal(sizes), jnp.float32)

    leaves = [draw(each) for each in read(name).inputs]
    wanted, found = (
        jax.jit(lambda leaves, graph=program.graph: evaluate(graph, leaves))(leaves)
        for program in (read(name), recognized(name))
    )
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
