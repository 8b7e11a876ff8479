"""Graef's table (arXiv:2402.13388), every cell, from traced models of those sizes."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialect.compiled.executable import read
from examples import llama, palm
from rewrite import Pipeline, Program, auto_shard, trace
from tests import pythia, tiny
from tests.kit import run, shapes_of, traced_step

PASSES = "normalize, recognize, roll, carry_cache, first_layer{budget=10.0}"
MISTRAL_7B = replace(
    llama.CONFIGS["8b"],
    **{"layers": 32, "d_model": 4096, "heads": 32, "kv_heads": 8, "d_head": 128},
    **{"d_ff": 14336, "vocab": 32000},
)
# As printed: weights eliminated, reads of a batch of 1 without and with, how many times fewer at
# batch 1, 16, 256 and 1024, growth of the embedding, change of memory and its share in percent.
TABLE = {
    "Pythia-6.9B": (184_549_376, 184_553_472, 16_384, (11_264, 704, 44, 11), 619_315_200,
                    434_765_824, 6),
    "Mistral-7B": (25_165_824, 25_169_920, 10_240, (2_458, 154, 10, 3), 196_608_000,
                   171_442_176, 2),
}  # fmt: skip
MODELS = {"Pythia-6.9B": (pythia, pythia.PYTHIA_6_9B), "Mistral-7B": (llama, MISTRAL_7B)}


def figures(program: Program) -> list[float]:
    """The numbers of the pass's two notes."""
    return numbers(Pipeline.parse(PASSES).run(program))


def numbers(program: Program) -> list[float]:
    notes = program.history[-1].notes
    return [float(x.replace(",", "")) for x in re.findall(r"-?\d[\d,]*\.?\d*", " ".join(notes))]


