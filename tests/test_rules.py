"""Every rule: its example fires it, both sides are equal, and near misses say why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import rewrite
from dialect.arrays import dtypes
from dialect.arrays.evaluate import evaluate
from dialect.checked.all_rules import FoundRule, all_rules
from dialect.checked.forms import example_graph, first_rules
from dialect.checked.reach import reach
from dialect.jaxprs import framework  # noqa: F401  (framework registers)
from dialect.normal.normal_form import RULES as NORMAL
from dialect.normal.normal_form import normal_form
from dialect.ops import nn, quant, rotary  # noqa: F401  (framework registers)
from dialect.ops.nn import Traced
from passes.lower import EXPAND, SCALES, scale_behind_product
from passes.recognize import RULES as RECOGNIZE
from rewrite.driver import Report
from rewrite.driver import rewrite as apply_rules
from rewrite.errors import InvalidProgram
from rewrite.ir import Graph, Type
from rewrite.program import KEEPS
from rewrite.rules import Rule, pattern
from rewrite.verify import verify
from tests.kit import assert_same_bits, graph_of, op_names, op_of, run

LOWER = (*SCALES, EXPAND)
EVERY = all_rules("dialect", "passes")
RANDOM = np.random.default_rng(3)


def array(type_: Type) -> jax.Array:
    dtype = dtypes.dtype_of(type_.dtype)
    if type_.dtype[0] in "iu":
        return jnp.asarray(RANDOM.integers(-3, 4, type_.shape), dtype)
    return jnp.asarray(RANDOM.standard_normal(type_.shape), dtype)


def normal(*shape: int) -> jax.Array:
    return array(Type("f32", shape))


def applied(graph: Graph, *groups: Sequence[Rule]) -> tuple[Graph, Report]:
    """The graph after each group of rules, and what the last one did."""
    report = Report()
    for rules in groups:
        report = Report()
        graph = apply_rules(graph, rules, report)
        verify(graph)
    return graph, report


def recognized(function: Callable[..., Any], *args: Any) -> tuple[Graph, Report]:
    return applied(graph_of(function, *args), NORMAL, RECOGNIZE)


def assert_equal_on(graph: Graph, other: Graph, args: Sequence[Any], exact: bool = False) -> None:
    if exact:
        assert_same_bits(run(graph, *args), run(other, *args))
    else:
        assert_close_in_dtype(run(graph, *args), run(other, *args))


def assert_close_in_dtype(left: Any, right: Any) -> None:
    """Equal to the precision of their dtype."""
    for one, two in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        tolerance = 2e-2 if one.dtype == jnp.bfloat16 else 1e-5
        one, two = np.asarray(one, np.float64), np.asarray(two, np.float64)
        np.testing.assert_allclose(one, two, rtol=tolerance, atol=tolerance)


@pytest.fixture(params=EVERY, ids=lambda found: found.name)
def found(request: pytest.FixtureRequest) -> FoundRule:
    return request.param


def test_example_fires(found: FoundRule) -> None:
    """Whether both sides are equal then is a test of tests/test_rule_check.py."""
    _, report = applied(example_graph(found.rule), first_rules(found), [found.rule])
    assert report.fired[found.name] >= 1


def test_reach(golden: Callable[[str, str], None]) -> None:
    """What each rule's example may be made of: a guard too many takes something away."""
    tried = ("bf16", "i32", "c64", "2s")
    lines = (
        f"{found.module}.{found.name}: {' '.join(reach(found.rule, first_rules(found), tried))}"
        for found in EVERY
    )
    golden("\n".join(lines), "rule_reach.txt")


def test_doc_is_a_formula(found: FoundRule) -> None:
    before, arrow, after = found.rule.doc.partition("  ->  ")
    assert arrow and before and after
    assert found.rule.keeps in KEEPS


def test_names_are_unique() -> None:
    assert len({found.name for found in EVERY}) == len(EVERY)


def test_normal_form_is_idempotent(found: FoundRule) -> None:
    once = normal_form(example_graph(found.rule))
    assert normal_form(once) == once


@pytest.mark.parametrize("place", (-9, -1, 3, 99))
def test_a_place_out_of_bounds_is_the_nearest(place: int) -> None:
    def update(cache: jax.Array, new: jax.Array, place: jax.Array) -> jax.Array:
        start = (0, place, 0)
        return lax.dynamic_update_slice(cache, new, start, allow_negative_indices=False)

    args = normal(2, 8, 4), normal(2, 3, 4), jnp.int32(place)
    graph, report = recognized(update, *args)
    assert report.fired["cache_write_of_update"] == 1
    (written,) = evaluate(graph, args)
    first = min(max(place, 0), 5)
    np.testing.assert_array_equal(written[:, first : first + 3], args[1])


PATTERNS = [each for each in RECOGNIZE if type(each.roots) is not frozenset]
VARIANTS = [
    pytest.param(each, old, new, id=f"{each.name} {new}")
    for each in PATTERNS
    for old, new in (("f32[", "bf16["), ("[", "[3,"), ("[", "[1,3,"))
    # A rule about two dtypes stays one about two dtypes.
    if old == "[" or all(text.startswith(old) for text in each.types)
]


