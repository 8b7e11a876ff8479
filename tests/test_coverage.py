"""The coverage report: what was recognised, what nearly was and why not, and what each costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import rewrite
from dialect.arrays.dtypes import struct_of
from dialect.front import cli
from dialect.jaxprs.jaxpr import trace_graph
from dialect.normal.normal_form import normal_form
from dialect.reports.coverage import Coverage, coverage
from dialect.reports.op_cost import Cost, cost_of
from dialect.reports.provenance import provenance
from passes.recognize import RULES
from rewrite import Pipeline, Program, auto_shard
from rewrite.ir import Type
from tests.decoders import BATCH, CONTEXT, D_FF, D_HEAD, D_MODEL, HEADS, VOCAB, recognized
from tests.tiny import MODELS, Case, traced

PRODUCTS = 2 * BATCH * D_MODEL * D_MODEL  # FLOPs of one projection
F32 = 4


def covered(program: Program) -> Coverage:
    return coverage(program, RULES)


def pieces(found: Coverage, part: str) -> dict[str, int]:
    """How many pieces of each name a part has."""
    (each,) = (each for each in found.parts if each.name == part)
    counts: dict[str, int] = {}
    for piece in each.recognised:
        counts[piece.piece] = counts.get(piece.piece, 0) + piece.count
    return counts


# What an op costs.

COSTS: dict[str, tuple[Callable[..., Any], tuple[str, ...], Cost]] = {
    "a product": (jnp.dot, ("f32[2,3]", "f32[3,5]"), Cost(2 * 2 * 3 * 5, F32 * (6 + 15 + 10))),
    "a sum": (lambda x: jnp.sum(x, 1), ("f32[2,3]",), Cost(6, F32 * (6 + 2))),
    "rows of a table": (
        lambda x: jnp.take(x, jnp.array([1, 2]), axis=0, mode="clip"),
        ("f32[100,8]",),
        Cost(0, F32 * (2 * 8 + 2 * 8 + 2)),
    ),
    "an update in place": (
        lambda x, y: lax.dynamic_update_slice(x, y, (3, 0)),
        ("f32[100,8]", "f32[1,8]"),
        Cost(0, F32 * (8 + 8 + 2)),
    ),
    "another shape": (lambda x: x.reshape(6), ("f32[2,3]",), Cost()),
    "a loop": (
        lambda x: lax.fori_loop(0, 5, lambda _, y: jnp.sin(y), x),
        ("f32[7]",),
        Cost(5 * (7 + 1), 5 * (F32 * 14 + F32 * 3)),  # the sine, and the counter
    ),
}


@pytest.mark.parametrize("name", COSTS)
def test_what_an_op_costs(name: str) -> None:
    function, types, wanted = COSTS[name]
    args = [struct_of(Type.parse(text)) for text in types]
    graph = normal_form(trace_graph(lambda *arrays: [function(*arrays)], *args))
    assert cost_of(graph.ops) == wanted


# What was recognised.


def test_equal_layers_are_told_once() -> None:
    found = covered(recognized("gge"))
    assert [(each.name, each.times) for each in found.parts] == [
        ("around the layers", 1),
        ("layers 0-1", 2),
        ("layer 2", 1),
    ]
    assert pieces(found, "layers 0-1") == {
        "norm": 1,
        "attention": 1,
        "cache write": 2,
        "residual": 2,
        "feed-forward": 1,
    }


def test_the_whole_step_counts_each_layer() -> None:
    found = covered(recognized("ggg"))
    counts = {each.piece: each.count for each in found.recognised}
    assert counts["attention"] == counts["feed-forward"] == counts["norm"] == 3
    assert counts["embedding"] == counts["logits"] == 1
    assert found.unrecognised == ()


def test_costs_are_those_of_the_ops() -> None:
    """Four projections and two products with the cache; a network; the head."""
    found = {each.piece: each.cost.flops for each in covered(recognized("g")).recognised}
    scores = 2 * BATCH * HEADS * D_HEAD * CONTEXT
    weights = BATCH * HEADS * CONTEXT  # elements of the softmax, of which there are a few ops
    assert 0 <= found["attention"] - 4 * PRODUCTS - 2 * scores <= 8 * weights
    assert 0 <= found["feed-forward"] - 2 * 2 * BATCH * D_MODEL * D_FF <= 8 * BATCH * D_FF
    assert found["logits"] == 2 * BATCH * D_MODEL * VOCAB


@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_the_examples_are_recognised_whole(model: str, unrolled: bool) -> None:
    program = Pipeline.parse("normalize, recognize").run(traced(Case(model, unrolled=unrolled)))
    found = covered(program)
    assert found.unrecognised == ()
    counts = {each.piece: each.count for each in found.recognised}
    assert (counts["attention"], counts["feed-forward"], counts["logits"]) == (2, 2, 1)


def test_a_loop_over_layers_is_counted_as_often_as_it_runs() -> None:
    once, looped = (
        covered(
            Pipeline.parse("normalize, recognize").run(traced(Case("llama", unrolled=unrolled)))
        )
        for unrolled in (True, False)
    )
    for piece in ("attention", "feed-forward", "norm"):
        (one,), (other,) = ([e for e in f.recognised if e.piece == piece] for f in (once, looped))
        assert (one.count, one.cost.flops) == (other.count, other.cost.flops)
    (loop,) = (part for part in looped.parts if part.name.startswith("loop of"))
    assert loop.times == 2 and "examples/llama.py" in loop.source


# What was not.


def odd_step(params: Any, cache: Any, tokens: jax.Array) -> Any:
    """One layer whose attention weights are squares, and a norm by the largest value."""
    x = params["embedding"][tokens]
    x = x / (jnp.max(jnp.abs(x), -1, keepdims=True) + 1e-6)
    q = (x @ params["q"]).reshape(BATCH, HEADS, D_HEAD)
    shares = jnp.square(jnp.einsum("bhk,bshk->bhs", q, cache))
    shares = shares / jnp.sum(shares, -1, keepdims=True)
    mixed = jnp.einsum("bhs,bshk->bhk", shares, cache).reshape(BATCH, D_MODEL)
    return x + mixed @ params["o"], cache


def odd() -> Program:
    def shape(*sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, "float32")

    params = {
        "embedding": shape(VOCAB, D_MODEL),
        "q": shape(D_MODEL, D_MODEL),
        "o": shape(D_MODEL, D_MODEL),
    }
    tokens = jax.ShapeDtypeStruct((BATCH,), "int32")
    cache = shape(BATCH, CONTEXT, HEADS, D_HEAD)
    program = rewrite.trace(odd_step, params, cache, tokens, state=1)
    return Pipeline.parse("normalize, recognize").run(program)


def test_what_is_not_recognised_is_listed_with_its_cost_and_line() -> None:
    found = covered(odd())
    dearest = found.unrecognised[0]
    assert dearest.ops.startswith("contract x2, ")
    assert f"{__file__}:" in dearest.source and dearest.source.endswith("(odd_step)")
    scores = 2 * BATCH * HEADS * D_HEAD * CONTEXT
    assert dearest.cost.flops >= 2 * scores
    assert dearest.cost.bytes >= 2 * F32 * BATCH * CONTEXT * D_MODEL  # the cache is read twice


def test_nothing_is_lost() -> None:
    """Pieces, what was not recognised, and indices together cost what the program does."""
    for program in (odd(), recognized("gge"), recognized("lglg", "own")):
        found = covered(program)
        whole = cost_of(program.graph.ops)
        once = cost_of(op for op in program.graph.ops if op.name == "reshape")
        assert found.cost.flops <= whole.flops
        assert whole.flops - found.cost.flops <= whole.flops * 0.02 + once.flops


def test_a_near_miss_says_how_far_it_came_and_why_it_stopped() -> None:
    def step(temperature: Any, q: Any, k: Any, v: Any) -> Any:
        logits = jnp.einsum("thk,shk->hts", q, k) * temperature
        return jnp.einsum("hts,shk->thk", jax.nn.softmax(logits, -1), v)

    heads = jax.ShapeDtypeStruct((4, 2, 8), "float32")
    temperature = jax.ShapeDtypeStruct((2, 1, 4), "float32")
    program = rewrite.trace(step, temperature, heads, heads, heads)
    found = covered(Pipeline.parse("normalize, recognize").run(program))
    (near,) = (each for each in found.near_misses if each.rule == "attend")
    assert near.reason == "the softmax is over mul with an array"
    assert f"{__file__}:" in near.source and near.depth >= 2


# Where it is shown.


def test_explain_shows_it() -> None:
    case = Case("llama", unrolled=True)
    program = traced(case)
    args = jax.tree.map(
        lambda each: jax.ShapeDtypeStruct(each.shape, each.dtype), example_args(case)
    )
    step = auto_shard(case.function, "cpu:8")
    told = step.details(*args)
    assert "recognised: 100.0 % of " in told
    assert "attention" in told and "grouped, 4 heads on 2 KV heads of 4, causal" in told
    assert "names of axes" in told and "params/layers/*/wq" in told
    assert program.name


def example_args(case: Case) -> tuple[Any, ...]:
    module, config = case.module, case.config
    params = jax.eval_shape(
        lambda key: module.init_params(config, key, unrolled=case.unrolled), jax.random.key(0)
    )
    cache = jax.eval_shape(lambda: module.init_cache(config, 8, 16, unrolled=case.unrolled))
    return params, cache, jax.ShapeDtypeStruct((8,), "int32")


LLAMA = ("coverage", "examples/llama.py:decode_step", "--config", "toy")


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(LLAMA) == 0
    text = capsys.readouterr().out.lstrip()
    assert text.startswith("recognised: 100.0 % of ")
    for told in ("around the layers", "loop of 3", "feed-forward", "axes", "named by"):
        assert told in text


def test_the_command_prints_it_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main((*LLAMA, "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["coverage"]["unrecognised"] == []
    counts = {each["piece"]: each["count"] for each in found["coverage"]["recognised"]}
    assert counts["attention"] == 3 and counts["embedding"] == 1
    axes = {each["name"]: each["axes"] for each in found["axes"]["inputs"]}
    assert axes["params/embedding"] == "vocab d_model"


def test_a_pipeline_that_recognizes_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main((*LLAMA, "-p", "normalize")) != 0
    assert "add the pass recognize to it" in capsys.readouterr().err


def test_every_name_of_an_axis_says_what_gave_it() -> None:
    found = {each.name: each for each in provenance(recognized("ggg")).axes}
    assert found["context"].size == CONTEXT and found["context"].named_by.startswith("attend at ")
    assert found["vocab"].size == VOCAB and found["vocab"].named_by.startswith("take at ")
    inputs = {each.name: each for each in provenance(recognized("ggg")).inputs}
    assert (inputs["params/layers/*/q"].axes, inputs["params/layers/*/q"].count) == (
        "d_model (heads d_head)",
        3,
    )
