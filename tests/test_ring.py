"""Rings: caches of as many places as the window of their attention, written over in turn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialect.ops.rings import rings, unwound
from examples import llama
from rewrite import auto_shard, per_row
from rewrite.errors import ShardwrightError
from rewrite.program import LEFT_ALONE, NOT_DONE, Program
from tests import decoders
from tests.kit import assert_close, traced_after

STEPS = 5  # from position 3 up to the end of a context of 8: a ring of 3 is gone around
FOUND = "retarget, normalize, recognize"
STAGED = "plan, shard, stage, lower"
LOOP = "roll, carry_cache, cache_layout, ring"


def served(
    step: Any,
    function: Callable[..., Any],
    params: Any,
    cache: Any,
    tokens: Any,
    steps: int = STEPS,
) -> tuple[Any, Any]:
    """The logits of some steps of a sharded step, and its last state; they are the function's."""
    packed, state = step.prepare(params, cache, tokens), step.adapt(cache)
    plain = jax.jit(function)
    for _ in range(steps):
        logits, state = step(packed, state, tokens)
        wanted, cache = plain(params, cache, tokens)
        assert_close(logits, wanted, atol=1e-4)
    return step.restore(state), cache


def kept(program: Program) -> list[str]:
    """The types of the state between steps."""
    return [str(source.type) for source in program.step_inputs if source.role == "state"]


def reasons(passes: str, function: Any, *args: Any) -> dict[str, str]:
    """Why caches were left alone, by their name, without the op and its line."""
    remarks = traced_after(f"normalize, recognize, {passes}", function, *args).history[-1].remarks
    left = (remark for remark in remarks if remark.kind in (LEFT_ALONE, NOT_DONE))
    return {remark.of: remark.text.partition(": ")[0] for remark in left}


# What a ring holds.


@pytest.mark.parametrize("position", [0, 2, 3, 4, 8])
def test_a_ring_holds_the_places_before_its_position(position: int) -> None:
    cache = jnp.arange(1.0, 9.0)
    ring, at = rings(cache, jnp.int32(position), axes=(0,), size=3)
    back, _ = unwound(ring, at, axes=(0,), contexts=(8,))
    first = max(position - 3, 0)
    wanted = np.where((np.arange(8) >= first) & (np.arange(8) < max(position, 3)), cache, 0)
    np.testing.assert_array_equal(back, wanted)
    for place in range(first, position):
        assert ring[place % 3] == cache[place]


def test_rows_may_have_positions_of_their_own() -> None:
    cache, positions = jnp.arange(1.0, 17.0).reshape(2, 8), jnp.array([4, 7])
    together, _ = rings(cache, positions, axes=(1,), size=3, rows=0)
    apart = [rings(cache[i], positions[i], axes=(0,), size=3)[0] for i in range(2)]
    np.testing.assert_array_equal(together, np.stack(apart))
    back, _ = unwound(together, positions, axes=(1,), contexts=(8,), rows=0)
    np.testing.assert_array_equal(back[1], [0, 0, 0, 0, 13, 14, 15, 0])


# Decoders.


@pytest.mark.parametrize(
    ("starts", "mesh", "passes"),
    [  # every two of them meet
        ("shared", "cpu:1", "ring"),
        ("shared", "cpu:8", LOOP),
        ("own", "cpu:8", "ring"),
        ("own", "cpu:1", LOOP),
        ("rows", "cpu:1", "ring"),
        ("rows", "cpu:8", LOOP),
    ],
)
def test_windows_in_turn_with_global_layers_are_rings(mesh: str, starts: str, passes: str) -> None:
    """One position for all layers, one for each, or one for every row; unrolled, or in a loop."""
    step, args = decoders.decoder("lglg", starts), decoders.arguments("lglg", starts)
    steps = 3 if starts == "rows" else STEPS  # a row that begins at 5 has 3 places
    sharded = auto_shard(step, mesh, pipeline=f"{FOUND}, {passes}, {STAGED}")
    restored, cache = served(sharded, step, *args, steps=steps)
    sizes = [kind[kind.index("[") :] for kind in kept(sharded.program(*args)) if kind[0] == "f"]
    assert sizes.count("[2,2,2,3,4]" if "roll" in passes else "[2,3,2,4]") == (
        2 if "roll" in passes else 4
    )
    assert_close(restored["layers"][1], cache["layers"][1], atol=1e-4)
    if starts != "rows":
        held = slice(5, 8)
        for name in "kv":
            found, wanted = (each["layers"][2][name] for each in (restored, cache))
            assert_close(found[:, held], wanted[:, held], atol=1e-4)
            assert not found[:, :5].any()


