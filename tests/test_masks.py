"""What a mask is, however it was computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialect.arrays.evaluate import evaluate
from dialect.jaxprs import framework  # noqa: F401  (registers JAX)
from dialect.matching.bound_values import kept, visited_blocks
from dialect.normal.normal_form import normal_form
from dialect.reports.mask_bounds import describe_attend, describe_bias, describe_mask
from rewrite.ir import Graph, Value
from tests.kit import assert_close, assert_same_bits, graph_of, recognized_graph, run

BATCH, TIME, CONTEXT = 2, 3, 40
POSITIONS = jnp.zeros((BATCH, TIME), jnp.int32)
INDEX = jnp.int32(5)
LENGTHS = jnp.array([3, 9], jnp.int32)
VALID = jnp.ones((BATCH, CONTEXT), jnp.int32)


def recognized(function: Callable[..., Any], *args: Any) -> Graph:
    return recognized_graph(graph_of(function, *args))


def keys() -> jax.Array:
    return jnp.arange(CONTEXT)


def sliced_triangle(index: Any) -> Any:
    """A row of the lower triangle for each query, as caches of Hugging Face's decoders do it."""
    whole = jnp.tril(jnp.ones((1, 1, CONTEXT, CONTEXT), bool))
    return jax.lax.dynamic_slice(whole, (0, 0, index, 0), (1, 1, TIME, CONTEXT))


def by_window(index: Any) -> Any:
    """Mistral: a triangle without the triangle below a diagonal."""
    whole = jnp.tril(jnp.ones((CONTEXT, CONTEXT), bool))
    whole = jnp.triu(whole, k=-7)
    return jax.lax.dynamic_slice(whole, (index, 0), (TIME, CONTEXT))


def by_exclusive_or(index: Any) -> Any:
    """GPT-Neo: the triangle, without what is in it and in a lower one."""
    whole = jnp.tril(jnp.ones((CONTEXT, CONTEXT), bool))
    whole = jnp.bitwise_xor(whole, jnp.tril(whole, -8))
    return jax.lax.dynamic_slice(whole, (index, 0), (TIME, CONTEXT))


