"""What a difference of two programs says: aligned by what ops do, not by where they stand."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from dialect.printed.difference import Difference, difference
from dialect.printed.difference_lines import difference_lines, facts
from dialect.printed.words import plain
from examples import llama
from rewrite import Pipeline, Program, diff, trace
from tests.kit import Captured, after, complaint, printed, traced_step

TOY = traced_step(llama, llama.CONFIGS["toy"], 8, 16)
UNROLLED = traced_step(llama, llama.CONFIGS["toy"], 8, 16, unrolled=True)
RECOGNIZED = after(TOY, "normalize, recognize")
STEP = (f"{Path(llama.__file__)}:decode_step", "--config", "toy", "--batch", "8", "--context", "16")


def text_of(found: Difference) -> str:
    return plain(difference_lines(found))


def names(lines: tuple[object, ...]) -> list[str]:
    """The names of the ops of one side of a change."""
    return [word.text for each in lines for word in each.words if word.kind == "op"]


def change_with(found: Difference, op: str) -> tuple[list[str], list[str]]:
    """The ops before and after of the change that an op is new in."""
    return next(
        (names(change.before.lines), names(change.after.lines))
        for part in found.parts
        for change in part.changes
        if op in names(change.after.lines)
    )


# --- alignment -------------------------------------------------------------------------------


def test_a_program_does_not_differ_from_itself_or_from_what_is_read_back() -> None:
    for other in (TOY, Program.parse(str(TOY))):
        found = difference(TOY, other)
        assert found.is_empty
        assert text_of(found).endswith("the same program")


def test_attention_replaces_what_it_was_computed_by() -> None:
    old, new = change_with(difference(TOY, RECOGNIZED), "attend")
    assert new == ["attend"]
    assert old[-3:] == ["dot_general", "transpose", "reshape"]
    assert {"reduce_max", "exp", "reduce_sum", "div", "select_n"} <= set(old)


def test_lines_and_rules_are_named() -> None:
    found = difference(TOY, RECOGNIZED)
    (change,) = (
        change
        for part in found.parts
        for change in part.changes
        if "attend" in names(change.after.lines)
    )
    assert change.rules[-1] == "attend"
    assert all("llama.py:" in source for source in change.sources)


def test_the_body_of_a_loop_is_compared_by_itself() -> None:
    found = difference(TOY, RECOGNIZED)
    assert [(part.name, part.times) for part in found.parts] == [("", 1), ("loop of 3", 3)]


def test_a_loop_is_compared_with_the_layers_that_it_was() -> None:
    before = after(UNROLLED, "normalize, recognize")
    found = difference(before, after(before, "roll"))
    (layers,) = (part for part in found.parts if part.times == 3)
    assert layers.name == "loop of 3"
    assert layers.same == 23 and not layers.changes


def test_what_moved_is_no_change() -> None:
    def one(x: jax.Array, y: jax.Array) -> jax.Array:
        a, b = jnp.sin(x), jnp.cos(y)
        return a * b + 1

    def other(x: jax.Array, y: jax.Array) -> jax.Array:
        b = jnp.cos(y)
        a = jnp.sin(x)
        return a * b + 1

    programs = [trace(each, jnp.ones(3), jnp.ones(3)) for each in (one, other)]
    assert difference(*programs).is_empty


def test_an_argument_that_changed_is_one() -> None:
    programs = [trace(f, jnp.ones((2, 3))) for f in (lambda x: x.sum(0), lambda x: x.sum(1))]
    found = difference(*programs)
    assert not found.is_empty


# --- what is saved ---------------------------------------------------------------------------


def test_what_a_change_saves_is_counted_in_every_trip() -> None:
    found = difference(TOY, RECOGNIZED)
    totals = found.before.cost, found.after.cost
    saved = [
        (change.before.cost.bytes - change.after.cost.bytes)
        for part in found.parts
        for change in part.changes
    ]
    assert sum(saved) == totals[0].bytes - totals[1].bytes > 0


def test_what_depends_on_parameters_alone_costs_a_step_nothing() -> None:
    def step(w: jax.Array, x: jax.Array) -> jax.Array:
        return x @ jnp.tanh(w)

    shapes = jnp.ones((64, 64)), jnp.ones((1, 64))
    found = difference(trace(lambda w, x: x @ w, *shapes), trace(step, *shapes))
    assert found.before.cost == found.after.cost


@pytest.mark.parametrize("passes", ["", ", stage, lower"])
def test_collectives_are_counted_lowered_or_not(passes: str) -> None:
    target = Pipeline.parse("target v5e:2x4\nmesh x=2 y=4\ndecode { normalize }").target()
    sharded = after(TOY, f"normalize, recognize, plan, shard{passes}", target)
    found = difference(TOY, sharded)
    assert found.before.collectives == ()
    assert dict(found.after.collectives) == {"all-reduce": 7}
    assert "none -> 7 all-reduce" in text_of(found)


def test_packed_parameters_are_told() -> None:
    staged = after(TOY, "normalize, recognize, quantize{weights=int8}, stage")
    found = difference(TOY, staged)
    assert ("params/layers/wq", "f32[3,64,16,8]", "") in found.inputs
    assert ("params/layers/wq.quantized", "", "i8[3,64,16,8]") in found.inputs
    held = dict(found.after.bytes)["param"]
    assert held < dict(found.before.bytes)["param"] / 2
    assert facts(found)["after"]["held_bytes"]["param"] == held


def test_a_difference_prints_itself_and_shows_itself_in_notebooks() -> None:
    shown = diff(TOY, RECOGNIZED)
    assert str(shown) == repr(shown) == text_of(difference(TOY, RECOGNIZED))
    assert '<span class="new">mixed</span>' in shown._repr_html_()


# --- the command -----------------------------------------------------------------------------


def test_diff_of_a_pipeline_and_of_one_of_its_passes(capsys: Captured) -> None:
    whole = printed(capsys, "diff", *STEP, "-p", "normalize, recognize")
    assert "+     mixed = attend" in whole and "-     gather = gather" in whole
    one = printed(capsys, "diff", *STEP, "-p", "normalize, recognize", "--pass", "recognize")
    assert one.startswith("before recognize -> after recognize\n")
    assert "dot_general" not in one and "+     mixed = attend" in one


def test_diff_of_two_files(capsys: Captured, tmp_path: Path) -> None:
    for name, program in (("a.ir", TOY), ("b.ir", RECOGNIZED)):
        (tmp_path / name).write_text(str(program))
    files = str(tmp_path / "a.ir"), str(tmp_path / "b.ir")
    assert "attend = attend" in printed(capsys, "diff", *files)
    told = json.loads(printed(capsys, "diff", *files, "--json"))
    assert told["before"]["ops"] == TOY.graph.op_count
    assert told["after"]["ops"] == RECOGNIZED.graph.op_count
    assert any(
        "attend" in op for p in told["parts"] for c in p["changes"] for op in c["after"]["ops"]
    )
    assert "the same program" in printed(capsys, "diff", files[0], files[0])


def test_long_changes_are_cut_where_it_is_asked_for(capsys: Captured) -> None:
    text = printed(capsys, "diff", *STEP, "-p", "normalize, recognize", "--most", "2")
    assert "more ops" in text


def test_a_pass_that_does_not_run_is_refused(capsys: Captured) -> None:
    told = complaint(capsys, "diff", *STEP, "-p", "normalize", "--pass", "recognize")
    assert "the pipeline has no pass 'recognize'" in told
