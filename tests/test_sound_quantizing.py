"""Numbers that no integer holds, and sums that no integer holds, are never something plausible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dialect.arrays.dtypes import struct_of
from dialect.arrays.evaluate import evaluate
from dialect.normal.normal_form import RULES as NORMAL
from dialect.ops import quant
from dialect.ops.nn import Traced
from dialect.quantized import dequantized, integer_products
from dialect.quantized.ragged_products import scale_behind_ragged_product
from passes.lower import SCALES
from passes.quantize import Quantize
from rewrite import Target
from rewrite.driver import Report
from rewrite.driver import rewrite as apply_rules
from rewrite.ir import Graph, Symbol, Type
from rewrite.verify import verify
from tests.kit import assert_close, graph_of, normal, op_names, run, traced_after
from tests.scaled import in_steps, scaled


def applied(rules: Any, function: Callable[..., Any], *types: str) -> tuple[Graph, Graph, Report]:
    """A function's graph, and the same after rules."""
    structs = [struct_of(Type.parse(text)) for text in types]
    graph = graph_of(function, *structs)
    report = Report()
    return graph, apply_rules(graph, rules, report), report


# NaN and infinity.


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
@pytest.mark.parametrize("form", quant.FORMS)
def test_a_channel_that_holds_no_number_is_nan_throughout(
    form: str, bad: float, rng: np.random.Generator
) -> None:
    """XLA's maximum on a CPU drops NaN where it is compiled for vectors, as of these sizes."""
    w = normal(rng, 64, 64).at[5, 9].set(bad)
    back = np.asarray(quant.rounded(w, axes=(0,), form=form))
    assert np.isnan(back[:, 9]).all()
    assert np.isfinite(np.delete(back, 9, axis=1)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    "options", ["weights=int8", "weights=int4, group=16", "weights=fp8", "activations=int8"]
)
def test_logits_of_such_a_weight_are_nan(
    options: str, bad: float, rng: np.random.Generator
) -> None:
    w, x = normal(rng, 64, 64).at[5, 9].set(bad), normal(rng, 3, 64)
    passes = f"normalize, recognize, quantize{{{options}, vocab=true}}, stage, lower"
    found = np.asarray(traced_after(passes, lambda w, x: x @ w, w, x)(w, x))
    assert np.isnan(found[:, 9]).all()
    assert np.isfinite(np.delete(found, 9, axis=1)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_token_that_holds_no_number_stays_nan(bad: float, rng: np.random.Generator) -> None:
    x = normal(rng, 64, 64).at[5, 9].set(bad)
    steps = quant.rounded(x, axes=(1,), form="int8", least=1e-30)
    kept = quant.rounded(x, axes=(1,), form="int8", largest=127.0, scale_dtype=jnp.bfloat16)
    for found in map(np.asarray, (steps, kept)):
        assert np.isnan(found[5]).all()
        assert np.isfinite(np.delete(found, 5, axis=0)).all()


@pytest.mark.parametrize("least", [0.0, 1e-40, 1e-37])
@pytest.mark.parametrize("form", quant.FORMS)
def test_channels_of_almost_nothing_are_zero(form: str, least: float) -> None:
    w = jnp.full((8, 2), least, jnp.float32)
    back = quant.rounded(w, axes=(0,), form=form)
    np.testing.assert_allclose(back, w, atol=1e-36)


# Sums that their dtype does not hold.


def test_integers_in_f16_are_not_summed_in_f16() -> None:
    """4096 times 127 is infinite in f16; times the scale, it was 41."""
    w, x = jnp.full((4096, 2), 0.01, jnp.float16), jnp.ones((1, 4096), jnp.float16)
    passes = "normalize, quantize{vocab=true}, stage, lower"
    found = traced_after(passes, lambda w, x: x @ w, w, x)(w, x)
    np.testing.assert_allclose(np.asarray(found, np.float32), 40.96, rtol=5e-3)


def test_sums_beyond_32_bits_are_not_made_of_integers() -> None:
    def product(x: Any, q: Any, s: Any) -> Any:
        return Traced["contract"](in_steps(x), scaled(q, s), spec="b d, d f -> b f")

    for length, fired in ((131_071, "integers_multiplied"), (131_072, "scale_behind_product")):
        types = f"f32[1,{length}]", f"i8[{length},1]", "f32[1,1]"
        _, _, report = applied(SCALES, product, *types)
        assert list(report.fired) == [fired]


def test_sums_in_eight_bits_wrap_and_are_no_products() -> None:
    def function(q: Any, w: Any, s: Any, t: Any) -> Any:
        product = lax.dot_general(q, w, (((1,), (0,)), ((), ())))  # i8, modulo 256
        return product.astype("float32") * s * t

    rules = (*NORMAL, integer_products.product_of_integers)
    types = "i8[2,3]", "i8[3,4]", "f32[1,4]", "f32[2,1]"
    _, _, report = applied(rules, function, *types)
    assert "product_of_integers" not in report.fired


# Integers that a library made.


def qwix(x: Any, w: Any, s: Any, rounded: Callable[[Any], Any]) -> Any:
    scale = jnp.max(jnp.abs(x), axis=1, keepdims=True) / 127.5
    scale = jnp.where(scale < 1e-19, 1.0, scale)
    q = rounded(x / scale).astype(jnp.int8)
    return jnp.dot(q, w, preferred_element_type=jnp.int32).astype(jnp.float32) * s * scale


def test_a_library_may_round_to_minus_128() -> None:
    """-127.5 is a tie; a conversion to int8 takes -128, and 127 of 127.5."""
    x = jnp.asarray([[-127.5, 3.0, 1.0], [127.5, -1.0, 2.0]])
    args = x, jnp.eye(3, dtype=jnp.int8), jnp.ones((1, 3))
    types = "f32[2,3]", "i8[3,3]", "f32[1,3]"
    rules = (*NORMAL, integer_products.product_of_integers)
    before, made, report = applied(rules, lambda *a: qwix(*a, jnp.round), *types)
    assert report.fired["product_of_integers"] == 1
    (lowered,) = evaluate(apply_rules(made, SCALES), args)
    np.testing.assert_array_equal(lowered, evaluate(before, args)[0])
    np.testing.assert_array_equal(lowered, [[-128, 3, 1], [127, -1, 2]])


def test_ties_that_are_rounded_away_from_zero_are_no_steps() -> None:
    types = "f32[2,3]", "i8[3,3]", "f32[1,3]"
    rules = (*NORMAL, integer_products.product_of_integers)
    _, made, _ = applied(rules, lambda *a: qwix(*a, lax.round), *types)
    assert "quantize" not in [op.name for op in made.ops]


def test_a_product_cut_to_eight_bits_is_none() -> None:
    """It was read as if nothing were lost, or ended in a KeyError."""

    def function(q: Any, w: Any, s: Any, t: Any) -> Any:
        product = jnp.dot(q, w, preferred_element_type=jnp.int32)
        return product.astype(jnp.int8).astype("float32") * s * t

    types = "i8[2,3]", "i8[3,4]", "f32[1,4]", "f32[2,1]"
    _, _, report = applied((*NORMAL, integer_products.product_of_integers), function, *types)
    assert "product_of_integers" not in report.fired


def test_integers_times_integers_are_not_dequantised() -> None:
    """In f32, where their products may exceed 2 ** 24."""
    rules = [dequantized.dequantized]
    _, _, report = applied(rules, lambda q, s: q.astype("int32") * s, "i8[4,6]", "i32[1,6]")
    assert not report.fired


def test_fp8_weights_that_meet_integers_are_not_rounded() -> None:
    """0.5 in fp8 is 0 in int8."""

    def product(x: Any, q: Any, s: Any) -> Any:
        spec = "b d, d f -> b f"
        return Traced["contract"](x, scaled(q, s), spec=spec, dtype=Symbol("f32"))

    before, made, _ = applied(SCALES, product, "i8[2,3]", "f8_e4m3fn[3,4]", "f32[1,4]")
    args = jnp.ones((2, 3), jnp.int8), jnp.full((3, 4), 0.5, "float8_e4m3fn"), jnp.ones((1, 4))
    np.testing.assert_array_equal(evaluate(made, args)[0], evaluate(before, args)[0])


# Experts.


@pytest.mark.parametrize("dtype", ["int32", "int8"])
def test_rows_of_no_expert_stay_zero(dtype: str, rng: np.random.Generator) -> None:
    """Whatever the last expert's scale is, and the row's own."""

    def function(x: Any, q: Any, s: Any) -> Any:
        return lax.ragged_dot(in_steps(x), scaled(q, s), jnp.asarray([100, 60], dtype))

    types = "f32[200,3]", "i8[2,3,4]", "f32[2,1,4]"
    before, made, report = applied(SCALES, function, *types)
    assert report.fired == {"ragged_integers_multiplied": 1}
    q = jnp.asarray(rng.integers(-9, 9, (2, 3, 4)), jnp.int8)
    args = normal(rng, 200, 3).at[190].set(jnp.inf), q, normal(rng, 2, 1, 4)
    for one, other in zip(evaluate(made, args), evaluate(before, args)):
        np.testing.assert_allclose(one[:190], other[:190], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(one[160:], 0)


# What is left alone is told.


def left_alone(function: Callable[..., Any], *args: Any, **options: Any) -> dict[str, str]:
    program = traced_after("normalize, recognize", function, *args)
    notes = Quantize(**options).run(program, Target()).history[-1].notes
    told = (note.split(" left alone: ") for note in notes if " left alone: " in note)
    return dict(told)


def test_weights_that_are_no_parameters_are_told(rng: np.random.Generator) -> None:
    table = np.asarray(normal(rng, 16, 16))
    args = normal(rng, 16, 8), normal(rng, 2, 16)
    found = left_alone(lambda p, x: (x @ table) @ p, *args, vocab=True)
    (name,) = found
    assert name.startswith("constant f32[16,16] of contract at ") and __file__ in name
    assert found[name] == "it is no parameter"


def test_rows_that_are_only_taken_are_told(rng: np.random.Generator) -> None:
    found = left_alone(lambda p, i: p[i] * 2, normal(rng, 16, 8), jnp.arange(3))
    assert found == {"p": "it is a table over the vocabulary (quantize{vocab=true} takes it too)"}


def test_weights_inside_a_branch_are_told(rng: np.random.Generator) -> None:
    def function(p: Any, x: Any) -> Any:
        return lax.cond(x.sum() > 0, lambda x: x @ p, lambda x: x, x)

    found = left_alone(function, normal(rng, 8, 8), normal(rng, 2, 8))
    assert found == {"p": "it is read inside a cond"}


def test_weights_of_no_size_are_told(rng: np.random.Generator) -> None:
    found = left_alone(lambda p, x: x @ p, normal(rng, 0, 8), normal(rng, 2, 0))
    assert found == {"p": "it has no elements"}


def test_rows_filled_with_a_number_stay_as_they_are(rng: np.random.Generator) -> None:
    """Integers and their scale would be filled with 0.5 each, and give 0.25."""
    table, ids = normal(rng, 16, 8), jnp.asarray([3, 20])

    def function(p: Any, i: Any) -> Any:
        return Traced["take"](p, i, mode=Symbol("GatherScatterMode.FILL_OR_DROP"), fill=0.5)

    found = traced_after("quantize{vocab=true}, stage, lower", function, table, ids)(table, ids)
    np.testing.assert_allclose(found[1], 0.5)


def test_scales_of_experts_are_traced_alike_whether_or_not_jax_has_64_bits() -> None:
    """The trace is kept: one of 64-bit positions was invalid where JAX has 32 bits."""

    def product(x: Any, q: Any, s: Any) -> jax.Array:
        weights = Traced["dequantize"](q, s, axes=(1,), dtype=Symbol("f32"))
        return jax.lax.ragged_dot(x, weights, jnp.asarray([4, 1], jnp.int32))

    shapes = (("float32", (5, 7)), ("int8", (2, 7, 3)), ("float32", (2, 3)))
    arrays = [jnp.ones(shape, dtype) for dtype, shape in shapes]
    for wide in (True, False):
        with jax.enable_x64(wide):
            graph = apply_rules(graph_of(product, *arrays), [scale_behind_ragged_product])
            verify(graph)
            assert {"dequantize"}.isdisjoint(op_names(graph))
            assert_close(run(graph, *arrays)[0], product(*arrays))
