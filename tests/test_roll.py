"""Rolling layers: the same bits from one loop, stacked once, and what stays outside is told."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_layers import KINDS

from rewrite import Pipeline, Program, ShardwrightError, auto_shard, trace
from rewrite.ir import Op
from tests.decoders import (
    TOKENS,
    arguments,
    assert_computes_the_same_bits,
    block,
    decoder,
    recognized,
)
from tests.kit import run

SERVING = "normalize, recognize, roll, carry_cache, plan, shard, stage, lower"


def loops(program: Program) -> list[Op]:
    return [op for op in program.graph.ops if op.name == "scan"]


def roll_notes(program: Program) -> list[str]:
    """The notes of `roll`."""
    return [note for step in program.history if step.text.startswith("roll") for note in step.notes]


# The same numbers.


@pytest.mark.parametrize("starts", ["shared", "own", "rows"])
@pytest.mark.parametrize("kinds", KINDS)
def test_rolled_is_the_same_bits(kinds: str, starts: str) -> None:
    program = recognized(kinds, starts, more=", roll")
    assert [op["length"] for op in loops(program)] == [times for _, times in KINDS[kinds]]
    before = recognized(kinds, starts, more=", lower")
    for more in ("", ", carry_cache, stage") if starts == "shared" else (", carry_cache, stage",):
        made = recognized(kinds, starts, more=f", roll{more}, lower")
        assert_computes_the_same_bits(made, before, *arguments(kinds, starts))


def test_what_was_rolled_is_a_program_as_any_other() -> None:
    program = recognized("lglg", more=", roll")
    again = Program.parse(str(program))
    assert str(again) == str(program)
    assert_computes_the_same_bits(again, program, *arguments("lglg"))


def test_a_loop_written_out_and_rolled_is_a_loop_again() -> None:
    once = recognized("ggg", more=", roll")
    twice = Pipeline.parse("unroll, roll").run(once)
    assert [op["length"] for op in loops(twice)] == [3]
    assert_computes_the_same_bits(twice, once, *arguments("ggg"))


@pytest.mark.parametrize("unroll", [True, 3])
def test_a_loop_that_the_compiler_would_write_out_stays_one(unroll: bool | int) -> None:
    def step(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda y, v: (jnp.tanh(y @ v), None), x, w, unroll=unroll)[0]

    args = jnp.ones((2, 4)), jnp.arange(48.0).reshape(3, 4, 4) / 48
    program = Pipeline.parse("normalize, roll").run(trace(step, *args))
    assert [op["unroll"] for op in loops(program)] == [1]
    assert roll_notes(program)[0] == "loops that were to be written out, and are not: 1"
    assert_computes_the_same_bits(program, step, *args)


@pytest.mark.parametrize("stacked", [False, True])
def test_caches_of_all_layers_in_one_array(stacked: bool) -> None:
    """Libraries that keep one array for all layers write it row by row."""

    def step(params: Any, cache: Any, tokens: Any) -> Any:
        x, new = params["embedding"][tokens], dict(cache)
        for number, w in enumerate(params["layers"]):
            own = (new["k"][number], new["v"][number], cache["start"])
            x, keys, values = block("g", number, w, x, *own)
            new["k"], new["v"] = new["k"].at[number].set(keys), new["v"].at[number].set(values)
        new["start"] = cache["start"] + 1
        return x @ params["head"], new

    params, cache, tokens = arguments("ggg")
    layers = cache["layers"]
    cache = {name: jnp.stack([each[name] for each in layers]) for name in ("k", "v")} | {
        "start": cache["start"]
    }
    program = Pipeline.parse("normalize, recognize, roll").run(trace(step, params, cache, tokens))
    assert [op["length"] for op in loops(program)] == [3]
    if stacked:
        program = Pipeline.parse("carry_cache, stage").run(program)
        assert [each.name for each in program.step_inputs if each.role == "state"] == [
            "cache/k",
            "cache/start",
            "cache/v",
        ]
    found = run(Pipeline.parse("lower").run(program), params, cache, tokens)
    wanted = run(step, params, cache, tokens)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_caches_are_carried_behind_stage_too() -> None:
    """The states of the step are not those of the user's arguments then."""
    program = recognized("ggg", more=", roll, stage, carry_cache")
    assert program.history[-1].notes == ("2 caches carried through a loop of 3",)
    before = recognized("ggg", more=", lower")
    made = Pipeline.parse("lower").run(program)
    assert_computes_the_same_bits(made, before, *arguments("ggg"))