@pytest.mark.parametrize("each, old, new", VARIANTS)
def test_patterns_fire_at_any_rank_and_dtype(each: Rule, old: str, new: str) -> None:
    is_rank = old == "["  # which scalars have none of
    texts = [
        text if is_rank and text.endswith("[]") else text.replace(old, new) for text in each.types
    ]
    args = [array(Type.parse(text)) for text in texts]
    start = normal_form(graph_of(each.example, *args))
    made, report = applied(start, [each])
    assert report.fired == {each.name: 1}
    assert_equal_on(start, made, args)


# What recognition finds however a library writes it.

X, Y = normal(2, 3, 8), normal(2, 3, 8)
Q, K, V = normal(2, 3, 4, 8), normal(2, 5, 4, 8), normal(2, 5, 4, 6)
MASK = jnp.asarray(RANDOM.random((3, 5)) > 0.3).at[:, 0].set(True)

TABLE = normal(9, 4)  # of no infinity: where a row is not taken, it is multiplied with zero


def _complex_rope(x: Any, angles: Any) -> Any:
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    turned = lax.complex(pairs[..., 0], pairs[..., 1]) * lax.complex(
        jnp.cos(angles), jnp.sin(angles)
    )
    return jnp.stack([jnp.real(turned), jnp.imag(turned)], axis=-1).reshape(x.shape)


def _rope_of_rotations(x: Any, rotations: Any, kept: bool = True) -> Any:
    """Pairs as complex numbers, times complex numbers, `kept` as pairs or taken apart."""
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * rotations
    parts = [jnp.real(turned), jnp.imag(turned)]
    return jnp.stack(parts, -1).reshape(x.shape) if kept else jnp.concatenate(parts, -1)