MASKS: dict[str, tuple[tuple[str, ...], Callable[..., Any], tuple[Any, ...]]] = {
    "key up to the position": (
        ("causal",),
        lambda p: keys() <= p[:, :, None],
        (POSITIONS,),
    ),
    "position from the key on": (
        ("causal",),
        lambda p: p[:, None, :, None] >= keys()[None, None, None],
        (POSITIONS,),
    ),
    "triangle": (("causal",), lambda: jnp.tril(jnp.ones((TIME, CONTEXT))) > 0, ()),
    "sliced triangle": (("causal",), sliced_triangle, (INDEX,)),
    "sliced triangle in numbers": (
        ("causal",),
        lambda i: sliced_triangle(i).astype("float32") * 1.0 != 0,
        (INDEX,),
    ),
    "difference of positions": (
        ("causal",),
        lambda p: p[:, :, None] - keys() >= 0,
        (POSITIONS,),
    ),
    "what was written of the cache": (
        ("length",),
        lambda i: jnp.broadcast_to(keys() < i + TIME, (BATCH, 1, TIME, CONTEXT)),
        (INDEX,),
    ),
    "causal, of what was written": (
        ("length", "causal"),
        lambda i: (keys() < i + TIME) & sliced_triangle(i),
        (INDEX,),
    ),
    "lengths of sequences": (
        ("length",),
        lambda n: (keys() < n[:, None])[:, None],
        (LENGTHS,),
    ),
    "a fixed length": (("first 9",), lambda: jnp.arange(CONTEXT) < 9, ()),
    "window of the last positions": (
        ("causal", "window 8"),
        lambda p: (keys() <= p[:, :, None]) & (keys() > p[:, :, None] - 8),
        (POSITIONS,),
    ),
    "window on both sides, and causal": (
        ("causal", "window 8"),
        lambda p: (
            (keys() >= p[:, :, None] - 8 + 1)
            & (keys() <= p[:, :, None] + 8 - 1)
            & (keys() <= p[:, :, None])
        ),
        (POSITIONS,),
    ),
    "window on both sides": (
        ("ahead 7", "window 8"),
        lambda p: (keys() >= p[:, :, None] - 7) & (keys() <= p[:, :, None] + 7),
        (POSITIONS,),
    ),
    "window of a difference": (
        ("causal", "window 8"),
        lambda p: ((d := p[:, :, None] - keys()) >= 0) & (d < 8),
        (POSITIONS,),
    ),
    "window between triangles": (("causal", "window 8"), by_window, (INDEX,)),
    "window by exclusive or": (("causal", "window 8"), by_exclusive_or, (INDEX,)),
    "window of what was written": (
        ("length", "window 8"),
        lambda n: (keys() < n[:, None]) & (keys() >= n[:, None] - 8),
        (LENGTHS,),
    ),
    "chunks of positions": (
        ("causal", "chunk 8"),
        lambda p: (keys() // 8 == p[:, :, None] // 8) & (keys() <= p[:, :, None]),
        (POSITIONS,),
    ),
    "chunks by shifts": (
        ("chunk 8",),
        lambda p: p[:, :, None] >> 3 == keys() >> 3,
        (POSITIONS,),
    ),
    "positions in floats": (
        ("causal",),
        lambda p: keys().astype("float32") <= p[:, :, None].astype("float32") + 1.0 - 1.0,
        (POSITIONS,),
    ),
    "prefix": (
        ("prefix",),
        lambda p, n: (keys() <= p[:, :, None]) | (keys() < n[:, None, None]),
        (POSITIONS, LENGTHS),
    ),
    "padding": (("padding",), lambda m: (m > 0)[:, None, None], (VALID,)),
    "padding as booleans": (("padding",), lambda m: m[:, None], (VALID > 0,)),
    "padding, inverted": (("padding",), lambda m: ~(m[:, None] == 0), (VALID,)),
    "causal and padding": (
        ("causal", "padding"),
        lambda p, m: (keys() <= p[:, :, None]) & (m != 0)[:, None],
        (POSITIONS, VALID),
    ),
    "segments": (
        ("segments",),
        lambda p, m: p[:, :, None] == m[:, None],
        (POSITIONS, VALID),
    ),
    "everything": (
        (),
        lambda m: jnp.ones((TIME, CONTEXT), bool) & (m[0, 0] < m[0, 0] + 1) | True,
        (VALID,),
    ),
    "neither of two bounds": (
        ("other",),
        lambda p: (keys() <= p[:, :, None]) | (keys() > p[:, :, None] + 3),
        (POSITIONS,),
    ),
    "every second position": (("other",), lambda: keys() * 2 <= keys()[:TIME, None], ()),
    "positions out of order": (
        ("other",),
        lambda p, m: m[:, None] <= p[:, :, None],
        (POSITIONS, VALID),
    ),
}


@pytest.mark.parametrize("case", MASKS)
def test_masks(case: str) -> None:
    expected, function, args = MASKS[case]
    (mask,) = recognized(function, *args).outputs
    assert describe_mask(mask) == expected


def drawn(array: jax.Array, random: np.random.Generator) -> jax.Array:
    """Positions, lengths and indices of any kind, out of bounds too; flags where flags were."""
    if array.dtype == bool or array is VALID:
        return jnp.asarray(random.integers(0, 2, array.shape), array.dtype)
    return jnp.asarray(random.integers(-9, CONTEXT + 9, array.shape), array.dtype)


@pytest.mark.parametrize("case", MASKS)
def test_what_is_kept_is_the_mask(case: str) -> None:
    _, function, args = MASKS[case]
    graph = recognized(function, *args)
    (mask,) = graph.outputs
    found = kept(mask, mask.type.rank - 1)
    values = {name: value for name, value in found._asdict().items() if isinstance(value, Value)}
    both = Graph(graph.inputs, (mask, *values.values()))
    for seed in range(5):
        random = np.random.default_rng(seed)
        wanted, *parts = evaluate(both, [drawn(arg, random) for arg in args])
        part, places = dict(zip(values, parts)), np.arange(mask.type.shape[-1])
        keeps = np.asarray(part.get("rest", True))
        keeps = keeps & (places >= part.get("first", 0)) & (places <= part.get("last", CONTEXT))
        np.testing.assert_array_equal(np.broadcast_to(keeps, wanted.shape), wanted)


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("causal, of what was written", {"last"}),
        ("window between triangles", {"first", "last"}),
        ("chunks of positions", {"first", "last"}),
        ("causal and padding", {"last", "rest"}),
        ("prefix", {"last"}),
        ("segments", {"rest"}),
        ("positions in floats", {"rest"}),
    ],
)
def test_what_bounds_are_found(case: str, parts: set[str]) -> None:
    _, function, args = MASKS[case]
    (mask,) = recognized(function, *args).outputs
    found = kept(mask, mask.type.rank - 1)._asdict()
    assert {name for name, value in found.items() if isinstance(value, Value)} == parts


@pytest.mark.parametrize(
    ("case", "blocks", "visits"),
    [
        ("square", (8, 8), 15),  # of 5 x 5: those on the diagonal and below it
        ("last queries", (2, 8), 10),  # all 5, twice
        ("window of queries", (8, 8), 12),  # the diagonal, and those of 15 positions before it
        ("length", (8, 8), 25),
    ],
)
def test_blocks_that_are_visited(case: str, blocks: tuple[int, int], visits: int) -> None:
    """Of a context of 40, in blocks of queries and keys."""
    many, few = jnp.arange(CONTEXT), jnp.arange(4)
    functions: dict[str, tuple[int, Callable[..., Any]]] = {
        "square": (40, lambda i: keys() <= many[:, None]),
        "last queries": (4, lambda i: keys() <= i + few[:, None]),
        "window of queries": (
            40,
            lambda i: (keys() <= i + many[:, None]) & (keys() > i + many[:, None] - 16),
        ),
        "length": (40, lambda i: jnp.broadcast_to(keys() < i, (40, 40))),
    }
    queries, function = functions[case]
    (mask,) = recognized(function, INDEX).outputs
    bounds = kept(mask, 1).bounds
    assert visited_blocks(bounds, 0, (queries, CONTEXT), blocks) == visits


