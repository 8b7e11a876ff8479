"""Factors move where they may, and what is looked up is what was computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import rewrite
from dialect.arrays.dtypes import struct_of
from dialect.arrays.evaluate import evaluate
from dialect.caching import fused_heads
from dialect.jaxprs.jaxpr import trace_graph
from dialect.normal.normal_form import RULES as NORMAL
from dialect.normal.normal_form import rules_of
from dialect.ops.nn import Traced
from dialect.staging import fold_rules
from rewrite import Pipeline, Program
from rewrite.driver import Report
from rewrite.driver import rewrite as apply_rules
from rewrite.ir import Graph, Symbol, Type
from rewrite.rules import Rule
from tests.kit import assert_close, assert_gives_the_same, normal, notes_of, run, traced_after

FOLD = rules_of(fold_rules)
FIRST = "normalize, recognize"
Known = Traced["known"]


def folded(function: Callable[..., Any], *args: Any) -> tuple[Program, tuple[str, ...]]:
    program = traced_after(f"{FIRST}, fold_scales", function, *args)
    return program, notes_of(program, "fold_scales")


# Every rule.


def of_rule(rule: Rule, types: tuple[str, ...]) -> tuple[Graph, Graph, Report]:
    structs = [struct_of(Type.parse(text)) for text in types]
    graph = trace_graph(lambda *arrays: jax.tree.leaves(rule.example(*arrays)), *structs)
    before, report = apply_rules(graph, NORMAL), Report()
    return before, apply_rules(before, [rule], report), report


@pytest.mark.parametrize("rule", FOLD, ids=lambda rule: rule.name)
def test_every_rule_fires_and_both_sides_are_equal(rule: Rule, rng: np.random.Generator) -> None:
    before, made, report = of_rule(rule, rule.types)
    assert report.fired == {rule.name: 1}
    args = [normal(rng, *Type.parse(text).shape) for text in rule.types]
    for one, other in zip(evaluate(made, args), evaluate(before, args), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


# There is no attention of integers.
_NARROW = [("f16", rule) for rule in FOLD]
_NARROW += [("i32", rule) for rule in FOLD if rule is not fold_rules.scale_of_query]


@pytest.mark.parametrize("dtype, rule", _NARROW, ids=lambda each: getattr(each, "name", each))
def test_no_rule_folds_into_f16_or_integers(dtype: str, rule: Rule) -> None:
    types = tuple(text.replace("f32", dtype) for text in rule.types)
    _, _, report = of_rule(rule, types)
    assert not report.fired


# Factors.


def test_a_small_factor_is_not_folded_into_f16(rng: np.random.Generator) -> None:
    """2e-6 times a weight of 0.1 is 2e-7, of which f16 holds multiples of 6e-8."""
    w, x = normal(rng, 8, 4, dtype="float16") / 10, 1000 * normal(rng, 3, 8, dtype="float16")

    def function(w: Any, x: Any) -> Any:
        return (x @ w) * jnp.float16(2e-6)

    program, _ = folded(function, w, x)
    np.testing.assert_array_equal(run(program, w, x), run(function, w, x))


@pytest.mark.parametrize("factor", [1e-38, 1e30, np.inf, np.nan])
def test_a_factor_out_of_all_proportion_stays_where_it_is(
    factor: float, rng: np.random.Generator
) -> None:
    w, x = 1e-3 * normal(rng, 8, 4), 1e3 * normal(rng, 3, 8)
    _, said = folded(lambda w, x: (x @ w) * jnp.float32(factor), w, x)
    assert said == ("nothing to fold",)


def test_a_factor_before_a_conversion_to_integers_stays_there(rng: np.random.Generator) -> None:
    def function(p: Any, x: Any) -> Any:
        return (x * p["s"]).astype(jnp.int8).astype(jnp.float32) @ p["w"]

    params, x = {"s": 3 * normal(rng, 8), "w": normal(rng, 8, 4)}, normal(rng, 3, 8)
    program, said = folded(function, params, x)
    assert said == ("nothing to fold",)
    assert_gives_the_same(program, function, params, x)


def test_integers_that_wrap_keep_their_factor(rng: np.random.Generator) -> None:
    def function(p: Any, x: Any) -> Any:
        return (x * p["s"]).astype(jnp.float32) @ p["w"]

    params = {"s": jnp.full(8, 100, jnp.int8), "w": normal(rng, 8, 4)}
    x = jnp.full((3, 8), 3, jnp.int8)
    program, _ = folded(function, params, x)
    assert_gives_the_same(program, function, params, x)


def test_a_product_in_integers_takes_no_scale_into_its_weight() -> None:
    def function(x: Any, w: Any, s: Any) -> Any:
        spec = {"spec": "b d, d f -> b f", "dtype": Symbol("i32")}
        return [Traced["contract"](x, Known(w, alone=True), **spec) * Known(s, alone=True)]

    structs = [struct_of(Type.parse(text)) for text in ("i32[3,4]", "f32[4,5]", "i32[1,5]")]
    graph = apply_rules(trace_graph(function, *structs), NORMAL)
    assert apply_rules(graph, FOLD) == graph


def test_a_query_of_integers_is_scaled_as_it_is(rng: np.random.Generator) -> None:
    def function(p: Any, x: Any) -> Any:
        q = (x @ p["w"]).astype(jnp.int8).astype(jnp.float32)
        return jax.nn.softmax(q @ p["k"].T * 0.25) @ p["v"]

    params = {"w": 3 * normal(rng, 8, 4), "k": normal(rng, 5, 4), "v": normal(rng, 5, 4)}
    program, said = folded(function, params, normal(rng, 3, 8))
    assert not any(note.startswith("scale_of_query: ") for note in said)
    assert_gives_the_same(program, function, params, normal(rng, 3, 8))


def test_factors_that_make_a_result_larger_stay(rng: np.random.Generator) -> None:
    """A result of one row, times a constant of three."""

    def function(p: Any, x: Any) -> Any:
        product = x @ p["w"] + p["b"]
        return [product * jnp.full((3, 4), 0.5), p["t"][jnp.arange(1)] * jnp.full((3, 4), 0.5)]

    params = {"w": normal(rng, 8, 4), "b": normal(rng, 1, 4), "t": normal(rng, 6, 4)}
    program, _ = folded(function, params, normal(rng, 1, 8))
    assert_gives_the_same(program, function, params, normal(rng, 1, 8))


def test_a_shift_along_some_of_the_summed_axes_stays(rng: np.random.Generator) -> None:
    """It ended in a product whose axes did not fit."""

    def function(p: Any, x: Any) -> Any:
        return jnp.einsum("btk,tkd->bd", x + p["b"], p["w"])

    params = {"b": normal(rng, 5), "w": normal(rng, 3, 5, 4)}
    program, _ = folded(function, params, normal(rng, 2, 3, 5))
    assert_gives_the_same(program, function, params, normal(rng, 2, 3, 5))


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (1, 4), (3, 1)])
def test_products_of_no_size_and_of_one(shape: tuple[int, int], rng: np.random.Generator) -> None:
    def function(p: Any, x: Any) -> Any:
        return ((x + p["b"]) * p["s"]) @ p["w"] * p["t"] * 0.5

    d, f = shape
    params = {"b": normal(rng, d), "s": normal(rng, d), "w": normal(rng, d, f), "t": normal(rng, f)}
    program, _ = folded(function, params, normal(rng, 2, d))
    assert_gives_the_same(program, function, params, normal(rng, 2, d))


def test_rows_that_are_filled_are_not_scaled(rng: np.random.Generator) -> None:
    """The rows would be, what fills would not."""
    mode = Symbol("GatherScatterMode.FILL_OR_DROP")

    def function(p: Any, i: Any) -> Any:
        return Traced["take"](p, i, mode=mode, fill=3.0) * 0.5

    table, ids = normal(rng, 6, 4), jnp.asarray([2, 9])
    program, _ = folded(function, table, ids)
    assert_gives_the_same(program, function, table, ids)


def test_masked_logits_are_of_the_base_of_the_softmax(rng: np.random.Generator) -> None:
    """exp(-3) is not 2 ** -3."""

    def function(p: Any, x: Any, mask: Any) -> Any:
        logits = jnp.where(mask, (x @ p["w"]) @ p["k"].T * 0.5, -3.0)
        return jax.nn.softmax(logits) @ p["v"]

    params = {"w": normal(rng, 8, 4), "k": normal(rng, 5, 4), "v": normal(rng, 5, 4)}
    args = params, normal(rng, 3, 8), normal(rng, 3, 5) > 0
    program, said = folded(function, *args)
    assert "scale_of_query: 1" in said
    assert_close(run(program, *args), run(function, *args))


def test_double_precision_stays_double(rng: np.random.Generator) -> None:
    with jax.enable_x64(True):
        w, x = normal(rng, 8, 4, dtype="float64"), normal(rng, 3, 8, dtype="float64")

        def function(p: Any, x: Any) -> Any:
            return ((x + p["b"]) @ p["w"]) * p["s"]

        params = {"w": w, "b": normal(rng, 8, dtype="float64"), "s": normal(rng, 4)}
        program, _ = folded(function, params, x)
        np.testing.assert_allclose(run(program, params, x), function(params, x), rtol=1e-12)


# Products that are merged.


def merged(function: Callable[..., Any], *args: Any) -> tuple[Program, tuple[str, ...]]:
    program = traced_after(f"{FIRST}, merge_dots", function, *args)
    return program, notes_of(program, "merge_dots")


def test_a_product_that_is_added_twice_is_added_twice(rng: np.random.Generator) -> None:
    def function(p: Any, x: Any) -> Any:
        y = x @ p["c"]
        return (x * 2 @ p["a"] + jnp.sin(x) @ p["b"]) + (y + y)

    params = {name: normal(rng, 8, 8) for name in "abc"}
    program, _ = merged(function, params, normal(rng, 3, 8))
    assert_gives_the_same(program, function, params, normal(rng, 3, 8))


def test_weights_of_different_dtypes_are_not_joined(rng: np.random.Generator) -> None:
    def product(x: Any, w: Any) -> Any:
        return lax.dot_general(x, w, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)

    def function(p: Any, x: Any) -> Any:
        return product(x, p["a"]), product(x, p["b"]), product(x, p["c"])

    params = {
        "a": normal(rng, 8, 4),
        "b": normal(rng, 8, 4, dtype="bfloat16"),
        "c": normal(rng, 8, 4),
    }
    program, said = merged(function, params, normal(rng, 3, 8))
    assert "p/a, p/c: one product of their input, stacked" in said
    assert_gives_the_same(program, function, params, normal(rng, 3, 8))


@pytest.mark.parametrize("shape", [(0, 4), (8, 0)])
def test_weights_of_no_size_are_not_joined(
    shape: tuple[int, int], rng: np.random.Generator
) -> None:
    def function(p: Any, x: Any) -> Any:
        return x @ p["a"], x @ p["b"], x @ p["a"] + (x + 1) @ p["b"]

    params = {"a": normal(rng, *shape), "b": normal(rng, *shape)}
    program, _ = merged(function, params, normal(rng, 3, shape[0]))
    assert_gives_the_same(program, function, params, normal(rng, 3, shape[0]))


def test_a_part_of_a_product_with_a_bias_for_all_parts(rng: np.random.Generator) -> None:
    """A bias that has size one where the parts are kept an axis more than the part."""

    def function(x: Any, w: Any, b: Any) -> Any:
        parts = jnp.unstack(jnp.einsum("bd,dphk->bphk", x, w) + b, axis=1)
        return [Traced["merge_heads"](parts[2], axis=1, count=2, by="mean")]

    args = normal(rng, 3, 5), normal(rng, 5, 3, 4, 2), normal(rng, 1, 1, 4, 2)
    before, report = apply_rules(trace_graph(function, *args), NORMAL), Report()
    made = apply_rules(before, [fused_heads.merge_of_part], report)
    assert report.fired == {"merge_of_part": 1}
    np.testing.assert_allclose(evaluate(made, args)[0], evaluate(before, args)[0], rtol=1e-5)


# What is looked up.

TAKES = {
    "index": lambda table, ids: table[ids],
    "fill": lambda table, ids: jnp.take(table, ids, axis=0),
    "clip": lambda table, ids: jnp.take(table, ids, axis=0, mode="clip"),
    "wrap": lambda table, ids: jnp.take(table, ids, axis=0, mode="wrap"),
    "promise": lambda table, ids: table.at[ids].get(mode="promise_in_bounds"),
    "one_hot": lambda table, ids: jax.nn.one_hot(ids, len(table)) @ table,
}


@pytest.mark.parametrize("dtype", ["int32", "int8", "uint32"])
@pytest.mark.parametrize("name", TAKES)
def test_an_id_out_of_bounds_gives_what_it_gave(
    name: str, dtype: str, rng: np.random.Generator
) -> None:
    """A bias makes something of a row of zeros, and a test of NaN something of one of NaN."""

    def function(p: Any, ids: Any) -> Any:
        row = TAKES[name](p["table"], ids)
        return jnp.isnan(row) @ p["w"] + row @ p["w"] + p["b"], jnp.isnan(row) @ p["v"]

    params = {
        "table": normal(rng, 100, 8),
        "w": normal(rng, 8, 4),
        "v": normal(rng, 8, 3),
        "b": normal(rng, 4),
    }
    ids = np.asarray([0, 99, 100, 127, -1, -101], "int32").astype(dtype)
    program = traced_after(f"{FIRST}, first_layer{{budget=100.0}}, stage", function, params, ids)
    assert "weights eliminated" in notes_of(program, "first_layer")[0]
    assert_gives_the_same(program, function, params, ids)


# What is done once.


def test_a_packed_name_passes_by_constants(rng: np.random.Generator) -> None:
    """It followed the iota, and ended at the empty arguments of it."""

    def function(p: Any, x: Any) -> Any:
        return x @ (1.0 - jnp.arange(4.0)[:, None] * p["w"])

    params, x = {"w": normal(rng, 4, 4)}, normal(rng, 3, 4)
    program = traced_after("stage", function, params, x)
    assert [each.name for each in program.step_inputs] == ["p/w.sub", "x"]
    assert_gives_the_same(program, function, params, x)


def test_a_loop_over_constants_and_parameters_has_the_name_of_these(
    rng: np.random.Generator,
) -> None:
    def function(p: Any, x: Any) -> Any:
        steps = lax.scan(lambda c, i: (c, i[0] * i[1]), 0.0, (jnp.arange(3.0), p["w"]))[1]
        return x * steps

    params, x = {"w": normal(rng, 3, 4)}, normal(rng, 3, 4)
    program = traced_after("stage", function, params, x)
    assert [each.name for each in program.step_inputs] == ["p/w.mul", "x"]
    assert_gives_the_same(program, function, params, x)


@pytest.mark.parametrize("passes", ["stage", f"{FIRST}, stage, lower"])
def test_steps_that_do_next_to_nothing(passes: str) -> None:
    """No parameter, no output, a state as it was, exchanged or given twice."""
    x = jnp.arange(3.0)
    for function, args in (
        (lambda p, x: (), (x, x)),
        (lambda p, x: (p, p, x, x), (x, x)),
        (lambda p, x: x, ({}, x)),
        (lambda p: (p["a"], p["a"].sum(), jnp.float32(2)), ({"a": jnp.zeros((0, 4))},)),
    ):
        assert_gives_the_same(traced_after(passes, function, *args), function, *args)
    for function in (
        lambda p, s, x: (x + p, s),
        lambda p, s, x: (x + p, [s[0] + 0, s[1] * 1]),
        lambda p, s, x: (s[0], [s[1], s[0]]),
        lambda p, s, x: (x, [s[0], s[0]]),
    ):
        program = rewrite.trace(function, x, [x, x + 1], x, state=1)
        assert_gives_the_same(Pipeline.parse(passes).run(program), function, x, [x, x + 1], x)
