"""Programs that are no decoder, or one only in part: planned as far as they are understood."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from dialect.ops.sharding import show_layout
from dialect.planning.plan import Plan
from rewrite import Pipeline, Program, auto_shard, trace
from rewrite.errors import PlanError
from rewrite.target import Target
from tests.kit import assert_close

BATCH, D, F, HEADS, D_HEAD, CONTEXT, VOCAB = 8, 64, 128, 8, 8, 16, 96
TARGET = Target("cpu:8", (("x", 2), ("y", 4)))
PLANNED = "normalize, recognize, carry_cache, plan, shard, stage, lower"
RANDOM = np.random.default_rng(3)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(RANDOM.standard_normal(shape, np.float32) * shape[-1] ** -0.5)


def weights(**shapes: tuple[int, ...]) -> dict[str, jax.Array]:
    return {name: normal(*shape) for name, shape in shapes.items()}


TOKENS = jnp.arange(BATCH, dtype=jnp.int32) * 7 % VOCAB


def rms_norm(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def attention(params: Any, cache: Any, x: jax.Array) -> tuple[jax.Array, Any]:
    """One new position of every sequence, against all that the cache holds."""
    q, k, v = (jnp.einsum("bd,dhk->bhk", x, params[name]) for name in ("wq", "wk", "wv"))
    at = cache["position"]
    keys = jax.lax.dynamic_update_slice(cache["k"], k[:, None], (0, at, 0, 0))
    values = jax.lax.dynamic_update_slice(cache["v"], v[:, None], (0, at, 0, 0))
    logits = jnp.einsum("bhk,bshk->bhs", q, keys) * D_HEAD**-0.5
    logits = jnp.where(jnp.arange(CONTEXT) <= at, logits, -jnp.inf)
    mixed = jnp.einsum("bhs,bshk->bhk", jax.nn.softmax(logits, axis=-1), values)
    out = jnp.einsum("bhk,hkd->bd", mixed, params["wo"])
    return out, {"k": keys, "v": values, "position": at + 1}


ATTENTION = {name: (D, HEADS, D_HEAD) for name in ("wq", "wk", "wv")} | {"wo": (HEADS, D_HEAD, D)}


def kv_cache() -> dict[str, jax.Array]:
    shape = (BATCH, CONTEXT, HEADS, D_HEAD)
    return {"k": jnp.zeros(shape), "v": jnp.zeros(shape), "position": jnp.int32(0)}


@dataclass(frozen=True)
class Case:
    """A step, its arguments, and what the plan's label begins with."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    label: str
    state: tuple[int, ...] = (1,)


def attention_only(params: Any, cache: Any, tokens: jax.Array) -> Any:
    x = params["embedding"][tokens]
    out, cache = attention(params, cache, rms_norm(x))
    return rms_norm(x + out) @ params["embedding"].T, cache


def no_attention(params: Any, tokens: jax.Array) -> jax.Array:
    x = params["embedding"][tokens]
    for _ in range(2):
        x = x + jax.nn.silu(rms_norm(x) @ params["up"]) @ params["down"]
    return rms_norm(x) @ params["head"]


def recurrent(params: Any, state: jax.Array, tokens: jax.Array) -> Any:
    """A recurrent network with gates, all in one product (GRU-like)."""
    x = params["embedding"][tokens]
    mixed = jnp.concatenate([x, state], axis=-1) @ params["w"] + params["b"]
    forget, new = jnp.split(mixed, 2, axis=-1)
    state = jax.nn.sigmoid(forget) * state + jnp.tanh(new)
    return state @ params["head"], state


def state_space(params: Any, state: Any, tokens: jax.Array) -> Any:
    """A selective state-space layer, scanned over layers (Mamba-like)."""

    def layer(x: jax.Array, each: Any) -> tuple[jax.Array, jax.Array]:
        weights, memory = each
        inner, gate = jnp.split(rms_norm(x) @ weights["w_in"], 2, axis=-1)
        step = jax.nn.softplus(inner * weights["dt"])[..., None]
        memory = memory * jnp.exp(-step * jnp.exp(weights["a"]))
        memory = memory + step * (inner @ weights["b"])[:, None, :] * inner[..., None]
        y = jnp.einsum("bfn,bn->bf", memory, inner @ weights["c"])
        return x + (y * jax.nn.silu(gate)) @ weights["w_out"], memory

    x, state = jax.lax.scan(layer, params["embedding"][tokens], (params["layers"], state))
    return rms_norm(x) @ params["embedding"].T, state


def hidden_states(params: Any, cache: Any, x: jax.Array) -> Any:
    out, cache = attention(params, cache, rms_norm(x))
    x = x + out
    return rms_norm(x + jax.nn.gelu(rms_norm(x) @ params["up"]) @ params["down"]), cache


