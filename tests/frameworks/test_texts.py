"""Decoders of libraries that are not installed for tests, kept as the text of their programs."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from harness import RECOGNIZE, drawn, recognition

from dialect.naming.axes import infer_axes
from rewrite import Pipeline, Program, Target
from tests.kit import run

FOLDER = Path(__file__).parent / "ir"
TARGET = Target("v5e:2x4", (("x", 2), ("y", 4)))
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
    "maxtext_gemma2": {"embedding": 1, "head": 1, "attend": 4, "ffn": 4, "rope": 8, "norm": 17},
    "maxtext_gpt3": GATED,
    "maxtext_llama": GATED | {"rope": 2 * LAYERS},
    "maxtext_llama_prefill": GATED | {"rope": 2 * LAYERS},
    "maxtext_llama_scanned": GATED | {"rope": 2 * LAYERS},
    "maxtext_mixtral": GATED | {"rope": 2 * LAYERS},
    "maxtext_qwen3": GATED | {"rope": 2 * LAYERS, "norm": 4 * LAYERS + 1},
    "penzai_gemma": GATED,
    "penzai_llama": GATED,
    "penzai_llama_scanned": GATED,
    "torch_llama": GATED | {"rope": 2 * LAYERS},
    "torch_llama_rows": GATED | {"rope": 2 * LAYERS},
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


def filled(program: Program) -> list[Any]:
    """Weights and caches at random, some of their places written: those of segment 1."""
    random = np.random.default_rng(1)
    return [
        jnp.asarray(random.random(leaf.shape) > 0.4, leaf.dtype)
        if (each.role, each.type.dtype) == ("state", "i32")
        else leaf
        for leaf, each in zip(drawn(program), program.inputs)
    ]


@pytest.mark.parametrize("name", FOUND)
def test_recognition(name: str) -> None:
    found = recognition(recognized(name))
    assert {each: found.get(each, 0) for each in FOUND[name]} == FOUND[name]


@pytest.mark.parametrize("name", FOUND)
def test_rewritten_program_is_equal(name: str) -> None:
    leaves = filled(read(name)) if name.startswith("maxtext") else drawn(read(name))
    wanted, found = (run(each.graph, *leaves) for each in (read(name), recognized(name)))
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


PARTS = [name for name in FOUND if name.startswith("maxtext") and "prefill" not in name]


@pytest.mark.parametrize("name", PARTS)
def test_caches_in_parts_are_planned_and_not_copied(name: str) -> None:
    """Over eight chips, and each part of the context as it lies."""
    before = Pipeline.parse("roll, carry_cache, plan, shard, stage").run(recognized(name), TARGET)
    axes = infer_axes(recognized(name))
    caches = [
        axes.of(value)
        for value, each in zip(recognized(name).graph.inputs, recognized(name).inputs)
        if each.role == "state" and each.type.dtype == "f32"
    ]
    assert all({"context", "batch", "d_head"} <= set(sum(names, ())) for names in caches)
    graph = Pipeline.parse("lower").run(before, TARGET).graph
    copies = [op for op, _ in graph.walk() if op.name == "concatenate" and op.types[0].rank > 3]
    assert [op for op in copies if op["dimension"] != op.types[0].rank - 1] == []


def test_caches_of_rows_are_kept_in_pages() -> None:
    pages = Pipeline.parse("roll, carry_cache, paged{page=4}")
    program = pages.run(recognized("torch_llama_rows"))
    assert [op.name for op, _ in program.graph.walk() if op.name == "page_put"] == ["page_put"] * 2
    assert not [op for op, _ in program.graph.walk() if op.name == "cache_put"]


@pytest.mark.parametrize("name", ["keras_hub_gpt_oss", "penzai_llama_scanned"])
def test_quantised_program_is_the_one_of_dequantised_weights(name: str) -> None:
    """Lowered, with integers in every product and in the cache, and as it is before that."""
    passes = "carry_cache, quantize{weights=int4, group=8, cache=int8, vocab=true}, cache_layout"
    before = Pipeline.parse(f"{passes}, first_layer{{budget=10.0}}").run(recognized(name))
    notes = [note for step in before.history for note in step.notes]
    assert any("kept in int8" in note for note in notes)
    lowered = Pipeline.parse("stage, lower").run(before)
    params, state, given = (
        [leaf for leaf, each in zip(drawn(before), before.inputs) if each.role == role]
        for role in ("param", "state", "arg")
    )
    stages = lowered.stages
    packed = run(stages.prepare, *params)
    assert sum(leaf.nbytes for leaf in packed) < 0.55 * sum(leaf.nbytes for leaf in params)
    kept = run(stages.adapt, *state)
    by_role = {"param": iter(packed), "state": iter(kept), "arg": iter(given)}
    found = run(lowered.graph, *(next(by_role[each.role]) for each in lowered.step_inputs))
    wanted = run(before.graph, *drawn(before))
    (one,), (other,) = (
        [leaf for leaf, out in zip(leaves, outputs) if out.updates is None]
        for leaves, outputs in ((found, lowered.step_outputs), (wanted, before.outputs))
    )
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