@pytest.mark.parametrize("mesh", ["cpu:1", "cpu:8"])
def test_a_window_of_block_sparse_is_a_ring_too(mesh: str) -> None:
    """Then the cache of any decoder is as long as that, stacked over its layers."""
    config, init = llama.CONFIGS["toy"], partial(llama.init_cache, llama.CONFIGS["toy"])
    step = partial(llama.decode_step, config)
    args = llama.init_params(config, jax.random.key(0)), init(8, 64), jnp.arange(8)
    narrow = f"{FOUND}, carry_cache, cache_layout, block_sparse{{window=7, sinks=0}}"
    sharded = auto_shard(step, mesh, pipeline=f"{narrow}, ring, {STAGED}")
    served(sharded, traced_after(narrow, step, *args), *args, steps=12)
    assert any(",7," in kind for kind in kept(sharded.program(*args)))


LAYOUT_LATER = "roll, carry_cache, ring, cache_layout"


@pytest.mark.parametrize(
    ("starts", "passes"), [("shared", LOOP), ("own", LOOP), ("own", LAYOUT_LATER)]
)
def test_a_ring_is_kept_in_int8_too(starts: str, passes: str) -> None:
    """What changes the form of a cache behind `ring` changes that of the ring."""
    step, args = decoders.decoder("lglg", starts), decoders.arguments("lglg", starts)
    later = f"{passes}, quantize{{cache=int8}}"
    sharded = auto_shard(step, "cpu:8", pipeline=f"{FOUND}, {later}, {STAGED}")
    packed, state = sharded.prepare(*args), sharded.adapt(args[1])
    logits, _ = sharded(packed, state, args[2])
    assert_close(logits, jax.jit(step)(*args)[0], atol=0.05)
    assert {"i8[2,2,2,3,4]", "bf16[2,2,2,3]", "i8[2,2,2,8,4]"} <= set(kept(sharded.program(*args)))


def test_rows_of_a_server_are_rings() -> None:
    config = llama.CONFIGS["toy"]
    rows = per_row(
        partial(llama.decode_step, config), partial(llama.init_cache, config, context=64)
    )
    args = llama.init_params(config, jax.random.key(0)), rows.init(8), jnp.arange(8)
    args[1]["position"] = jnp.array([0, 1, 3, 6, 7, 8, 20, 40])
    narrow = f"{FOUND}, carry_cache, cache_layout, block_sparse{{window=7, sinks=0}}"
    sharded = auto_shard(rows, "cpu:8", pipeline=f"{narrow}, ring, {STAGED}")
    served(sharded, traced_after(narrow, rows, *args), *args, steps=9)


def test_a_prefill_hands_its_cache_over() -> None:
    """Its cache is whole; the ring takes the last places of it, behind the padding or before."""
    step = window_layer()
    params, cache, _ = arguments(1)
    prompt, token = jnp.ones((2, 6, 16)) * 0.3, jnp.ones((2, 1, 16))
    _, cache = step(params, cache, prompt)
    sharded = auto_shard(step, "cpu:1", pipeline=f"{FOUND}, ring, {STAGED}")
    served(sharded, step, params, cache, token)


@pytest.mark.parametrize("mesh", ["cpu:1", "cpu:8"])
def test_a_chunk_is_written_around_a_ring(mesh: str) -> None:
    """Of as many places more as it has tokens behind its first, which need what others replace."""
    step, args = window_layer(), arguments(3)
    sharded = auto_shard(step, mesh, pipeline=f"{FOUND}, ring, {STAGED}")
    restored, cache = served(sharded, step, *args, steps=4)
    assert kept(sharded.program(*args)).count("f32[2,6,2,4]") == 2
    assert_close(restored["k"][:, 6:], cache["k"][:, 6:], atol=1e-4)
    assert not restored["k"][:, :6].any()


