"""The passes on the example decoders: after every pass the program is what it was, and more."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import rewrite
from dialect.arrays.evaluate import evaluate
from dialect.matching.values import rounding
from rewrite import Pipeline, Program
from rewrite.ir import Graph, Type
from rewrite.opdef import signature
from tests.kit import assert_close, notes_of, run
from tests.tiny import (
    BATCH,
    CASES,
    CONTEXT,
    D_FF,
    D_HEAD,
    D_MODEL,
    HEADS,
    KV_HEADS,
    LAYERS,
    LENGTH,
    MODELS,
    VOCAB,
    Case,
    arguments,
    expected,
    traced,
)

FIRST = "normalize, recognize"
PIPELINES = {
    "scanned": f"{FIRST}, carry_cache, first_layer{{budget=10.0}}, stage, lower",
    "unrolled": f"{FIRST}, carry_cache, unroll, first_layer{{budget=10.0}}, stage, lower",
    "cache_layout": f"{FIRST}, carry_cache, cache_layout, stage, lower",
}


@cache
def case_after(case: Case, passes: str) -> Program:
    """The program after a pipeline, built on that of all passes but the last."""
    before, _, last = passes.rpartition(", ")
    program = case_after(case, before) if before else traced(case)
    return Pipeline.parse(last).run(program)


def prefixes(passes: str) -> list[str]:
    parts = passes.split(", ")
    return [", ".join(parts[:count]) for count in range(1, len(parts) + 1)]


def counted(graph: Graph) -> Counter[str]:
    """How often a step runs each op."""
    found: Counter[str] = Counter()
    for op, parents in graph.walk():
        trips = 1
        for parent in parents:
            trips *= parent.get("length", 1)
        found[op.name] += trips
    return found


# Equal, after every pass.

PREFIXES = [
    pytest.param(case, prefix, id=f"{case} {name} {prefix.rpartition(', ')[2]}")
    for case in CASES
    for name, passes in PIPELINES.items()
    for prefix in prefixes(passes)
    # What begins equally is run once, and loops that are not there are not unrolled.
    if (name == "scanned" or prefix not in prefixes(PIPELINES["scanned"]))
    and not (name == "unrolled" and case.unrolled)
]


@pytest.mark.parametrize("case, passes", PREFIXES)
def test_program_equals_the_function(case: Case, passes: str) -> None:
    assert_close(run(case_after(case, passes), *arguments(case)), expected(case))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_import_alone_keeps_every_bit(case: Case) -> None:
    assert_close(run(traced(case), *arguments(case)), expected(case), rtol=0)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_quantised_program_is_equal_before_and_after_lowering(case: Case) -> None:
    before = case_after(case, f"{FIRST}, carry_cache, quantize, stage")
    lowered = Pipeline.parse("lower").run(before)
    args = arguments(case)
    assert_close(run(lowered, *args), run(before, *args), rtol=1e-4)


# Recognition.

RECOGNIZED = {
    "llama": {
        "attend": LAYERS,
        "rms_norm": 2 * LAYERS + 1,
        "rope": 2 * LAYERS,
        "gate": LAYERS,
        "take": 1,
        "cache_write": 2 * LAYERS,
        "contract": 7 * LAYERS + 1,
    },
    "palm": {
        "attend": LAYERS,
        "rms_norm": LAYERS + 1,
        "rope": 2 * LAYERS,
        "gate": LAYERS,
        "take": 1,
        "cache_write": 2 * LAYERS,
        "contract": 7 * LAYERS + 1,
    },
    "gpt": {
        "attend": LAYERS,
        "layer_norm": 2 * LAYERS + 1,
        "activate": LAYERS,
        "take": 2,
        "cache_write": 2 * LAYERS,
        "contract": 6 * LAYERS + 1,
    },
}
COMPOSITES = set().union(*RECOGNIZED.values()) | {"softmax"}
ONES_OWN = {
    "dot_general",
    "gather",
    "dynamic_update_slice",
    "logistic",
    "tanh",
    "exp",
    "rsqrt",
    "transpose",
    "reduce_max",
    "reduce_sum",
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_everything_is_recognised(case: Case) -> None:
    found = counted(case_after(case, FIRST).graph)
    assert {name: found[name] for name in COMPOSITES if found[name]} == RECOGNIZED[case.model]
    assert ONES_OWN & set(found) == set()


@pytest.mark.parametrize("model", MODELS)
def test_recognition_counts_are_told(model: str) -> None:
    told = notes_of(case_after(Case(model, unrolled=True), FIRST), "recognize")
    assert f"attend: {LAYERS}" in told
    assert f"cache_write_of_update: {2 * LAYERS}" in told


@pytest.mark.parametrize("case", CASES, ids=str)
def test_lowering_leaves_nothing_of_ours(case: Case) -> None:
    program = case_after(case, PIPELINES["scanned"])
    left = {op.name for graph in program.graphs.values() for op, _ in graph.walk()}
    assert left & (COMPOSITES | {"quantize", "dequantize", "cache_read"}) == set()


def test_normalising_again_changes_nothing() -> None:
    program = case_after(Case("llama"), "normalize")
    assert Pipeline.parse("normalize").run(program).graph == program.graph


def test_passes_do_not_change_what_they_get() -> None:
    program = traced(Case("llama"))
    key = program.graph.key
    case_after(Case("llama"), PIPELINES["unrolled"])
    assert program.graph.key == key and program.history == ()


# What is promised.


@pytest.mark.parametrize(
    "passes, keeps",
    [
        ("normalize", "reals"),
        ("carry_cache, first_layer, stage", "bits"),
        ("carry_cache, unroll, first_layer, stage", "reals"),
        ("normalize, recognize, lower", "reals"),
        ("normalize, recognize, quantize, stage", "approx"),
    ],
)
def test_the_weakest_promise_stands(passes: str, keeps: str) -> None:
    program = Pipeline.parse(passes).run(traced(Case("llama")))
    assert program.keeps == keeps
    assert [step.text for step in program.history] == [p for p in passes.split(", ") if p]


# Caches through loops.


@pytest.mark.parametrize("model", MODELS)
def test_caches_are_carried_whole(model: str) -> None:
    case = Case(model)
    program = case_after(case, f"{FIRST}, carry_cache")
    assert notes_of(program, "carry_cache") == (f"2 caches carried through a loop of {LAYERS}",)
    (loop,) = (op for op in program.graph.ops if op.name == "scan")
    stacked = [each.type for each in program.inputs if re.match("cache/[kv]", each.name)]
    carried = [arg.type for arg in loop.args[loop["consts"] : loop["consts"] + loop["carry"]]]
    assert Counter(stacked) <= Counter(carried)
    scanned = [arg.type for arg in loop.args[loop["consts"] + loop["carry"] :]]
    assert not set(stacked) & set(scanned)
    assert len(loop.types) == loop["carry"] == 3  # nothing is stacked any more
    inside = Counter(op.name for op in loop.regions[0].ops)
    assert inside["cache_write"] == 2
    assert all(op["axes"] == (0, 2) for op in loop.regions[0].ops if op.name == "cache_write")


@pytest.mark.parametrize("model", MODELS)
def test_unrolled_decoders_carry_nothing(model: str) -> None:
    case = Case(model, unrolled=True)
    program = case_after(case, f"{FIRST}, carry_cache")
    assert notes_of(program, "carry_cache") == ()
    assert program.graph == case_after(case, FIRST).graph


def loop_over_cache(update: Callable[[Any, Any], Any], **options: Any) -> tuple[Program, tuple]:
    def step(params: Any, cache: Any, x: jax.Array) -> Any:
        def body(carry: Any, layer: Any) -> Any:
            weights, keys = layer
            keys = update(keys, carry)
            return jnp.tanh(carry @ weights + keys.sum(0)), keys

        x, keys = lax.scan(body, x, (params, cache["k"]), **options)
        return x.sum(), {"k": keys}

    random = np.random.default_rng(0)
    w, k, x = (jnp.asarray(random.standard_normal(s), "float32") for s in ((3, 4, 4), (3, 5, 4), 4))
    return rewrite.trace(step, w, {"k": k}, x), (w, {"k": k}, x)


def written(keys: Any, new: Any) -> Any:
    return lax.dynamic_update_slice(keys, new[None], (jnp.int32(new[0] > 0), 0))


@pytest.mark.parametrize("reverse", [False, True])
def test_any_loop_carries_its_cache(reverse: bool) -> None:
    program, args = loop_over_cache(written, reverse=reverse)
    made = Pipeline.parse(f"{FIRST}, carry_cache").run(program)
    assert notes_of(made, "carry_cache") == ("1 caches carried through a loop of 3",)
    assert_close(run(made, *args), run(program, *args))


def test_a_cache_written_twice_is_not_lost() -> None:
    def twice(keys: Any, new: Any) -> Any:
        return lax.dynamic_update_slice(written(keys, new), new[None] * 2, (3, 0))

    program, args = loop_over_cache(twice)
    made = Pipeline.parse(f"{FIRST}, carry_cache, stage, lower").run(program)
    assert_close(run(made, *args), run(program, *args))


def test_a_state_that_is_computed_anew_is_carried_and_written_whole() -> None:
    program, args = loop_over_cache(lambda keys, new: keys * 2)
    made = Pipeline.parse(f"{FIRST}, carry_cache").run(program)
    (note,) = notes_of(made, "carry_cache")
    assert note == "1 states that are computed anew carried through a loop of 3"
    assert_close(run(made, *args), run(program, *args))


# Cache layout.


def test_caches_are_kept_as_they_are_read() -> None:
    case = Case("llama")
    program = case_after(case, PIPELINES["cache_layout"])
    kept = "layers batch kv_heads context d_head, 262,144 -> 65,536 bytes in a TPU's tiles"
    told = {f"cache/{name} kept as {kept}" for name in "kv"}
    assert set(notes_of(program, "cache_layout")) == told
    types = {each.name: str(each.type) for each in program.step_inputs}
    assert types["cache/k"] == f"f32[{LAYERS},{BATCH},{KV_HEADS},{CONTEXT},{D_HEAD}]"
    assert Counter(op.name for op in program.stages.adapt.ops) == {"transpose": 2}
    assert Counter(op.name for op in program.stages.restore.ops) == {"transpose": 2}


# Unrolling.


def test_loops_are_written_out() -> None:
    case = Case("llama")
    program = case_after(case, f"{FIRST}, carry_cache, unroll")
    assert notes_of(program, "unroll") == (f"{LAYERS} iterations written out",)
    assert "scan" not in counted(program.graph)
    assert counted(program.graph)["contract"] == 7 * LAYERS + 1


def test_long_loops_stay() -> None:
    program = Pipeline.parse(f"unroll{{most={LAYERS - 1}}}").run(case_after(Case("llama"), FIRST))
    assert notes_of(program, "unroll") == (
        f"a loop of {LAYERS} stays: longer than most={LAYERS - 1}",
    )
    assert counted(program.graph)["scan"] == 1


@pytest.mark.parametrize("reverse", [False, True])
def test_any_loop_is_written_out(reverse: bool) -> None:
    program, args = loop_over_cache(written, reverse=reverse)
    made = Pipeline.parse("unroll").run(program)
    assert "scan" not in counted(made.graph)
    assert_close(run(made, *args), run(program, *args))


# Staging.


@pytest.mark.parametrize("model", MODELS)
def test_unrolled_caches_are_kept_per_layer(model: str) -> None:
    case = Case(model)
    program = case_after(case, f"{FIRST}, unroll, stage")
    state = [each for each in program.step_inputs if each.role == "state"]
    names = [f"cache/{name}.{i}" for name in "kv" for i in range(LAYERS)]
    assert sorted(each.name for each in state) == sorted([*names, "cache/position"])
    (user,) = (each.type for each in program.inputs if each.name == "cache/k")
    parts = {each.type for each in state if each.name in names}
    assert parts == {Type(user.dtype, user.shape[1:])}
    assert {"stack", "unstack"} & set(counted(program.graph)) == set()
    assert Counter(op.name for op in program.stages.adapt.ops) == {"unstack": 2}
    assert Counter(op.name for op in program.stages.restore.ops) == {"stack": 2}
    updated = [each.updates for each in program.step_outputs if each.updates is not None]
    assert [program.step_inputs[i] for i in sorted(updated)] == state


@pytest.mark.parametrize("case", CASES, ids=str)
def test_staged_programs_step_by_step(case: Case) -> None:
    """Prepared and adapted once, two steps and the state's return are two steps of the function."""
    program = case_after(case, PIPELINES["scanned"])
    params, state, tokens = arguments(case)
    logits, once = expected(case)
    twice = run(case.function, params, once, tokens)

    def steps(params: Any, state: Any, tokens: Any) -> Any:
        packed = evaluate(program.stages.prepare, jax.tree.leaves(params))
        kept = evaluate(program.stages.adapt, jax.tree.leaves(state))
        for _ in range(2):
            results = evaluate(program.graph, [*packed, *kept, tokens])
            pairs = zip(program.step_outputs, results)
            new = {each.updates: value for each, value in pairs if each.updates is not None}
            kept = [new[len(packed) + i] for i in range(len(kept))]
        leaves = program.restored(results)
        return jax.tree.unflatten(jax.tree.structure(twice), leaves)

    found = run(steps, params, state, tokens)
    assert_close(found, twice, rtol=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_weights_that_are_merely_read_stay_the_users_own(model: str) -> None:
    """Nothing is copied that need not be: most of what `prepare` gives is what it got."""
    program = case_after(Case(model), f"{FIRST}, stage")
    prepare = program.stages.prepare
    own = [value for value in prepare.outputs if value in prepare.inputs]
    assert len(own) >= len(prepare.inputs) - 2
    sizes = [sum(v.type.bytes for v in values) for values in (prepare.inputs, prepare.outputs)]
    assert sizes[0] == sizes[1]


def staged(function: Callable[..., Any], *args: Any, **options: Any) -> Program:
    program = rewrite.trace(function, *args, **options)
    made = Pipeline.parse("normalize, stage").run(program)
    assert_close(run(made, *args), run(function, *args))
    return made


W, STATE, X = jnp.arange(12.0).reshape(3, 4), jnp.ones((4, 3)), jnp.ones((2, 3))


def test_state_in_another_order_is_turned_once() -> None:
    program = staged(lambda p, cache, x: ((cache.T + p).T, x @ p), W, STATE, X, state=1)
    assert [op.name for op in program.stages.adapt.ops] == ["transpose"]
    assert [op.name for op in program.stages.restore.ops] == ["transpose"]
    assert "transpose" not in counted(program.graph)


def test_state_read_in_its_own_order_is_not_turned() -> None:
    program = staged(lambda p, cache: ((cache.T + p).T, cache.sum(1)), W, STATE, state=1)
    assert program.stages.adapt.ops == ()


def test_old_state_may_be_a_result_too() -> None:
    def step(params: Any, cache: Any) -> Any:
        return {"new": {"k": (cache["k"].T + params).T}, "old": cache["k"]}

    staged(step, W, {"k": STATE})


def test_state_that_comes_back_unchanged() -> None:
    program = staged(lambda p, cache, x: (cache, x @ p), W, STATE, X, state=1)
    assert [each.role for each in program.step_inputs] == ["param", "state", "arg"]


def test_unchanged_state_that_changes_its_form_and_back() -> None:
    """Its form changes on the way in, back, and in again: nothing lies between to be kept."""

    def step(params: Any, cache: Any) -> Any:
        return jax.nn.softmax(cache + 1, axis=0), cache

    program = rewrite.trace(step, (), STATE, state=1)
    made = Pipeline.parse("recognize, cache_layout, stage").run(program)
    np.testing.assert_allclose(made((), STATE)[0], step((), STATE)[0], rtol=1e-6)
    np.testing.assert_array_equal(made((), STATE)[1], STATE)


def test_two_states_with_one_value() -> None:
    staged(lambda p, a, b: (a + b, a + b), W, W, W, state=[1, 2])


def test_results_of_parameters_alone() -> None:
    program = staged(lambda p, x: (p @ p.T, p, x @ p), W, X)
    packed = {str(value.type) for value in program.stages.prepare.outputs}
    assert packed == {"f32[3,4]", "f32[3,3]"}
    assert counted(program.graph)["contract"] == 1


def test_unused_parameters_are_left_out_of_the_step() -> None:
    program = staged(lambda p, x: x @ p["used"], {"used": W, "idle": W}, X)
    assert [each.name for each in program.step_inputs] == ["p/used", "x"]


def test_staging_tells_the_bytes() -> None:
    program = staged(lambda p, x: x @ (p @ p.T), W, X)
    assert notes_of(program, "stage") == (
        "parameters: 48 bytes -> 36 bytes packed",
        "replaced in the step: p",
    )


# Quantisation.

WEIGHTS = {
    "llama": "wq wk wv wo w_gate w_up w_down",
    "palm": "wq wk wv wo w_gate w_up w_down",
    "gpt": "wq wk wv wo w_up w_down",
}
_A_TABLE = "it is a table over the vocabulary (quantize{vocab=true} takes it too)"
_ROWS = "rows are taken of it (a rule that names it takes it too)"
LEFT_ALONE = {
    "llama": (
        f"params/embedding left alone: {_A_TABLE}",
        f"params/head left alone: {_A_TABLE}",
    ),
    "palm": (f"params/embedding left alone: {_A_TABLE}",),
    "gpt": (
        f"params/embedding left alone: {_A_TABLE}",
        f"params/positions left alone: {_ROWS}",
    ),
}
TABLE = {"llama": "params/head", "palm": "params/embedding", "gpt": "params/embedding"}


def quantised_names(program: Program) -> set[str]:
    said = notes_of(program, "quantize")[0]
    count, names = re.match(r"(\d+) weights quantised: (.*)", said).groups()
    assert int(count) == len(names.split(", "))
    return set(names.split(", "))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_weights_of_products_are_quantised(case: Case) -> None:
    program = case_after(case, f"{FIRST}, quantize")
    names = WEIGHTS[case.model].split()
    places = [f"/{i}" for i in range(LAYERS)] if case.unrolled else [""]
    assert quantised_names(program) == {f"params/layers{i}/{n}" for i in places for n in names}
    assert notes_of(program, "quantize")[1:] == LEFT_ALONE[case.model]
    # One scale per output channel: of whatever the product does not sum.
    for op, _ in program.graph.walk():
        for arg, axes in zip(op.args, signature(op).inputs):
            if (steps := rounding(arg)) is not None:
                summed = tuple(d for d, (x,) in enumerate(axes) if x in signature(op).summed)
                assert (steps["axes"], steps["form"]) == (summed, "int8")


@pytest.mark.parametrize("model", MODELS)
def test_staged_integers_are_what_the_step_reads(model: str) -> None:
    program = case_after(Case(model), f"{FIRST}, carry_cache, quantize, stage, lower")
    types = {each.name: each.type for each in program.step_inputs if each.role == "param"}
    for name in WEIGHTS[model].split():
        stored = {n: t for n, t in types.items() if n.startswith(f"params/layers/{name}.")}
        (size,) = (e.type.size for e in program.inputs if e.name == f"params/layers/{name}")
        assert sorted(t.dtype for t in stored.values()) == ["f32", "i8"]
        assert {t.dtype: t.size for t in stored.values()}["i8"] == size
        assert f"params/layers/{name}" not in types
    assert "dequantize" not in counted(program.graph)


def test_scales_stand_behind_their_products() -> None:
    program = case_after(Case("llama"), f"{FIRST}, carry_cache, quantize, stage, lower")
    assert notes_of(program, "lower")[-1].startswith("scale_behind_product: 7")
    (loop,) = (op for op in program.graph.ops if op.name == "scan")
    for op in loop.regions[0].ops:
        if op.name == "dot_general":
            sources = [arg.op for arg in op.args]
            assert not any(
                source.name == "mul" and source.args[0].type.dtype == "i8" for source in sources
            )


def test_skip_is_a_pattern_of_paths() -> None:
    program = Pipeline.parse('quantize{skip="w_up|wq$"}').run(case_after(Case("llama"), FIRST))
    left = {f"params/layers/{name}" for name in ("wk", "wv", "wo", "w_gate", "w_down")}
    assert quantised_names(program) == left
    said = "\n".join(notes_of(program, "quantize"))
    assert "params/layers/wq left alone: its path matches skip='w_up|wq$'" in said
    assert "params/layers/w_up left alone: its path matches" in said


@pytest.mark.parametrize("model", MODELS)
def test_tables_are_quantised_when_asked(model: str) -> None:
    program = Pipeline.parse("quantize{vocab=true}").run(case_after(Case(model), FIRST))
    assert TABLE[model] in quantised_names(program)
    left = [note for note in LEFT_ALONE[model] if "vocabulary" not in note]
    assert notes_of(program, "quantize")[1:] == tuple(left)


def test_quantising_twice_is_quantising_once() -> None:
    once = case_after(Case("llama"), f"{FIRST}, quantize")
    again = Pipeline.parse("quantize").run(once)
    assert again.graph == once.graph
    assert notes_of(again, "quantize")[0].startswith("0 weights quantised")


@pytest.mark.parametrize("form, largest", [("int8", 127), ("int4", 7)])
def test_error_of_a_weight_is_half_a_step(form: str, largest: int) -> None:
    weights = jnp.asarray(np.random.default_rng(0).standard_normal((16, 8)), jnp.float32)
    weights = weights.at[:, 3].set(0.0)
    program = rewrite.trace(lambda p, x: x @ p, weights, jnp.eye(16))
    made = Pipeline.parse(f"normalize, quantize{{weights={form}, vocab=true}}").run(program)
    error = np.abs(run(made, weights, jnp.eye(16)) - weights)
    step = np.abs(weights).max(0) / largest
    assert (error <= step / 2 + 1e-6).all()
    assert error.max() > step.max() / 10  # it is quantised indeed
    assert (error[:, 3] == 0).all()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_quantised_logits_are_close(case: Case) -> None:
    program = case_after(case, f"{FIRST}, carry_cache, quantize, stage, lower")
    logits, _ = run(program, *arguments(case))
    wanted, _ = expected(case)
    error = np.abs(logits - wanted).max() / np.abs(wanted).max()
    assert 0 < error < 0.05


# The first layer.

E = KV_HEADS * D_HEAD
Q = HEADS * D_HEAD


def accounting(program: Program) -> dict[str, int]:
    """Graef's figures, as the pass tells them."""
    text = " ".join(notes_of(program, "first_layer"))
    numbers = re.match(
        r"([\d,]+) weights eliminated; values read per step ([\d,]+) -> ([\d,]+) "
        r"\([\d,]+ times fewer; as many at [\d,]+ tokens\) "
        r"rows of [\d,]+ values instead of [\d,]+: \+([\d,]+) values in tables",
        text,
    )
    assert numbers, text
    found = [int(each.replace(",", "")) for each in numbers.groups()]
    return dict(zip(("eliminated", "before", "after", "tables"), found))


@pytest.mark.parametrize("unrolled", [False, True], ids=["scanned", "unrolled"])
def test_figures_for_a_serial_block(unrolled: bool) -> None:
    """q, k, v and the row itself: 2 (d + e) values where q is as wide as the model."""
    program = case_after(Case("llama", unrolled=unrolled), f"{FIRST}, first_layer{{budget=10.0}}")
    weights = D_MODEL * (Q + 2 * E)
    width = 2 * (D_MODEL + E)
    assert accounting(program) == {
        "eliminated": weights,
        "before": BATCH * D_MODEL + weights,
        "after": BATCH * width,
        "tables": VOCAB * (width - D_MODEL),  # the embedding is there already
    }


def test_figures_for_a_parallel_block() -> None:
    """The feed-forward network is row-wise too; its result is added to the embedding's row."""
    program = case_after(Case("palm"), f"{FIRST}, first_layer{{budget=10.0}}")
    weights = D_MODEL * (Q + 2 * D_HEAD) + 3 * D_MODEL * D_FF
    width = Q + 2 * D_HEAD + D_MODEL
    assert accounting(program) == {
        "eliminated": weights,
        "before": BATCH * D_MODEL + weights,
        "after": BATCH * width,
        "tables": VOCAB * width,  # the head reads the embedding itself
    }


@pytest.mark.parametrize("unrolled", [False, True], ids=["scanned", "unrolled"])
@pytest.mark.parametrize("model, fewer", [("llama", 3), ("palm", 6)])
def test_products_of_the_first_layer_are_gone(model: str, fewer: int, unrolled: bool) -> None:
    case = Case(model, unrolled=unrolled)
    before = counted(case_after(case, FIRST).graph)
    program = case_after(case, f"{FIRST}, first_layer{{budget=10.0}}, stage")
    found = counted(program.graph)
    assert found["contract"] == before["contract"] - fewer
    assert found["take"] > 1
    read = {each.name for each in program.step_inputs}
    assert ("params/layers/0/wq" in read) is False
    if unrolled:
        assert {"params/layers/0/wk", "params/layers/0/wv"} & read == set()
        assert "params/layers/1/wq" in read


def test_rows_are_the_ones_of_the_step_bit_by_bit() -> None:
    case = Case("llama")
    args = arguments(case)
    plain = case_after(case, f"{FIRST}, unroll")
    looked_up = Pipeline.parse("first_layer{budget=10.0}").run(plain)
    (logits, _), (wanted, _) = run(looked_up, *args), run(plain, *args)
    np.testing.assert_allclose(logits, wanted, rtol=1e-6, atol=1e-6)


def test_batch_of_one() -> None:
    case = Case("llama")
    params, _, _ = arguments(case)
    cache = case.module.init_cache(case.config, 1, CONTEXT)
    args = (params, cache, jnp.array([5], jnp.int32))
    program = Pipeline.parse(PIPELINES["scanned"]).run(rewrite.trace(case.function, *args))
    assert accounting(program)["after"] == 2 * (D_MODEL + E)
    assert_close(run(program, *args), run(case.function, *args))


def test_tokens_out_of_bounds_are_what_they_were() -> None:
    case = Case("llama")
    params, cache, _ = arguments(case)
    args = (params, cache, jnp.array([VOCAB + 3, -2], jnp.int32))
    program = case_after(case, PIPELINES["scanned"])
    assert_close(run(program, *args), run(case.function, *args))


@pytest.mark.parametrize("prefill", [False, True], ids=["decode", "prefill"])
def test_learned_positions_decline(prefill: bool) -> None:
    case = Case("gpt", prefill)
    program = case_after(case, f"{FIRST}, first_layer{{budget=10.0}}")
    said = notes_of(program, "first_layer")
    assert all(note.startswith("declined: add at ") for note in said)
    assert all(
        "gpt.py:" in n and "mixes rows of the embedding with other values" in n for n in said
    )
    assert program.graph == case_after(case, FIRST).graph


def test_tables_beyond_the_budget_decline() -> None:
    program = Pipeline.parse("first_layer").run(case_after(Case("llama"), FIRST))
    (note,) = notes_of(program, "first_layer")
    tables = 4 * VOCAB * (Q + 2 * E)
    total = sum(each.type.bytes for each in program.inputs if each.role == "param")
    share = 100 * tables / total
    assert note == (
        f"declined: the tables take {tables:,} bytes, {share:.1f}% of the parameters; "
        f"first_layer{{budget={int(np.ceil(share))}%}} allows it"
    )
    allowed = Pipeline.parse(f"first_layer{{budget={int(np.ceil(share))}%}}")
    assert accounting(allowed.run(case_after(Case("llama"), FIRST)))["tables"] * 4 == tables


def test_many_tokens_decline() -> None:
    """A long prefill reads each weight once and a row per token: the weights are fewer bytes."""
    case = Case("llama", prefill=True)
    params, cache, _ = arguments(case)
    many = jnp.zeros((BATCH, CONTEXT), jnp.int32)
    program = rewrite.trace(case.function, params, cache, many)
    made = Pipeline.parse(f"{FIRST}, first_layer{{budget=10.0}}").run(program)
    assert notes_of(made, "first_layer") == (
        f"declined: at {many.size} tokens a step, reading the weights is fewer bytes",
    )


def test_no_embedding_declines() -> None:
    program = Pipeline.parse("normalize, recognize, first_layer").run(
        rewrite.trace(lambda p, x: x @ p, W, X)
    )
    assert notes_of(program, "first_layer") == ("declined: tokens look up no parameter",)


def test_quantised_first_layers_are_looked_up_too() -> None:
    case = Case("llama")
    passes = f"{FIRST}, carry_cache, quantize, first_layer{{budget=10.0}}, stage, lower"
    program = case_after(case, passes)
    assert accounting(program)["tables"] == VOCAB * (Q + 2 * E)
    without = case_after(case, f"{FIRST}, carry_cache, quantize, stage, lower")
    args = arguments(case)
    assert_close(run(program, *args), run(without, *args), rtol=1e-4)


# Together.


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_whole_road(case: Case) -> None:
    passes = (
        f"{FIRST}, carry_cache, cache_layout, quantize, first_layer{{budget=10.0}}, stage, lower"
    )
    program = case_after(case, passes)
    assert program.keeps == "approx"
    logits, state = run(program, *arguments(case))
    wanted, kept = expected(case)
    assert np.abs(logits - wanted).max() / np.abs(wanted).max() < 0.05
    assert int(state["position"]) == int(kept["position"]) == 3 + (LENGTH if case.prefill else 1)


def test_order_of_independent_passes_does_not_matter() -> None:
    case = Case("llama")
    args = arguments(case)
    one = case_after(case, f"{FIRST}, carry_cache, quantize, stage, lower")
    other = case_after(case, f"{FIRST}, quantize, carry_cache, stage, lower")
    assert_close(run(one, *args), run(other, *args), rtol=1e-6)
