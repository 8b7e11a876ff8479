"""Latents are attended as they are cached, where that costs less than expanding them."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialect.naming.axes import infer_axes
from dialect.planning.decoder import decoder_shape
from dialect.planning.decoder_shape import Attention
from rewrite import Pipeline, Target, auto_shard, trace
from tests import latent_attention as latent
from tests.kit import assert_close, run

CONFIG, BATCH, CONTEXT = latent.TINY, 8, 64
PARAMS = jax.jit(partial(latent.init_params, CONFIG))(jax.random.key(0))
RANDOM = np.random.default_rng(0)
CACHE = latent.init_cache(CONFIG, BATCH, CONTEXT) | {
    name: jnp.asarray(RANDOM.normal(size=(CONFIG.layers, BATCH, CONTEXT, width)), jnp.float32)
    for name, width in (("latent", CONFIG.latent), ("rope", CONFIG.rope))
}
CACHE["position"] = jnp.int32(9)
TOKENS = {
    "decode": jnp.asarray(RANDOM.integers(0, CONFIG.vocab, BATCH), jnp.int32),
    "prefill": jnp.asarray(RANDOM.integers(0, CONFIG.vocab, (BATCH, 48)), jnp.int32),
}
STEPS = {"decode": latent.decode_step, "prefill": latent.prefill}
FOUND = "normalize, recognize, carry_cache"
ABSORBED = {
    "b t j k, b s k, b s v, t s, b t j p, b s p -> b t j v",
    "b t g k, b s k, b s v, t s, b t g p, b s p -> b t g v",
}


def step(kind: str, spelling: str, config: latent.Config = CONFIG) -> Any:
    return partial(STEPS[kind], config, spelling=spelling)


def traced(kind: str, spelling: str, passes: str, target: Target = Target()) -> Any:
    program = trace(step(kind, spelling), PARAMS, CACHE, TOKENS[kind], params=0, state=1)
    return Pipeline.parse(passes).run(program, target)


def attentions(program: Any) -> list[Any]:
    return [op for op, _ in program.graph.walk() if op.name == "attend"]


@pytest.mark.parametrize("spelling", latent.SPELLINGS)
def test_every_spelling_is_attention_over_the_latents(spelling):
    program = traced("decode", spelling, f"{FOUND}, absorb")
    (op,) = attentions(program)
    assert op["axes"].replace("1", "t") in ABSORBED
    assert op["given"] == "mask query_2 key_2"
    _, key, value, _, _, rotary = op.args
    assert key == value and key.type.shape == (BATCH, CONTEXT, CONFIG.latent)
    assert rotary.type.shape == (BATCH, CONTEXT, CONFIG.rope)
    wanted = latent.decode_step(CONFIG, PARAMS, CACHE, TOKENS["decode"])
    assert_close(run(program, PARAMS, CACHE, TOKENS["decode"]), wanted, 1e-4)


@pytest.mark.parametrize("spelling", latent.SPELLINGS)
@pytest.mark.parametrize("kind", TOKENS)
def test_eight_devices_attend_latents_of_their_own(kind, spelling):
    """As many as the plan gives them: the latents are of no heads, so that the batch is split."""
    passes = f"{FOUND}, absorb, plan{{attention=batch}}, shard, stage, lower"
    sharded = auto_shard(step(kind, spelling), "cpu:8", pipeline=passes)
    args = (PARAMS, jax.tree.map(jnp.array, CACHE), TOKENS[kind])
    wanted = STEPS[kind](CONFIG, PARAMS, CACHE, TOKENS[kind])
    logits, cache = sharded(sharded.prepare(*args), sharded.adapt(args[1]), args[2])
    assert_close((logits, sharded.restore(cache)), wanted, 1e-4)
    assert sharded.plan(*args).split("cache") == {"batch": ("x", "y")}


def test_a_long_prefill_is_left_expanded():
    """48 positions at a time read each latent, but the queries of few would be wider than that."""
    program = traced("prefill", "expanded", f"{FOUND}, absorb")
    (op,) = attentions(program)
    assert op.args[1].op.name == "concatenate"
    (note,) = program.history[-1].notes
    assert note.startswith("latents are left expanded: ")
    program = traced("prefill", "latent", f"{FOUND}, absorb")
    assert program.history[-1].notes == ("no keys or values are expanded from a latent",)


def halves(params: Any, cache: Any, x: Any) -> Any:
    """Keys and values are halves of one product, as wide as each other."""
    latents = jax.lax.dynamic_update_slice(cache, x[:, None] @ params["down"], (0, 5, 0))
    both = (latents @ params["up"]).reshape(*latents.shape[:2], 4, -1)
    keys, values = jnp.split(both, [params["split"].size], -1)
    query = jnp.einsum("bd,dhk->bhk", x, params["query"])
    weights = jax.nn.softmax(jnp.einsum("bhk,bshk->bhs", query, keys))
    return jnp.einsum("bhs,bshv->bhv", weights, values), latents


@pytest.mark.parametrize("split", [6, 4])
def test_keys_and_values_that_are_cut_from_one_product(split):
    def drawn(*sizes: int) -> jax.Array:
        return jnp.asarray(RANDOM.normal(size=sizes), jnp.float32)

    params = {"down": drawn(16, 10), "up": drawn(10, 4 * 12), "query": drawn(16, 4, split)}
    params |= {"split": jnp.zeros(split)}
    args = (params, drawn(2, 32, 10), drawn(2, 16))
    program = trace(halves, *args, params=0, state=1)
    program = Pipeline.parse("normalize, recognize, absorb").run(program)
    (op,) = attentions(program)
    assert op.args[1] == op.args[2] and op.args[1].type.shape == (2, 32, 10)
    assert_close(run(program, *args), halves(*args), 1e-4)


def in_parts(params: Any, cache: Any, x: Any, is_last_other: bool = False) -> Any:
    """Latents of a prompt and of an answer in caches of their own, as MaxText has them."""
    new = {"latent": (x @ params["down"])[:, None], "rope": (x @ params["rope"])[:, None]}
    answer = {
        name: jax.lax.dynamic_update_slice(cache["answer"][name], new[name], (0, 3, 0))
        for name in new
    }
    keys, values = [], []
    for part in (cache["prompt"], answer):
        weight = params["up"] * (1 + (is_last_other and part is answer))
        both = (part["latent"] @ weight).reshape(*part["latent"].shape[:2], 4, -1)
        key, value = jnp.split(both, [6], -1)
        rope = jnp.broadcast_to(part["rope"][:, :, None], (*key.shape[:3], 2))
        keys.append(jnp.concatenate([key, rope], -1))
        values.append(value)
    query = jnp.einsum("bd,dhk->bhk", x, params["query"])
    weights = jax.nn.softmax(jnp.einsum("bhk,bshk->bhs", query, jnp.concatenate(keys, 1)))
    mixed = jnp.einsum("bhs,bshv->bhv", weights, jnp.concatenate(values, 1))
    return mixed, cache | {"answer": answer}


@pytest.mark.parametrize("is_last_other", [False, True])
def test_latents_in_several_caches(is_last_other):
    """They are attended as parts of one context where one weight expands them all."""

    def drawn(*sizes: int) -> jax.Array:
        return jnp.asarray(RANDOM.normal(size=sizes), jnp.float32)

    params = {"down": drawn(16, 10), "rope": drawn(16, 2), "up": drawn(10, 48)}
    params |= {"query": drawn(16, 4, 8)}
    lengths = {"prompt": 32, "answer": 16}
    cache = {
        part: {"latent": drawn(2, n, 10), "rope": drawn(2, n, 2)} for part, n in lengths.items()
    }
    args, function = (params, cache, drawn(2, 16)), partial(in_parts, is_last_other=is_last_other)
    program = trace(function, *args, params=0, state=1)
    program = Pipeline.parse("normalize, recognize, absorb").run(program)
    (op,) = attentions(program)
    assert_close(run(program, *args), function(*args), 1e-4)
    if is_last_other:
        assert program.history[-1].notes == ("no keys or values are expanded from a latent",)
        return
    assert op["axes"] == "b g k, b s k, b s v, b g p, b s p -> b g v"
    assert op.args[1] == op.args[2]
    assert [op.args[i].type.shape for i in (1, 4)] == [(2, 48, 10), (2, 48, 2)]
    assert [part.type.shape[1] for part in op.args[1].op.args] == [32, 16]


def test_what_is_read_elsewhere_too_is_expanded_anyway():
    """Then absorbing it would only add work."""

    def both(params: Any, cache: Any, x: Any) -> Any:
        keys = jnp.einsum("bsc,chk->bshk", cache, params["up"])
        query = jnp.einsum("bd,dhk->bhk", x, params["query"])
        weights = jax.nn.softmax(jnp.einsum("bhk,bshk->bhs", query, keys))
        return jnp.einsum("bhs,bshk->bhk", weights, keys) + keys.sum(1), cache

    args = ({"up": jnp.ones((10, 4, 6)), "query": jnp.ones((16, 4, 6))}, jnp.ones((2, 32, 10)))
    program = trace(both, *args, jnp.ones((2, 16)), params=0, state=1)
    program = Pipeline.parse("normalize, recognize, absorb").run(program)
    (note,) = program.history[-1].notes
    assert note.startswith("latents are left expanded: ")


@pytest.mark.parametrize("spelling", latent.SPELLINGS)
def test_a_cache_of_latents_is_kept_in_int8(spelling):
    """Keys and values are the same integers; each row of both arrays has a scale."""
    program = traced("decode", spelling, f"{FOUND}, absorb, quantize{{weights=none, cache=int8}}")
    notes = [note for note in program.history[-1].notes if note.startswith("cache/")]
    assert notes == [
        "cache/latent kept in int8: 65,536 bytes -> 18,432",
        "cache/rope kept in int8: 16,384 bytes -> 6,144",
    ]
    (op,) = attentions(program)
    given = dict(zip(("query", "key", "value", *op["given"].split()), op.args))
    assert given["key"] == given["value"]
    assert given["key_scale"] == given["value_scale"] != given["key_scale_2"]
    assert [given[name].type.dtype for name in ("key", "key_2", "key_scale_2")] == [
        *("i8", "i8", "bf16")
    ]
    wanted, _ = latent.decode_step(CONFIG, PARAMS, CACHE, TOKENS["decode"])
    logits, _ = run(program, PARAMS, CACHE, TOKENS["decode"])
    assert float(jnp.abs(logits - wanted).max()) < 0.05 * float(jnp.abs(wanted).max())


@pytest.mark.parametrize("spelling", ["summed", "latent"])
@pytest.mark.parametrize("kind", TOKENS)
def test_the_scale_goes_into_the_weights_of_all_queries(kind, spelling):
    program = traced(kind, spelling, f"{FOUND}, fold_scales")
    (op,) = attentions(program)
    assert (op.get("scale"), op.get("base")) == (1.0, 2.0)
    wanted = STEPS[kind](CONFIG, PARAMS, CACHE, TOKENS[kind])
    assert_close(run(program, PARAMS, CACHE, TOKENS[kind]), wanted, 1e-4)


def attention_of(kind: str, passes: str, tokens: Any) -> Attention:
    cache = jax.eval_shape(lambda: CACHE)
    program = trace(step(kind, "expanded"), PARAMS, cache, tokens, params=0, state=1)
    program = Pipeline.parse(passes).run(program)
    ((attention, _),) = decoder_shape(program, infer_axes(program)).attentions
    return attention


@pytest.mark.parametrize("kind", TOKENS)
def test_what_expands_latents_is_planned(kind):
    """Keys of 8 and values of 12 numbers for each of 8 heads, the rotary key of each head, and both
    keys in one array; a prefill that fills its cache knows it by no name of the context."""
    length = () if kind == "decode" else (CONTEXT,)
    tokens = jax.ShapeDtypeStruct((BATCH, *length), jnp.int32)
    found = attention_of(kind, FOUND, tokens)
    assert (found.latent, found.d_head, found.d_value) == ((16, 4), 12, 12)
    assert found.expanded == 8 * (8 + 12) and found.attended == 8 * (12 + 12)
    assert found.relaid == (4 + 8 * 4) + 8 * (8 + 4) * 2
    assert not found.is_shared and sum(each.expands for each in found.projections) == 2


def test_latents_are_both_keys_and_values():
    found = attention_of("decode", f"{FOUND}, absorb", TOKENS["decode"])
    assert (found.is_shared, found.expanded, found.relaid) == (True, 0, 0)


@pytest.mark.parametrize("spelling", ["summed", "latent"])
def test_pairs_of_queries_and_keys_in_blocks(spelling):
    passes = f"{FOUND}, absorb, flash{{query=8, key=16}}"
    program = traced("prefill", spelling, passes)
    (op,) = attentions(program)
    assert op["blocks"] == (8, 16)
    wanted = latent.prefill(CONFIG, PARAMS, CACHE, TOKENS["prefill"])
    assert_close(run(program, PARAMS, CACHE, TOKENS["prefill"]), wanted, 1e-4)
    sharded = auto_shard(
        step("prefill", spelling), "cpu:8", pipeline=f"{passes}, plan, shard, stage, lower"
    )
    args = (PARAMS, jax.tree.map(jnp.array, CACHE), TOKENS["prefill"])
    logits, _ = sharded(sharded.prepare(*args), sharded.adapt(args[1]), args[2])
    assert_close(logits, wanted[0], 1e-4)