FOUND: dict[str, tuple[str, Callable[..., Any], tuple[Any, ...]]] = {
    "jax.nn.softmax": ("softmax", lambda x: jax.nn.softmax(x), (X,)),
    "softmax over the first axis": ("softmax", lambda x: jax.nn.softmax(x, axis=0), (X,)),
    "softmax shifted by a mean": (
        "softmax",
        lambda x: (
            (e := jnp.exp(x - jnp.mean(x, -1, keepdims=True))) / jnp.sum(e, -1, keepdims=True)
        ),
        (X,),
    ),
    "softmax in another dtype": (
        "softmax",
        lambda x: jax.nn.softmax(x.astype("float32")).astype("bfloat16"),
        (X.astype("bfloat16"),),
    ),
    "jax.nn.silu": ("activate", jax.nn.silu, (X,)),
    "swish the other way": ("activate", lambda x: jax.nn.sigmoid(x) * x, (X,)),
    "jax.nn.gelu": ("activate", jax.nn.gelu, (X,)),
    "exact gelu": ("activate", lambda x: jax.nn.gelu(x, approximate=False), (X,)),
    "gelu, the half first": (
        "activate",
        lambda x: 0.5 * x * (1.0 + jnp.tanh(0.7978846 * x * (1 + 0.044715 * x * x))),
        (X,),
    ),
    "gelu by erfc": ("activate", lambda x: x * lax.erfc(-x * np.sqrt(0.5)) / 2, (X,)),
    "silu by exp": ("activate", lambda x: x / (1 + jnp.exp(-x)), (X,)),
    "relu squared": ("activate", lambda x: jnp.maximum(x, 0) ** 2, (X,)),
    "gelu in bf16": ("activate", jax.nn.gelu, (X.astype("bfloat16"),)),
    "interleaved rope": (
        "rope",
        lambda x, c, s: jnp.stack(
            [x[..., ::2] * c - x[..., 1::2] * s, x[..., 1::2] * c + x[..., ::2] * s], -1
        ).reshape(x.shape),
        (X, normal(3, 4), normal(3, 4)),
    ),
    "rope of complex numbers": ("rope", lambda x, a: _complex_rope(x, a), (X, normal(3, 4))),
    "rope by exp(i angle)": (
        "rope",
        lambda x, a: _rope_of_rotations(x, jnp.exp(1j * a)),
        (X, normal(3, 4)),
    ),
    "rope by a complex table": (
        "rope",
        lambda x, table, i: _rope_of_rotations(x, jnp.take(table, i, axis=0)),
        (X, normal(9, 4) + 1j * normal(9, 4), jnp.array([4, 0, 7])),
    ),
    "rope from pairs to halves": (
        "rope",
        lambda x, a: _rope_of_rotations(x, jnp.exp(a * 1j), kept=False),
        (X, normal(3, 4)),
    ),
    "rope from pairs of bf16 to halves": (
        "rope",
        lambda x, a: _rope_of_rotations(x, jnp.exp(a * 1j), kept=False),
        (X.astype("bfloat16"), normal(3, 4)),
    ),
    "partial rope": (
        "rope",
        lambda x, c, s: jnp.concatenate([rotary.rope(x[..., :4], c, s), x[..., 4:]], -1),
        (X, normal(3, 2), normal(3, 2)),
    ),
    "rope by rotate_half": (
        "rope",
        lambda x, c, s: x * c + jnp.concatenate([-x[..., 4:], x[..., :4]], -1) * s,
        (X, normal(3, 8), normal(3, 8)),
    ),
    "norm, divided by the root": (
        "rms_norm",
        lambda x, y: y[0, 0] * (x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)),
        (X, Y),
    ),
    "norm, scale with the root": (
        "rms_norm",
        lambda x, y: x * (lax.rsqrt(jnp.mean(x * x, -1) + 1e-6)[..., None] * (1 + y[0, 0])),
        (X, Y),
    ),
    "norm of a scaled embedding": (
        "rms_norm",
        lambda x: (y := 3.0 * x) * lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + 1e-6),
        (X,),
    ),
    "layer norm by jnp.var": (
        "layer_norm",
        lambda x: (x - x.mean(-1, keepdims=True)) / jnp.sqrt(jnp.var(x, -1, keepdims=True) + 1e-5),
        (X,),
    ),
    "layer norm by the mean of squares": (
        "layer_norm",
        lambda x: (
            (x - x.mean(-1)[..., None])
            * lax.rsqrt(jnp.maximum(0.0, (x * x).mean(-1) - x.mean(-1) ** 2) + 1e-5)[..., None]
        ),
        (X,),
    ),
    "columns of a table": ("take", lambda t, i: t[:, i], (normal(9, 4), jnp.arange(3))),
    "one-hot rows": (
        "take",
        lambda i: jax.nn.one_hot(i, 9) @ TABLE,
        (jnp.arange(3),),
    ),
    "places by row": (
        "cache_put",
        lambda c, n, p: c.at[jnp.arange(2), p].set(n),
        (K, K[:, 0], jnp.array([3, 1])),
    ),
    "places by row and time": (
        "cache_put",
        lambda c, n, p: c.at[jnp.arange(2)[:, None], p].set(n),
        (K, K[:, :2], jnp.array([[3, 1], [0, 9]])),
    ),
    "update at an offset of a whole axis": (
        "cache_write",
        lambda c, n, i: lax.dynamic_update_slice(c, n, (i, i, 0, 0)),
        (K, K[:, :1], jnp.int32(1)),
    ),
    "several places of each sequence": (
        "cache_put",
        jax.vmap(lambda c, n, p: c.at[p].set(n)),
        (K, K[:, :2] + 1, jnp.array([[4, 1], [0, 7]])),
    ),
    "mapped updates at an offset of a whole axis": (
        "cache_put",
        jax.vmap(lambda c, n, p: lax.dynamic_update_slice(c, n, (p, p, p))),
        (K, K[:, :2] + 1, jnp.array([3, 1])),
    ),
    "mapped updates, out of bounds": (
        "cache_put",
        lambda c, n, p: jax.vmap(lambda c, n, p: lax.dynamic_update_slice(c, n, (p, 0, 0)))(
            c, n, p
        ),
        (K, K[:, :2] + 1, jnp.array([4, -7])),
    ),
    "a mask that writes one place": (
        "cache_put",
        lambda c, n, p: jnp.where((jnp.arange(5) == p[:, None])[:, :, None, None], n, c),
        (K, K[:, :1] + 1, jnp.array([4, 9])),
    ),
    "a blend that writes one place": (
        "cache_put",
        lambda c, n, p: (
            c * (1 - (o := jax.nn.one_hot(p, 5, dtype="int32")[:, :, None, None])) + n * o
        ),
        (jnp.int32(9 * K), jnp.int32(9 * K[:, :1]) + 1, jnp.array([4, 0])),
    ),
    "gate the other way": ("gate", lambda x, y: y * jax.nn.silu(x), (X, Y)),
    "gated gelu": ("gate", lambda x, y: jax.nn.gelu(x) * y, (X, Y)),
    "power instead of square": (
        "rms_norm",
        lambda x: x * lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6),
        (X,),
    ),
    "norm with a scale": (
        "rms_norm",
        lambda x, y: x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * y[0, 0],
        (X, Y),
    ),
    "layer norm": (
        "layer_norm",
        lambda x: (
            (c := x - jnp.mean(x, -1, keepdims=True))
            * lax.rsqrt(jnp.mean(c * c, -1, keepdims=True) + 1e-5)
        ),
        (X,),
    ),
    "rope of heads": (
        "rope",
        lambda x, a: rotary.rope(x, jnp.cos(a)[:, None], jnp.sin(a)[:, None]),
        (Q, normal(3, 4)),
    ),
    "rope by split": (
        "rope",
        lambda x, c, s: jnp.concatenate(
            [
                jnp.split(x, 2, -1)[0] * c - jnp.split(x, 2, -1)[1] * s,
                jnp.split(x, 2, -1)[1] * c + jnp.split(x, 2, -1)[0] * s,
            ],
            -1,
        ),
        (X, normal(3, 4), normal(3, 4)),
    ),
    "take": ("take", lambda t, i: t[i], (normal(9, 4), jnp.arange(6).reshape(2, 3))),
    "jnp.take": ("take", lambda t, i: jnp.take(t, i, axis=0), (normal(9, 4), jnp.arange(6))),
    "take of matrices": ("take", lambda t, i: t[i], (normal(9, 4, 3), jnp.arange(6))),
    "cache write": (
        "cache_write",
        lambda c, n, i: lax.dynamic_update_slice(c, n, (0, i, 0, 0)),
        (K, K[:, :1], jnp.int32(3)),
    ),
    "cache write in dimension": (
        "cache_write",
        lambda c, n, i: lax.dynamic_update_slice_in_dim(c, n, i, axis=1),
        (K, K[:, :2], jnp.int32(2)),
    ),
    "attention": (
        "attend",
        lambda q, k, v: jnp.einsum(
            "bhts,bshv->bthv", jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k) * 0.3), v
        ),
        (Q, K, V),
    ),
    "masked attention": (
        "attend",
        lambda q, k, v, m: jnp.einsum(
            "bhts,bshv->bthv",
            jax.nn.softmax(jnp.where(m, jnp.einsum("bthk,bshk->bhts", q, k) / 3, -1e9)),
            v,
        ),
        (Q, K, V, MASK),
    ),
    "attention with a bias": (
        "attend",
        lambda q, k, v, m: jnp.einsum(
            "bhts,bshv->bthv",
            jax.nn.softmax(0.3 * jnp.einsum("bthk,bshk->bhts", q, k) + m[None, None]),
            v,
        ),
        (Q, K, V, jnp.where(MASK, 0.0, -1e9)),
    ),
    "mask of batches": (
        "attend",
        lambda q, k, v, m: jnp.einsum(
            "bhts,bshv->bthv",
            jax.nn.softmax(jnp.where(m[:, None, None], jnp.einsum("bthk,bshk->bhts", q, k), -1e9)),
            v,
        ),
        (Q, K, V, jnp.asarray([[True] * 5, [True, False] * 2 + [True]])),
    ),
    "key and query the other way": (
        "attend",
        lambda q, k, v: jnp.einsum(
            "bshv,bhts->bthv", v, jax.nn.softmax(jnp.einsum("bshk,bthk->bhts", k, q))
        ),
        (Q, K, V),
    ),
    "attention by matmul": (
        "attend",
        lambda q, k, v: jax.nn.softmax(q @ k.swapaxes(-1, -2) * 0.5) @ v,
        (normal(2, 4, 3, 8), normal(2, 4, 5, 8), normal(2, 4, 5, 6)),
    ),
    "grouped queries": (
        "attend",
        lambda q, k, v: jnp.einsum(
            "bgrts,bsgk->btgrk", jax.nn.softmax(jnp.einsum("btgrk,bsgk->bgrts", q, k)), v
        ),
        (normal(2, 3, 4, 2, 8), K, normal(2, 5, 4, 8)),
    ),
    "one head of keys": (
        "attend",
        lambda q, k, v: jnp.einsum(
            "bhts,bsv->bthv", jax.nn.softmax(jnp.einsum("bthk,bsk->bhts", q, k)), v
        ),
        (Q, normal(2, 5, 8), normal(2, 5, 6)),
    ),
    "few masked logits": (
        "attend",
        lambda q, k, v, m: jax.nn.softmax(jnp.where(m, q @ k.T, -1e9)) @ v,
        (normal(3, 8), normal(5, 8), normal(5, 6), MASK),
    ),
    "softmax in float32": (
        "attend",
        lambda q, k, v: jax.nn.softmax((q @ k.T).astype("float32") * 0.5).astype("bfloat16") @ v,
        tuple(each.astype("bfloat16") for each in (normal(3, 8), normal(5, 8), normal(5, 6))),
    ),
}


