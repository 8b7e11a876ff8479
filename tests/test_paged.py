"""Caches in pages: the step computes what it did, wherever its pages lie."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialect.compiled.owners import owned
from dialect.compiled.paged_attention import attend_by_page
from dialect.ops.pages import page_put, paged, pages
from dialect.ops.vocabulary import Traced
from examples import gpt, llama, palm
from rewrite import Pipeline, auto_shard, per_row, trace
from rewrite.driver import rewrite
from rewrite.errors import PlanError
from rewrite.ir import Graph, Symbol, Type, new_input
from rewrite.opdef import make
from rewrite.program import LEFT_ALONE, NOTHING_DONE, Program
from tests import integer_cache, latent_attention
from tests.kit import assert_close, at_once, graph_of

PASSES = "retarget, normalize, recognize, roll, carry_cache, paged{page=8}"
GROUPS = [("cpu:8", "batch"), ("cpu:8", "heads")]  # heads of rows, on some chips
PLACES = jnp.asarray([3, 9, 0, 31, 1, 2, 8, 16], jnp.int32)


def rows(model: ModuleType) -> tuple[Any, tuple[Any, ...]]:
    """A toy decoder with a position for every row, and its arguments."""
    config = model.CONFIGS["toy"]
    step = per_row(
        partial(model.decode_step, config), lambda batch: model.init_cache(config, batch, 32)
    )
    random = np.random.default_rng(0)
    cache = {
        name: PLACES
        if name == "position"
        else jnp.asarray(random.normal(size=leaf.shape), "float32")
        for name, leaf in step.init(8).items()
    }
    params = model.init_params(config, jax.random.key(0))
    return step, (params, cache, jnp.arange(8, dtype=jnp.int32))


def passes(owner: str) -> str:
    """All passes; pages in groups, if chips own heads or rows that are named."""
    paged = PASSES.replace("page=8", "page=8, groups=true") if owner else PASSES
    return f"{paged}, plan{{attention={owner or 'auto'}}}, shard, stage, lower"


def kinds(program: Program) -> list[str]:
    return [remark.kind for remark in program.history[-1].remarks]


@pytest.mark.parametrize("model", [llama, palm, gpt])
def test_rows_in_pages_compute_what_they_did(model: ModuleType) -> None:
    step, args = rows(model)
    program = Pipeline.parse(PASSES).run(trace(step, *args))
    assert [str(note) for note in program.history[-1].notes] == [
        "cache/k kept in 32 pages of 8 places for each of 3 layers",
        "cache/v kept in 32 pages of 8 places for each of 3 layers",
    ]
    assert_close(at_once(program, *args), at_once(step, *args), atol=1e-4)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_layers_that_keep_caches_of_their_own_share_pools(kv_heads: int) -> None:
    """Once they are a loop. An axis of one head, or of a batch of one, is not kept."""
    config = replace(llama.CONFIGS["toy"], kv_heads=kv_heads)
    step = per_row(
        partial(llama.decode_step, config),
        lambda batch: llama.init_cache(config, batch, 32, unrolled=True),
    )
    params = llama.init_params(config, jax.random.key(0), unrolled=True)
    args = (params, step.init(8) | {"position": PLACES}, jnp.arange(8, dtype=jnp.int32))
    program = Pipeline.parse(PASSES).run(trace(step, *args))
    put = next(op for op, _ in program.graph.walk() if op.name == "page_put")
    assert put.types[0].shape == (3 * 32, *[2] * (kv_heads - 1), 8, 8)
    assert_close(at_once(program, *args), at_once(step, *args), atol=1e-4)


@pytest.mark.parametrize("model", [llama, palm, gpt])
def test_one_layer_is_paged_as_many_are(model: ModuleType) -> None:
    step, (params, cache, tokens) = rows(model)
    first = {name: leaf if name == "position" else leaf[:1] for name, leaf in cache.items()}
    layers = {name: leaf[:1] for name, leaf in params["layers"].items()}
    args = (params | {"layers": layers}, first, tokens)
    program = Pipeline.parse(PASSES).run(trace(step, *args))
    assert [str(note) for note in program.history[-1].notes] == [
        "cache/k kept in 32 pages of 8 places",
        "cache/v kept in 32 pages of 8 places",
    ]
    assert_close(at_once(program, *args), at_once(step, *args), atol=1e-4)


@pytest.mark.parametrize("model", [llama, palm, gpt])
def test_a_position_that_all_rows_share_is_written_in_pages_too(model: ModuleType) -> None:
    config = model.CONFIGS["toy"]
    cache = model.init_cache(config, 4, 32) | {"position": jnp.int32(13)}
    args = (model.init_params(config, jax.random.key(0)), cache, jnp.arange(4, dtype=jnp.int32))
    step = partial(model.decode_step, config)
    program = Pipeline.parse(PASSES).run(trace(step, *args))
    assert "page_put" in [op.name for op, _ in program.graph.walk()]
    assert_close(at_once(program, *args), at_once(step, *args), atol=1e-4)


@pytest.mark.parametrize(
    ("mesh", "how", "model"),
    [("cpu:1", "", llama), ("cpu:8", "", palm), *((*group, llama) for group in GROUPS)],
)
def test_pages_may_lie_anywhere(mesh: str, how: str, model: ModuleType) -> None:
    """A table of other pages, and a pool whose pages lie there, are the same cache. Those of a
    group of chips lie there."""
    step, (params, cache, tokens) = rows(model)
    wanted = step(params, cache, tokens)
    sharded = auto_shard(step, mesh, pipeline=passes(how))
    packed, state = sharded.prepare(params, cache, tokens), sharded.adapt(cache)
    split = sharded.plan(params, cache, tokens).split("cache").get("pages", ())
    groups = math.prod({"x": 2, "y": 4}[axis] for axis in split)
    assert how or groups == 1
    random, own = np.random.default_rng(1), 32 // groups
    order = np.concatenate([own * group + random.permutation(own) for group in range(groups)])

    def elsewhere(leaf: jax.Array) -> jax.Array:
        if leaf.dtype == jnp.int32 and leaf.ndim == 2:
            moved = jnp.asarray(order, jnp.int32)[leaf]
        elif leaf.ndim > 2:
            of_layers = leaf.reshape(32, 3, *leaf.shape[1:])
            moved = jnp.zeros_like(of_layers).at[order].set(of_layers).reshape(leaf.shape)
        else:
            return leaf
        return jax.device_put(moved, leaf.sharding)

    logits, state = sharded(packed, jax.tree.map(elsewhere, state), tokens)
    assert_close((logits, sharded.restore(state)), wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("length", "quantize"),
    [(1, ""), (3, ""), (3, "quantize{weights=none, cache=int8}, "), (8, "")],
)
def test_chunks_of_prompts_are_written_at_any_place(length: int, quantize: str) -> None:
    """A prefill with a place for every row gives what as many steps give, across pages."""
    config = llama.CONFIGS["toy"]
    init = partial(llama.init_cache, config, context=32)
    chunk, one = (
        per_row(partial(function, config), init) for function in (llama.prefill, llama.decode_step)
    )
    params = llama.init_params(config, jax.random.key(0))
    places = jnp.asarray([3, 9, 0, 23, 1, 2, 6, 16], jnp.int32)
    tokens = jnp.asarray(np.random.default_rng(2).integers(0, 256, (8, length)), jnp.int32)
    args = (params, chunk.init(8) | {"position": places}, tokens)
    first = PASSES.replace("paged", f"{quantize}paged")
    program = Pipeline.parse(first).run(trace(chunk, *args))
    assert kinds(program) == ["", ""]
    state = args[1]
    for number in range(length):
        given = (params, state, tokens[:, number])
        if not number:
            step = Pipeline.parse(first).run(trace(one, *given))
        logits, state = step(*given)
    assert_close(at_once(program, *args)[0], logits, atol=0.05 if quantize else 1e-4)


INTEGERS = {"w8": "weights=int8, cache=int8", "w8a8": "weights=int8, activations=int8, cache=int8"}


@pytest.mark.parametrize("model", [llama, palm, gpt])
@pytest.mark.parametrize("form", INTEGERS)
def test_integers_and_their_scales_lie_in_pages(model: ModuleType, form: str) -> None:
    """The state is the same to the bit, and the logits are but for the order of sums."""
    step, args = rows(model)
    first = PASSES.replace("paged", f"quantize{{{INTEGERS[form]}}}, paged")
    program = Pipeline.parse(first).run(trace(step, *args))
    assert kinds(program) == ["", ""]
    put = [op.types[0] for op, _ in program.graph.walk() if op.name == "page_put"]
    assert sorted({type_.dtype for type_ in put}) == ["bf16", "i8"]
    plain = Pipeline.parse(first.removesuffix(", paged{page=8}")).run(trace(step, *args))
    (logits, state), wanted = at_once(program, *args), at_once(plain, *args)
    # Where activations are rounded, a bit of a sum can be a step of theirs.
    assert_close(logits, wanted[0], atol=1e-4 if form == "w8" else 0.05)
    if form == "w8":
        jax.tree.map(np.testing.assert_array_equal, state, wanted[1])


@pytest.mark.parametrize(("mesh", "owner"), [("cpu:1", ""), *GROUPS])
def test_pages_of_integers_and_of_scales_lie_on_the_same_chips(mesh: str, owner: str) -> None:
    step, args = rows(llama)
    text = passes(owner).replace("paged", "quantize{weights=none, cache=int8}, paged")
    sharded = auto_shard(step, mesh, pipeline=text)
    packed, state = sharded.prepare(*args), sharded.adapt(args[1])
    inputs = {each.name: each for each in sharded.program(*args).step_inputs}
    integers, scales = (inputs[f"cache/k.0.{part}"] for part in ("quantized", "scale"))
    assert (integers.type.shape, scales.type.shape) == ((96, 8, 8, 8), (96, 8, 8))
    assert scales.layout == integers.layout[:-1]
    first = Pipeline.parse(text.partition(", paged")[0]).run(trace(step, *args))
    logits, state = sharded(packed, state, args[2])
    assert_close((logits, sharded.restore(state)), first(*args), atol=1e-4)


def test_layers_with_integers_of_their_own_share_pools() -> None:
    config = replace(llama.CONFIGS["toy"], kv_heads=1)
    step = per_row(
        partial(llama.decode_step, config),
        lambda batch: llama.init_cache(config, batch, 32, unrolled=True),
    )
    params = llama.init_params(config, jax.random.key(0), unrolled=True)
    args = (params, step.init(8) | {"position": PLACES}, jnp.arange(8, dtype=jnp.int32))
    first = PASSES.replace("paged", "quantize{weights=none, cache=int8}, paged")
    program = Pipeline.parse(first).run(trace(step, *args))
    put = {str(op.types[0]) for op, _ in program.graph.walk() if op.name == "page_put"}
    assert put == {"i8[96,8,8]", "bf16[96,8]"}
    plain = Pipeline.parse(first.removesuffix(", paged{page=8}")).run(trace(step, *args))
    assert_close(at_once(program, *args), at_once(plain, *args), atol=1e-4)


@pytest.mark.parametrize("mesh", ["cpu:1", "cpu:8"])
def test_integers_that_a_decoder_keeps_itself_lie_in_pages(mesh: str) -> None:
    """Attention reads them as they lie: no cache of floats is there."""
    step = per_row(integer_cache.decode_step, partial(integer_cache.init_cache, context=32))
    cache = step.init(8) | {"position": PLACES}
    args = (integer_cache.init_params(jax.random.key(0)), cache, jnp.arange(8, dtype=jnp.int32))
    program = Pipeline.parse(PASSES).run(trace(step, *args))
    assert kinds(program) == [""] * 4
    assert "dequantize" not in [op.name for op, _ in program.graph.walk()]
    sharded = auto_shard(step, mesh, pipeline=passes(""))
    packed, state = sharded.prepare(*args), sharded.adapt(cache)
    wanted = at_once(step, *args)
    for _ in range(3):
        logits, state = sharded(packed, state, args[2])
    for _ in range(2):
        wanted = step(args[0], wanted[1], args[2])
    assert_close(logits, wanted[0], atol=1e-4)


@pytest.mark.parametrize(
    ("spelling", "form"), [("expanded", ""), ("latent", "quantize{weights=none, cache=int8}, ")]
)
def test_latents_and_rotary_keys_lie_in_pools_of_their_own(spelling: str, form: str) -> None:
    """A page of both is read at a time; the steps are those of caches that are not in pages."""
    config = latent_attention.TINY
    step = per_row(
        partial(latent_attention.decode_step, config, spelling=spelling),
        partial(latent_attention.init_cache, config, context=32),
    )
    cache, random = step.init(8) | {"position": PLACES}, np.random.default_rng(0)
    for name in ("latent", "rope"):
        cache[name] = jnp.asarray(random.normal(size=cache[name].shape), "float32")
    params = latent_attention.init_params(config, jax.random.key(0))
    args = (params, cache, jnp.arange(8, dtype=jnp.int32))
    whole, _, paged = PASSES.replace("paged", f"absorb, {form}paged").rpartition(", ")
    plain = Pipeline.parse(whole).run(trace(step, *args))
    program = Pipeline.parse(f"{whole}, {paged}").run(trace(step, *args))
    read = rewrite(program.graph, [attend_by_page])
    (attention,) = (op for op, _ in read.walk() if op.name == "attend_pages")
    assert "key_2" in attention["pooled"].split()
    text = f"{whole}, {paged}, plan, shard, stage, lower"
    sharded = auto_shard(step, "cpu:8", pipeline=text)
    packed, state = sharded.prepare(*args), sharded.adapt(cache)
    assert sum(leaf.shape[:2] == (64, 8) for leaf in jax.tree.leaves(state)) == (4 if form else 2)
    for _ in range(2):
        logits, state = sharded(packed, state, args[2])
        wanted, cache = plain(params, cache, args[2])
        assert_close(logits, wanted, atol=1e-4)


@pytest.mark.parametrize("owner", ["", "batch"])
def test_a_row_without_pages_is_idle(owner: str) -> None:
    """It writes nowhere, and what the others compute is what they computed."""
    step, (params, cache, tokens) = rows(llama)
    wanted, _ = step(params, cache, tokens)
    sharded = auto_shard(step, "cpu:8", pipeline=passes(owner))
    packed, state = sharded.prepare(params, cache, tokens), sharded.adapt(cache)
    idle = np.arange(8) % 3 == 0

    def emptied(leaf: jax.Array) -> jax.Array:
        is_table = leaf.dtype == jnp.int32 and leaf.ndim == 2
        return jax.device_put(leaf.at[idle].set(-1), leaf.sharding) if is_table else leaf

    before = [np.asarray(leaf) for leaf in jax.tree.leaves(state) if leaf.ndim > 2]
    logits, state = sharded(packed, jax.tree.map(emptied, state), tokens)
    assert_close(logits[~idle], wanted[~idle], atol=1e-4)
    after = [np.asarray(leaf) for leaf in jax.tree.leaves(state) if leaf.ndim > 2]
    of_idle = np.repeat(idle, 4)  # four pages to a row
    for old, new in zip(before, after, strict=True):
        changed = (old != new).reshape(32, -1).any(axis=1)
        assert not changed[of_idle].any() and changed.sum() == 5


@pytest.mark.parametrize(("owner", "split"), [("", "fyff"), ("batch", "tfff"), ("heads", "xyff")])
def test_a_pool_is_split_over_its_heads_or_its_pages(owner: str, split: str) -> None:
    step, args = rows(llama)
    program = auto_shard(step, "cpu:8", pipeline=passes(owner)).program(*args)
    pool = next(entry for entry in program.step_inputs if entry.name == "cache/k.0")
    short = {(): "f", ("x", "y"): "t", ("x",): "x", ("y",): "y"}
    assert "".join(map(short.get, pool.layout)) == split


def test_pages_of_all_rows_on_chips_that_own_some_are_reported() -> None:
    step, args = rows(palm)
    text = passes("batch").replace(", groups=true", "")
    program = auto_shard(step, "cpu:8", pipeline=text).program(*args)
    plan = next(each for each in program.history if each.name.startswith("plan"))
    assert "chips own rows, and hold the pages of all" in " ".join(map(str, plan.notes))


def test_pages_that_chips_cannot_share_are_refused() -> None:
    types = (Type("f32", (9, 4, 2)), Type("f32", (8, 1, 2)), *[Type("i32", (8, 1))] * 2)
    pool, new, table, places = map(new_input, types)
    new_on_chips = make("constrain", new, layout=(("x",), (), ()), why="")
    mode = Symbol("GatherScatterMode.CLIP")
    given = (pool, new_on_chips, table, places, new_input(Type("i32", ())))
    written = make("page_put", *given, layers=3, mode=mode)
    graph = Graph((pool, new, *given[2:]), (written,))
    with pytest.raises(PlanError, match="3 pages do not divide over the 8 groups of chips"):
        owned(graph, {"x": 8}, ("x",))


def test_pages_that_do_not_divide_the_context_are_reported() -> None:
    step, args = rows(llama)
    program = Pipeline.parse(PASSES.replace("8", "12")).run(trace(step, *args))
    assert kinds(program) == [LEFT_ALONE, LEFT_ALONE, NOTHING_DONE]
    assert program.history[-1].remarks[0].text == "pages of 12 places do not divide its 32"


def test_a_pool_and_its_table_are_the_cache() -> None:
    cache = jnp.arange(3 * 2 * 4 * 16 * 5.0).reshape(3, 2, 4, 16, 5)
    pool, table = pages(cache, page=8, layers=3)
    assert (pool.shape, table.tolist()) == ((12, 4, 8, 5), [[0, 1], [2, 3]])
    np.testing.assert_array_equal(paged(pool, table, page=8, layers=3), cache)
    np.testing.assert_array_equal(paged(pool, table, 2, page=8, layers=3), cache[2])
    scales = cache[..., 0]
    pool, table = pages(scales, page=8, layers=3, behind=0)
    assert (pool.shape, table.tolist()) == ((12, 4, 8), [[0, 1], [2, 3]])
    np.testing.assert_array_equal(paged(pool, table, page=8, layers=3, behind=0), scales)
    np.testing.assert_array_equal(paged(pool, table, 2, page=8, layers=3, behind=0), scales[2])


def test_what_has_no_page_is_not_written() -> None:
    """Neither beyond the last page, nor where the table says -1: an idle row."""
    pool, table = jnp.zeros((4, 8, 1)), jnp.asarray([[0, -1], [2, 3]])
    new, drop = jnp.ones((2, 2, 1)), "fill"
    put = partial(page_put, pool, new, table, mode=jax.lax.GatherScatterMode.from_any(drop))
    written = np.asarray(put(jnp.asarray([[7, 8], [16, 9]])))[..., 0]
    assert np.argwhere(written).tolist() == [[0, 7], [3, 1]]


def test_pools_of_different_sizes_are_read_as_caches() -> None:
    """One loop over pages reads keys and values from pools that have as many pages."""

    def attention(q: Any, k: Any, v: Any, table: Any) -> Any:
        read = (Traced["paged"](pool, table, page=4, layers=0) for pool in (k, v))
        axes = "b g t k, b g s k, b g s v -> b g t v"
        return Traced["attend"](q, *read, axes=axes, blocks=(8, 4))

    random = np.random.default_rng(0)
    shapes = ((2, 3, 4, 2), (6, 3, 4, 2), (5, 3, 4, 2))
    arrays = [jnp.asarray(random.normal(size=shape), "float32") for shape in shapes]
    graph = graph_of(attention, *arrays, jnp.asarray([[1, 0], [4, 2]], jnp.int32))
    assert rewrite(graph, [attend_by_page]) == graph