def parameters_only(params: Any) -> jax.Array:
    return jnp.tanh(params["a"] @ params["b"])


def unlike_layers(params: Any, tokens: jax.Array) -> jax.Array:
    """Layers of different widths (as OpenELM's): one of them no mesh axis divides."""
    x = params["embedding"][tokens]
    for up, down in params["layers"]:
        x = x + jax.nn.silu(rms_norm(x) @ up) @ down
    return rms_norm(x) @ params["embedding"].T


def unknown_weights(params: Any, x: jax.Array) -> jax.Array:
    """Products without a norm, a unit or a table to tell what their axes are."""
    return jnp.sin(jnp.cos(x @ params["a"]) @ params["b"]) @ params["c"]


CASES = {
    "attention only": Case(
        attention_only, (weights(embedding=(VOCAB, D), **ATTENTION), kv_cache(), TOKENS), "partial"
    ),
    "no attention": Case(
        no_attention,
        (weights(embedding=(VOCAB, D), up=(D, F), down=(F, D), head=(D, VOCAB)), TOKENS),
        "partial",
        (),
    ),
    "recurrent": Case(
        recurrent,
        (
            weights(embedding=(VOCAB, D), w=(2 * D, 2 * D), b=(2 * D,), head=(D, VOCAB)),
            normal(BATCH, D),
            TOKENS,
        ),
        "partial",
    ),
    "state space": Case(
        state_space,
        (
            {
                "embedding": normal(VOCAB, D),
                "layers": weights(
                    w_in=(3, D, 2 * F),
                    dt=(3, F),
                    a=(3, F, 4),
                    b=(3, F, 4),
                    c=(3, F, 4),
                    w_out=(3, F, D),
                ),
            },
            normal(3, BATCH, F, 4),
            TOKENS,
        ),
        "partial",
    ),
    "hidden states": Case(
        hidden_states,
        (weights(up=(D, F), down=(F, D), **ATTENTION), kv_cache(), normal(BATCH, D)),
        "partial",
    ),
    "parameters only": Case(parameters_only, (weights(a=(D, F), b=(F, D)),), "partial", ()),
    "unlike layers": Case(
        unlike_layers,
        (
            {
                "embedding": normal(VOCAB, D),
                "layers": [(normal(D, n), normal(n, D)) for n in (F, 36, 30)],
            },
            TOKENS,
        ),
        "partial",
        (),
    ),
    "tiny": Case(
        no_attention,
        (weights(embedding=(7, 3), up=(3, 5), down=(5, 3), head=(3, 7)), jnp.int32([1, 2, 6])),
        "partial/EF>BE",
        (),
    ),
    "unknown weights": Case(
        unknown_weights,
        (weights(a=(512, 1024), b=(1024, 513), c=(513, 1031)), normal(BATCH, 512)),
        "partial",
        (),
    ),
}