def test_a_state_that_enters_a_loop_twice_is_carried_once() -> None:
    def step(params: Any, cache: Any, x: Any) -> Any:
        def layer(x: Any, rows: Any) -> Any:
            one, other = rows
            return x + one.sum(0), other + x

        x, new = jax.lax.scan(layer, x + params, (cache, cache))
        return x, new

    args = jnp.ones(4), jnp.arange(24.0).reshape(3, 2, 4), jnp.arange(4.0)
    program = Pipeline.parse("normalize, recognize, carry_cache").run(trace(step, *args))
    assert program.history[-1].notes == (
        "1 states that are computed anew carried through a loop of 3",
    )
    assert_computes_the_same_bits(program, step, *args)


# What is stacked, and when.


def test_the_stacking_is_done_in_prepare_and_adapt() -> None:
    program = recognized("gggg", "own", more=", roll, carry_cache, stage")
    names = {each.name: each for each in program.step_inputs}
    assert {name: str(each.type) for name, each in names.items() if each.role == "state"} == {
        "cache/layers/0-3/k": "f32[4,2,8,2,4]",
        "cache/layers/0-3/start": "i32[4]",
        "cache/layers/0-3/v": "f32[4,2,8,2,4]",
    }
    assert str(names["params/layers/0-3/up"].type) == "f32[4,8,12]"
    assert "stack" not in {op.name for op in program.graph.ops}
    assert {op.name for op in program.stages.adapt.ops} == {"stack"}
    assert {op.name for op in program.stages.restore.ops} == {"unstack"}


def test_a_step_that_stacks_its_caches_itself_finds_them_stacked() -> None:
    """And writes them under a condition that is a constant; the loop's rows are cut out again."""

    def step(params: Any, cache: Any, x: Any) -> Any:
        def layer(x: Any, rows: Any) -> Any:
            weight, old = rows
            write = jax.lax.dynamic_update_slice
            new = jax.lax.cond(True, lambda: write(old, x[None], (2, 0)), lambda: old)
            return jnp.tanh(x @ weight + new.sum(0)), new

        stacked = (jnp.stack(params), jnp.stack([cache[name] for name in sorted(cache)]))
        x, new = jax.lax.scan(layer, x, stacked)
        return x.sum(), {name: new[i] for i, name in enumerate(sorted(cache))}

    params = [jnp.full((4, 4), 0.1 * i, "float32") for i in range(3)]
    cache = {f"layer {i}": jnp.full((5, 4), i, "float32") for i in range(3)}
    args = params, cache, jnp.arange(4.0)
    program = trace(step, *args)
    made = Pipeline.parse("normalize, recognize, roll, carry_cache, stage").run(program)
    states = [each for each in made.step_inputs if each.role == "state"]
    assert [str(each.type) for each in states] == ["f32[3,5,4]"]
    assert "stack" not in {op.name for op in made.graph.ops}
    assert_computes_the_same_bits(Pipeline.parse("lower").run(made), step, *args)


def test_groups_are_stacked_kind_by_kind() -> None:
    program = recognized("lglglg", more=", roll, carry_cache, stage")
    states = [each.name for each in program.step_inputs if each.role == "state"]
    assert states == [
        "cache/layers/0-4/k",
        "cache/layers/0-4/v",
        "cache/layers/1-5/k",
        "cache/layers/1-5/v",
        "cache/start",
    ]
    (loop,) = loops(program)
    assert sum(op.name == "attend" for op in loop.regions[0].ops) == 2


def test_sequences_with_places_of_their_own_are_updated_in_place() -> None:
    program = recognized("ggg", "rows", more=", roll, carry_cache")
    (loop,) = loops(program)
    written = [op for op in loop.regions[0].ops if op.name == "cache_put"]
    assert [(op["axis"], op.types[0].shape[0]) for op in written] == [(2, 3), (2, 3)]
    moved = recognized("ggg", "rows", more=", roll, carry_cache, cache_layout, stage, lower")
    wanted = recognized("ggg", "rows", more=", lower")
    assert_computes_the_same_bits(moved, wanted, *arguments("ggg", "rows"))


