"""quantize: every form against plain NumPy, what is asked of whom, and what is reported."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax

import rewrite
from dialect.compiled.compiling import Compilable, compiled
from dialect.compiled.executable import read
from dialect.compiled.hlo import Instruction, Module, arrays, callees, loop_of
from dialect.display.tables import as_text
from dialect.machine.chips import CHIPS
from dialect.naming.axes import infer_axes
from dialect.planning.decoder import decoder_shape
from dialect.quantized.quant_choice import Choice, Rule, cut_into_groups, form_on
from dialect.reports.quant_report import error_table, errors, packed, packed_table
from examples import llama
from passes.quantize import Quantize
from rewrite import auto_shard
from rewrite.errors import PipelineError
from rewrite.pipeline import Pipeline
from rewrite.program import Program
from rewrite.target import Target
from tests.kit import after, normal, notes_of, op_names, run, shapes_of, traced_step
from tests.tiny import CASES, MODELS, Case, arguments, expected, traced

FIRST = "normalize, recognize, carry_cache"
LARGEST = {"int8": 127.5, "int4": 7.5, "fp8": 448.0}
LAST = {"int8": 127, "int4": 7, "fp8": 448}


def numbers(x: np.ndarray, axes: tuple[int, ...], form: str) -> tuple[np.ndarray, np.ndarray]:
    """x in a form, and its scales: the definition, in NumPy."""
    scale = np.abs(x).max(axes, keepdims=True) / np.float32(LARGEST[form])
    steps = np.clip(x / scale if form == "fp8" else np.round(x / scale), -LAST[form], LAST[form])
    kept = steps.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) if form == "fp8" else steps
    return kept, scale


def dequantised(w: np.ndarray, axes: tuple[int, ...], form: str, group: int | None) -> np.ndarray:
    """What w becomes, summed over `axes`, in groups of neighbours along these in order."""
    front = np.moveaxis(w, axes, range(len(axes)))
    rest = front.shape[len(axes) :]
    rows = front.reshape(-1, group or math.prod(front.shape[: len(axes)]), *rest)
    q, scale = numbers(rows, (1,), form)
    return np.moveaxis((q * scale).reshape(front.shape), range(len(axes)), axes)


def quantised(function: Any, w: Any, *args: Any, passes: str, target: str = "") -> Program:
    """A function of parameters through passes, its names of inputs `p` and so on."""
    program = rewrite.trace(function, w, *args)
    return after(program, passes, Target(target))


def products(program: Program) -> set[tuple[str, ...]]:
    """The dtypes of each dot_general: of its arguments, and of its result."""
    return {
        (*(arg.type.dtype for arg in op.args), op.types[0].dtype)
        for op, _ in program.graph.walk()
        if op.name == "dot_general"
    }


# Forms, against NumPy.

PRODUCTS = {
    "a matrix": (lambda p, x: x @ p, (12, 5), (3, 12), (0,)),
    "a transposed matrix": (lambda p, x: x @ p.T, (5, 12), (3, 12), (1,)),
    "several summed axes": (
        lambda p, x: jnp.einsum("bthk,hkd->btd", x, p),
        (3, 4, 5),
        (2, 1, 3, 4),
        (0, 1),
    ),
    "several kept axes": (
        lambda p, x: jnp.einsum("btd,dhk->bthk", x, p),
        (12, 3, 2),
        (2, 1, 12),
        (0,),
    ),
    "the result transposed": (
        lambda p, x: jnp.einsum("btd,hkd->kbht", x, p),
        (3, 2, 12),
        (2, 1, 12),
        (2,),
    ),
    "experts": (lambda p, x: jnp.einsum("bed,edf->bef", x, p), (3, 12, 5), (2, 3, 12), (1,)),
}


@pytest.mark.parametrize("group", [None, 4])
@pytest.mark.parametrize("form", LARGEST)
@pytest.mark.parametrize("name", PRODUCTS)
def test_weights_are_what_numpy_makes_of_them(
    name: str, form: str, group: int | None, rng: np.random.Generator
) -> None:
    function, shape, rows, summed = PRODUCTS[name]
    w, x = normal(rng, *shape), normal(rng, *rows)
    if name == "experts":
        wanted = np.stack([dequantised(each, (0,), form, group) for each in w])
    else:
        wanted = dequantised(w, summed, form, group)
    options = f"weights={form}, vocab=true" + (f", group={group}" if group else "")
    program = quantised(function, w, x, passes=f"normalize, quantize{{{options}}}")
    lowered = after(program, "stage, lower")
    for each in (program, lowered):
        np.testing.assert_allclose(run(each, w, x), function(wanted, x), rtol=1e-5, atol=1e-5)
    assert "dequantize" not in op_names(lowered)
    assert products(lowered) == {("f32", "f32", "f32")}
    assert f"scale_behind_{'product'}: 1" in notes_of(lowered, "lower")


@pytest.mark.parametrize("group", [None, 4])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_integers_are_what_numpy_makes_of_them(
    name: str, group: int | None, rng: np.random.Generator
) -> None:
    function, shape, rows, summed = PRODUCTS[name]
    w, x = normal(rng, *shape), normal(rng, *rows)
    if name == "experts":
        wanted = np.stack([dequantised(each, (0,), "int8", group) for each in w])
    else:
        wanted = dequantised(w, summed, "int8", group)
    # A token's numbers are those that the product sums: of an expert's token, its own.
    token = {"several summed axes": (2, 3)}.get(name, (x.ndim - 1,))
    q, scale = numbers(x, token, "int8")
    options = "activations=int8, vocab=true" + (f", group={group}" if group else "")
    program = quantised(function, w, x, passes=f"normalize, quantize{{{options}}}, stage, lower")
    np.testing.assert_allclose(
        run(program, w, x), function(wanted, q * scale), rtol=1e-5, atol=1e-5
    )
    assert products(program) == {("i8", "i8", "i32")}


def test_a_group_may_hold_whole_axes(rng: np.random.Generator) -> None:
    """wo: [heads, d_head, d], a scale for each two heads; each head; half a head."""
    w, x = normal(rng, 6, 4, 5), normal(rng, 2, 6, 4)
    for group in (8, 4, 2):
        program = quantised(
            lambda p, x: jnp.einsum("bhk,hkd->bd", x, p),
            *(w, x),
            passes=f"normalize, quantize{{weights=int4, group={group}, vocab=true}}, stage, lower",
        )
        wanted = np.einsum("bhk,hkd->bd", x, dequantised(w, (0, 1), "int4", group))
        np.testing.assert_allclose(run(program, w, x), wanted, rtol=1e-5, atol=1e-5)
        kept = {e.type.dtype: e.type.size for e in program.step_inputs if e.role == "param"}
        assert kept == {"i4": 6 * 4 * 5, "f32": 6 * 4 * 5 // group}


@pytest.mark.parametrize(
    "sizes, group, wanted",
    [
        ({"d": 128}, 64, ({"d": (2, 64)}, ())),
        ({"h": 4, "k": 128}, 64, ({"k": (2, 64)}, ())),
        ({"h": 4, "k": 64}, 64, ({}, ("k",))),
        ({"h": 4, "k": 32}, 64, ({"h": (2, 2)}, ("k",))),
        ({"h": 2, "k": 32}, 64, ({}, ("k", "h"))),
        ({"h": 4, "k": 48}, 64, None),
        ({"d": 96}, 64, None),
        ({"d": 32}, 64, None),
    ],
)
def test_groups_are_neighbours_along_the_summed_axes(
    sizes: dict[str, int], group: int, wanted: Any
) -> None:
    assert cut_into_groups(sizes, group) == wanted


def test_a_weight_without_whole_groups_has_a_scale_per_channel(rng: np.random.Generator) -> None:
    w, x = normal(rng, 10, 5), normal(rng, 3, 10)
    passes = "normalize, quantize{group=4, vocab=true}, stage, lower"
    program = quantised(lambda p, x: x @ p, w, x, passes=passes)
    np.testing.assert_allclose(
        run(program, w, x), x @ dequantised(w, (0,), "int8", None), rtol=1e-5
    )
    assert notes_of(program, "quantize")[1:] == (
        "p has one scale per output channel: there are no groups of 4 in the axes that are summed "
        "(10)",
    )


def test_more_rows_than_a_group_is_long_are_multiplied_with_scaled_weights(
    rng: np.random.Generator,
) -> None:
    """Behind the product there would be more to scale than before it."""
    w = normal(rng, 12, 5)
    for rows, before in ((4, False), (5, True)):
        x = normal(rng, rows, 12)
        passes = "normalize, quantize{group=4, vocab=true}, stage, lower"
        program = quantised(lambda p, x: x @ p, w, x, passes=passes)
        np.testing.assert_allclose(
            run(program, w, x), x @ dequantised(w, (0,), "int8", 4), rtol=1e-5, atol=1e-5
        )
        notes = notes_of(program, "lower")
        assert any("it has more rows than a group has weights" in note for note in notes) == before
        assert any("dequantised before its product" in note for note in notes) == before


def test_activations_of_zeros_and_outliers() -> None:
    w = np.eye(4, dtype=np.float32) * 127.5
    x = np.float32([[0, 0, 0, 0], [1000, 3, -1000, 0.1]])
    passes = "normalize, quantize{activations=int8, vocab=true}, stage, lower"
    program = quantised(lambda p, x: x @ p, w, x, passes=passes)
    scale = 1000 / 127.5
    wanted = np.float32([[0] * 4, [127 * scale, 0, -127 * scale, 0]]) * 127
    np.testing.assert_allclose(run(program, w, x), wanted, rtol=1e-6)


# Experts by ragged products.


def ragged(p: jax.Array, x: jax.Array, n: jax.Array) -> jax.Array:
    return lax.ragged_dot(x, p, n)


@pytest.mark.parametrize(
    "activations, dtypes, rule",
    [
        ("none", ["f32", "i8", "i32", "f32"], "scale_behind_ragged_product"),
        ("int8", ["i8", "i8", "i32", "i32"], "ragged_integers_multiplied"),
    ],
)
def test_scales_of_ragged_experts_stand_behind(
    activations: str, dtypes: list[str], rule: str, rng: np.random.Generator
) -> None:
    w, x, n = normal(rng, 3, 8, 5), normal(rng, 9, 8), jnp.int32([4, 0, 3])
    passes = f"normalize, quantize{{activations={activations}, vocab=true}}, stage, lower"
    program = quantised(ragged, w, x, n, passes=passes)
    rows = x
    if activations == "int8":
        q, scale = numbers(x, (1,), "int8")
        rows = q * scale
    wanted = ragged(np.stack([dequantised(each, (0,), "int8", None) for each in w]), rows, n)
    np.testing.assert_allclose(run(program, w, x, n), wanted, rtol=1e-5, atol=1e-5)
    (product,) = (op for op, _ in program.graph.walk() if op.name == "ragged_dot_general")
    assert [arg.type.dtype for arg in (*product.args, *product.results)] == dtypes
    assert f"{rule}: 1" in notes_of(program, "lower")


@pytest.mark.parametrize(
    "target, options, dtype, note",
    [
        ("v5e:2x2", "weights=int4", "i8", "p is int8, one scale per output channel"),
        ("v5e:2x2", "group=4", "i8", "p is int8, one scale per output channel"),
        ("v4:2x2x1", "weights=int8", "f32", "p left alone: v4 would store it widened"),
        ("v7x:2x2x1", "weights=int8", "f8_e4m3fn", "v7x does not multiply int8: fp8 is taken"),
        ("v7x:2x2x1", "activations=int8", "f8_e4m3fn", "activations that meet p stay as they are"),
    ],
)
def test_ragged_experts_are_what_the_kernel_takes(
    target: str, options: str, dtype: str, note: str, rng: np.random.Generator
) -> None:
    w, x, n = normal(rng, 3, 8, 5), normal(rng, 9, 8), jnp.int32([4, 0, 3])
    passes = f"normalize, quantize{{{options}, vocab=true}}, stage"
    program = quantised(ragged, w, x, n, passes=passes, target=target)
    assert program.step_inputs[0].type.dtype == dtype
    assert any(note in each for each in notes_of(program, "quantize"))


# What the chip multiplies.


@pytest.mark.parametrize(
    "chip, int8, fp8, form",
    [
        ("v4", False, False, "int8"),
        ("v5e", True, False, "int8"),
        ("v5p", True, False, "int8"),
        ("v6e", True, False, "int8"),
        ("v7x", False, True, "fp8"),
        ("h100", True, True, "int8"),
        ("cpu", True, False, "int8"),
    ],
)
def test_chips_say_what_they_multiply(chip: str, int8: bool, fp8: bool, form: str) -> None:
    known = CHIPS[chip]
    assert (known.multiplies("i8"), known.multiplies("f8_e4m3fn")) == (int8, fp8)
    assert known.multiplies("bf16")
    assert form_on(known, "int8") == form
    assert (form_on(known, "int4"), form_on(None, "int8")) == ("int4", "int8")


@pytest.mark.parametrize(
    "target, multiplied",
    [
        ("v5e:2x2", ("i8", "i8", "i32")),
        ("v4:2x2x1", ("f32", "f32", "f32")),
        ("v7x:2x2x1", ("f8_e4m3fn", "f8_e4m3fn", "f32")),
    ],
)
def test_the_target_decides_how_numbers_are_multiplied(
    target: str, multiplied: tuple, rng: np.random.Generator
) -> None:
    w, x = normal(rng, 12, 5), normal(rng, 3, 12)
    passes = "normalize, quantize{activations=int8, vocab=true}, stage, lower"
    program = quantised(lambda p, x: x @ p, w, x, passes=passes, target=target)
    assert products(program) == {multiplied}
    form = "fp8" if "v7x" in target else "int8"
    q, scale = numbers(x, (1,), form)
    wanted = (q * scale) @ dequantised(w, (0,), form, None)
    np.testing.assert_allclose(run(program, w, x), wanted, rtol=1e-5, atol=1e-5)


# What is asked of whom.


@pytest.mark.parametrize(
    "text, message",
    [
        ("wq", "the rule 'wq' has no form"),
        ("wq: int3", "the rule 'wq: int3' has an unknown form 'int3'"),
        ("w(q: int8", r"'w(q' is no regular expression"),
        ("w{9999999999}: int8", r"'w{9999999999}' is no regular expression"),
        pytest.param("(" * 9000 + ": int8", "'((((", id="too deep"),
        ("wq: int4/x", "the group of the rule 'wq: int4/x' is no whole number above one"),
        ("wq: int4/1", "the group of the rule 'wq: int4/1' is no whole number above one"),
    ],
)
def test_a_rule_that_cannot_be_read_is_refused_at_the_door(text: str, message: str) -> None:
    with pytest.raises(PipelineError) as error:
        Quantize(rules=(text,))
    assert error.value.message.startswith(message)
    with pytest.raises(PipelineError, match=r"quantize\{rules=") as error:
        Pipeline.parse(f'normalize,\nquantize{{rules=("{text}", ".*: int8")}}')
    assert error.value.where == "pipeline:2"


def test_an_unknown_form_names_the_nearest() -> None:
    with pytest.raises(PipelineError) as error:
        Rule.parse("mlp: int48")
    assert error.value.hint.startswith("did you mean int")
    with pytest.raises(PipelineError, match="a group of 1 weights"):
        Quantize(group=1)


def test_rules_are_read_and_written() -> None:
    text = (
        'quantize{activations=int8, rules=("embed: none", "mlp.*(up|gate): int4/64", ".*: int8")}'
    )
    assert str(Pipeline.parse(text)) == text
    rule = Rule.parse("a:b: int4/64")
    assert (rule.pattern, rule.choice) == ("a:b", Choice("int4", 64))
    assert str(rule) == "a:b: int4/64"
    assert str(Pipeline.parse("quantize{weights=none, cache=int8}")) == (
        "quantize{weights=none, cache=int8}"
    )


def test_the_first_rule_that_matches_wins() -> None:
    rules = '"w_(up|gate): int4/4", "w_up: none", "wq: none", "head: int8", "mlp: int4"'
    program = after(traced(Case("llama")), f"{FIRST}, quantize{{rules=({rules})}}")
    forms = {each.name.rpartition("/")[2]: each.form for each in packed(program)}
    assert forms == {
        **dict.fromkeys(("embedding", "final_norm", "attention_norm", "ffn_norm", "wq"), ""),
        **dict.fromkeys(("w_up", "w_gate"), "int4/4"),
        **dict.fromkeys(("wk", "wv", "wo", "w_down", "head"), "int8/16"),
    }
    notes = notes_of(program, "quantize")
    assert "params/layers/wq left alone: the rule 'wq: none'" in notes
    assert notes[-1] == "no parameter matches mlp: int4"


def test_none_of_the_weights() -> None:
    program = after(traced(Case("llama")), f"{FIRST}, quantize{{weights=none, activations=int8}}")
    assert notes_of(program, "quantize")[0] == "0 weights quantised: "
    assert "quantize" not in op_names(program)


# Tables.


@pytest.mark.parametrize("options", ["", ", weights=int4, group=4"])
@pytest.mark.parametrize("model", ["palm", "gpt"])
def test_a_tied_table_that_is_named_is_kept_once(model: str, options: str) -> None:
    case = Case(model)
    program = after(
        traced(case), f'{FIRST}, quantize{{rules=("embedding: int8",){options}}}, stage, lower'
    )
    kept = {e.name: str(e.type) for e in program.step_inputs if "embedding" in e.name}
    assert sorted(kept.values()) == ["f32[16]", "i8[16,16]"]
    logits, _ = run(program, *arguments(case))
    wanted, _ = expected(case)
    assert np.abs(logits - wanted).max() < (0.3 if options else 0.05) * np.abs(wanted).max()


@pytest.mark.parametrize("group", [None, 4])
def test_rows_of_a_table_are_those_of_its_integers(
    group: int | None, rng: np.random.Generator
) -> None:
    table, ids = normal(rng, 16, 8), np.int32([3, 0, 15])
    options = "weights=int4" + (f", group={group}" if group else "")
    passes = f"normalize, recognize, quantize{{{options}, vocab=true}}, stage, lower"
    program = quantised(lambda p, i: p[i], table, ids, passes=passes)
    assert "i4" in {each.type.dtype for each in program.step_inputs}
    wanted = dequantised(table, (1,), "int4", group)[ids]
    np.testing.assert_allclose(run(program, table, ids), wanted, rtol=1e-6)


# The examples.


@pytest.mark.parametrize("case", [c for c in CASES if c.prefill != c.unrolled], ids=str)
def test_groups_and_integers_in_the_examples(case: Case) -> None:
    """What is lowered equals what is not; and is close to what was never quantised."""
    options = 'activations=int8, rules=("w_(up|gate|down): int4/4",)'
    before = after(traced(case), f"{FIRST}, quantize{{{options}}}, stage")
    lowered = after(before, "lower")
    logits, _ = run(lowered, *arguments(case))
    plain, _ = run(before, *arguments(case))
    wanted, _ = expected(case)
    assert np.abs(logits - plain).max() < 0.01 * np.abs(wanted).max()
    assert 0 < np.abs(logits - wanted).max() < 0.7 * np.abs(wanted).max()  # of 16 numbers, int4
    fired = "\n".join(notes_of(lowered, "lower"))
    count = {"llama": 7, "palm": 7, "gpt": 6}[case.model] * (2 if case.unrolled else 1)
    assert f"integers_multiplied: {count}" in fired


@pytest.mark.parametrize("model", MODELS)
def test_scales_lie_as_the_output_axes_of_their_weights(model: str) -> None:
    case = Case(model)
    plan = "plan{ffn=ws2d, attention=heads}"
    for options in ("activations=int8", "weights=int4, group=4"):
        passes = f"{FIRST}, quantize{{{options}}}, {plan}, shard, stage, lower"
        step = auto_shard(case.function, "cpu:4", pipeline=passes, donate_state=False)
        program = step.program(*arguments(case))
        inputs = {e.name: e for e in program.step_inputs if e.role == "param"}
        numbers_ = [name for name in inputs if name.endswith(".quantized")]
        assert len(numbers_) == len(notes_of(program, "quantize")[0].split(", "))
        split = 0
        for name in numbers_:
            own, scale = inputs[name], inputs[name.replace(".quantized", ".scale")]
            left = iter(zip(own.type.shape, own.layout))
            assert all(pair in left for pair in zip(scale.type.shape, scale.layout))
            split += any(scale.layout)
        assert split >= 3
        logits, _ = step(*arguments(case))
        plain, _ = run(after(traced(case), f"{FIRST}, quantize{{{options}}}"), *arguments(case))
        np.testing.assert_allclose(logits, plain, rtol=0.02, atol=0.02 * np.abs(plain).max())


@pytest.mark.parametrize(
    ("options", "slice_", "multiplies"),
    [
        ("weights=int8", "v5e:2x4", "bf16"),
        ("weights=none, activations=int8", "v5e:2x4", "bf16"),
        ("weights=int8, activations=int8", "v5e:2x4", "int8"),
        ("weights=int4, activations=int8", "v5e:2x4", "int8"),
        ("weights=fp8, activations=int8", "v5e:2x4", "bf16"),
        ("weights=fp8, activations=int8", "v7x:2x2x1", "fp8"),
    ],
)
@pytest.mark.parametrize("name", ["llama", "palm"])
def test_the_planner_knows_what_is_multiplied(
    name: str, options: str, slice_: str, multiplies: str
) -> None:
    program = after(traced(Case(name)), f"{FIRST}, quantize{{{options}}}", Target(slice_))
    assert decoder_shape(program, infer_axes(program)).multiplies == multiplies


def test_activations_travel_as_integers() -> None:
    """Between chips: pinned where they are rounded, then where the product reads them."""
    passes = f"{FIRST}, quantize{{activations=int8}}, plan{{ffn=ws2d}}, shard, stage, lower"
    step = auto_shard(Case("llama").function, "cpu:4", pipeline=passes)
    program = step.program(*arguments(Case("llama")))
    pins = [op for op, _ in program.graph.walk() if op.name == "constrain"]
    moved = [op for op in pins if op.args[0].op.name == "constrain"]
    assert {op.types[0].dtype for op in moved if op.types[0].dtype != "f32"} == {"i8"}


# Reports.


def test_the_report_counts_bytes_and_says_why() -> None:
    program = after(traced(Case("llama")), f"{FIRST}, quantize{{weights=int4, group=4}}, stage")
    rows = {each.name: each for each in packed(program)}
    assert list(rows) == [e.name for e in program.inputs if e.role == "param"]
    wq = rows["params/layers/wq"]
    numbers_, scales = 2 * 16 * 16 // 2, 4 * 2 * 16 * 16 // 4
    assert (wq.form, wq.before_bytes) == ("int4/4", 4 * 2 * 16 * 16)
    assert wq.after_bytes == numbers_ + scales
    assert rows["params/head"].reason.startswith("it is a table over the vocabulary")
    assert rows["params/final_norm"].reason == "no product reads it as its weight"
    stored = sum(e.type.bytes for e in program.step_inputs if e.role == "param")
    assert sum(each.after_bytes for each in rows.values()) == stored


@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("staged", ["", ", stage"])
def test_errors_are_those_of_the_weights(unrolled: bool, staged: str) -> None:
    case = Case("llama", unrolled=unrolled)
    params = arguments(case)[0]
    program = after(traced(case), f"{FIRST}, quantize{{weights=int4, group=4}}{staged}")
    found = {each.name: each for each in errors(program, params)}
    assert len(found) == (14 if unrolled else 7)
    layers = params["layers"]
    own = {"wo": (0, 1)}
    for name in ("wq", "wo", "w_down"):
        several = [layers[0][name]] if unrolled else list(layers[name])
        made = [dequantised(np.asarray(w), own.get(name, (0,)), "int4", 4) for w in several]
        error, w = np.stack(made) - np.stack(several), np.stack(several)
        row = found[f"params/layers/0/{name}" if unrolled else f"params/layers/{name}"]
        assert row.max == pytest.approx(np.abs(error).max(), rel=1e-4)
        assert row.rms == pytest.approx(np.sqrt((error**2).mean()), rel=1e-4)
        assert row.snr_db == pytest.approx(10 * np.log10((w**2).sum() / (error**2).sum()), rel=1e-4)


def test_weights_that_are_kept_exactly_have_no_noise(rng: np.random.Generator) -> None:
    w, x = np.float32([[0, 0], [0, 0]]), normal(rng, 2, 2)
    program = quantised(lambda p, x: x @ p, w, x, passes="normalize, quantize{vocab=true}")
    (row,) = errors(program, w)
    assert (row.max, row.rms, row.snr_db) == (0, 0, math.inf)
    text = as_text([error_table([row])])
    assert re.search(r"p +int8/2 +0 +0 +inf dB", text)


def test_a_lowered_program_says_that_it_cannot_tell() -> None:
    program = after(traced(Case("llama")), f"{FIRST}, quantize, stage, lower")
    with pytest.raises(PipelineError, match="a lowered program does not show"):
        packed(program)


def test_explain_shows_the_table() -> None:
    case = Case("gpt", unrolled=True)
    step = auto_shard(case.function, "cpu:1", pipeline=f"{FIRST}, quantize, stage, lower")
    text = step.details(*arguments(case))
    assert "quantised weights" in text
    assert re.search(r"params/layers/#/w_up \(2 times\) +int8/16 +2,048 +640 +31\.2%", text)
    assert re.search(r"all +15,744 +\S+ +\S+%", text)


def test_llama_3_8b_is_packed_to_about_half() -> None:
    """Of its bf16 bytes, embedding and head left out, as they are by default."""
    config = llama.CONFIGS["8b"]
    program = traced_step(llama, config, 1, 256)
    for options, most in (
        ("", 0.501),
        ("{weights=int4, group=64}", 0.2815),
        ("{group=64}", 0.5315),
    ):
        made = after(program, f"{FIRST}, quantize{options}, stage")
        rows = [e for e in packed(made) if not re.search("embedding|head", e.name)]
        before, packed_ = (sum(getattr(e, f"{n}_bytes") for e in rows) for n in ("before", "after"))
        assert before == 2 * (8_030_261_248 - 2 * 4096 * 128256)
        assert 0.98 * most < packed_ / before <= most
    assert as_text([packed_table(rows)]).count("\n") == 13


# TPU executables, compiled ahead of time.


def executable(target: str, options: str) -> tuple[Program, str, Any]:
    """Two layers like those of Llama-3-8B, half as wide, decoded at batch 64 on eight chips."""
    config = replace(llama.CONFIGS["8b"], layers=2, d_model=2048, heads=16, d_ff=7168, vocab=10240)
    plan = "plan{ffn=ws1d, attention=heads}"
    passes = f"{FIRST}, quantize{{{options}}}, {plan}, shard, stage, lower"
    step = auto_shard(partial(llama.decode_step, config), target, pipeline=passes)
    program = step.program(*shapes_of(llama, config, 64, 384))
    made, _ = compiled(Compilable(program, step.mesh))
    return program, made.as_text(), read(made, step.mesh)


def scheduled(module: Module) -> Iterator[Instruction]:
    """Every instruction that runs by itself, those of fusions left out: what is stored."""
    names = [module.entry]
    for name in names:
        for each in module.computation(name).values():
            yield each
            if each.opcode == "while":
                names.append(loop_of(module, each, module.computation(name))[0])
            elif each.opcode in ("call", "conditional"):
                names += callees(each)


def multiplied(text: str) -> set[tuple[str, ...]]:
    """The dtypes of products with integers: of both operands, and of the result."""
    dtypes = dict(re.findall(r"%([\w.\-]+) = (\w+)\[", text))
    found = re.findall(r"= (\w+)\[\S+ convolution\(%([\w.\-]+), %([\w.\-]+)\)", text)
    kinds = {(dtypes[one], dtypes[other], result) for result, one, other in found}
    return {each for each in kinds if {"s8", "s4"} & {*each}}


def assert_packed(program: Program, module: Module, report: Any) -> None:
    """The weights are parameters of few bits, and nothing of their size is stored wider."""
    weights = [e for e in program.step_inputs if e.name.endswith(".quantized")]
    assert len(weights) == 7
    packed_ = {d: n for d, (_, n) in report.by_dtype().items() if d in ("s8", "s4")}
    assert sum(packed_.values()) == sum(e.type.bytes for e in weights) // 8
    sizes = {each.type.size // 8 // layers for each in weights for layers in (1, 2)}
    wide = {
        (dtype, shape)
        for each in scheduled(module)
        for dtype, shape in arrays(each.type)
        if dtype in ("bf16", "f32") and math.prod(shape) in sizes and len(shape) > 1
    }
    assert wide == set()


@pytest.mark.parametrize(
    "target, options, found",
    [
        ("v5e:2x4", 'activations=int8, rules=("w_(up|gate): int8/128",)', {("s8", "s8", "s32")}),
        ("v5e:2x4", "weights=int4, group=64", {("bf16", "s4", "f32")}),
        ("v4:2x2x2", 'rules=("w_(up|gate): int4/64",)', None),
    ],
)
def test_tpu_executables_keep_weights_packed(target: str, options: str, found: Any) -> None:
    program, text, report = executable(target, options)
    assert_packed(program, Module(text), report)
    if found is not None:
        assert multiplied(text) == found
    # What chips add up has the result's dtype, not that of sums of integers or of groups.
    large = [each for each in report.collectives if each.result_bytes > 2**16]
    assert {each.dtype for each in large} == {"bf16"}


def test_loops_with_one_body_have_weights_of_their_own(rng: np.random.Generator) -> None:
    """Equal bodies are one graph: a rule for the weights of one loop is not for the other's."""

    def step(params: Any, x: Any) -> Any:
        def layer(x: Any, w: Any) -> Any:
            return jnp.tanh(x @ w), None

        x, _ = jax.lax.scan(layer, x, params["first"])
        x, _ = jax.lax.scan(layer, x, params["second"])
        return x

    params = {"first": normal(rng, 2, 4, 4), "second": normal(rng, 2, 4, 4)}
    program = after(
        rewrite.trace(step, params, normal(rng, 3, 4)),
        'normalize, quantize{rules=("first: none",)}, stage',
    )
    inputs = {each.name: each.type.dtype for each in program.step_inputs if each.role == "param"}
    assert inputs["params/first"] == "f32"
    assert "i8" in {dtype for name, dtype in inputs.items() if "second" in name}
    assert "params/first left alone: the rule 'first: none'" in notes_of(program, "quantize")
