"""A window with sinks: what its mask says, in every form in which it is computed."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialect.ops.attend import attend
from dialect.reports.mask_bounds import describe_attend
from examples import llama
from rewrite import auto_shard, per_row
from rewrite.errors import PipelineError
from rewrite.program import NOT_DONE, NOTHING_DONE, Program
from tests import masked_layer
from tests.kit import assert_close, run, traced_after
from tests.masked_layer import CONTEXT

B, T, G, J, K, S = 4, 8, 2, 3, 16, 48
RANDOM = np.random.default_rng(0)
CONFIG = llama.CONFIGS["toy"]
WINDOW, SINKS = 7, 3
FOUND = "normalize, recognize, carry_cache"
NARROW = f"block_sparse{{window={WINDOW}, sinks={SINKS}}}"


def drawn(*sizes: int) -> jax.Array:
    return jnp.asarray(RANDOM.normal(size=sizes), jnp.float32)


ARRAYS = (drawn(B, T, G, J, K), drawn(B, S, G, K), drawn(B, S, G, K))
AXES = "b t g j k, b s g k, b s g v, {} -> b t g j v"
LASTS = {
    "of each query": (jnp.arange(T) + 37, "t"),
    "of each query, from the beginning": (jnp.arange(T), "t"),
    "one for all": (jnp.int32(44), ""),
    "one for all, among the sinks": (jnp.int32(3), ""),
    "one for all, a window over the sinks": (jnp.int32(6), ""),
    "of each row": (jnp.asarray([0, 7, 30, 47]), "b"),
}


def masked(last: jax.Array, axes: str, window: int, sinks: int, **more: Any) -> jax.Array:
    places, last = jnp.arange(S), last[..., None]
    mask = (places <= last) & ((places > last - window) | (places < sinks))
    whole = partial(attend, axes=AXES.format(f"{axes} s"), given="mask", **more)
    return run(whole, *ARRAYS, mask)


@pytest.mark.parametrize(("window", "sinks"), [(5, 0), (5, 3), (16, 4), (40, 8), (50, 3)])
@pytest.mark.parametrize("last", LASTS)
def test_a_window_is_the_mask_that_it_says(last: str, window: int, sinks: int) -> None:
    ends, axes = LASTS[last]
    wanted = masked(ends, axes, window, sinks, fill=-1e9)
    windowed = partial(attend, axes=AXES.format(axes), given="last", window=window, sinks=sinks)
    for blocks in (None, (4, 8), (16, 12)):
        found = run(partial(windowed, fill=-1e9, blocks=blocks), *ARRAYS, ends)
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("blocks", [None, (4, 8)])
def test_places_outside_are_not_read(blocks: tuple[int, int] | None) -> None:
    """Values there may be anything: NaN of a key without weight would be NaN in the whole."""
    query, keys, values = ARRAYS
    beyond = values.at[:, 8:24].set(jnp.nan)
    windowed = partial(attend, axes=AXES.format(""), given="last", window=16, sinks=8)
    found = run(partial(windowed, blocks=blocks), query, keys, beyond, jnp.int32(40))
    wanted = run(windowed, query, keys, values, jnp.int32(40))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_window_needs_the_last_position() -> None:
    with pytest.raises(ValueError, match="a window ends at the last position of a query"):
        attend(*ARRAYS, axes=AXES.replace(", {}", ""), window=4)


def layer(narrow: bool) -> Any:
    """A layer whose mask is narrow by its own or not."""
    return masked_layer.layer(_narrow if narrow else None)


def _narrow(last: jax.Array, place: jax.Array) -> jax.Array:
    return (place > last - WINDOW) | (place < SINKS)


def layer_arguments(queries: int, position: int) -> tuple[Any, ...]:
    return masked_layer.layer_arguments(drawn, queries, position)


@pytest.mark.parametrize(("queries", "position"), [(1, 1), (1, 9), (1, 40), (32, 0), (32, 20)])
@pytest.mark.parametrize("blocks", ["", ", flash{query=8, key=16}"])
def test_the_mask_of_a_decoder_is_narrowed(queries: int, position: int, blocks: str) -> None:
    args = layer_arguments(queries, position)
    program = traced_after(f"normalize, recognize, {NARROW}{blocks}", layer(False), *args)
    assert_close(run(program, *args), run(layer(True), *args), atol=1e-4)


@pytest.mark.parametrize("queries", [1, 32])
def test_eight_devices_narrow_it_too(queries: int) -> None:
    args = layer_arguments(queries, 20)
    passes = f"normalize, recognize, {NARROW}, flash{{query=8, key=16}}, plan, shard, stage, lower"
    step = auto_shard(layer(False), "cpu:8", pipeline=passes)
    mixed, cache = step(step.prepare(*args), step.adapt(args[1]), args[2])
    assert_close((mixed, step.restore(cache)), run(layer(True), *args), atol=1e-4)


def decoder(tokens: int | None, rows: bool = False) -> tuple[Any, tuple[Any, ...]]:
    """A toy decoder, or its step with a position for every row, and its arguments."""
    random, init = np.random.default_rng(1), partial(llama.init_cache, CONFIG, context=CONTEXT)
    step: Any = partial(llama.prefill if tokens else llama.decode_step, CONFIG)
    step = per_row(step, init) if rows else step
    cache = step.init(8) if rows else init(8)
    cache |= {name: jnp.asarray(random.normal(size=cache[name].shape), "float32") for name in "kv"}
    places = jnp.asarray([3, 9, 0, 31, 1, 2, 63, 40], jnp.int32)
    cache["position"] = places if rows else jnp.int32(0 if tokens else 29)
    ids = random.integers(0, CONFIG.vocab, (8, tokens) if tokens else 8)
    params = llama.init_params(CONFIG, jax.random.key(0))
    return step, (params, cache, jnp.asarray(ids, jnp.int32))


@pytest.mark.parametrize(("tokens", "rows"), [(None, False), (None, True), (32, False)])
@pytest.mark.parametrize(("mesh", "window"), [("cpu:1", 64), ("cpu:1", 60), ("cpu:8", 60)])
def test_all_places_in_the_window_change_nothing(
    mesh: str, tokens: int | None, rows: bool, window: int
) -> None:
    """60 and 4 sinks are a whole context too, of two parts."""
    step, args = decoder(tokens, rows)
    passes = f"{FOUND}, block_sparse{{window={window}}}, flash{{query=8, key=16}}"
    sharded = auto_shard(step, mesh, pipeline=f"{passes}, plan, shard, stage, lower")
    logits, cache = sharded(sharded.prepare(*args), sharded.adapt(args[1]), args[2])
    assert_close((logits, sharded.restore(cache)), run(step, *args), atol=1e-4)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("mesh", ["cpu:1", "cpu:8"])
def test_a_window_is_cut_out_of_the_stack(mesh: str, rows: bool) -> None:
    """All layers of the cache are one array, of which a step reads the window alone."""
    step, args = decoder(None, rows)
    narrow = f"retarget, {FOUND}, {NARROW}"
    sharded = auto_shard(step, mesh, pipeline=f"{narrow}, plan, shard, stage, lower")
    lowered = sharded.program(*args)
    cuts = (op for op, _ in lowered.graph.walk() if op.name in ("dynamic_slice", "gather"))
    assert 2 == sum(WINDOW in op.types[0].shape and op.args[0].type.rank == 5 for op in cuts)
    wanted = run(traced_after(narrow, step, *args), *args)
    logits, cache = sharded(sharded.prepare(*args), sharded.adapt(args[1]), args[2])
    assert_close((logits, sharded.restore(cache)), wanted, atol=1e-4)


def test_blocks_of_sinks_and_of_the_window_are_counted() -> None:
    """8 blocks of queries: two of the window each but for the first, and one of the sinks but for
    those whose window begins in it."""
    args = layer_arguments(64, 0)
    passes = f"normalize, recognize, {NARROW}, flash{{query=8, key=8}}"
    program = traced_after(passes, layer(False), *args)
    (op,) = (op for op in program.graph.ops if op.name == "attend")
    assert (op["given"], op["visits"]) == ("last", 1 + 2 + 6 * 3)


def test_the_mask_is_named() -> None:
    args = layer_arguments(1, 0)
    program = traced_after(f"normalize, recognize, {NARROW}", layer(False), *args)
    (op,) = (op for op in program.graph.ops if op.name == "attend")
    assert describe_attend(op) == ("last", f"window {WINDOW}", "sinks 3")


def told(passes: str, function: Any, *args: Any) -> list[tuple[str, str]]:
    program: Program = traced_after(f"normalize, {passes}", function, *args)
    return [(note.text.partition(": ")[0], note.kind) for note in program.history[-1].remarks]


def test_what_cannot_be_done_is_told() -> None:
    step, args = layer(False), layer_arguments(1, 9)
    in_blocks = f"recognize, flash{{key=8}}, {NARROW}"
    assert told(in_blocks, step, *args) == [("in blocks already, put flash behind", NOT_DONE)]
    assert told(NARROW, step, *args) == [("no attention was recognised", NOTHING_DONE)]
    assert told(f"recognize, {NARROW}", step, *args) == [
        ("the first 3 and the last 7 positions", "")
    ]


@pytest.mark.parametrize("mask", [True, False])
def test_a_mask_that_ends_nowhere_is_left_alone(mask: bool) -> None:
    def step(w: Any, x: jax.Array, kept: jax.Array) -> jax.Array:
        q, k, v = (x @ each for each in w)
        logits = q @ k.T
        weights = jax.nn.softmax(jnp.where(kept, logits, -jnp.inf) if mask else logits, -1)
        return weights @ v

    args = ([drawn(16, 8) for _ in "qkv"], drawn(24, 16), RANDOM.random(24) > 0.5)
    why = "its mask depends on data" if mask else "it has no mask"
    assert told(f"recognize, {NARROW}", step, *args) == [
        (f"where its window would end is not known, {why}", NOT_DONE)
    ]


def test_a_window_of_nothing_is_refused() -> None:
    with pytest.raises(PipelineError, match="keeps no position"):
        traced_after("block_sparse{window=0}", layer(False), *layer_arguments(1, 0))