@pytest.mark.parametrize("name", TABLE)
def test_graefs_table(name):
    eliminated, without, with_, fewer, increase, memory, percent = TABLE[name]
    found = figures(traced_step(*MODELS[name], 1, 128))
    row, width = with_, 4096
    break_even = -(-eliminated // (row - width))
    assert found[:8] == [eliminated, without, with_, fewer[0], break_even, row, width, increase]
    assert found[8:10] == [-eliminated, memory]
    assert round(found[10]) == percent
    for batch, factor in zip((16, 256, 1024), fewer[1:]):
        assert figures(traced_step(*MODELS[name], batch, 128))[3] == factor


def test_a_tied_embedding_is_kept():
    """PaLM-540B: the head reads the embedding, so its rows are not replaced but added to."""
    config = palm.CONFIGS["540b"]
    found = figures(traced_step(palm, config, 64, 128))
    row = config.heads * config.d_head + 2 * config.d_head + config.d_model
    width = config.d_model
    weights = width * (config.heads + 2) * config.d_head + 3 * width * config.d_ff
    assert found[0] == weights
    assert found[5:8] == [row, width, config.vocab * row]
    assert found[9] == config.vocab * row - weights


def test_a_parallel_block_keeps_its_numbers():
    """The feed-forward layer's result joins the embedding's row: one sum is reordered."""
    config = pythia.Config(layers=3)
    params = pythia.init_params(config, jax.random.key(0))
    cache, tokens = pythia.init_cache(config, 4, 8), jnp.array([3, 1, 4, 31], jnp.int32)
    program = trace(partial(pythia.decode_step, config), params, cache, tokens)
    rewritten = Pipeline.parse(f"{PASSES}, stage, lower").run(program)
    assert [each.keeps for each in rewritten.history if "first_layer" in each.text] == ["reals"]
    for want, got in zip(
        jax.tree.leaves(program(params, cache, tokens)),
        jax.tree.leaves(rewritten(params, cache, tokens)),
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    # Outside the loop over the other layers: scores, values, the output product, the logits.
    assert sum(op.name == "dot_general" for op in rewritten.graph.ops) == 4


FRONT = "normalize, recognize, roll, carry_cache"


@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("options, scales", [("int8", 1), ("int4, group=4", 4)])
@pytest.mark.parametrize("model", ["llama", "palm"])
def test_a_quantised_embedding_is_looked_up(model, options, scales, unrolled):
    """Rows of its integers and of their scales are one row; PaLM's are kept for the head."""
    case = tiny.Case(model, unrolled=unrolled)
    passes = f"{FRONT}, quantize{{weights={options}, vocab=true}}"
    before = Pipeline.parse(passes).run(tiny.traced(case))
    made = Pipeline.parse("first_layer{budget=10.0}").run(before)
    eliminated, row, increase = {  # Llama's residual stays a row of integers
        "llama": (16 * (16 + 2 * 8), 16 + 2 * 8 + 16 + scales, 16 * (16 + 2 * 8)),
        "palm": (16 * (16 + 2 * 4) + 3 * 16 * 16, 16 + 2 * 4 + 16, 16 * (16 + 2 * 4 + 16)),
    }[model]
    found = numbers(made)
    assert (found[0], *found[5:8]) == (eliminated, row, 16 + scales, increase)
    args = tiny.arguments(case)
    found, wanted = (
        run(Pipeline.parse("stage, lower").run(each), *args)[0] for each in (made, before)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_weights_are_as_many_bytes_as_their_integers():
    """Looked up 32 bytes a token; computed 64 and 512, or of integers 20 a token and 160."""
    params = {"table": jnp.ones((64, 16)), "w": jnp.ones((16, 8))}
    found = []
    for tokens, quantize in product((13, 14), ("", "quantize{vocab=true}, ")):
        ids = jnp.zeros(tokens, jnp.int32)
        program = trace(lambda p, i: jnp.cumsum(p["table"][i] @ p["w"], 0), params, ids)
        passes = f"normalize, recognize, {quantize}first_layer{{budget=10.0}}"
        (note, *_) = Pipeline.parse(passes).run(program).history[-1].notes
        found.append(note.partition(" ")[0])
    assert found == ["128", "128", "128", "declined:"]


def test_a_serial_block_keeps_its_bits():
    program = Pipeline.parse(PASSES).run(traced_step(llama, llama.CONFIGS["toy"], 4, 128))
    assert program.history[-1].keeps == "bits"


def test_rows_may_be_moved_on_their_way():
    """Libraries of named axes keep them in orders of their own: here d_model comes first."""
    draw = np.random.default_rng(0).standard_normal
    params = {"table": draw((32, 8)), "scale": draw(8), "w": draw((8, 3, 4))}
    params = jax.tree.map(lambda x: jnp.asarray(x, "float32"), params)

    def step(params, cache, tokens):
        x = jnp.transpose(params["table"][tokens], (2, 1, 0))  # d t b
        x = x * jax.lax.rsqrt(jnp.mean(x * x, 0) + 1e-6) * params["scale"][:, None, None]
        return jnp.einsum("dtb,dhk->btkh", x, params["w"]), cache + 1

    tokens = jnp.asarray([[3, 5], [31, 0], [7, 7]], jnp.int32)
    program = Pipeline.parse(PASSES).run(trace(step, params, jnp.int32(0), tokens))
    assert program.history[-1].notes[0].startswith("96 weights eliminated")
    staged = Pipeline.parse("stage, lower").run(program)
    assert "contract" not in [op.name for op in staged.graph.ops]
    found, _ = run(staged, params, jnp.int32(0), tokens)
    wanted, _ = run(step, params, jnp.int32(0), tokens)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def test_a_stacked_model_is_peeled_without_copies_on_a_tpu():
    """Layer 0 of parameters is cut off in `prepare`, and the cache stays whole and in place."""
    config = replace(llama.CONFIGS["8b"], layers=4)
    args = shapes_of(llama, config, 64, 1024)
    passes = f"{PASSES}, plan{{ffn=ws1d, attention=heads}}, shard, stage, lower"
    step = auto_shard(partial(llama.decode_step, config), "v5e:2x4", pipeline=passes)
    memory = read(step.lower(*args).compile(), step.mesh).memory
    cache_bytes = 2 * config.layers * 64 * 1024 * config.kv_heads * config.d_head * 2 / 8
    assert memory.alias_bytes >= cache_bytes
    assert memory.temp_bytes < 0.1 * cache_bytes
