"""Decoders that bring pages of their own: recognised, left where they are, planned as they lie."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialect.front.api import DEFAULT_PIPELINE
from dialect.naming.axes import infer_axes
from dialect.planning.decoder import decoder_shape
from rewrite import auto_shard, trace
from rewrite.ir import Op
from rewrite.program import Program
from tests import own_pages
from tests.kit import after, assert_close, notes_of
from tests.own_pages import LOOPED, ONE_POOL, SPELLINGS, TINY

ROWS, PAGES, COUNT = 4, 3, 20
PLACES = [0, 3, 7, 8]
RECOGNISED = DEFAULT_PIPELINE.partition(", plan")[0]


def arguments(spelling: str) -> tuple[Any, Any, jax.Array]:
    """Parameters, a state whose rows have pages here and there, and tokens."""
    random = np.random.default_rng(0)

    def draw(shape: jax.ShapeDtypeStruct) -> jax.Array:
        spread = 100 if shape.dtype == "int8" else 1 / 4
        return jnp.asarray(random.normal(size=shape.shape) * spread, shape.dtype)

    params = jax.tree.map(draw, own_pages.params_of(TINY, spelling))
    state = jax.tree.map(draw, own_pages.state_of(TINY, spelling, ROWS, PAGES, COUNT))
    table = random.permutation(COUNT)[: ROWS * PAGES].reshape(ROWS, PAGES)
    numbers = {"table": table, "position": np.asarray(PLACES)}
    if spelling == "given":
        numbers["page"] = table[np.arange(ROWS), np.asarray(PLACES) // TINY.page]
        numbers["place"] = np.asarray(PLACES) % TINY.page
    state |= {name: jnp.asarray(array, "int32") for name, array in numbers.items()}
    return params, state, jnp.asarray([5, 9, 1, 3], "int32")


def traced(spelling: str, count: int = COUNT) -> Program:
    params = own_pages.params_of(TINY, spelling)
    state = own_pages.state_of(TINY, spelling, ROWS, PAGES, count)
    tokens = jax.ShapeDtypeStruct((ROWS,), "int32")
    return trace(partial(own_pages.step, TINY, spelling), params, state, tokens)


def attentions(program: Program) -> list[Op]:
    return [op for op, _ in program.graph.walk() if op.name == "attend"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_pages_are_read_where_they_are(spelling: str) -> None:
    """Nothing gathers, cuts or stacks a pool: attention reads pages, and rows are written in them.
    Where the caller says to which page and place, a scatter is what it was."""
    program = after(traced(spelling), RECOGNISED)
    found = attentions(program)
    assert len(found) == (1 if spelling in LOOPED else TINY.layers)
    pools = {arg.op.args[0] for op in found for arg in op.args[1:3]}
    scales = {x.op.name for op in found for x in op.args[3:5] if spelling == "integers"}
    assert all(op["blocks"] for op in found) and len(pools) == 2 * len(found)
    assert {arg.op.name for op in found for arg in op.args[1:3]} | scales == {"paged"}
    sizes = {pool.type.size for pool in pools}
    layers = TINY.layers if spelling in ONE_POOL else 1
    assert sizes == {layers * COUNT * TINY.page * TINY.kv_heads * TINY.d_head}
    largest = [x for op, _ in program.graph.walk() for x in op.results if x.type.size in sizes]
    moved = {x.op.name for x in largest} - {"page_put", "scatter", "cache_put", "reshape", "scan"}
    assert not moved


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_numbers_are_what_they_were(spelling: str) -> None:
    """On all chips, over several steps: the second begins a page, the table has it ready."""
    params, state, tokens = arguments(spelling)
    function = partial(own_pages.step, TINY, spelling)
    plain, ours = jax.jit(function), auto_shard(function, "cpu:8", donate_state=False)
    wanted = found = (None, state)
    for _ in range(2):
        wanted, found = plain(params, wanted[1], tokens), ours(params, found[1], tokens)
        assert_close((found[0], ours.restore(found[1])), wanted, rtol=1e-4, atol=1e-6)


def test_pools_are_not_stacked() -> None:
    """A loop over layers would need the pools of all of them in one array."""
    program = after(traced("places first"), RECOGNISED)
    states = [value.type.shape for value in program.values("state")]
    assert states == [value.type.shape for value in traced("places first").values("state")]
    assert notes_of(program, "roll") == (
        "layers 0 to 1 stay apart: a loop would copy the pools of pages that they have",
    )


@pytest.mark.parametrize("spelling", ["heads first", "scanned"])
def test_a_plan_counts_the_pages_that_no_row_has(spelling: str) -> None:
    """The pools are on the chips whole, of the heads that these own, whatever rows have of them."""
    for count in (ROWS * PAGES, 5 * ROWS * PAGES):
        program = after(traced(spelling, count), RECOGNISED)
        shape = decoder_shape(program, infer_axes(program))
        assert shape.pooled == pytest.approx(count / (ROWS * PAGES))
        assert shape.cache_bytes_per_element == 4
        assert [attention.in_pages for attention, _ in shape.attentions] == [True]


def test_a_page_that_no_pool_has_is_what_it_was() -> None:
    """`jnp.take` gives NaN for it, which no mask hides; an index takes the nearest."""
    for spelling in ("places first", "by page"):
        params, state, tokens = arguments(spelling)
        state |= {"table": state["table"].at[1, 2].set(COUNT + 7)}
        function = partial(own_pages.step, TINY, spelling)
        wanted = jax.jit(function)(params, state, tokens)[0]
        found = auto_shard(function, "cpu:1", donate_state=False)(params, state, tokens)[0]
        assert np.isnan(wanted[1]).all() == (spelling == "places first")
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