def test_the_context_may_be_any_dimension() -> None:
    (mask,) = recognized(lambda p: keys()[:, None] <= p[:, None], POSITIONS).outputs
    assert mask.type.shape == (BATCH, CONTEXT, TIME)
    assert describe_mask(mask, 1) == ("causal",)


def test_a_mask_that_the_context_does_not_enter() -> None:
    (mask,) = recognized(lambda p: p > 0, POSITIONS).outputs
    assert describe_mask(mask, None) == ("other",)


SLOPES = jnp.ones(4)


def test_slopes_times_positions_are_alibi() -> None:
    def from_padding(m: Any, slopes: Any) -> Any:
        return slopes[:, None, None] * (jnp.cumsum(m, axis=-1) - 1)[:, None, None]

    def from_distance(p: Any, slopes: Any) -> Any:
        return slopes[:, None, None] * (keys() - p[:, None, :, None]).astype("float32")

    for function, arg in ((from_padding, VALID), (from_distance, POSITIONS)):
        (bias,) = recognized(function, arg, SLOPES).outputs
        assert describe_bias(bias) == ("alibi",)


def test_a_bias_of_learned_distances_is_a_bias() -> None:
    (bias,) = recognized(lambda t, p: t[p] * 2.0, jnp.ones((9, CONTEXT)), POSITIONS).outputs
    assert describe_bias(bias) == ("bias",)


def test_all_that_an_attend_has_beside() -> None:
    q, k = jnp.ones((BATCH, TIME, 4, 8)), jnp.ones((BATCH, CONTEXT, 4, 8))

    def function(q: Any, k: Any, p: Any, slopes: Any, sink: Any) -> Any:
        logits = jnp.einsum("bthk,bshk->bhts", q, k) + slopes[:, None, None] * keys()
        logits = jnp.where((keys() <= p[:, :, None])[:, None], logits, -1e9)
        sink = jnp.broadcast_to(sink[:, None, None], (BATCH, 4, TIME, 1))
        weights = jax.nn.softmax(jnp.concatenate([logits, sink], axis=-1))[..., :-1]
        return jnp.einsum("bhts,bshk->bthk", weights, k)

    graph = recognized(function, q, k, POSITIONS, SLOPES, SLOPES)
    (op,) = (op for op in graph.ops if op.name == "attend")
    assert describe_attend(op) == ("causal", "alibi", "sink")


def test_a_mask_and_a_bias_that_are_rounded_together_are_two() -> None:
    """Flax's BLOOM adds its biases in bf16, and converts their sum to f32."""

    def attention(q: Any, k: Any, v: Any) -> Any:
        causal = jnp.arange(CONTEXT)[None] <= jnp.arange(TIME)[:, None]
        mask = jnp.where(causal, 0, jnp.finfo(jnp.bfloat16).min).astype(jnp.bfloat16)
        alibi = (-0.5 * jnp.arange(CONTEXT)).astype(jnp.bfloat16)
        logits = jnp.einsum("btd,bsd->bts", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits * 0.5 + (mask + alibi).astype(jnp.float32))
        return jnp.einsum("bts,bsd->btd", weights.astype(jnp.bfloat16), v)

    shapes = (BATCH, TIME, 4), (BATCH, CONTEXT, 4), (BATCH, CONTEXT, 4)
    random = np.random.default_rng(0)
    arrays = [jnp.asarray(random.normal(size=shape), jnp.bfloat16) for shape in shapes]
    graph = recognized(attention, *arrays)
    (op,) = (op for op in graph.ops if op.name == "attend")
    assert describe_attend(op) == ("causal", "alibi")
    assert_close(run(graph, *arrays)[0], attention(*arrays), 2e-2)


def test_a_bound_may_be_infinite() -> None:
    mask = recognized(lambda p: keys() < p[:, :, None] + jnp.inf, POSITIONS).outputs[0]
    assert describe_mask(mask) == ("other",)


def test_only_the_row_that_is_read_of_a_mask_is_computed() -> None:
    """Libraries slice the row of a token out of the mask of their longest context."""
    longest, context, window = 512, 64, 32

    def mask(i: jax.Array) -> jax.Array:
        positions = jnp.arange(longest)
        causal = positions[:, None] >= positions[None]
        near = jnp.tril(jnp.ones((longest, longest), bool), -window)
        return jax.lax.dynamic_slice((causal & ~near)[None, None], (0, 0, i, 0), (1, 1, 1, context))

    graph = normal_form(graph_of(mask, jnp.int32(0)))
    assert max(type_.size for op in graph.ops for type_ in op.types) == context
    for i in (0, 5, 63, 200, longest - 1, longest, 2**31 - 1, -1, -600):
        assert_same_bits(run(graph, jnp.int32(i))[0], mask(jnp.int32(i)))