@pytest.mark.parametrize("case", FOUND)
def test_found(case: str) -> None:
    name, function, args = FOUND[case]
    made, _ = recognized(function, *args)
    assert op_names(made).count(name) == 1
    assert_close_in_dtype(run(made, *args), run(function, *args))


def attention(q: Any, k: Any, v: Any, logits: Callable[[Any], Any] = lambda x: x) -> Any:
    return jax.nn.softmax(logits(q @ k.T)) @ v


FLAT = (normal(3, 8), normal(5, 8), normal(5, 6))

# (what must not be recognised, of what, why it was not if a reason is due, program, arguments)
MISSED: dict[str, tuple[str, str | None, Callable[..., Any], tuple[Any, ...]]] = {
    "sum of something else": (
        "softmax",
        None,
        lambda x, y: (
            jnp.exp(x - x.max(-1, keepdims=True))
            / jnp.sum(jnp.exp(y - y.max(-1, keepdims=True)), -1, keepdims=True)
        ),
        (X, Y),
    ),
    "norm over the first axis": (
        "rms_norm",
        "no factor is the averaged array with the averaged axis last",
        lambda x: x * lax.rsqrt(jnp.mean(x * x, 0, keepdims=True) + 1e-5),
        (X,),
    ),
    "norm of something else": (
        "rms_norm",
        None,
        lambda x, y: y * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5),
        (X, Y),
    ),
    "mean by a wrong count": (
        "rms_norm",
        "not divided by the number of its terms",
        lambda x: x * lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) / 7 + 1e-5),
        (X,),
    ),
    "silu of something else": ("activate", None, lambda x, y: x * jax.nn.sigmoid(y), (X, Y)),
    "gelu with other constants": (
        "activate",
        "it is near gelu",
        lambda x: x * (0.5 * (1 + jnp.tanh(0.8 * (x + 0.044715 * x**3)))),
        (X,),
    ),
    "rope turned the other way for one half": (
        "rope",
        "expected",
        lambda x, c, s: jnp.concatenate(
            [x[..., :4] * c - x[..., 4:] * s, x[..., 4:] * c - x[..., :4] * s], -1
        ),
        (X, normal(3, 4), normal(3, 4)),
    ),
    "parts of rows": (
        "take",
        "it gathers parts of rows",
        lambda t, i: lax.gather(
            t, i[:, None], lax.GatherDimensionNumbers((1,), (0,), (0,)), (1, 2), mode="clip"
        ),
        (normal(9, 4), jnp.arange(3)),
    ),
    "filled with a value": (
        "take",
        "it has another fill value than NaN",
        lambda t, i: t.at[i].get(mode="fill", fill_value=-3.0),
        (normal(9, 4), jnp.arange(8, 11)),
    ),
    "update of everything": (
        "cache_write",
        "",
        lambda c, n: lax.dynamic_update_slice(c, n, (0, 0, 0, 0)),
        (K, K + 1),
    ),
    "softmax over the queries": (
        "attend",
        "",
        lambda q, k, v: jnp.einsum("st,sv->tv", jax.nn.softmax(jnp.einsum("tk,sk->st", q, k)), v),
        FLAT,
    ),
    "weights summed over the queries": (
        "attend",
        "",
        lambda q, k, v: jax.nn.softmax(q @ k.T).T @ v,
        (normal(3, 8), normal(5, 8), normal(3, 6)),
    ),
    "softmax of a product and a capped one": (
        "attend",
        "the products of the logits are not computed alike",
        lambda q, k, v: attention(q, k, v, lambda x: x + 5 * jnp.tanh((q + 1) @ k.T / 5)),
        FLAT,
    ),
    "scaled after the mask": (
        "attend",
        "the logits are scaled after",
        lambda q, k, v, m: attention(q, k, v, lambda x: jnp.where(m, x, -10.0) * 0.5),
        (*FLAT, MASK),
    ),
    "masked twice": (
        "attend",
        "the logits are masked twice",
        lambda q, k, v, m: attention(q, k, v, lambda x: jnp.where(m, jnp.where(~m, x, 1.0), -10.0)),
        (*FLAT, MASK),
    ),
    "masked with an array": (
        "attend",
        "the softmax is over select_n",
        lambda q, k, v, m: attention(q, k, v, lambda x: jnp.where(m, x, 2 * m - 1.0)),
        (*FLAT, MASK),
    ),
    "value without an axis of its own": (
        "attend",
        "the weights and the value are not contracted over the context alone",
        lambda q, k, v: jax.nn.softmax(q @ k.T) @ v[:, 0],
        FLAT,
    ),
    "query and key that share two axes": (
        "attend",
        "query and key share not exactly one contracted axis",
        lambda q, k, v: jax.nn.softmax(jnp.einsum("tjk,sjk->ts", q, k)) @ v,
        (normal(3, 4, 8), normal(5, 4, 8), FLAT[2]),
    ),
}


