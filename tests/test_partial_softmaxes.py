"""Attention in parts of the context, as decoders and kernels merge them: one `attend`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialect.compiled.split_contexts import attend_to_parts
from rewrite.driver import rewrite
from rewrite.ir import Graph
from tests.kit import assert_close, graph_of, normal, op_names, recognized_graph, run

RANDOM = np.random.default_rng(7)
LOWEST = -2e38
BATCH, TIME, KV_HEADS, GROUP, D_HEAD = 2, 3, 2, 4, 8
Parts = Sequence[tuple[Any, Any, Any]]  # key [b, s, g, k], value [b, s, g, v], mask [b, s]


def logits(query: Any, key: Any, mask: Any, fill: float = LOWEST) -> Any:
    """[b, g, j, t, s] of a query [b, t, g, j, k]"""
    scores = jnp.einsum("btgjk,bsgk->bgjts", query, key) * D_HEAD**-0.5
    return jnp.where(mask[:, None, None, None], scores, fill)


def weighted(weights: Any, value: Any) -> Any:
    return jnp.einsum("bgjts,bsgv->bgjtv", weights, value)


def partial(query: Any, key: Any, value: Any, mask: Any) -> tuple[Any, Any, Any]:
    """The result that is not divided yet, the maximum and the sum."""
    x = logits(query, key, mask)
    top = jnp.max(x, axis=-1, keepdims=True)
    weights = jnp.exp(x - top)
    return weighted(weights, value), top, jnp.sum(weights, axis=-1, keepdims=True)


def by_maxima_and_sums(query: Any, parts: Parts) -> Any:
    """Each result times its share, as MaxText has it."""
    results, tops, sums = zip(*(partial(query, *part) for part in parts))
    top = tops[0]
    for each in tops[1:]:
        top = jnp.maximum(top, each)
    total = sum(jnp.exp(own - top) * each for own, each in zip(tops, sums))
    return sum(jnp.exp(own - top) / total * each for own, each in zip(tops, results))


def divided_last(query: Any, parts: Parts) -> Any:
    results, tops, sums = zip(*(partial(query, *part) for part in parts))
    top = jnp.max(jnp.concatenate(tops, axis=-1), axis=-1, keepdims=True)
    factors = [jnp.exp(own - top) for own in tops]
    total = sum(each * factor for each, factor in zip(sums, factors))
    return sum(each * factor for each, factor in zip(results, factors)) / total


def by_running_maximum(query: Any, parts: Parts) -> Any:
    """Part by part, as the loops of flash attention do."""
    (key, value, mask), *others = parts
    result, top, total = partial(query, key, value, mask)
    for key, value, mask in others:
        x = logits(query, key, mask)
        new = jnp.maximum(top, jnp.max(x, axis=-1, keepdims=True))
        factor, weights = jnp.exp(top - new), jnp.exp(x - new)
        total = total * factor + jnp.sum(weights, axis=-1, keepdims=True)
        result, top = result * factor + weighted(weights, value), new
    return result / total


def by_logarithms_of_sums(query: Any, parts: Parts) -> Any:
    """Each part normalised, and its logarithm of the sum, as ring attention passes them on."""
    results, logs = [], []
    for part in parts:
        result, top, total = partial(query, *part)
        results.append(result / total)
        logs.append(top + jnp.log(total))
    top = logs[0]
    for each in logs[1:]:
        top = jnp.maximum(top, each)
    whole = jnp.log(sum(jnp.exp(each - top) for each in logs)) + top
    return sum(jnp.exp(each - whole) * result for each, result in zip(logs, results))


def in_merged_heads(query: Any, parts: Parts) -> Any:
    """Statistics over all heads as one axis, and time before the heads in the result."""
    results, tops, sums = [], [], []
    for key, value, mask in parts:
        x = logits(query, key, mask).reshape(BATCH, KV_HEADS * GROUP, TIME, -1)
        top = jnp.max(x, axis=-1, keepdims=True)
        weights = jnp.exp(x - top)
        split = weights.reshape(BATCH, KV_HEADS, GROUP, TIME, -1)
        result = jnp.einsum("bgjts,bsgv->btgjv", split, value)
        results.append(result.reshape(BATCH, TIME, KV_HEADS * GROUP, -1))
        total = jnp.sum(weights, axis=-1, keepdims=True)
        tops.append(jnp.moveaxis(top, -2, 1))
        sums.append(jnp.moveaxis(total, -2, 1))
    top = tops[0]
    for each in tops[1:]:
        top = jnp.maximum(top, each)
    total = sum(jnp.exp(own - top) * each for own, each in zip(tops, sums))
    return sum(jnp.exp(own - top) / total * each for own, each in zip(tops, results))


SPELLINGS = (
    by_maxima_and_sums,
    divided_last,
    by_running_maximum,
    by_logarithms_of_sums,
    in_merged_heads,
)


def arrays(lengths: Sequence[int]) -> tuple[Any, list[Any]]:
    query = normal(RANDOM, BATCH, TIME, KV_HEADS, GROUP, D_HEAD)
    shapes = [(BATCH, length, KV_HEADS, D_HEAD) for length in lengths]
    return query, [
        (
            normal(RANDOM, *shape),
            normal(RANDOM, *shape),
            jnp.asarray(RANDOM.random(shape[:2]) > 0.4),
        )
        for shape in shapes
    ]


def recognized(function: Callable[..., Any], *args: Any) -> Graph:
    return recognized_graph(graph_of(function, *args))


def lowered(graph: Graph) -> Graph:
    return rewrite(graph, [attend_to_parts])


@pytest.mark.parametrize("lengths", [(5, 6), (4, 7, 3)])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_one_attend(spelling: Callable[..., Any], lengths: Sequence[int]) -> None:
    args = arrays(lengths)
    graph = recognized(spelling, *args)
    (attend,) = (op for op in graph.ops if op.name == "attend")
    assert (attend["given"], attend.args[1].type.shape[1]) == ("mask", sum(lengths))
    assert not {"exp", "log", "reduce_max"} & set(op_names(graph))
    wanted = run(spelling, *args)
    for each in (graph, lowered(graph)):
        assert_close(run(each, *jax.tree.leaves(args))[0], wanted, 1e-5)
    assert all(
        op.types[0].size <= wanted.size for op in lowered(graph).ops if op.name == "concatenate"
    )


@pytest.mark.parametrize("thin", [np.s_[:1, :1], np.s_[..., :1]])
def test_values_that_are_broadcast(thin: Any) -> None:
    """A part whose values are the same along an axis gets that axis where the parts are joined."""
    query, ((key, value, mask), second) = arrays((5, 6))

    def attention(query: Any, parts: Parts) -> Any:
        key, narrow, mask = parts[0]
        wide = jnp.broadcast_to(narrow, value.shape)
        return by_maxima_and_sums(query, [(key, wide, mask), parts[1]])

    args = query, [(key, value[thin], mask), second]
    graph = recognized(attention, *args)
    assert "attend" in op_names(graph)
    assert_close(run(graph, *jax.tree.leaves(args))[0], run(attention, *args), 1e-5)


def test_parts_of_integers() -> None:
    """Caches of integers, whose scales a library applies to the logits and to the exponentials."""
    query, parts = arrays((5, 6))

    def stored(rows: Any) -> tuple[Any, Any]:
        scale = jnp.abs(rows).max(-1) / 127
        return jnp.round(rows / scale[..., None]).astype("int8"), scale

    def part(query: Any, key: Any, value: Any, mask: Any) -> tuple[Any, Any, Any]:
        (key, by_key), (value, by_value) = key, value
        along = (slice(None), slice(None), None, None)  # [b, s, g] -> [b, g, 1, 1, s]
        x = jnp.einsum("btgjk,bsgk->bgjts", query, key.astype("float32"))
        x = jnp.where(mask[:, None, None, None], x * by_key.swapaxes(1, 2)[along], LOWEST)
        top = jnp.max(x, axis=-1, keepdims=True)
        weights = jnp.exp(x - top)
        scaled = weights * by_value.swapaxes(1, 2)[along]
        return weighted(scaled, value.astype("float32")), top, weights.sum(-1, keepdims=True)

    def attention(query: Any, parts: Any) -> Any:
        (result, top, total), (other, its_top, its_total) = (part(query, *each) for each in parts)
        highest = jnp.maximum(top, its_top)
        shares = jnp.exp(top - highest), jnp.exp(its_top - highest)
        divided = total * shares[0] + its_total * shares[1]
        return (result * shares[0] + other * shares[1]) / divided

    args = query, [(stored(key), stored(value), mask) for key, value, mask in parts]
    graph = recognized(attention, *args)
    (attend,) = (op for op in graph.ops if op.name == "attend")
    assert attend["given"] == "mask" and "exp" not in op_names(graph)
    assert_close(run(graph, *jax.tree.leaves(args))[0], run(attention, *args), 1e-5)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_part_that_keeps_no_key(spelling: Callable[..., Any]) -> None:
    query, (first, (key, value, mask)) = arrays((5, 6))
    args = (query, [first, (key, value, jnp.zeros_like(mask))])
    graph = recognized(spelling, *args)
    assert_close(run(graph, *jax.tree.leaves(args))[0], run(spelling, *args), 1e-5)


def test_partial_results_that_leave_stay() -> None:
    """A prefill that keeps its maximum and its sum for later."""
    query, [part] = arrays((5,))
    graph = recognized(lambda query, part: partial(query, *part), query, part)
    assert "attend" not in op_names(graph)
    assert_close(run(graph, query, *part), list(run(lambda *a: partial(*a), query, *part)), 1e-5)
