"""Attention in blocks is attention: every variant, blocks of any size, on one chip and on more."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialect.compiled.layer_attention import attend_in_stack
from dialect.ops.attend import attend
from dialect.ops.vocabulary import Traced
from examples import llama
from rewrite import Pipeline, Target, auto_shard, trace
from rewrite.driver import rewrite
from rewrite.program import NOT_DONE
from tests.kit import graph_of, op_names, run, traced_step

B, T, G, J, K, S = 4, 8, 2, 3, 16, 24
AXES = "b t g j k, b s g k, b s g v"
BLOCKS = [(4, 8), (16, 6), (1, 24)]  # of one sequence, of two, of one query
RANDOM = np.random.default_rng(0)


def drawn(*sizes: int) -> jax.Array:
    return jnp.asarray(RANDOM.normal(size=sizes), jnp.float32)


MASK = jnp.asarray(RANDOM.random((T, S)) > 0.5).at[0].set(False).at[3].set(True)
INTEGERS = jnp.asarray(RANDOM.integers(-127, 127, (B, S, G, K)), jnp.int8)
SCALES = drawn(B, S, G) ** 2
FILL: dict[str, Any] = {"given": "mask", "fill": -1e9}
FIRST = jnp.asarray(RANDOM.integers(-9, S, (B, T)))
LAST = jnp.asarray(FIRST + RANDOM.integers(0, 9, (B, T))).at[1, 5].set(-3)  # one keeps no key
WINDOWS: dict[str, Any] = {"given": "first last"}
# what else is given, with its axes, and the attributes
VARIANTS: dict[str, tuple[tuple[jax.Array, ...], str, dict[str, Any]]] = {
    "plain": ((), "", {}),
    "a row that keeps no key is NaN": ((MASK,), ", t s", {"given": "mask"}),
    "a row that keeps no key is a mean": ((MASK,), ", t s", FILL),
    "fill is added": ((MASK,), ", t s", FILL | {"added": True}),
    "a row that keeps no key is zero": ((MASK,), ", t s", FILL | {"dropped": True}),
    "windows": ((FIRST, LAST), ", b t, b t", WINDOWS),
    "windows, filled": ((FIRST, LAST), ", b t, b t", WINDOWS | {"fill": -1e9}),
    "windows, filled by what is not nothing": (
        (FIRST, LAST),
        ", b t, b t",
        WINDOWS | {"fill": -3.0, "visits": 9},
    ),
    "windows, filled by an operand": (
        (FIRST, LAST, jnp.float32(-1e9)),
        ", b t, b t, ",
        {"given": "first last fill", "visits": 9},
    ),
    "windows, filled by an operand that is not nothing": (
        (FIRST, LAST, jnp.float32(-3.0)),
        ", b t, b t, ",
        {"given": "first last fill"},
    ),
    "filled by an infinite operand": (
        (MASK, jnp.float32(-jnp.inf)),
        ", t s, ",
        {"given": "mask fill"},
    ),
    "a mask of each query, up to a position": (
        (MASK, LAST[:, :1]),
        ", t s, b 1",
        {"given": "mask last", "fill": -1e9, "dropped": True},
    ),
    "rounded weights of windows": (
        (LAST,),
        ", b t",
        {"given": "last", "fill": -1e9, "rounds": (127.5, 1e-9)},
    ),
    "bias, cap, scale": ((drawn(G, J, S),), ", g j s", {"given": "bias", "scale": 0.3, "cap": 2.0}),
    "sink": ((MASK, drawn(G, J)), ", t s, g j", {"given": "mask sink"}),
    "sinks": ((MASK, drawn(G, J, 2)), ", t s, g j n", {"given": "mask sink"}),
    "base 2": ((MASK,), ", t s", {"given": "mask", "base": 2.0}),
    "rounded weights": ((MASK,), ", t s", {"given": "mask", "rounds": (127.5, 1e-9)}),
    "integers": (
        (SCALES, SCALES, MASK),
        ", b s g, b s g, t s",
        {"given": "key_scale value_scale mask", "scale": 0.01, "weights": jnp.float32},
    ),
}


@pytest.mark.parametrize(
    ("name", "out"), [*((name, "b t g j v") for name in VARIANTS), ("plain", "j g t v b")]
)
def test_blocks_are_the_whole(name, out):
    more, axes, attrs = VARIANTS[name]
    held = (INTEGERS, INTEGERS) if name == "integers" else (drawn(B, S, G, K), drawn(B, S, G, K))
    arrays, axes = (drawn(B, T, G, J, K), *held, *more), f"{AXES}{axes} -> {out}"
    whole = attend(*arrays, axes=axes, **attrs)
    for blocks in BLOCKS:
        found = jax.jit(partial(attend, axes=axes, blocks=blocks, **attrs))(*arrays)
        assert found.dtype == whole.dtype
        np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-5 * float(np.nanmax(whole)))


@pytest.mark.parametrize("blocks", [(3, 24), (8, 5), (8, 0)])
def test_blocks_that_do_not_divide_are_refused(blocks):
    arrays = (drawn(B, T, G, J, K), drawn(B, S, G, K), drawn(B, S, G, K))
    with pytest.raises(ValueError, match="blocks of . do not divide (8 queries|24 keys)"):
        attend(*arrays, axes=f"{AXES} -> b t g j v", blocks=blocks)


CONFIG = llama.CONFIGS["toy"]
PARAMS = jax.jit(partial(llama.init_params, CONFIG))(jax.random.key(0))
CACHE = llama.init_cache(CONFIG, 8, 64)
PROMPT = jnp.asarray(RANDOM.integers(0, CONFIG.vocab, (8, 32)), jnp.int32)
FOUND = "normalize, recognize, carry_cache"


def flashed(passes: str, target: Target = Target()) -> Any:
    program = trace(partial(llama.prefill, CONFIG), PARAMS, CACHE, PROMPT, params=0, state=1)
    return Pipeline.parse(passes).run(program, target)


def attends(program: Any) -> list[Any]:
    return [op for op, _ in program.graph.walk() if op.name == "attend"]


def test_prefill_in_blocks_equals_the_original():
    wanted = llama.prefill(CONFIG, PARAMS, CACHE, PROMPT)
    program = flashed(f"{FOUND}, flash{{query=8, key=16}}")
    assert [op["blocks"] for op in attends(program)] == [(8, 16)]
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4),
        run(program, PARAMS, CACHE, PROMPT),
        wanted,
    )


@pytest.mark.parametrize("attention", ["heads", "batch"])
def test_eight_devices_compute_blocks_of_their_own(attention):
    pipeline = (
        f"{FOUND}, flash{{query=8, key=16}}, plan{{attention={attention}}}, shard, stage, lower"
    )
    wanted = llama.prefill(CONFIG, PARAMS, CACHE, PROMPT)
    step = auto_shard(partial(llama.prefill, CONFIG), "cpu:8", pipeline=pipeline)
    (mapped,) = (
        op for op, _ in step.program(PARAMS, CACHE, PROMPT).graph.walk() if op.name == "mapped"
    )
    assert [op.name for op in mapped["body"].payload.ops] == ["attend"]
    logits, cache = step(step.prepare(PARAMS, CACHE, PROMPT), step.adapt(CACHE), PROMPT)
    np.testing.assert_allclose(logits, wanted[0], rtol=1e-4, atol=1e-4)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), step.restore(cache), wanted[1]
    )


def test_blocks_that_the_mask_leaves_out_are_not_read():
    """Values there may be anything: NaN of a key without weight would be NaN in the whole."""
    causal = jnp.arange(T)
    arrays = (drawn(B, T, G, J, K), drawn(B, S, G, K), drawn(B, S, G, K))
    plain = partial(attend, axes=f"{AXES}, t -> b t g j v", given="last")
    wanted = plain(*arrays, causal)
    beyond = arrays[2].at[:, T:].set(jnp.nan)
    found = plain(*arrays[:2], beyond, causal, blocks=(4, 8))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("unrolled", [False, True])
def test_the_bounds_of_a_mask_are_found(unrolled):
    """The cache has 64 positions, the prompt 32: the last block of queries reads all."""
    model = llama.init_params(CONFIG, jax.random.key(0), unrolled)
    cache = llama.init_cache(CONFIG, 8, 64, unrolled)
    program = trace(partial(llama.prefill, CONFIG), model, cache, PROMPT, params=0, state=1)
    passes = "normalize, recognize, roll, carry_cache, flash{query=8, key=16}"
    (op,) = attends(Pipeline.parse(passes).run(program))
    assert (op["given"], op["visits"]) == ("last", 14)


def test_blocks_are_chosen_by_the_chip():
    """8 sequences of 64 queries and 64 keys for 16 heads: 512 KiB of logits in f32."""
    small = flashed(f"{FOUND}, flash", Target("v5e:2x4", (("x", 2), ("y", 4))))
    assert [op.get("blocks") for op in attends(small)] == [None]
    assert small.history[-1].notes == ("whole: blocks would gain nothing",)


@pytest.mark.parametrize(("batch", "d_head", "blocks"), [(32, 64, (1024, 1024)), (32, 128, None)])
def test_keys_and_values_of_a_block_fit_on_the_chip(batch, d_head, blocks) -> None:
    """64 MiB of each in a layer, or 128 of half filled lanes, on a chip that has 128. How often the
    loop over blocks runs is known on one device too."""
    config = replace(CONFIG, layers=2, heads=512 // d_head, kv_heads=512 // d_head, d_head=d_head)
    config = replace(config, dtype="bfloat16")
    program, target = traced_step(llama, config, batch, 2048), Target("v5e:1x1", (("x", 1),))
    made = Pipeline.parse(f"{FOUND}, flash").run(program, target)
    assert [op.get("blocks") for op in attends(made)] == [blocks]
    lowered = Pipeline.parse("plan, shard, stage, lower").run(made, target)
    visits = [op.get("visits") for op, _ in lowered.graph.walk() if op.get("visits")]
    assert visits == ([2] if blocks else [])


def test_what_cannot_be_done_is_told():
    odd = flashed(f"{FOUND}, flash{{key=48}}")
    assert [op.get("blocks") for op in attends(odd)] == [None]
    (remark,) = odd.history[-1].remarks
    assert remark.kind == NOT_DONE
    assert remark.text.startswith("blocks of 48 do not divide 64 keys: ")
    for passes, kind in (("flash", ""), ("flash{query=8}", NOT_DONE)):
        (remark,) = flashed(f"normalize, {passes}").history[-1].remarks
        assert (remark.text, remark.kind) == ("no attention was recognised", kind)


def test_stacks_of_other_layers_are_read_one_by_one() -> None:
    """One read of a layer needs stacks of keys and values that have as many layers."""

    def attention(q: Any, k: Any, v: Any) -> Any:
        read = (Traced["cache_read"](stack, 1) for stack in (k, v))
        return Traced["attend"](q, *read, axes="b t k, b s k, b s v -> b t v", blocks=(8, 4))

    queries, keys = jnp.ones((2, 4, 2)), jnp.ones((3, 2, 8, 2))
    graph = graph_of(attention, queries, keys, keys)
    assert op_names(rewrite(graph, [attend_in_stack])) == ["const", "attend_layer"]
    graph = graph_of(attention, queries, keys, jnp.ones((4, 2, 8, 2)))
    assert rewrite(graph, [attend_in_stack]) == graph