@pytest.mark.parametrize("case", MISSED)
def test_missed(case: str) -> None:
    name, reason, function, args = MISSED[case]
    made, report = recognized(function, *args)
    assert name not in op_names(made)
    assert_close_in_dtype(run(made, *args), run(function, *args))
    if reason is not None:
        rules = {
            "activate": ("activation",),
            "take": ("take_of_gather",),
            "cache_write": ("cache_write_of_update",),
            "cache_put": ("put_of_scatter", "put_of_scatter_by_row", "put_of_mapped_update"),
        }.get(name, (name,))
        reasons = [report.misses[each][0].reason for each in rules if each in report.misses]
        assert any(reason in each for each in reasons), reasons


def test_near_miss_names_the_users_line() -> None:
    _, report = recognized(lambda q, k, v: attention(q, k, v, jnp.sin), *FLAT)
    (note,) = (note for note in report.notes() if note.startswith("attend nearly fired"))
    assert f"at {__file__}:" in note


def test_precision_of_attention_is_not_lost() -> None:
    """Recognised or not, what goes out asks for the precision that came in."""

    def function(q: Any, k: Any, v: Any) -> Any:
        logits = jnp.dot(q, k.T, precision="highest")
        return jnp.dot(jax.nn.softmax(logits), v, precision="highest")

    made, _ = recognized(function, *FLAT)
    lowered, _ = applied(made, LOWER)
    products = [op for op, _ in lowered.walk() if op.name in ("contract", "dot_general")]
    assert len(products) == 2
    assert all(op.get("precision") is not None for op in products)


def test_values_read_by_others_are_kept() -> None:
    """Nothing is mutated, so attention weights that are also returned stay."""

    def function(q: Any, k: Any, v: Any) -> Any:
        weights = jax.nn.softmax(q @ k.T)
        return weights @ v, weights

    made, _ = recognized(function, *FLAT)
    assert {"attend", "softmax"} <= set(op_names(made))
    for one, other in zip(evaluate(made, FLAT), function(*FLAT)):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


SIZES = {"b": 2, "g": 3, "t": 3, "j": 2, "s": 4, "k": 3, "v": 5}


