"""Attention as seven libraries write it: one normal form, and the numbers of each.

Every function takes query [b, t, h, k], key and value [b, s, h, k] and a mask [b, 1, t, s].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialect.jaxprs import framework  # noqa: F401  (registers JAX)
from dialect.jaxprs.expanded import reference_graph
from passes.lower import EXPAND
from rewrite import auto_shard
from rewrite.driver import rewrite
from rewrite.ir import Graph, Op, Type, new_input, replace_values
from rewrite.opdef import make
from tests import decoders
from tests.kit import assert_close, graph_of, op_names, recognized_graph, run, traced_after

RANDOM = np.random.default_rng(5)
D_HEAD = 16
LOWEST = np.finfo(np.float32).min


def by_einsum(q: Any, k: Any, v: Any, mask: Any) -> Any:
    logits = jnp.einsum("bthk,bshk->bhts", q, k) / math.sqrt(D_HEAD)
    weights = jax.nn.softmax(jnp.where(mask, logits, -1e9))
    return jnp.einsum("bhts,bshk->bthk", weights, v)


def by_jax_nn(q: Any, k: Any, v: Any, mask: Any) -> Any:
    return jax.nn.dot_product_attention(q, k, v, mask=mask)


def in_flax_linen(q: Any, k: Any, v: Any, mask: Any) -> Any:
    """The query scaled first, in its own dtype; a bias made of the mask."""
    q = q / jnp.sqrt(q.shape[-1]).astype(q.dtype)
    logits = jnp.einsum("...qhd,...khd->...hqk", q, k)
    bias = jax.lax.select(mask, jnp.full(mask.shape, 0.0), jnp.full(mask.shape, LOWEST))
    weights = jax.nn.softmax(logits + bias).astype(q.dtype)
    return jnp.einsum("...hqk,...khd->...qhd", weights, v)


def in_flax_nnx(q: Any, k: Any, v: Any, mask: Any) -> Any:
    """The same by transposes and matrix products, with a mask in numbers."""
    q, k, v = (jnp.moveaxis(each, -3, -2) for each in (q / jnp.sqrt(D_HEAD), k, v))
    logits = q @ jnp.swapaxes(k, -1, -2)
    allowed = mask.astype(jnp.float32) * jnp.ones(logits.shape[-2:])
    weights = jax.nn.softmax(jnp.where(allowed > 0, logits, LOWEST).astype("float32"))
    return jnp.moveaxis(weights @ v, -3, -2)


def in_equinox(q: Any, k: Any, v: Any, mask: Any) -> Any:
    """One head at a time, mapped over heads and over the batch."""

    def head(query: Any, key: Any, value: Any, allowed: Any) -> Any:
        logits = jnp.einsum("sd,Sd->sS", query / math.sqrt(query.shape[-1]), key)
        weights = jax.nn.softmax(jnp.where(allowed, logits, LOWEST), axis=-1)
        return jnp.einsum("sS,Sd->sd", weights, value)

    heads = jax.vmap(head, in_axes=(1, 1, 1, None), out_axes=1)
    return jax.vmap(heads)(q, k, v, mask[:, 0])


def in_haiku(q: Any, k: Any, v: Any, mask: Any) -> Any:
    """The logits scaled, and the heads merged behind."""
    logits = jnp.einsum("...thd,...Thd->...htT", q, k)
    logits = logits * (1 / np.sqrt(D_HEAD).astype(k.dtype))
    weights = jax.nn.softmax(jnp.where(mask, logits, -1e30))
    merged = jnp.einsum("...htT,...Thd->...thd", weights, v).reshape(*q.shape[:-2], -1)
    return merged.reshape(q.shape)


def by_hand(q: Any, k: Any, v: Any, mask: Any) -> Any:
    """The scale split on both sides, the sum divided by behind the values."""
    root = D_HEAD**-0.25
    logits = jnp.einsum("bthk,bshk->bhts", q * root, k * root)
    logits = jnp.where(mask, logits, -jnp.inf)
    top = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(logits - jnp.where(jnp.isfinite(top), top, 0.0))
    total = jnp.sum(weights, axis=-1)
    return jnp.einsum("bhts,bshk->bthk", weights, v) / jnp.swapaxes(total, 1, 2)[..., None]


SPELLINGS = (
    by_einsum,
    by_jax_nn,
    in_flax_linen,
    in_flax_nnx,
    in_equinox,
    in_haiku,
    by_hand,
)


def normal(*shape: int, dtype: str = "float32") -> jax.Array:
    return jnp.asarray(RANDOM.standard_normal(shape), dtype)


def mask_of(*shape: int) -> jax.Array:
    return jnp.asarray(RANDOM.random(shape) > 0.4).at[..., 0].set(True)


ARGS = (normal(2, 3, 4, D_HEAD), normal(2, 5, 4, D_HEAD), normal(2, 5, 4, D_HEAD))
MASK = mask_of(2, 1, 3, 5)


def recognized(function: Callable[..., Any], *args: Any) -> Graph:
    return recognized_graph(graph_of(function, *args))


def alike(graph: Graph) -> Graph:
    """The graph but for what its rows would be that keep no key, where the libraries differ."""
    (op,) = (op for op in graph.ops if op.name == "attend")
    kept = tuple(each for each in op.attrs if each[0] not in ("fill", "added"))
    return replace_values(graph, {op.results[0]: replace(op, attrs=kept).results[0]})


def the_attend(graph: Graph) -> Op:
    (found,) = (op for op in graph.ops if op.name == "attend")
    return found


def assert_same_numbers(graph: Graph, function: Callable[..., Any], *args: Any) -> None:
    (made,) = run(graph, *args)
    expected = run(function, *args)
    assert (made.dtype, made.shape) == (expected.dtype, expected.shape)
    tolerance = 1e-5 if expected.dtype == jnp.float32 else 3e-2
    wide = [np.asarray(each, np.float64) for each in (made, expected)]
    np.testing.assert_allclose(*wide, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_one_normal_form(spelling: Callable[..., Any]) -> None:
    made = recognized(spelling, *ARGS, MASK)
    assert alike(made) == alike(recognized(by_einsum, *ARGS, MASK))
    assert_same_numbers(made, spelling, *ARGS, MASK)
    op = the_attend(made)
    assert op["axes"] == "b t g k, b s g k, b s g v, b 1 t s -> b t g v"
    assert dict(op.attrs).keys() - {"fill", "added"} == {"axes", "given", "scale"}
    assert (op["given"], op["scale"]) == ("mask", 0.25)
    assert op.args == made.inputs and len(made.ops) == 1


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_one_token(spelling: Callable[..., Any]) -> None:
    """A decode step: the time axis has size one."""
    args = (normal(2, 1, 4, D_HEAD), *ARGS[1:], mask_of(2, 1, 1, 5))
    made = recognized(spelling, *args)
    assert alike(made) == alike(recognized(by_einsum, *args))
    assert_same_numbers(made, spelling, *args)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_one_sequence_of_one_head(spelling: Callable[..., Any]) -> None:
    args = (normal(1, 3, 1, D_HEAD), normal(1, 5, 1, D_HEAD), normal(1, 5, 1, D_HEAD))
    args = (*args, mask_of(1, 1, 3, 5))
    made = recognized(spelling, *args)
    assert alike(made) == alike(recognized(by_einsum, *args))
    assert_same_numbers(made, spelling, *args)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_row_that_keeps_no_key_is_what_the_library_makes_of_it(spelling) -> None:
    mask = MASK.at[0, 0, 1].set(False)
    made = recognized(spelling, *ARGS, mask)
    assert the_attend(made)
    assert_same_numbers(made, spelling, *ARGS, mask)


@pytest.mark.parametrize("fill", [-1e9, -3.0, -np.inf])
def test_what_masked_logits_are_may_be_known_only_when_the_program_runs(fill: float) -> None:
    def spelling(q: Any, k: Any, v: Any, mask: Any, fill: Any) -> Any:
        logits = jnp.where(mask, jnp.einsum("bthk,bshk->bhts", q, k), fill)
        return jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(logits), v)

    args = (*ARGS, MASK.at[0, 0, 1].set(False), jnp.float32(fill))
    made = recognized(spelling, *args)
    assert the_attend(made)["given"] == "mask fill" and len(made.ops) == 1
    assert_same_numbers(made, spelling, *args)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_bfloat16(spelling: Callable[..., Any]) -> None:
    """Where logits are rounded differs from library to library; that it is attention does not."""
    args = (*(each.astype(jnp.bfloat16) for each in ARGS), MASK)
    made = recognized(spelling, *args)
    assert_same_numbers(made, spelling, *args)
    op = the_attend(made)
    assert op.args[3] == made.inputs[3]
    assert (op["axes"], op["scale"]) == (the_attend(recognized(by_einsum, *args))["axes"], 0.25)


def test_logits_of_rounded_weights_are_not_merged_with_what_rounds_them() -> None:
    inputs = tuple(new_input(Type("f32", arg.shape)) for arg in ARGS[:3])
    axes = "b t h k, b s h k, b s h k -> b t h k"
    graph = Graph(inputs, (make("attend", *inputs, axes=axes, rounds=(127.5, 1e-19)),))
    before = [each.name for each in reference_graph(graph.ops[-1]).ops]
    assert "optimization_barrier" not in before
    lowered = rewrite(graph, [EXPAND])
    logits = next(op for op in lowered.ops if op.name == "dot_general")
    readers = [op.name for op in lowered.ops if logits.results[0] in op.args]
    assert readers == ["optimization_barrier"]


@pytest.mark.parametrize(("queries", "is_held"), [(64, True), (1, False)])
def test_queries_of_a_prefill_are_made_before_they_are_multiplied(
    queries: int, is_held: bool
) -> None:
    """The softmax of a product that rotates its queries too is not fused with it."""
    types = (Type("f32", (2, queries, 4, 8)), *(Type("f32", (2, 64, 4, 8)),) * 2)
    query, key, value = inputs = tuple(map(new_input, types))
    axes = "b t h k, b s h k, b s h k -> b t h k"
    graph = rewrite(Graph(inputs, (make("attend", query, key, value, axes=axes),)), [EXPAND])
    assert [op.name for op in graph.ops if query in op.args][:1] == (
        ["optimization_barrier"] if is_held else ["dot_general"]
    )


def test_a_decoder_may_have_numbers_of_its_layers_among_its_parameters() -> None:
    """A cache that holds a few positions is not gathered, whatever weight the others have."""
    step, (params, cache, tokens) = decoders.decoder("gg"), decoders.arguments("gg")
    sharded, plain = auto_shard(step, "cpu:8"), jax.jit(step)
    for fill in (-1e30, -3.0):
        given = decoders.with_numbers(params, fill)
        found = traced_after("normalize, recognize", step, given, cache, tokens)
        names = op_names(found)
        assert names.count("attend") == names.count("rms_norm") == 2
        packed, state = sharded.prepare(given, cache, tokens), sharded.adapt(cache)
        logits, state = sharded(packed, state, tokens)
        wanted, kept = plain(given, cache, tokens)
        assert_close((logits, sharded.restore(state)), (wanted, kept), atol=1e-5)