def copied(tree: Any) -> Any:
    """Of its own: the step gives its state away."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)


def assert_serves_the_same(case: Case, pipeline: str = PLANNED) -> Program:
    """The step on eight devices, against the function itself; its program."""
    step = auto_shard(case.function, "cpu:8", pipeline=pipeline, state=case.state)
    expected = jax.jit(case.function)(*case.args)
    found = step(*copied(case.args))
    assert_close((found[0], step.restore(found[1])) if case.state else found, expected, 1e-4)
    return step.program(*case.args)


def laid_out(program: Program) -> dict[str, str]:
    """The layout of every input of the step."""
    return {each.name: show_layout(each.layout) for each in program.step_inputs}


def plan_notes(program: Program) -> list[str]:
    (step,) = (each for each in program.history if each.text.startswith("plan"))
    return list(step.notes)


def planned(
    function: Callable[..., Any], *args: Any, state: tuple[int, ...] = (), plan: str = "plan"
) -> Program:
    """As far as `shard`; shapes are enough."""
    program = trace(function, *args, state=state)
    return Pipeline.parse(f"normalize, recognize, {plan}, shard").run(program, TARGET)


@pytest.mark.parametrize("name", CASES)
def test_is_planned_sharded_compiled_and_equal(name: str) -> None:
    program = assert_serves_the_same(CASES[name])
    assert program.plan.label.startswith(CASES[name].label)
    assert Plan.parse(str(program.plan)) == program.plan


# What was found is planned, and what was not is told.


def test_what_was_not_found_is_told() -> None:
    notes = plan_notes(planned(no_attention, *CASES["no attention"].args))
    assert notes[0].startswith("partial/") and notes[0].endswith(" on cpu:8")
    assert notes[1:] == ["not found, so not costed: attention"]
    step = auto_shard(parameters_only, "cpu:8", pipeline=PLANNED, state=())
    told = step.details(*CASES["parameters only"].args)
    assert "not found, so not costed: attention, feed-forward layer, residual stream" in told
    assert "CHOSEN       partial/" in told


def test_attention_alone_is_planned_as_attention() -> None:
    case = CASES["attention only"]
    plan = "plan{ffn=ws1d, attention=heads}"
    found = laid_out(planned(case.function, *case.args, state=(1,), plan=plan))
    assert found["params/wq"] == "_ xy _" and found["params/wo"] == "xy _ _"
    assert found["cache/k"] == "_ _ xy _"
    assert found["params/embedding"] == "xy _"


def test_state_of_unknown_axes_is_split_over_the_batch() -> None:
    case = CASES["recurrent"]
    assert laid_out(planned(case.function, *case.args, state=(1,)))["state"] == "xy _"


@pytest.mark.parametrize("name", CASES)
def test_everything_is_planned_on_one_chip(name: str) -> None:
    """State of unknown axes was asked to be split over the batch, which one chip refuses."""
    case = CASES[name]
    program = trace(case.function, *case.args, state=case.state)
    target = Target("cpu:1", (("x", 1),))
    program = Pipeline.parse("normalize, recognize, plan, shard").run(program, target)
    assert program.plan.label == "partial/ws1d/heads"


def test_state_of_a_unit_lies_as_the_unit_does() -> None:
    case = CASES["state space"]
    program = planned(case.function, *case.args, state=(1,), plan="plan{ffn=ws1d}")
    found, plan = laid_out(program), program.plan
    assert found["params/layers/w_out"].split()[1] == "".join(plan.split("weights")["d_ff"])
    assert found["state"].split()[2] == "".join(plan.split("hidden")["d_ff"])


def test_heads_that_do_not_divide_stay_whole_and_the_rest_is_split() -> None:
    """GPT-2 XL on eight chips: 25 heads, 1,600 wide, 50,257 words."""
    heads, d_head, width, ff, vocab = 25, 64, 1600, 6400, 50257
    shapes = {name: (width, heads, d_head) for name in ("wq", "wk", "wv")}
    shapes |= {"wo": (heads, d_head, width), "up": (width, ff), "down": (ff, width)}
    shapes |= {"embedding": (vocab, width)}
    params = {name: jax.ShapeDtypeStruct(shape, "bfloat16") for name, shape in shapes.items()}
    kept = jax.ShapeDtypeStruct((BATCH, CONTEXT, heads, d_head), "bfloat16")
    cache = {"k": kept, "v": kept, "position": jax.ShapeDtypeStruct((), "int32")}

    def step(params: Any, cache: Any, tokens: jax.Array) -> Any:
        x = params["embedding"][tokens]
        out, cache = attention(params, cache, rms_norm(x))
        x = x + out
        x = x + jax.nn.gelu(rms_norm(x) @ params["up"]) @ params["down"]
        return x @ params["embedding"].T, cache

    tokens = jax.ShapeDtypeStruct((BATCH,), "int32")
    program = planned(step, params, cache, tokens, state=(1,))
    found = laid_out(program)
    assert "UNAVAILABLE  ws1d/heads" in program.plan.explain()
    assert found["params/up"] == "xy _" and found["params/down"] == "_ xy"  # over d_model
    assert found["params/wq"] == "xy _ _" and found["params/wo"] == "_ _ xy"
    assert found["params/embedding"] == "_ xy"


def test_layers_of_other_widths_are_split_where_they_can_be() -> None:
    plan = "plan{ffn=ws1d, attention=heads}"
    found = laid_out(planned(unlike_layers, *CASES["unlike layers"].args, plan=plan))
    assert [found[f"params/layers/{i}/0"] for i in range(3)] == ["_ xy", "_ _", "_ _"]


def test_large_weights_of_unknown_axes_are_split_along_the_largest_that_divides() -> None:
    program = planned(unknown_weights, *CASES["unknown weights"].args)
    found = laid_out(program)
    assert {name: found[f"params/{name}"] for name in "abc"} == {
        "a": "_ xy",
        "b": "xy _",  # its first axis is the last of `a`, and lies alike
        "c": "_ _",  # neither 513 nor 1,031 divides by eight
    }
    assert plan_notes(program)[2:] == [
        "split by size alone, its axes being unknown: params/b f32[1024,513], "
        "params/a f32[512,1024] (4.00 MiB)",
        "whole on every chip, its axes being unknown: params/c f32[513,1031] (2.02 MiB)",
    ]


def test_small_weights_of_unknown_axes_are_on_every_chip() -> None:
    args = weights(a=(64, 128), b=(128, 16), c=(16, 32)), normal(BATCH, 64)
    found = laid_out(planned(unknown_weights, *args))
    assert found["params/a"] == found["params/b"] == "_ _"


def test_asked_for_by_name_a_partitioning_still_must_divide() -> None:
    program = trace(no_attention, *CASES["tiny"].args, state=())
    pipeline = Pipeline.parse("normalize, recognize, plan{ffn=ws1d, attention=heads}")
    with pytest.raises(PlanError, match=r"d_ff \(5\) does not divide over x=2 y=4"):
        pipeline.run(program, TARGET)


# A kernel of somebody's own, over a cache of pages.

PAGE, PAGES, EACH = 4, 40, 4


def paged_kernel(table: Any, lengths: Any, q: Any, k: Any, v: Any, out: Any) -> None:
    """Attention of every sequence over the pages that its row of the table names."""

    def sequence(b: jax.Array, _: None) -> None:
        keys, values = (
            jnp.concatenate([pages[table[b, i]] for i in range(EACH)]) for pages in (k, v)
        )
        scores = jnp.sum(q[b] * keys, axis=-1) * D_HEAD**-0.5
        scores = jnp.where(jnp.arange(EACH * PAGE)[:, None] < lengths[b], scores, -jnp.inf)
        out[b] = jnp.sum(jax.nn.softmax(scores, axis=0)[..., None] * values, axis=0)

    jax.lax.fori_loop(0, BATCH, sequence, None)


def paged(params: Any, cache: Any, tokens: jax.Array) -> Any:
    x = params["embedding"][tokens]
    q, k, v = (jnp.einsum("bd,dhk->bhk", rms_norm(x), params[name]) for name in ("wq", "wk", "wv"))
    table, lengths = cache["table"], cache["lengths"]
    page = jnp.take_along_axis(table, lengths[:, None] // PAGE, axis=1)[:, 0]
    keys = cache["k"].at[page, lengths % PAGE].set(k)
    values = cache["v"].at[page, lengths % PAGE].set(v)
    attend = pl.pallas_call(
        paged_kernel, out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype), interpret=True
    )
    mixed = attend(table, lengths + 1, q, keys, values)
    x = x + jnp.einsum("bhk,hkd->bd", mixed, params["wo"])
    x = x + jax.nn.silu(rms_norm(x) @ params["up"]) @ params["down"]
    cache = {"k": keys, "v": values, "table": table, "lengths": lengths + 1}
    return rms_norm(x) @ params["embedding"].T, cache


def paged_case() -> Case:
    pages = {name: normal(PAGES, PAGE, HEADS, D_HEAD) for name in "kv"}
    table = RANDOM.permutation(PAGES)[: BATCH * EACH].reshape(BATCH, EACH)
    lengths = RANDOM.integers(1, EACH * PAGE - 1, BATCH)
    cache = pages | {"table": jnp.int32(table), "lengths": jnp.int32(lengths)}
    params = weights(embedding=(VOCAB, D), up=(D, F), down=(F, D), **ATTENTION)
    return Case(paged, (params, cache, TOKENS), "partial")


EVERYTHING = (
    "retarget, normalize, recognize, carry_cache, cache_layout, unroll, first_layer{budget=10.0}, "
    "plan, shard, stage, lower"
)


def test_a_paged_kernel_passes_through_untouched_and_the_rest_is_planned() -> None:
    case = paged_case()
    before = [op for op, _ in trace(paged, *case.args, state=(1,)).graph.walk()]
    program = assert_serves_the_same(case, EVERYTHING)
    kernels = [
        [op.attrs for op in ops if op.name == "pallas_call"]
        for ops in (before, [op for op, _ in program.graph.walk()])
    ]
    assert [[name for name, _ in each] for each in kernels[0]] == [
        [name for name, _ in each] for each in kernels[1]
    ]
    assert len(kernels[1]) == 1
    found = laid_out(program)
    assert found["params/up"] != "_ _" and found["params/down"] != "_ _"
    assert found["cache/k"] == found["cache/v"] == "_ _ _ _"
    assert plan_notes(program)[1] == "not found, so not costed: attention"


@pytest.mark.parametrize(
    "passes", [EVERYTHING[: m.end()] for m in re.finditer(r"\w+(?=,|$)", EVERYTHING)]
)
def test_a_paged_kernel_means_the_same_after_every_pass(passes: str) -> None:
    case = paged_case()
    program = Pipeline.parse(passes).run(trace(paged, *case.args, state=(1,)), TARGET)
    assert_close(program(*case.args), jax.jit(paged)(*case.args), 1e-4)