@st.composite
def attentions(draw: Any) -> tuple[list[str], bool]:
    """The axes of query, key, logits, value, mask and result, in any order; is the mask added?"""
    shared = draw(st.lists(st.sampled_from("bg"), unique=True))
    rows = shared + draw(st.lists(st.sampled_from("tj"), unique=True))
    some = st.lists(st.sampled_from(rows), unique=True) if rows else st.just([])
    own = draw(st.lists(st.sampled_from(shared), unique=True)) if shared else []
    arrays = [[*rows, "k"], [*own, "s", "k"], [*rows, "s"], [*draw(some), "s", "v"], [*rows, "v"]]
    query, key, logits, value, out = ("".join(draw(st.permutations(each))) for each in arrays)
    mask = draw(st.sets(st.sampled_from(logits)))
    shown = "".join(x for x in logits if x in mask)
    return [query, key, logits, value, out, shown], draw(st.booleans())


@settings(max_examples=10, deadline=None)
@given(attentions())
def test_attention_in_any_order_of_axes(case: tuple[list[str], bool]) -> None:
    """Found or not, it is what it was."""
    (query, key, logits, value, out, mask), added = case
    args = [normal(*(SIZES[x] for x in axes)) for axes in (query, key, value)]
    args.append(normal(*(SIZES[x] if x in mask else 1 for x in logits)) > 0)

    def function(q: Any, k: Any, v: Any, m: Any) -> Any:
        found = jnp.einsum(f"{query},{key}->{logits}", q, k) * 0.5
        found = found + jnp.where(m, 0.0, -9.0) if added else jnp.where(m, found, -9.0)
        weights = jax.nn.softmax(found, axis=logits.index("s"))
        return jnp.einsum(f"{logits},{value}->{out}", weights, v)

    made, _ = recognized(function, *args)
    # Keys that no row owns choose among values that every row has: a mixture, as of experts.
    is_mixture = set(key) & set(value) == {"s"} and len(value) > 2
    assert ("attend" in op_names(made)) or logits[-1] != "s" or is_mixture
    assert_close_in_dtype(run(made, *args), [run(function, *args)])


def test_attention_with_many_axes_of_the_query() -> None:
    def function(q: Any, k: Any, v: Any) -> Any:
        weights = jax.nn.softmax(jnp.einsum("abcdek,sk->abcdes", q, k))
        return jnp.einsum("abcdes,sv->abcdev", weights, v)

    args = (normal(2, 1, 2, 1, 2, 3), normal(4, 3), normal(4, 5))
    made, _ = recognized(function, *args)
    assert_close_in_dtype(run(made, *args), [run(function, *args)])


# Scales behind products.


def dequantized(x: Any, w: Any, spec: str, axes: tuple[int, ...]) -> tuple[Graph, list[Any]]:
    """contract(x, dequantize(quantize(w))), and its arguments."""
    args = [x, *quant.quantize(w, axes=axes, form="int8")]
    made = {"axes": axes, "dtype": jnp.float32}
    graph = graph_of(
        lambda x, q, s: op_of("contract")(
            x, op_of("dequantize")(q, s, **made), spec=spec, dtype=jnp.float32
        ),
        *args,
    )
    return graph, args


@pytest.mark.parametrize(
    "spec, axes",
    [
        ("b t d, d h k -> b t h k", (0,)),
        ("b t d, d h k -> b h t k", (0,)),
        ("b t d, k h d -> b t h k", (2,)),
        ("b t d, d h k -> h b k t", (0,)),
    ],
)
def test_scale_goes_behind_any_product(spec: str, axes: tuple[int, ...]) -> None:
    shape = (4, 2, 8) if "k h d" in spec else (8, 2, 4)
    graph, args = dequantized(normal(2, 3, 8), normal(*shape), spec, axes)
    made, report = applied(graph, [scale_behind_product])
    assert report.fired == {"scale_behind_product": 1}
    assert "dequantize" not in op_names(made)
    assert_equal_on(graph, made, args)


def test_scale_along_a_summed_axis_stays() -> None:
    spec = "b t d, d h k -> b t h k"
    graph, _ = dequantized(normal(2, 3, 8), normal(8, 2, 4), spec, (1,))
    made, report = applied(graph, [scale_behind_product])
    assert "dequantize" in op_names(made)
    assert (
        report.misses["scale_behind_product"][0].reason == "a scale varies along a contracted axis"
    )


# A user's own rules.

SUM_OF_MULTIPLES = pattern(
    "sum_of_multiples",
    "x * a + x * b  ->  x * (a + b)",
    before=lambda x, *, a, b: x * a + x * b,
    after=lambda x, *, a, b: x * (a + b),
    example=("f32[4]",),
    constants={"a": 2.0, "b": 3.0},
    guard=lambda x, *, a, b: "a is not positive" if a <= 0 else None,
)


def test_the_front_door_offers_the_same_function() -> None:
    assert rewrite.rule is pattern


@pytest.mark.parametrize("x", [normal(4), normal(2, 3), normal(4).astype("bfloat16")])
def test_own_rule_with_constants(x: jax.Array) -> None:
    graph = graph_of(lambda x: x * 1.5 + x * 5.0, x)
    made, report = applied(graph, [SUM_OF_MULTIPLES])
    assert report.fired == {"sum_of_multiples": 1}
    assert [op.name for op in made.ops if op.name != "const"] == ["mul"]
    (const,) = (op for op in made.ops if op.name == "const")
    assert const["value"] == 6.5
    assert_equal_on(graph, made, [x], exact=False)


