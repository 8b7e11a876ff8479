"""Caches keep every number, however their places are counted and whatever lies in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import rewrite
from dialect.matching.values import one_hot_of
from dialect.ops.nn import Traced
from rewrite import Pipeline
from rewrite.errors import TraceError
from tests.fuzz.interpreted import interpreted_function
from tests.kit import assert_close, run

RANDOM = np.random.default_rng(7)
PARAMS = jnp.ones(2)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(RANDOM.standard_normal(shape), jnp.float32)


def recognized(function: Callable[..., Any], *args: Any) -> rewrite.Program:
    """`function` of a state and other arguments, after recognition: it computes what it did."""
    program = rewrite.trace(lambda _, *given: function(*given), PARAMS, *args, state=1)
    made = Pipeline.parse("normalize, recognize, carry_cache").run(program)
    # In numpy: XLA's own code for the CPU writes elsewhere where starts of one byte go beyond 127.
    (wanted,) = interpreted_function(function, *args)
    np.testing.assert_array_equal(np.asarray(run(made, PARAMS, *args)), wanted)
    return made


def names(program: rewrite.Program) -> list[str]:
    return [op.name for op, _ in program.graph.walk()]


def mapped_update(cache: jax.Array, new: jax.Array, places: jax.Array) -> jax.Array:
    zero = jnp.zeros((), places.dtype)
    return jax.vmap(
        lambda c, n, p: lax.dynamic_update_slice(c, n, (p, zero), allow_negative_indices=False)
    )(cache, new, places)


@pytest.mark.parametrize(
    "dtype, places",
    [("int8", (5, 127)), ("int8", (-1, -128)), ("uint8", (200, 255)), ("uint32", (2**32 - 1, 3))],
)
def test_places_of_any_integers_are_clamped_as_numbers(dtype: str, places: tuple) -> None:
    made = recognized(
        mapped_update, normal(2, 200, 4), normal(2, 3, 4), np.array(places).astype(dtype)
    )
    assert "cache_put" in names(made)


def test_a_place_beyond_int32_is_the_last() -> None:
    made = recognized(
        lambda c, n, p: lax.dynamic_update_slice(c, n, (np.uint32(0), p)),
        *(normal(2, 8), normal(2, 1), jnp.uint32(2**32 - 5)),
    )
    assert "cache_write" in names(made)


def test_layers_are_not_counted_in_the_dtype_of_the_places() -> None:
    cache, new = normal(130, 2, 4), normal(4)
    places = lax.bitcast_convert_type(jnp.uint8(255), jnp.int8)  # -1, out of bounds

    def every(cache: jax.Array, new: jax.Array, place: jax.Array) -> jax.Array:
        row = lambda _, c: (None, c.at[place % 2].set(new))  # noqa: E731
        return lax.scan(row, None, cache)[1]

    made = recognized(every, cache, new, places)
    assert "cache_put" in names(made)


KEPT = {
    "places before sequences": (
        lambda c, n, p: jnp.where((jnp.arange(8)[:, None] == p)[:, :, None], n, c),
        (normal(8, 2, 4), normal(1, 2, 4), jnp.array([3, 5])),
    ),
    "a mask of places that spreads along other axes": (
        lambda c, n, p: jnp.where(
            lax.broadcast_in_dim((jnp.arange(8) == p[:, None])[:, :, None], (8, 8, 3), (1, 0, 2)),
            n,
            c,
        ),
        (normal(8, 8, 3), normal(8, 1, 3), jnp.array([3, 5, 0, 1, 1, 7, 2, 4])),
    ),
    "rows that spread along other axes": (
        lambda c, n, p: jnp.where(
            (jnp.arange(8) == p[:, None])[:, :, None],
            lax.broadcast_in_dim(n, (3, 8, 3), (2, 1, 0)),
            c,
        ),
        (normal(3, 8, 3), normal(3, 1, 3), jnp.array([3, 5, 0])),
    ),
    "some rows of a cache": (
        lambda c, n, p: c.at[jnp.arange(2), p].set(n),
        (normal(4, 8, 3), normal(2, 3), jnp.array([3, 5])),
    ),
    "one place of one row": (
        lambda c, n, p: c.at[0, p].set(n),
        (normal(4, 8, 3), normal(3), jnp.int32(9)),
    ),
    "a function of what is there": (
        lambda c, n, p: c.at[:, p].apply(jnp.sin),
        (normal(4, 8, 3), normal(3), jnp.array([1, 2])),
    ),
    "numbers that wrap": (
        lambda c, n, p: jnp.where((jnp.arange(200).astype("int8") == p[:, None])[:, :, None], n, c),
        (normal(2, 200, 3), normal(2, 1, 3), jnp.array([3, -56], "int8")),
    ),
    "a blend that holds NaN": (
        lambda c, n, p: c * (1 - (o := jax.nn.one_hot(p, 8)[:, :, None])) + n * o,
        (jnp.full((2, 8, 3), jnp.nan), normal(2, 1, 3), jnp.array([4, 0])),
    ),
    "a blend with a scalar": (
        lambda c, n, p: c * (1 - (o := (jnp.arange(8) == p).astype("int32"))) + n * o,
        (jnp.arange(8), jnp.int32(5), jnp.int32(3)),
    ),
}


@pytest.mark.parametrize("function, args", KEPT.values(), ids=KEPT)
def test_what_is_no_write_of_whole_rows_stays_as_it_is(function: Any, args: Any) -> None:
    assert not {"cache_put", "cache_write"} & set(names(recognized(function, *args)))


def test_one_place_for_all_sequences_by_a_mask() -> None:
    made = recognized(
        lambda c, n, p: jnp.where((jnp.arange(8) == p)[None, :, None], n, c),
        *(normal(2, 8, 3), normal(2, 1, 3), jnp.int32(3)),
    )
    assert "cache_put" in names(made)


def test_a_counter_counts_along_its_own_axis() -> None:
    graph = rewrite.trace(
        lambda w, i: lax.broadcasted_iota("int32", (1, 8), 0) == i, PARAMS, jnp.ones((3, 1), int)
    ).graph
    assert one_hot_of(graph.outputs[0]) is None


# Heads that are kept once.


def repeated(differing: bool) -> Callable[..., Any]:
    """A decoder's step whose cache repeats its heads, and may add to it what tells them apart."""

    def step(params: Any, cache: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        new = jnp.repeat(jnp.einsum("bd,dhk->bhk", x, params["k"]), 2, axis=1)[:, None]
        cache = lax.dynamic_update_slice_in_dim(cache, new, 3, axis=1)
        query = jnp.einsum("bd,dhk->bhk", x, params["q"])
        out = Traced["attend"](query, cache, cache, axes="b h k, b s h k, b s h v -> b h v")
        return out, cache + params["bias"] if differing else cache

    return step


def arguments() -> tuple[Any, jax.Array, jax.Array]:
    params = {"k": normal(5, 2, 3), "q": normal(5, 4, 3), "bias": normal(4, 1)}
    return params, jnp.zeros((2, 8, 4, 3)), normal(2, 5)


@pytest.mark.parametrize("differing, kept", [(False, "f32[2,2,8,3]"), (True, "f32[2,4,8,3]")])
def test_copies_that_may_differ_are_kept_apart(differing: bool, kept: str) -> None:
    args = arguments()
    program = rewrite.trace(repeated(differing), *args)
    made = Pipeline.parse("normalize, recognize, cache_layout, stage").run(program)
    assert [str(each.type) for each in made.step_inputs if each.role == "state"] == [kept]
    assert_close(run(made, *args), run(repeated(differing), *args))


def test_a_state_whose_copies_differ_is_refused() -> None:
    pipeline = "normalize, recognize, cache_layout, stage, lower"
    params, cache, x = arguments()
    step = rewrite.auto_shard(repeated(False), "cpu:1", pipeline=pipeline)
    step(params, cache, x)
    with pytest.raises(TraceError, match="copies differ"):
        step(params, normal(*cache.shape), x)
