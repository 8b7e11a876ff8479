"""Prefill and decode as two steps: weights once, a state handed over, two phases of a pipeline."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import gpt, llama, palm
from rewrite import ShardwrightError, auto_shard
from tests.kit import arrays_of, assert_close

MODELS = {"llama": llama, "palm": palm, "gpt": gpt}
PHASES = """
target cpu:8
mesh x=2 y=4
prefill {{
  normalize, recognize, carry_cache, cache_layout, {more}
  plan{{ffn=ws1d, attention=heads}}, shard, stage, lower
}}
decode {{
  normalize, recognize, carry_cache, {forms} {more} plan{{{plan}}}, shard, stage, lower
}}
"""
SAME = "ffn=ws1d, attention=heads"


def both(model: Any, more: str = "", plan: str = SAME, forms: str = "cache_layout,") -> Any:
    """(prefill, decode, the original of each), of one pipeline."""
    config, text = model.CONFIGS["toy"], PHASES.format(more=more, plan=plan, forms=forms)
    originals = partial(model.prefill, config), partial(model.decode_step, config)
    steps = [
        auto_shard(each, pipeline=text, phase=phase)
        for each, phase in zip(originals, ("prefill", "decode"))
    ]
    return *steps, *originals


def prompt_of(model: Any) -> Any:
    return arrays_of(model, model.CONFIGS["toy"], 8, 32, prompt=4)


def greedy(logits: jax.Array) -> jax.Array:
    return jnp.argmax(logits, -1).astype(jnp.int32)


@pytest.mark.parametrize("more", ["", "quantize{weights=int8, cache=int8},"])
@pytest.mark.parametrize("name", MODELS)
def test_weights_and_state_of_prefill_are_decodes(name: str, more: str) -> None:
    prefill, decode, whole, one = both(MODELS[name], more)
    params, cache, tokens = prompt_of(MODELS[name])
    packed = prefill.prepare(params, cache, tokens)
    logits, state = prefill(packed, prefill.adapt(cache), tokens)
    expected, kept = whole(params, jax.tree.map(jnp.copy, cache), tokens)
    tolerance = 0.2 if more else 2e-4
    for _ in range(2):
        np.testing.assert_allclose(logits, expected, atol=tolerance)
        token = greedy(expected)
        logits, state = decode(packed, state, token)
        expected, kept = one(params, kept, token)
    assert int(decode.restore(state)["position"]) == 6
    assert_close(decode.restore(state)["k"], kept["k"], atol=tolerance)
    (executable,) = decode._executables.values()
    assert all(a is b for a, b in zip(executable.of_this_step(packed).leaves, packed.leaves))


def test_weights_that_lie_otherwise_are_copied_and_told(caplog: Any) -> None:
    prefill, decode, whole, one = both(llama, plan="ffn=ws2d, attention=batch")
    params, cache, tokens = prompt_of(llama)
    packed = prefill.prepare(params, cache, tokens)
    logits, state = prefill(packed, prefill.adapt(cache), tokens)
    with caplog.at_level(logging.WARNING, "shardwright"):
        for _ in range(2):
            found, state = decode(packed, state, greedy(logits))
    (told,) = [record.message for record in caplog.records]
    assert " packed parameters lie otherwise on the mesh" in told
    expected, kept = whole(params, prompt_of(llama)[1], tokens)
    for _ in range(2):
        expected, kept = one(params, kept, greedy(logits))
    assert_close(found, expected)


def test_a_state_in_another_form_is_converted(caplog: Any) -> None:
    prefill, decode, whole, one = both(llama, forms="")
    params, cache, tokens = prompt_of(llama)
    packed = prefill.prepare(params, cache, tokens)
    logits, state = prefill(packed, prefill.adapt(cache), tokens)
    with caplog.at_level(logging.WARNING, "shardwright"):
        found, _ = decode(packed, state, greedy(logits))
    (told,) = [record.message for record in caplog.records if "converted" in record.message]
    assert told.startswith("decode_step: the state has the form of another step, and is converted")
    expected, kept = whole(params, prompt_of(llama)[1], tokens)
    expected, _ = one(params, kept, greedy(logits))
    assert_close(found, expected)


def test_inside_a_traced_function_a_state_is_converted_before() -> None:
    prefill, decode, _, one = both(llama, more="quantize{cache=int8},", forms="")
    plain = auto_shard(one, "cpu:8", pipeline="normalize, recognize, carry_cache, stage, lower")
    params, cache, tokens = prompt_of(llama)
    packed = prefill.prepare(params, cache, tokens)
    logits, state = prefill(packed, prefill.adapt(cache), tokens)
    token = greedy(logits)
    with pytest.raises(ShardwrightError, match="in the form of another step") as error:
        jax.jit(plain)(params, state, token)
    assert "step.adapt(state)" in error.value.hint
    whole = plain.lower(params, cache, token).compile() and plain.adapt(state)
    assert_close(jax.jit(plain)(params, whole, token)[0], plain(params, whole, token)[0])


@pytest.mark.parametrize("inside", [False, True], ids=["called", "traced"])
def test_what_both_have_is_kept_once(inside: bool) -> None:
    """Decode quantises, prefill does not: norms and tables are shared, the rest is packed anew."""
    _, decode, _, one = both(llama, more="quantize{weights=int8},")
    prefill, _, _, _ = both(llama)
    params, cache, tokens = prompt_of(llama)
    packed = prefill.prepare(params, cache, tokens)
    with pytest.raises(ShardwrightError, match="packed for another program") as error:
        (jax.jit(decode) if inside else decode)(packed, cache, tokens[:, 0])
    assert "like=packed" in error.value.hint
    also = decode.prepare(params, cache, tokens[:, 0], like=packed)
    kept = set(map(id, packed.leaves))
    shared = {name for name, leaf in zip(also.names, also.leaves) if id(leaf) in kept}
    assert shared == {"params/embedding", "params/final_norm", "params/head"} | {
        name for name in also.names if name.endswith("norm")
    }
    alone = decode.prepare(params, cache, tokens[:, 0])
    for leaf, again in zip(also.leaves, alone.leaves):
        np.testing.assert_array_equal(leaf, again)


def test_phases_are_named() -> None:
    text = PHASES.format(more="", plan=SAME, forms="")
    with pytest.raises(ShardwrightError, match="has several phases") as error:
        auto_shard(partial(llama.prefill, llama.CONFIGS["toy"]), pipeline=text)
    assert error.value.hint == "known: decode, prefill"
    with pytest.raises(ShardwrightError, match="has no phase 'decod'"):
        auto_shard(partial(llama.prefill, llama.CONFIGS["toy"]), pipeline=text, phase="decod")


def test_a_second_shape_says_what_it_costs(caplog: Any) -> None:
    _, decode, _, _ = both(llama)
    for batch in (8, 8, 16):
        params, cache, tokens = arrays_of(llama, llama.CONFIGS["toy"], batch, 32)
        with caplog.at_level(logging.WARNING, "shardwright"):
            decode(params, cache, tokens)
    (told,) = [record.message for record in caplog.records]
    assert told.startswith("decode_step: tokens i32[8] -> i32[16], ")
    assert "traced and compiled anew (the last time took " in told