def test_own_rule_in_either_order() -> None:
    made, report = applied(graph_of(lambda x: 5.0 * x + x * 1.5, normal(4)), [SUM_OF_MULTIPLES])
    assert report.fired == {"sum_of_multiples": 1}
    np.testing.assert_allclose(evaluate(made, [np.float32([1, 2, 3, 4])])[0], [6.5, 13, 19.5, 26])


def test_own_rule_declines_by_its_guard() -> None:
    graph = graph_of(lambda x: x * -1.5 + x * 5.0, normal(4))
    made, report = applied(graph, [SUM_OF_MULTIPLES])
    assert made == graph
    assert report.misses["sum_of_multiples"][0].reason == "a is not positive"


def test_own_rule_wants_the_same_x_twice() -> None:
    graph = graph_of(lambda x, y: x * 1.5 + y * 5.0, normal(4), normal(4))
    made, report = applied(graph, [SUM_OF_MULTIPLES])
    assert (made, report.fired) == (graph, {})


def test_own_rule_misses_an_array_where_a_constant_stands() -> None:
    graph = graph_of(lambda x, y: x * 1.5 + x * y, normal(4), normal(4))
    made, report = applied(graph, [SUM_OF_MULTIPLES])
    assert (made, report.fired) == (graph, {})


@pytest.mark.parametrize("number", [161.0, 163.0, 2.0, -1.0])
def test_no_number_of_a_program_is_taken_for_a_constant(number: float) -> None:
    """A rule's literals match themselves alone, whatever its constants are in its test."""
    scaled = pattern(
        "scaled",
        "sin(x * a) * 163  ->  cos(x * a)",
        before=lambda x, *, a: jnp.sin(x * a) * 163.0,
        after=lambda x, *, a: jnp.cos(x * a),
        example=("f32[4]",),
        constants={"a": 2.0},
    )
    made, report = applied(graph_of(lambda x: jnp.sin(x * 161.0) * number, normal(4)), [scaled])
    assert report.fired == ({"scaled": 1} if number == 163.0 else {})
    expected = ["cos", "mul"] if number == 163.0 else ["mul", "mul", "sin"]
    assert sorted(op.name for op in made.ops if op.name != "const") == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_own_rule_finds_a_constant_in_another_dtype(dtype: str) -> None:
    x = normal(4).astype(dtype)
    wide = pattern(
        "wide",
        "sin(f32(x) + a)  ->  cos(f32(x) - a)",
        before=lambda x, *, a: jnp.sin(x.astype("float32") + a),
        after=lambda x, *, a: jnp.cos(x.astype("float32") - a),
        example=("f32[4]",),
        constants={"a": 1},
    )
    made, report = applied(graph_of(lambda x: jnp.sin(x.astype("float32") + 7), x), [wide])
    assert report.fired == {"wide": 1}
    (const,) = (op for op in made.ops if op.name == "const")
    assert (const["value"], const.types[0].dtype) == (7.0, "f32")


def test_own_rule_finds_a_constant_that_the_program_converts() -> None:
    filled = pattern(
        "filled",
        "where(x > 0, x, a)  ->  max(x, 0) + where(x > 0, 0, a)",
        before=lambda x, *, a: jnp.where(x > 0, x, a),
        after=lambda x, *, a: jnp.maximum(x, 0) + jnp.where(x > 0, jnp.zeros_like(x), a),
        example=("f32[4]",),
        constants={"a": 1.0},
    )
    x = normal(4).astype("bfloat16")
    graph = graph_of(lambda x: jnp.where(x > 0, x, 7.0), x)
    made, report = applied(graph, [filled])
    assert "convert_element_type" in op_names(graph)
    assert report.fired["filled"] == 1
    assert_equal_on(graph, made, [x])


def test_own_rule_with_an_attribute() -> None:
    doubled = pattern(
        "doubled",
        "rms_norm(2 x)  ->  rms_norm(x) with a quarter of the epsilon",
        before=lambda x, *, epsilon: Traced["rms_norm"](x * 2.0, epsilon=epsilon),
        after=lambda x, *, epsilon: Traced["rms_norm"](x, epsilon=epsilon / 4),
        example=("f32[4]",),
        attributes={"epsilon": 1.0},
    )
    x = normal(3, 4)
    graph = graph_of(lambda x: Traced["rms_norm"](x * 2.0, epsilon=161.0), x)
    made, report = applied(graph, [doubled])
    assert report.fired == {"doubled": 1}
    assert [op.get("epsilon") for op in made.ops] == [161.0 / 4]
    assert_equal_on(graph, made, [x], exact=False)


def test_own_rule_with_an_attribute_given_as_a_constant_is_refused_by_jax() -> None:
    misplaced = pattern(
        "misplaced",
        "rms_norm(x)  ->  x",
        before=lambda x, *, epsilon: Traced["rms_norm"](x, epsilon=epsilon),
        after=lambda x, *, epsilon: x,
        example=("f32[4]",),
        constants={"epsilon": 1.0},
    )
    with pytest.raises(TypeError, match="epsilon"):
        applied(graph_of(lambda x: Traced["rms_norm"](x, epsilon=1.0), normal(3, 4)), [misplaced])


