"""Programs as people read them: folded, with the user's names, in short."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import pytest

import dialect.front.api  # noqa: F401  # a program in a notebook
from dialect.printed.folds import folds, in_order
from dialect.printed.listing import collapsed
from dialect.printed.program_lines import program_lines
from dialect.printed.shared import with_equal_values_once
from dialect.printed.variables import assigned_at
from dialect.printed.words import Line, Word, as_html, coloured, plain
from examples import gpt, llama, palm
from rewrite import Program, auto_shard, trace
from tests.kit import after, arrays_of, step_of, traced_step

LAYERS = 6
UNROLLED = traced_step(
    llama, llama.Config(**{**vars(llama.CONFIGS["toy"]), "layers": LAYERS}), 8, 16, unrolled=True
)
TOY = traced_step(llama, llama.CONFIGS["toy"], 8, 16)


def listed(program: Program, **how: bool) -> list[str]:
    return plain(program_lines(program, **how)).split("\n")


def line_of(lines: list[str], name: str) -> str:
    """The line that gives a name to something."""
    return next(each.strip() for each in lines if each.strip().startswith(f"{name} = "))


# --- names -----------------------------------------------------------------------------------


def test_values_are_called_as_the_user_calls_them() -> None:
    lines = listed(after(TOY, "normalize, recognize"))
    assert re.sub(" +", " ", line_of(lines, "q")) == (
        'q = contract "a b c, c d e -> a b d e" (rms_norm.3, wq) : f32[8,1,16,8]'
        " batch 1 kv_heads.q_per_kv d_head"
    )
    assert line_of(lines, "wq").startswith("wq = params/layers/wq[i]")
    assert line_of(lines, "keys").startswith("keys = cache_write(k, rotate.1, wrap.1)")
    assert line_of(lines, "mixed").startswith("mixed = attend")
    assert line_of(lines, "logits").startswith("logits = contract")


def scaled(x: jax.Array, table: jax.Array) -> jax.Array:
    first, last = x[:3], x[3:]
    back, front = x[1:], x[:5]
    small, sin = last * 0.5, jnp.sin(first)
    pair = jnp.stack(
        [sin, small],
    )
    return pair.sum(0) + table + (back - front)[:3]


def test_a_statement_over_lines_and_one_of_several_variables() -> None:
    lines = listed(trace(scaled, jnp.ones(6), jnp.ones(3)))
    assert line_of(lines, "sin").startswith("sin = sin(first)")
    assert line_of(lines, "mul").startswith("mul = mul(last, 0.5)")  # no order of ops says small
    assert not any(line.strip().startswith(("front =", "back =")) for line in lines)
    assert line_of(lines, "pair").startswith("pair = stack(sin, mul)")
    assert line_of(lines, "scaled").startswith("scaled = add(")
    assert lines[-1].strip() == "return scaled"


@pytest.mark.parametrize("source", ["", "no place", "/nowhere/at/all.py:3 (f)", "<string>:1 (f)"])
def test_a_source_that_is_not_there_gives_no_name(source: str) -> None:
    assert assigned_at(source) == ()


# --- folds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("passes", ["", "normalize, recognize"])
@pytest.mark.parametrize("model", [llama, palm, gpt])
def test_every_unrolled_layer_is_there_once(model: object, passes: str) -> None:
    config = type(model.CONFIGS["toy"])(**{**vars(model.CONFIGS["toy"]), "layers": LAYERS})
    program = traced_step(model, config, 8, 16, unrolled=True)
    lines = listed(after(program, passes) if passes else program)
    folded = [each.strip() for each in lines if " times" in each]
    assert [each.split()[:2] for each in folded] == [[str(LAYERS), "times,"]]
    assert len(lines) < 180


def test_what_a_layer_reads_of_the_one_before_is_said() -> None:
    lines = listed(after(UNROLLED, "normalize, recognize"))
    (fold,) = (each.strip() for each in lines if " times" in each)
    assert fold == "6 times, reading take the first time, then block:"
    assert lines[-1].strip() == "return logits, keys x6, prefill, values x6"


def test_unfolded_every_op_has_a_line_of_its_own() -> None:
    lines = listed(TOY, fold=False, axes=False)
    ops = sum(op.name != "const" for op, _ in TOY.graph.walk())
    assert (
        sum(" = " in each and "[i]" not in each and " at first" not in each for each in lines)
        == ops
    )


def test_layers_that_differ_are_not_folded() -> None:
    def step(ws: list[jax.Array], x: jax.Array) -> jax.Array:
        for number, w in enumerate(ws):
            x = jnp.tanh(x @ w) if number % 2 else jnp.sin(x @ w) @ w
        return x

    program = trace(step, [jnp.ones((4, 4))] * 3, jnp.ones((2, 4)))
    assert folds(in_order(program.graph, ())) == []


def test_a_fold_begins_where_the_layers_are_the_same() -> None:
    def step(ws: list[jax.Array], x: jax.Array) -> jax.Array:
        y = jnp.cos(x)
        for w in ws:
            x = jnp.tanh(jnp.sin(x @ w) + y)
        return x * 2

    program = trace(step, [jnp.ones((4, 4))] * 5, jnp.ones((2, 4)))
    ops = [op for op in in_order(program.graph, program.values("param")) if op.name != "const"]
    (fold,) = folds(ops)
    assert (fold.period, fold.times, fold.start) == (4, 5, 1)
    assert [op.name for op in ops[fold.start : fold.start + 4]] == [
        "dot_general",
        "sin",
        "add",
        "tanh",
    ]


def test_equal_values_stand_once() -> None:
    def twice(x: jax.Array) -> jax.Array:
        return jnp.sin(x) + jnp.sin(x) * 2

    program = trace(twice, jnp.ones(3))
    assert [op.name for op in program.graph.ops].count("sin") == 2
    assert [op.name for op in with_equal_values_once(program).graph.ops].count("sin") == 1


# --- in short --------------------------------------------------------------------------------


def test_constants_are_in_short() -> None:
    def shifted(x: jax.Array) -> jax.Array:
        return x + jnp.asarray([float(n) for n in range(12)]) + 0.25

    text = "\n".join(listed(trace(shifted, jnp.ones(12))))
    assert "(0.0, 1.0, 2.0, ..., 11.0):f32[12]" in text
    assert "0.25" in text


def test_runs_of_numbered_names_are_one() -> None:
    assert collapsed(["k[0]", "k[1]", "v[0]"]) == ["k x2", "v[0]"]
    assert collapsed(["p/0/w", "p/1/w", "x", "x"]) == ["p/*/w x2", "x", "x"]


def test_sources_are_told_on_request() -> None:
    lines = listed(after(TOY, "normalize, recognize"), sources=True)
    assert re.search(r"examples/llama.py:\d+ \(.*block\) by .*attend", line_of(lines, "mixed"))


# --- where it is shown -----------------------------------------------------------------------


def test_lines_are_escaped_on_a_page_and_aligned_in_text() -> None:
    lines = [
        Line((Word("a<b", "name"), Word(" = f(x)")), "f32[2]", "batch"),
        Line((Word("long_name", "name"), Word(" = g(a<b)")), "f32[2,3]"),
    ]
    assert plain(lines).split("\n") == [
        "a<b = f(x)        : f32[2]  batch",
        "long_name = g(a<b) : f32[2,3]",
    ]
    assert as_html(lines).startswith('<span class="name">a&lt;b</span> = f(x)')
    assert "<b" not in as_html(lines)
    assert coloured(lines).plain == plain(lines)


def test_a_program_in_a_notebook() -> None:
    shown = UNROLLED._repr_html_()
    assert shown.startswith("<style>") and '<pre class="sw">' in shown
    assert '<span class="fold">6 times</span>' in shown


def test_a_step_and_packed_parameters_say_what_they_are() -> None:
    step = auto_shard(
        step_of(llama, llama.CONFIGS["toy"]), "cpu:1", pipeline="normalize, recognize, stage, lower"
    )
    assert repr(step) == (
        "<step decode_step(params, cache, tokens) for cpu:1, mesh x=1: normalize, recognize, stage,"
        " lower; 0 traced, 0 compiled>"
    )
    params, cache, tokens = arrays_of(llama, llama.CONFIGS["toy"], 8, 16)
    packed = step.prepare(params)
    assert repr(packed) == "<parameters to be packed by the first call: 12>"
    packed = step.prepare(params, cache, tokens)
    assert re.fullmatch(
        r"<packed parameters: \d+ arrays, [\d.]+ KiB \(f32 [\d.]+ KiB\)>", repr(packed)
    )
    assert repr(step).endswith("1 traced, 1 compiled>")


# --- control flow ----------------------------------------------------------------------------


def test_the_parts_of_loops_and_choices_are_told() -> None:
    def step(n: jax.Array, x: jax.Array) -> jax.Array:
        x = jax.lax.while_loop(lambda at: at[0] < n, lambda at: (at[0] + 1, at[1] * 2), (0, x))[1]
        return jax.lax.cond(n > 3, jnp.sin, jnp.cos, x)

    lines = [each.strip() for each in listed(trace(step, jnp.int32(2), jnp.ones(3)))]
    parts = [each for each in lines if each in ("condition", "body", "branch 0", "branch 1")]
    assert parts == ["condition", "body", "branch 0", "branch 1"]