def test_chunks_of_rows_are_written_around_rings() -> None:
    config = llama.CONFIGS["toy"]
    rows = per_row(partial(llama.prefill, config), partial(llama.init_cache, config, context=64))
    tokens = jnp.arange(24).reshape(8, 3)
    args = llama.init_params(config, jax.random.key(0)), rows.init(8), tokens
    args[1]["position"] = jnp.array([0, 1, 3, 6, 7, 8, 20, 40])
    narrow = f"{FOUND}, carry_cache, cache_layout, block_sparse{{window=7, sinks=0}}"
    sharded = auto_shard(rows, "cpu:8", pipeline=f"{narrow}, ring, {STAGED}")
    served(sharded, traced_after(narrow, rows, *args), *args, steps=4)
    assert any(",9," in kind for kind in kept(sharded.program(*args)))


def test_chunks_and_single_tokens_share_a_ring() -> None:
    """The step of one token is told how many another writes."""
    step, (params, cache, chunk) = window_layer(), arguments(3)
    first, later = (
        auto_shard(step, "cpu:1", pipeline=f"{FOUND}, ring{{chunk=3}}, {STAGED}") for _ in range(2)
    )
    packed, state = first.prepare(params, cache, chunk), first.adapt(cache)
    alone = later.prepare(params, cache, chunk[:, :1])
    for tokens in (chunk, chunk[:, :1], chunk, chunk[:, 1:2]):
        run, weights = (first, packed) if tokens.shape[1] > 1 else (later, alone)
        found, state = run(weights, state, tokens)
        wanted, cache = step(params, cache, tokens)
        assert_close(found, wanted, atol=1e-4)


def given_positions(w: Any, cache: Any, x: jax.Array, positions: jax.Array) -> Any:
    """A window up to positions [b, t] of the caller's; x is written at a counter of the cache."""
    at, (q, k, v) = cache["position"], (jnp.einsum("btd,dhk->bthk", x, each) for each in w)
    keys, values = (
        jax.lax.dynamic_update_slice(cache[name], new, (0, at, 0, 0))
        for name, new in (("k", k), ("v", v))
    )
    place, last = jnp.arange(12), positions[:, None, :, None]
    logits = jnp.einsum("bthk,bshk->bhts", q, keys)
    logits = jnp.where((place <= last) & (place > last - 4), logits, -1e9)
    mixed = jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(logits, -1), values)
    return mixed.sum((2,)), {"k": keys, "v": values, "position": at + x.shape[1]}


@pytest.mark.parametrize("queries", [1, 3])
def test_rows_whose_positions_are_not_written_are_nan(queries: int) -> None:
    """What the caller gives cannot be proven to be the counter of the cache."""
    params, cache, x = arguments(queries)
    positions = jnp.arange(queries) * jnp.ones((2, 1), jnp.int32)
    args = params, cache, x, positions
    sharded = auto_shard(given_positions, "cpu:8", pipeline=f"{FOUND}, ring, {STAGED}")
    packed, state = sharded.prepare(*args), sharded.adapt(cache)
    for number in range(0, 9, queries):
        found, state = sharded(packed, state, x, positions + number)
        wanted, cache = given_positions(params, cache, x, positions + number)
        assert_close(found, wanted, atol=1e-4)
    away = jnp.array([[0], [1]])
    found, _ = sharded(packed, state, x, positions + number + queries + away)
    wanted, _ = given_positions(params, cache, x, positions + number + queries + away)
    assert_close(found[0], wanted[0], atol=1e-4)
    assert jnp.isnan(found[1]).all()
    notes = next(each.notes for each in sharded.program(*args).history if each.name == "ring")
    assert "positions is taken to be cache/position: rows of attention where it is not are NaN" in (
        map(str, notes)
    )


def test_another_position_is_one_to_adapt_again() -> None:
    step = decoders.decoder("ll")
    args = decoders.arguments("ll")
    sharded = auto_shard(step, "cpu:1", pipeline=f"{FOUND}, ring, {STAGED}")
    packed = sharded.prepare(*args)
    state = sharded.adapt(args[1]) | {"start": jnp.int32(1)}
    with pytest.raises(ShardwrightError, match="some of them were replaced"):
        sharded(packed, state, args[2])


# What is left alone.