def test_own_rule_that_does_not_read_its_constant_says_so() -> None:
    unread = pattern(
        "unread",
        "sin(x)  ->  cos(x)",
        before=lambda x, *, a: jnp.sin(x),
        after=lambda x, *, a: jnp.cos(x),
        example=("f32[4]",),
        constants={"a": 1.0},
    )
    made, report = applied(graph_of(jnp.sin, normal(4)), [unread])
    assert "cos" not in op_names(made)
    assert report.misses["unread"][0].reason == "its normal form does not read every parameter"


def test_own_rule_that_changes_the_type_is_no_rewrite() -> None:
    widening = pattern(
        "widening",
        "sin(x)  ->  f32(x)",
        before=lambda x: jnp.sin(x),
        after=lambda x: x.astype("float32"),
        example=("bf16[4]",),
    )
    graph = graph_of(jnp.sin, normal(4).astype("bfloat16"))
    made, report = applied(graph, [widening])
    assert made == graph
    assert report.misses["widening"][0].reason == "it would turn bf16[4] into f32[4]"


def test_own_rule_in_a_loop() -> None:
    def function(x: jax.Array) -> jax.Array:
        return lax.scan(lambda c, _: (c * 1.5 + c * 5.0, None), x, None, 3)[0]

    graph = graph_of(function, normal(4))
    made, report = applied(graph, [SUM_OF_MULTIPLES])
    assert report.fired == {"sum_of_multiples": 1}
    assert_equal_on(graph, made, [normal(4)])


def test_rule_that_never_ends() -> None:
    endless = pattern(
        "endless",
        "-x  ->  -(-(-x))",
        before=lambda x: -x,
        after=lambda x: -(-(-x)),
        example=("f32[4]",),
    )
    with pytest.raises(InvalidProgram, match="rules do not come to an end at neg: .*endless"):
        applied(graph_of(lambda x: -x, normal(4)), [endless])


# Marks (dialect.staging.marks) are taken out again by whoever wrote them.
@pytest.mark.parametrize("name", sorted(set(Traced) - {"known", "shared"}))
def test_every_composite_expands(name: str) -> None:
    assert name in EXPAND.roots


Step = Callable[[list[jax.Array]], jax.Array]


@st.composite
def layouts(draw: Any) -> list[Step]:
    """Reshapes, transposes, broadcasts, slices, sums and products, each of an earlier value."""
    shapes: list[tuple[int, ...]] = [array.shape for array in LAID_OUT]
    steps: list[Step] = []
    for _ in range(draw(st.integers(2, 6))):
        i, j = (draw(st.integers(0, len(shapes) - 1)) for _ in range(2))
        one, other = shapes[i], shapes[j]
        parts = [x for size in one for x in ((2, size // 2) if size % 2 == 0 else (size,))]
        pairs = [(a, b) for a, m in enumerate(one) for b, n in enumerate(other) if m == n]
        order = tuple(draw(st.permutations(range(len(one)))))
        made: list[Step] = [
            lambda v, i=i, p=parts: v[i].reshape(p),
            lambda v, i=i: v[i].reshape(-1),
            lambda v, i=i, o=order: jnp.transpose(v[i], o),
            lambda v, i=i: jnp.broadcast_to(v[i][:, None], (len(v[i]), 2, *v[i].shape[1:])),
            lambda v, i=i: jnp.split(v[i], [1])[1],
            lambda v, i=i: v[i] * 2.0 + jnp.broadcast_to(jnp.arange(v[i].shape[-1]), v[i].shape),
            *(lambda v, i=i, j=j, p=p: jnp.tensordot(v[i], v[j], [[p[0]], [p[1]]]) for p in pairs),
        ]
        if _fit(one, other):
            made += [
                lambda v, i=i, j=j: v[i] + v[j],
                lambda v, i=i, j=j: jnp.where(v[i] > v[j], v[i], v[j]),
            ]
        step = draw(st.sampled_from(made))
        shape = jax.eval_shape(step, [jnp.zeros(each) for each in shapes]).shape
        if 0 < len(shape) <= 5 and 0 < np.prod(shape) <= 1000:
            steps.append(step)
            shapes.append(shape)
    return steps


def _fit(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    pairs = zip(reversed(one), reversed(other))
    return all(m == n or 1 in (m, n) for m, n in pairs)


LAID_OUT = (normal(2, 6), normal(6, 4), normal(2, 3, 4))


@settings(max_examples=25, deadline=None)
@given(layouts())
def test_normal_form_of_any_layout(steps: list[Step]) -> None:
    def function(*arrays: jax.Array) -> list[jax.Array]:
        values = list(arrays)
        for step in steps:
            values.append(step(values))
        return values

    graph = graph_of(function, *LAID_OUT)
    made = normal_form(graph)
    verify(made)
    assert normal_form(made) == made
    assert_close_in_dtype(run(made, *LAID_OUT), run(graph, *LAID_OUT))


def test_one_rule_per_broadcasting_place() -> None:
    """Elementwise ops read broadcast arguments as they are; select_n must not."""
    graph = graph_of(lambda x, y: jnp.where(x > 0, x + y[None, None], y[None, None]), X, normal(8))
    made = normal_form(graph)
    assert op_names(made).count("broadcast_in_dim") == 1  # the one that select_n reads
    assert_equal_on(graph, made, [X, normal(8)], exact=True)