def test_the_caches_are_updated_in_place() -> None:
    program = recognized("ggg", more=", roll, carry_cache")
    (loop,) = loops(program)
    written = [op for op in loop.regions[0].ops if op.name == "cache_write"]
    assert [op["axes"] for op in written] == [(0, 2), (0, 2)]


# What stays outside.


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        ("gggg", [r"layers 0 to 3: a loop of 4 over one layer, (\d+) ops in \d+"]),
        ("lglglg", [r"layers 0 to 5: a loop of 3 over groups of 2, (\d+) ops in \d+"]),
        (
            "geee",
            [
                "layers 1 to 3: a loop of 3 over one layer, .*",
                r"layer 0 stays outside: unlike layer 1, .* at .*\(block\) .*",
            ],
        ),
        (
            "llgllgl",
            [
                "layers 0 to 5: a loop of 2 over groups of 3, .*",
                "layer 6 stays outside: .*",
            ],
        ),
        (
            "cc",
            [
                "layer 0 stays outside: unlike layer 1, .*, another constant",
                "layer 1 stays outside: unlike layer 0, .*, another constant",
            ],
        ),
        ("g", ["no layers are written out that only one value connects, each with the next"]),
    ],
)
def test_it_says_what_it_did(kinds: str, told: list[str]) -> None:
    notes = roll_notes(recognized(kinds, more=", roll"))
    assert len(notes) == len(told)
    for note, pattern in zip(notes, told):
        assert re.fullmatch(pattern, note), note


def test_runs_shorter_than_least_stay_outside() -> None:
    program = recognized("ggg", more=", roll{least=4}")
    assert loops(program) == []
    assert roll_notes(program) == ["layers 0 to 2 stay outside: 3 times the same, and least=4"]


def test_a_loop_already_is_left_alone() -> None:
    program = recognized("ggg", more=", roll")
    again = Pipeline.parse("roll").run(program)
    assert str(again.graph) == str(program.graph)


# Served.


@pytest.mark.parametrize(
    "kinds, starts",
    [("gggg", "shared"), ("lglglg", "shared"), ("geee", "shared"), ("lglglg", "rows")],
)
def test_rolled_on_eight_devices(kinds: str, starts: str) -> None:
    function = decoder(kinds, starts)
    params, cache, tokens = arguments(kinds, starts)
    step = auto_shard(function, "cpu:8", pipeline=SERVING)
    packed, state = step.prepare(params, cache, tokens), step.adapt(cache)
    for _ in range(3):
        wanted, cache = jax.jit(function)(params, cache, tokens)
        found, state = step(packed, state, tokens)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
        tokens = jnp.argmax(wanted, -1).astype(jnp.int32)
    back = step.restore(state)
    assert jax.tree.structure(back) == jax.tree.structure(cache)
    for one, other in zip(jax.tree.leaves(back), jax.tree.leaves(cache)):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_step_takes_the_users_own_caches_too() -> None:
    params, cache, tokens = arguments("ggg")
    step = auto_shard(decoder("ggg"), "cpu:8", pipeline=SERVING)
    packed = step.prepare(params, cache, tokens)
    wanted, _ = step(packed, step.adapt(cache), tokens)
    found, _ = step(packed, cache, tokens)
    np.testing.assert_array_equal(found, wanted)


def test_one_of_many_caches_that_are_kept_as_one_cannot_be_replaced() -> None:
    params, cache, tokens = arguments("ggg")
    step = auto_shard(decoder("ggg"), "cpu:8", pipeline=SERVING)
    packed = step.prepare(params, cache, tokens)
    _, state = step(packed, step.adapt(cache), TOKENS)
    state["layers"][1]["k"] = jnp.zeros_like(cache["layers"][1]["k"])
    with pytest.raises(ShardwrightError, match="3 arrays of the state are merged into one") as told:
        step(packed, state, tokens)
    assert "between step.restore(state) and step.adapt(state)" in str(told.value)