def window_layer(
    window: int = 4,
    moves: int | None = None,
    first: Any = None,
    reads_old: bool = False,
    fill: float = -jnp.inf,
) -> Callable[..., Any]:
    """A layer of attention from x: [b, t, 16] on, with a window."""

    def step(w: Any, cache: Any, x: jax.Array, *more: Any) -> tuple[jax.Array, Any]:
        at, (q, k, v) = cache["position"], (jnp.einsum("btd,dhk->bthk", x, each) for each in w)
        keys = jax.lax.dynamic_update_slice(cache["k"], k, (0, at, 0, 0))
        values = jax.lax.dynamic_update_slice(cache["v"], v, (0, at, 0, 0))
        place, last = jnp.arange(12), at + jnp.arange(x.shape[1])[:, None]
        mask = (place <= last) & (place > last - (more[0] if more else window))
        if first is not None:
            mask = (place <= last) & (place >= first(last))
        read = (cache["k"], cache["v"]) if reads_old else (keys, values)
        logits = jnp.where(mask, jnp.einsum("bthk,bshk->bhts", q, read[0]), fill)
        mixed = jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(logits, -1), read[1])
        new = {"k": keys, "v": values, "position": at + (x.shape[1] if moves is None else moves)}
        return mixed.sum((2,)), new

    return step


def arguments(queries: int) -> tuple[Any, Any, jax.Array]:
    random = np.random.default_rng(0)

    def drawn(*sizes: int) -> jax.Array:
        return jnp.asarray(random.normal(size=sizes), jnp.float32)

    cache: dict[str, Any] = {name: drawn(2, 12, 2, 4) for name in "kv"}
    return (
        [drawn(16, 2, 4) for _ in "qkv"],
        cache | {"position": jnp.int32(0)},
        drawn(2, queries, 16),
    )


@pytest.mark.parametrize(
    ("step", "queries", "why"),
    [
        (window_layer(12), 1, "its window is all of the context"),
        (window_layer(10), 3, "its window is all of the context"),
        (window_layer(moves=1), 3, "the step does not count the place that is written"),
        (window_layer(moves=2), 1, "the step does not count the place that is written"),
        (
            window_layer(first=lambda p: p // 4 * 4),
            1,
            "its window is not as long at every position",
        ),
        (window_layer(first=lambda p: 0 * p), 1, "its window is all of the context"),
        (window_layer(fill=-3.0), 1, "what its mask leaves out may have a weight"),
    ],
)
def test_what_is_no_ring_is_told(step: Any, queries: int, why: str) -> None:
    assert reasons("ring", step, *arguments(queries)) == {"cache/k": why, "cache/v": why}


def test_a_mask_of_data_is_told() -> None:
    def step(w: Any, cache: Any, x: jax.Array, kept: jax.Array) -> Any:
        """Padding that the caller marks, and a window."""
        at, (q, k, v) = cache["position"], (jnp.einsum("btd,dhk->bthk", x, each) for each in w)
        keys, values = (
            jax.lax.dynamic_update_slice(cache[name], new, (0, at, 0, 0))
            for name, new in (("k", k), ("v", v))
        )
        visible = (jnp.arange(12) <= at) & (jnp.arange(12) > at - 4) & kept[:, None, None]
        logits = jnp.where(visible, jnp.einsum("bthk,bshk->bhts", q, keys), -1e9)
        mixed = jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(logits, -1), values)
        return mixed, {"k": keys, "v": values, "position": at + 1}

    found = reasons("ring", step, *arguments(1), jnp.ones((2, 12), bool))
    assert found == dict.fromkeys(("cache/k", "cache/v"), "its mask depends on data")


def test_a_window_that_the_caller_gives_is_told() -> None:
    found = reasons("ring", window_layer(), *arguments(1), jnp.int32(4))
    assert set(found.values()) == {"its window is not as long at every position"}


def test_sinks_and_blocks_are_told() -> None:
    step, args = window_layer(), arguments(1)
    for before in ("block_sparse{window=3, sinks=1}", "flash{key=4}"):
        assert set(reasons(f"{before}, ring", step, *args).values()) == {
            "its attention is in blocks, or has sinks or sparq already"
        }


def test_a_cache_that_is_read_before_it_is_written_is_told() -> None:
    """Where this step will write a ring still has the place that it replaces."""
    found = reasons("ring", window_layer(reads_old=True), *arguments(1))
    assert set(found.values()) == {"it is read before it is written"}


def test_a_cache_that_something_else_reads_is_left_alone() -> None:
    def step(w: Any, cache: Any, x: jax.Array) -> tuple[Any, Any]:
        mixed, new = window_layer()(w, cache, x)
        return (mixed, new["k"].sum()), new

    found = reasons("ring", step, *arguments(1))
    assert found["cache/k"].startswith("reduce_sum") and found["cache/v"].startswith("attend")
